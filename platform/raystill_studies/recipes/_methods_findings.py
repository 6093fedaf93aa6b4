"""What the comparison's figures say, written by people who have seen them: three seeds, two budgets."""

SUMMARY = """## What came out

RayFlow's two rows, ADD's, Lightning's and the solvers are of the present code, the rows with a * of earlier code, with
other starts for the same captions: between the two, read differences of a tenth and more.

- **RayFlow is first at every number of steps after equal updates**: 0.81 ± 0.03 of Rectified Diffusion's distance at
  one step, 0.80 ± 0.02 at two, 0.83 ± 0.01 of CTM's at four and 0.90 ± 0.02 of the phased variant's at eight. Its path
  ends where the teacher's schedule does now; with the former end it was level with Rectified Diffusion at one step.
- **At equal seconds** it has 0.85 ± 0.03 of Rectified Diffusion's distance at one step; at two to eight steps TSCD and
  the phased variant are within 13, 5 and 3 % of it, which is less than can be read between two codes.
- **Its loss and law of times are a part of it.** Without them ("plain") its distances are 1.18, 1.13, 1.11 and 1.09
  times as large at 1, 2, 4 and 8 steps, at equal seconds 1.12, 1.09, 1.08 and 1.08.
- **Three times the updates bring it no further** from two steps on (58.3 against 56.7 at two, 50.8 against 47.7 at
  eight): all settings were chosen after 100 updates, where the highest rate that was tried first, 3e-3, is the best.
- **A student of four RayFlow steps is nearer than the best solver without training in four calls** (49.8, UniPC without
  guidance 54.6), one of eight as near (47.7 and 47.6). No method is as near to real pictures as the teacher's 50 guided
  steps (44.5).
- **Adversaries need more than these budgets.** With one logit per place ADD and Lightning are where they were: far
  behind, and ADD gets worse with more updates. Of the rows of earlier code, DMD2's student has 31 updates in the second
  budget, LCM drifts ([the study](methods_study.md)), and SCott has 126 updates, too few to say."""

PICTURES = """With four times as many pictures students of stored pairs are 4 to 6 % nearer at every number of steps,
and TSCD is not (1 to 5 % farther, its spread 4). RayFlow is then ahead of it at one and two steps and level at four
and eight, where TSCD with 768 pictures is still 4 % ahead, within its spread. With a lower rate and a squared distance
RayFlow gains as much from two steps on without more pictures, and is level with Rectified Diffusion."""

LADDER = """The path changes nothing that can be told from a seed's spread. The learning rate, which was chosen after
100 updates, is too high for 305: a third of it gives 1 % at one step and 2 % from two on. A squared distance gives 1 %
more, and with both RayFlow is level with Rectified Diffusion (1.00 ± 0.02, 1.01 ± 0.01, 1.00 ± 0.02, 0.99 ± 0.02 of
its distance at 1, 2, 4, 8 steps). Uniform times cost 3 % at one step and 2 % at two. What is left then is the
consistency stage, which is worth 3 % at one and two steps and nothing from four on: with as many updates it does add
something."""

COUPLING = """It gains 4 ± 3 % at one step and nothing from two on, where TCD's teacher works in every step anyway."""

CONSISTENCY = """After 100 updates, a third of them its own, it adds nothing that can be told from a seed's spread."""

BOOTSTRAPPING = """Without an average LCM gets worse with more updates, and at once at a higher rate, less so with a
squared distance. With a slow target it does not drift and is the same with every seed, but has not come far at one
step."""
