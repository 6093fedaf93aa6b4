"""Networks as denoisers: evaluated on their own schedule, under guidance, or at a point of any path."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raystill.flow.paths import Coefficients
from raystill.flow.predictions import Kind, Latent, Prediction, check_data, column, guided
from raystill.flow.schedules import Schedule, Times
from raystill.models.conditioning import Condition, joined

Network = Callable[[Latent, Tensor, Condition], Latent]  # from points, timesteps and condition to the value


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A network trained on a schedule, evaluated at points of unit length x = cos(angle) x_0 + sin(angle) e; one
    evaluation per sample and call.
    """

    network: Network
    schedule: Schedule
    kind: Kind

    def __call__(self, x: Latent, t: Times, condition: Condition) -> Prediction:
        """Predict at points x of unit length at the teacher's times t, float64 on the CPU, shape (batch,)."""
        return self.at_angle(x, self.schedule.angle(t), condition)

    def at_angle(self, x: Latent, angle: Times, condition: Condition) -> Prediction:
        """Predict at points of unit length given by their angles, radians, shape (batch,); ValueError where a network
        that predicts noise is evaluated at pure noise, where its answer says nothing of the data, or where there is not
        one angle per sample.
        """
        check_data(self.kind, angle)
        timestep = self.schedule.timestep(self.schedule.time_of(angle)).to(x.device, torch.float32, non_blocking=True)
        scaled = x * column(self.schedule.input_scale(angle), x)
        value = self.network(scaled, timestep, condition)
        return Prediction(self.kind, value, x, column(angle.cos(), x), column(angle.sin(), x))

    def on_path(self, x: Latent, c: Coefficients, condition: Condition) -> Prediction:
        """Predict at a point x of any path: ask the network at x / |c|, at the time of the same signal-to-noise ratio.

        The prediction's noise is the effective unit noise (mean mu + noise eps) / b of the point.
        """
        return self.at_angle(x / column(c.norm, x), c.angle, condition)


@dataclass(frozen=True, slots=True)
class GuidedDenoiser:
    """A denoiser under classifier-free guidance (2207.12598), both branches in one batched forward; two network
    evaluations per sample where scale != 1.
    """

    denoiser: Denoiser
    unconditional: Condition  # one row
    scale: float  # w; 1 is no guidance

    def __call__(self, x: Latent, t: Times, condition: Condition) -> Prediction:
        """Predict under guidance at points x of unit length at the teacher's times t, shape (batch,)."""
        if self.scale == 1:
            return self.denoiser(x, t, condition)
        return with_guidance(self.denoiser, self.unconditional, self.scale, x, t, condition)


def with_guidance(
    denoiser: Denoiser, unconditional: Condition, scale: float | Tensor, x: Latent, t: Times, condition: Condition
) -> Prediction:  # fmt: skip
    """Predict under guidance of a scale w, or one for each sample, shape (batch, 1, 1, 1), where `unconditional` has
    one row; both branches in one forward. Every kind of prediction is linear in the network's value, so guiding the
    value guides the noise.
    """
    p = denoiser(torch.cat([x, x]), t.repeat(2), joined(unconditional, condition))
    without, told = p.value.chunk(2)
    return Prediction(p.kind, guided(without, told, scale), x, p.signal[: len(x)], p.noise[: len(x)])
