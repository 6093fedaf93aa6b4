"""Deterministic solvers of the teacher's probability-flow ODE and jumps of the student."""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from raystill.flow.predictions import Latent, Prediction
from raystill.flow.schedules import Grid, Schedule

VPDenoise = Callable[[Latent, Float[Tensor, " batch"]], Prediction]  # (x_t, times of shape (batch,)) -> prediction


def ddim(denoise: VPDenoise, schedule: Schedule, x: Latent, times: Grid) -> Latent:
    """Sample with DDIM: x_r = s_r x0_hat + n_r e_hat from time to time (Song et al. 2010.02502, eta = 0); x is the
    state at `times[0]`.
    """
    for t, r in pairwise(times):
        prediction = denoise(x, t.expand(len(x)))
        angle = schedule.angle(r.view(1))
        s_r, n_r = float(angle.cos()), float(angle.sin())
        x = s_r * prediction.data + n_r * prediction.epsilon if r > 0 else prediction.data
    return x


def dpm_solver_2m(denoise: VPDenoise, schedule: Schedule, x: Latent, times: Grid) -> Latent:
    """Sample with DPM-Solver++(2M), second order with one call per step (Lu et al. 2211.01095, algorithm 2); the last
    step is first order.

    Half log-SNR is lambda = -log tan(angle); the extrapolated data estimate D_i uses the previous call.
    """
    angles = schedule.angle(times)
    lambdas = -torch.log(torch.tan(angles))
    previous: Latent | None = None
    for i in range(len(times) - 1):
        data = denoise(x, times[i].expand(len(x))).data
        if times[i + 1] == 0:
            return data
        h = lambdas[i + 1] - lambdas[i]
        d = data
        if previous is not None:
            ratio = float((lambdas[i] - lambdas[i - 1]) / h)
            d = data + (data - previous) / (2 * ratio)
        n_ratio = float(angles[i + 1].sin() / angles[i].sin())
        x = n_ratio * x - float(angles[i + 1].cos() * torch.expm1(-h)) * d
        previous = data
    return x
