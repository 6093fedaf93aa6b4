"""What the study's figures say, written by people who have seen them: three seeds, 100 steps of 32 samples."""

SUMMARY = """## What held, and what did not

- **Instance targets hold, and are nearly everything.** Without them one step is as far from real pictures as the
  teacher's own (3.2 times the distance of a student with them), with eight steps there is no difference left.
- **A variance coefficient above 0 does not help one or two steps.** Up to 0.05 it changes nothing that can be told
  from 0; beyond, one step loses (1.03 times at 0.1, 1.7 times at 1). From 4 steps on, sigma around 0.2 agrees a
  little better with the teacher's own sample (LPIPS 0.95), at equal distance to real pictures. The paper's optimum
  is not seen here.
- **The Time Sampler does what it promises for the gradient, and little for the pictures.** Every learned law is
  within 1.2 of the best law of time alone and costs 0.3 to 1.2 % of a step; but that best law has 0.58 of the
  second moment of uniform times, and pictures gain a percent at equal steps, within a seed's spread. Steps to
  uniform's final loss differ by less than a seed does. Where the sampler will ask matters more than noise: the law
  of the sampler's own times gains 1.5 to 5 %.
- **The paths' two claims.** Trajectories overlap less: the error of x_0 along the path is a tenth of that with
  independent targets. Students are about as stable as the teacher (Lipschitz estimates of 0.9 to 1.1, the teacher's
  0.96 to 1.16 at 4 to 25 steps) and as diverse; a one-step student without instance targets only looks stable
  (0.2), because it draws the mean.
- **The ray is not the best path.** The paired diffusion path is better at 1 and 2 steps with every seed (0.94 and
  0.97), and agrees better with the teacher at all.

**Defaults.** Loss on data with pseudo-Huber, the learned law (`GridTimes`) over the sampler's own times, generated
targets, sigma 0. The path stays the ray, whose sigma is what people search, and the jump the ODE's, which stock
schedulers can do: `--set method.path=PairedDiffusionPath` and `--set sampling.jump=anchored` are better where the
last table says so."""

SIGMA = """Sigma up to 0.05 cannot be told from 0. From 0.1 on one step gets worse (1.03, 1.05, 1.10, 1.2 and 1.7
times at 0.1, 0.2, 0.3, 0.5 and 1), because the start then holds noise that is of no instance: the error of x_0
grows, outputs are means of several pictures, less diverse and by that more "stable". At 4 and 8 steps 0.1 to 0.3 is
as good in distance and 0.95 in LPIPS to the teacher's sample. Default: 0."""

MEANS = """Generated targets are best at 2 to 8 steps and agree best with the teacher. Inverted ones, whose data are
real, are 5 % nearer to real pictures at one step and 1 % farther from 2 on, and agree less. Assigned means ask the
teacher for nothing and get half of the way (1.8 times at one step, 1.0 at eight). An expectation over time blurs
the start: 1.4 times. Default: generated."""

TIMES = """All learned laws are within what was asked, for the gradient and in cost. The weighted logit-normal law
is the warning: its weights make five times the gradient's second moment, and 14 % more distance at one step.
Between uniform, U-shaped and the learned laws pictures differ by a percent, about what a seed does. The learned law
over the sampler's own times has the best figures of all."""

LAWS = """The sampler's own times gain 1.5 to 5 % over uniform ones at every number of steps. The one-step variant
is no better at one step than a student of all steps, and of no use beyond two: its kernel distances are small
there, but its pictures are no longer the teacher's (LPIPS twice and three times as large)."""

ABLATION = """Instance targets divide the one-step distance by three; the Time Sampler changes it by a percent,
within a seed's spread, with and without them."""

JUMPS = """At sigma 0 the anchored jump, which puts the instance's own noise back, is nearer to real pictures than
the ODE jump at 4 steps (0.92) and 8 (0.86), nearer to the teacher's own samples at 4 and farther at 8. Above 0 it
holds a mean that the start has mixed with noise, and loses agreement with every step; fresh noise (eta) helps the
distance, not the agreement. Default: the ODE jump, with which an adapter of sigma 0 needs no scheduler of ours."""

PATHS = """The paired diffusion path is better than the ray (distance 0.94, 0.97, 0.99, 1.00 at 1, 2, 4, 8 steps;
LPIPS 0.92, 0.86, 0.89, 0.96), with equal overlap and stability. With independent targets there is no difference:
what counts is that data and noise belong together."""

LOSSES = """The loss on data with pseudo-Huber is better than squared velocity in every column of the ratios, with
little spread over seeds. Squared data is as near to real pictures at 4 and 8 steps and agrees less. Weightings that
stress the clean end (SNR, min-SNR, the noise as target) lose 7 to 21 %: a student of few steps has most to learn at
the noisy one. Default: data, pseudo-Huber."""

BEST = """Loss and law add up in part (distance 0.96, 0.98, 0.98, 0.98 at 1, 2, 4, 8 steps), and the paired path
adds to both (0.90, 0.94, 0.98, 0.98; LPIPS 0.87, 0.80, 0.82, 0.88). The anchored jump brings 4 and 8 steps nearer
to real pictures (0.91 and 0.85), eight of them nearer than 25 of the teacher's, and at 8 farther from the teacher's
own."""
