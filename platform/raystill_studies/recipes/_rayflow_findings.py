"""What the study's figures say, written by people who have seen them: three seeds, 100 steps of 32 samples. Ratios are
of distances above their floor.
"""

SUMMARY = """## What held, and what did not

- **Instance targets hold, and are nearly everything.** Without them one step is as far from real pictures as the
  teacher's own (4.5 times the distance of a student with them), and two steps twice as far; with eight steps there is
  no difference left.
- **A variance coefficient above 0 does not help.** Up to 0.1 it changes nothing that can be told from 0; beyond, one
  and two steps lose (1.07 and 1.04 times at 0.2, 2.0 and 1.5 times at 1), four lose from 0.2 on and eight from 0.3.
  The paper's optimum is not seen here.
- **The Time Sampler does what it promises for the gradient, and a little for the pictures.** Every learned law is
  within 1.2 of the best law of time alone and costs 0.2 to 1.5 % of a step; that best law has 0.55 of the second moment
  of uniform times. At equal steps pictures gain 3 to 4 % at one step, 1 to 3 % at two, and less from four on; uniform's
  final loss is reached in 0.87 to 0.93 of its time (uniform times themselves reach it in 0.97 ± 0.06).
- **Where the sampler will ask matters more than noise.** The law of the sampler's own times is 15, 10, 9 and 9 % nearer
  than uniform times at 1, 2, 4 and 8 steps. A learned law over it adds nothing that can be told from a seed's spread.
- **Trajectories overlap less**: the error of x_0 along the path is a ninth of that with independent targets. Students
  are about as stable as the teacher at 4 and 8 steps (Lipschitz estimates of 1.6 and 1.7, the teacher's 1.2 and 1.6)
  and as diverse; a one-step student without instance targets only looks stable (0.2), because it draws the mean.

**Defaults.** Loss on data with pseudo-Huber, the learned law (`GridTimes`) over the sampler's own times, generated
targets, sigma 0. The jump stays the ODE's, which stock schedulers can do; `--set sampling.jump=anchored` is nearer to
real pictures from four steps on."""

SIGMA = """Sigma up to 0.05 cannot be told from 0. At 0.1 one step is 2 % worse, within a seed's spread, and beyond it
gets worse (1.07, 1.17, 1.4 and 2.0 times at 0.2, 0.3, 0.5 and 1), because the start then holds noise that is of no
instance: the error of x_0 grows, outputs are means of several pictures, less diverse and by that more "stable". At 4
and 8 steps nothing is gained, either. Default: 0."""

MEANS = """Generated targets are as good as any at one step and best from two on, and agree best with the teacher.
Inverted ones, whose data are real, are as near at one step, 5 % farther at two, 2 to 3 % (within a seed's spread) from
four on, and agree less. Assigned means ask the teacher for nothing and get half of the way (2.1 times at one step, 1.06
at eight). An expectation over time blurs the start: 1.7 times. Default: generated."""

TIMES = """All learned laws are within what was asked, for the gradient and in cost. The weighted logit-normal law
is the warning: its weights make five times the gradient's second moment, and 27 % more distance at one step. The
U-shaped law and the learned ones are 3 to 4 % better than uniform times at one step and 1 to 3 % at two; Stein's is the
best of them by a percent, within a seed's spread. The learned law over the sampler's own times is 16 % better at one
step and 9 to 10 % from two on, which are the sampler's own times' (next table)."""

LAWS = """The sampler's own times gain 15 % over uniform ones at one step and 9 to 10 % from two on: that, and not the
learned law, is what uniform times cost. The one-step variant is 7 % better still at one step, and of no use beyond it
(its pictures are no longer the teacher's: LPIPS is twice and three times as large at four and eight)."""

ABLATION = """Instance targets divide the one-step distance by nearly four. The Time Sampler gains 4 % at one step with
them and nothing without, and 2 to 3 % at two and four steps with and without, about what a seed does."""

JUMPS = """At sigma 0 the anchored jump, which puts the instance's own noise back, is nearer to real pictures than
the ODE jump at 4 steps (0.93) and 8 (0.85), nearer to the teacher's own samples at 4 and farther at 8. Above 0 it
holds a mean that the start has mixed with noise, and loses agreement with every step; fresh noise (eta) helps the
distance, not the agreement. Default: the ODE jump, with which an adapter of sigma 0 needs no scheduler of ours."""

LOSSES = """The loss on data with pseudo-Huber is 1 to 3 % nearer than squared velocity and agrees better, more with
every step (LPIPS 0.97 to 0.91). Squared data is nearest of all at 4 and 8 steps (0.97) and agrees less there (1.08 and
1.16). Weightings that stress the clean end (SNR, min-SNR, the noise as target) lose 7 to 35 %: a student of few steps
has most to learn at the noisy one. Default: data, pseudo-Huber, the nearest of all at one and two steps."""

BEST = """Loss and law together have what the loss has alone (0.97, 0.98, 0.99, 0.99 at 1, 2, 4, 8 steps): beside the
sampler's own times a learned law adds nothing. The anchored jump brings 4 and 8 steps nearer to real pictures (0.93 and
0.86), eight of them nearer than 25 of the teacher's, and at 8 farther from the teacher's own."""
