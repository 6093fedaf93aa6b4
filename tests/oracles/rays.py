"""The forward chain of RayFlow's path, its posterior and derivatives: the truth that samplers are tested against."""

from typing import NamedTuple

import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.paths import Coefficients, Path, RayPath
from raystill.flow.schedules import Schedule, Times


def derivatives(path: Path, schedule: Schedule, t: Times) -> Coefficients:
    """Derivatives of the three coefficients in t, so that d x_t / dt = data' x_0 + mean' mu + noise' eps.

    At a knot of a discrete schedule, between whose steps the angle is linear, it is the derivative from the left.
    """
    with torch.inference_mode(False), torch.enable_grad():  # a sampler may run without gradients
        at = t.clone().requires_grad_()
        return Coefficients(*(_slope(values, at) for values in path.coefficients(schedule, at)))


def ray_kernel(path: RayPath, schedule: Schedule, r: Times, t: Times) -> Coefficients:
    """RayFlow's forward step from time r to a later t, x_t - f mu = k (x_r - f mu) + c sigma sqrt(n_t^2 - k^2 n_r^2)
    eps with k = s_t / s_r (2503.07699), as the coefficients (k, f (1 - k), ...) of x_r, mu and eps.

    On a variance-preserving schedule k is sqrt(alpha) and the root is sqrt(1 - alpha). UserError where t < r.
    """
    _check_order(r, t)
    k = torch.where(r < t, schedule.signal(t) / schedule.signal(r), 1.0)  # pure noise is 0 / 0 away from itself
    added = (schedule.noise(t) ** 2 - (k * schedule.noise(r)) ** 2).clamp(min=0)
    target = path.target(schedule)
    return Coefficients(k, target.mean * (1 - k), target.std * added.sqrt())


def chained(c: Coefficients, kernel: Coefficients) -> Coefficients:
    """Coefficients after one more step of a forward chain: those of kernel(x) for points x with coefficients `c`."""
    return Coefficients(
        kernel.data * c.data, kernel.data * c.mean + kernel.mean, torch.hypot(kernel.data * c.noise, kernel.noise)
    )


class Posterior(NamedTuple):
    """Coefficients of x_r = point x_t + data x_0 + mean mu + noise z, z ~ N(0, I); float64, shape (batch,) each."""

    point: Tensor
    data: Tensor
    mean: Tensor
    noise: Tensor


def ray_posterior(path: RayPath, schedule: Schedule, t: Times, r: Times) -> Posterior:
    """The posterior q(x_r | x_t, x_0, mu) of the ray path, r <= t: DDPM's (2006.11239, equation 7) on y = x - f mu
    with c sigma times its deviation. UserError where r > t or t = 0.
    """
    _check_order(r, t)
    if bool((t == 0).any()):  # times are on the CPU: no device sync
        raise UserError("there is nothing before data: ask for the posterior at times t > 0")
    kernel = ray_kernel(path, schedule, r, t)
    n_r, n_t = schedule.noise(r), schedule.noise(t)
    point = kernel.data * (n_r / n_t) ** 2
    data = schedule.signal(r) - point * schedule.signal(t)
    left = (1 - (kernel.data * n_r / n_t) ** 2).clamp(min=0).sqrt()
    target = path.target(schedule)
    return Posterior(point, data, target.mean * (1 - point - data), target.std * n_r * left)


def _slope(values: Tensor, t: Times) -> Times:
    """Derivative of each value in its own time; 0 where the values do not depend on time."""
    if not values.requires_grad:
        return torch.zeros_like(values)
    slope: Tensor = torch.autograd.grad(values.sum(), t, retain_graph=True)[0]
    return slope


def _check_order(r: Times, t: Times) -> None:
    if bool((r > t).any()):  # times are on the CPU: no device sync
        raise UserError(f"the chain goes from r to a later t, found r = {r.tolist()[:4]}, t = {t.tolist()[:4]}")
