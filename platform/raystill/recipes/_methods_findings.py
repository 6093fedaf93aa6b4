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
- **The path is not why.** On the paired path of Rectified Diffusion it is 1 % better at equal updates, within a seed's
  spread, and no better at equal seconds.
- **Seeing the same pairs again is, of TSCD's lead.** From 100 to 305 updates, 13 passes over the 768 pairs that were
  stored, RayFlow gets 3 % better at one step and 3 % worse at four and eight. TCD and TSCD, whose teacher works in
  every step, see new noise each time, and get better (TSCD by 11 % at four). With four times the pictures RayFlow gains
  4 to 5 % and TSCD nothing, and RayFlow is ahead of it: [the study](methods_study.md). Rectified Diffusion, which
  trains on the same pairs, gains as much and stays 1 to 5 % ahead of RayFlow. Why is open.
- **LCM and SCott drift.** They are their own targets, and every landing is data: LCM's distance is 138 at one step
  after 100 updates and 160 ± 15 after 242 ([the study](methods_study.md)).
- **Adversaries need more than these budgets.** DMD2, ADD and Lightning are far behind (DMD2's student has 31 updates
  in the second one), and ADD gets worse.

No method is as near to real pictures as the teacher's 50 guided steps (87.7). At eight steps the phased variant, and at
equal seconds TSCD, are nearer than the best solver that needs no training (91.3), both by about a percent."""

PICTURES = """With four times as many pictures students of stored pairs are 4 to 6 % nearer at every number of steps,
and TSCD is not (1 to 5 % farther). RayFlow is then ahead of TSCD everywhere, and Rectified Diffusion ahead
of RayFlow, by 1 % at one step and 2 to 5 from two on."""

LADDER = ""

COUPLING = ""

CONSISTENCY = """It adds nothing here that can be told from a seed's spread."""

BOOTSTRAPPING = """Without an average LCM gets worse with more updates, and at once at a higher rate, less so
with a squared distance. With a slow target it does not drift and is the same with every seed, but has not come far at
one step."""
