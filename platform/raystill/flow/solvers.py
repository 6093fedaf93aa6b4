"""Deterministic solvers of a teacher's probability-flow ODE, behind one signature.

A state is a point of unit length, x = cos(angle) x_0 + sin(angle) e, whatever the teacher's schedule; only the schedule
knows the angle of a time. Times may fall, which samples, or rise, which inverts. Times lie on the CPU, so that no
coefficient waits for a device.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from raystill.flow.predictions import Latent, Prediction, check_noise
from raystill.flow.schedules import Grid, Schedule, Times

VPDenoise = Callable[[Latent, Times], Prediction]  # (points of unit length, times of shape (batch,)) -> prediction
Solver = Callable[[VPDenoise, Schedule, Latent, Grid], Latent]


def ddim(denoise: VPDenoise, schedule: Schedule, x: Latent, times: Grid) -> Latent:
    """Solve with DDIM: x_r = s_r x0_hat + n_r e_hat from time to time (Song et al. 2010.02502, eta = 0); first order,
    one call per step; x is the state at `times[0]`.
    """
    angles = schedule.angle(times)
    for t, angle, rest in zip(times, angles, angles[1:], strict=False):
        x = _jump(_ask(denoise, x, t, angle), rest)
    return x


def ddim_between(denoise: VPDenoise, schedule: Schedule, x: Latent, start: Times, end: Times, steps: int) -> Latent:
    """Solve with DDIM from each sample's own time `start` to its `end`, shapes (batch,), in equal steps of time."""
    grid = [torch.lerp(start, end, i / steps) for i in range(steps + 1)]
    for t, r in pairwise(grid):
        x = denoise(x, t).moved(schedule.angle(r))
    return x


def euler(denoise: VPDenoise, schedule: Schedule, x: Latent, times: Grid) -> Latent:
    """Solve with Euler in the straight coordinates z = x / (s + n), tau = n / (s + n), where dz / d tau = e - x_0
    (Liu et al. 2209.03003); first order, one call per step.

    For flow-matching teachers tau is the time and this is their own Euler step. In exact arithmetic it is DDIM on every
    schedule, as Euler is in any coordinates in which the path is a straight line; Heun's step does depend on them.
    """
    angles = schedule.angle(times)
    for t, angle, rest in zip(times, angles, angles[1:], strict=False):
        x = _straight(x, angle, rest, _ask(denoise, x, t, angle).flow)
    return x


def heun(denoise: VPDenoise, schedule: Schedule, x: Latent, times: Grid) -> Latent:
    """Solve with Heun's trapezoidal rule in the straight coordinates of `euler` (Karras et al. 2206.00364, algorithm 1,
    there in x / s and n / s, which end in infinity at zero signal); second order, two calls per step, but one for a
    step to t = 0.
    """
    angles = schedule.angle(times)
    for i, (t, r) in enumerate(pairwise(times)):
        angle, rest = angles[i], angles[i + 1]
        first = _ask(denoise, x, t, angle).flow
        end = _straight(x, angle, rest, first)
        if r > 0:
            end = _straight(x, angle, rest, (first + _ask(denoise, end, r, rest).flow) / 2)
        x = end
    return x


def dpm_solver_2m(denoise: VPDenoise, schedule: Schedule, x: Latent, times: Grid) -> Latent:
    """Solve with DPM-Solver++(2M) (Lu et al. 2211.01095, algorithm 2); second order, one call per step; first order in
    the first step and in a step to t = 0.

    Its step is DDIM's with the data estimate extrapolated in half log-SNR lambda = log(s / n) to the middle of the
    step. Where times rise, the noise estimate is extrapolated instead, as DPM-Solver does (2206.00927): on the way up
    an error of the data estimate would grow by n_r / n_t. From clean data, where lambda is infinite, its first two
    steps are first order: `heun` inverts better.
    """
    angles = schedule.angle(times)
    lambdas = torch.log(angles.cos() / angles.sin())  # +inf at t = 0, which makes the ratio below infinite
    rising = bool(times[-1] > times[0])
    previous: Latent | None = None
    for i in range(len(times) - 1):
        p = _ask(denoise, x, times[i], angles[i])
        estimate = p.epsilon if rising else p.data
        if previous is None or times[i + 1] == 0:
            x = _jump(p, angles[i + 1])
        else:
            ratio = float((lambdas[i] - lambdas[i - 1]) / (lambdas[i + 1] - lambdas[i]))
            middle = estimate + (estimate - previous) / (2 * ratio)
            x = (_jump_with_noise if rising else _jump_with_data)(x, middle, angles[i], angles[i + 1])
        previous = estimate
    return x


def calls(solver: Solver, times: Grid) -> int:
    """Calls of the denoiser that a solver makes over `times`."""
    steps = len(times) - 1
    return 2 * steps - int(times[-1] == 0) if solver is heun else steps


def _ask(denoise: VPDenoise, x: Latent, t: Tensor, angle: Tensor) -> Prediction:
    """Predict at one time for the whole batch; ValueError where the answer would have no noise estimate."""
    prediction = denoise(x, t.expand(len(x)))
    check_noise(prediction.kind, angle.view(1))
    return prediction


def _jump(p: Prediction, angle: Tensor) -> Latent:
    """The next state s_r x0_hat + n_r e_hat; at clean data only x0_hat, so that nothing is added to it."""
    return float(angle.cos()) * p.data + float(angle.sin()) * p.epsilon if angle > 0 else p.data


def _jump_with_data(x: Latent, data: Latent, angle: Tensor, rest: Tensor) -> Latent:
    """The next state s_r D + n_r (x - s_t D) / n_t: equation 9 of 2211.01095 for a constant data estimate D."""
    ratio = float(rest.sin() / angle.sin())
    return ratio * x + (float(rest.cos()) - ratio * float(angle.cos())) * data


def _jump_with_noise(x: Latent, noise: Latent, angle: Tensor, rest: Tensor) -> Latent:
    """The next state s_r (x - n_t E) / s_t + n_r E: equation 3.7 of 2206.00927 for a constant noise estimate E."""
    ratio = float(rest.cos() / angle.cos())
    return ratio * x + (float(rest.sin()) - ratio * float(angle.sin())) * noise


def _straight(x: Latent, angle: Tensor, rest: Tensor, flow: Latent) -> Latent:
    """Euler's step z_r = z_t + (tau_r - tau_t) (e - x_0) in the straight coordinates, from and to points of unit
    length.
    """
    length, length_r = angle.cos() + angle.sin(), rest.cos() + rest.sin()
    stride = rest.sin() / length_r - angle.sin() / length
    return float(length_r / length) * x + float(length_r * stride) * flow
