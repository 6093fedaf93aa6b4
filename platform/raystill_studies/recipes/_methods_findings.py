"""What the comparison's figures say, written by people who have seen them: three seeds, two budgets."""

SUMMARY = """## What came out

- **At one step RayFlow with its Time Sampler and Rectified Diffusion are first, and cannot be told apart.** RayFlow
  has 0.99 ± 0.04 of its distance at equal updates and 1.00 ± 0.02 at equal seconds, and agrees best of all with the
  teacher's own sample from the same start. InstaFlow, which trains one step alone in its second half, is 1 to 3 %
  behind, rf++ 5 to 9 %, and nothing else comes near.
- **Its loss and law of times are what does it.** Without them ("plain") its distances are 1.09 times as large at one
  step and 1.06 from two on, at equal seconds 1.12 and 1.08: those of Reflow, nearly.
- **From two steps on it does not win.** At equal updates it is level with Rectified Diffusion at two and up to a
  percent behind CTM, Rectified Diffusion and its phased variant at four, where UniPC without guidance, which needs no
  training, is as good; at eight the phased variant and CTM are 5 and 3 % ahead. At equal seconds TSCD and Rectified
  Diffusion are 4 % ahead at two, TSCD 9 % and four others 3 to 5 % at four.
- **The path is not why**, nor is the number of pairs alone. On the paired path of Rectified Diffusion it is 1 % better
  at equal updates, within a seed's spread, and no better at equal seconds.
- **Its learning rate and distance are, in the second budget.** All settings were chosen after 100 updates, and there
  RayFlow's rate is the highest that was tried first, 3e-3. After 305 updates it has got 3 % better at one step and 3 %
  worse at four and eight. With 1e-3 and a squared distance, on the same 768 pairs, it is 4 to 5 % better from two
  steps on, and level with Rectified Diffusion or ahead of it (0.99 ± 0.02, 1.00, 0.99 ± 0.01, 0.98 ± 0.02 at 1, 2, 4,
  8 steps). This was tried after the comparison and for RayFlow alone: other methods may gain as much by rates of their
  own.
- **Uniform times cost it 3 % at one step and 2 % at two**, at otherwise equal settings: its learned law does there
  what the consistency stage does for Rectified Diffusion ([the study](methods_study.md)).
- **TSCD's lead at four and eight steps is half explained.** It stays 4 % ahead of RayFlow at that rate, with a spread
  of 4 %, on 768 pairs, which RayFlow sees 13 times, while TSCD sees new noise in every step. With 3072 pictures
  RayFlow at that rate (on the paired path) is level with the best of TSCD there, and 5 % ahead at two steps; but their
  targets take nearly all of the 150 seconds.
- **LCM drifts.** It is its own target, and every landing is data: its distance is 138 at one step after 100 updates
  and 160 ± 15 after 242 ([the study](methods_study.md)). SCott, which is built like it, has 126 updates in the second
  budget, too few to say.
- **Adversaries need more than these budgets.** DMD2, ADD and Lightning are far behind (DMD2's student has 31 updates
  in the second one), and ADD gets worse.

No method is as near to real pictures as the teacher's 50 guided steps (87.7). At eight steps the phased variant is
nearer than the best solver that needs no training (91.3), by about a percent, and at equal seconds TSCD as near (90.3
± 3.4)."""

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
