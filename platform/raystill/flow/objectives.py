"""Losses of a student's predictions: the quantity compared, the distance and the weight by signal-to-noise ratio.

Everything is measured in the student's own coordinates, x = cos(angle) x_0 + sin(angle) e with e the effective unit
noise of the path's point. A network's error d in the value that it predicts is then an error in each quantity up to
one number per sample:

    velocity error = f d,   data error = -sin f d,   noise error = cos f d,

with f = 1 for a v prediction, 1 / cos for epsilon, 1 / (sin + cos) for a flow prediction and -1 / sin for a sample.
So nothing is computed by dividing the difference of two nearly equal latents, and every loss is finite at both ends.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced
from raystill.flow.paths import Coefficients
from raystill.flow.predictions import Kind, Latent, Prediction, column
from raystill.flow.schedules import Times, at_hand

Target = Literal["data", "velocity", "noise"]
Distance = Literal["squared", "pseudo_huber"]
Weighting = Literal["uniform", "snr", "truncated_snr", "min_snr", "p2"]

FLOOR = 1e-3  # radians; nearer to data no factor or weight grows further: one step of a flow teacher of 1000 steps
NOISE_SHARE = 0.1  # ratio of noise to mean coefficient below which the noise is refused as a target


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The loss of one sample: mean distance over the latent of the predicted quantity from the true one, times a weight
    of the point's signal-to-noise ratio.

    The default, the squared error of v, is the squared error of x_0 over sin^2: it weighs data by SNR + 1.
    """

    target: Target = introduced("velocity")  # x_0, v = cos e - sin x_0 (2202.00512), or the effective noise e
    # "pseudo_huber" is sqrt(d^2 + huber^2) - huber for each number of the latent
    distance: Distance = introduced("squared")
    huber: float = introduced(1e-3)  # c of pseudo-Huber, in units of the latent; the default is 2310.04378's
    weighting: Weighting = introduced("uniform")  # factor on the target's loss, see `snr_weight`

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("target", self.target, get_args(Target)),
            ("distance", self.distance, get_args(Distance)),
            ("weighting", self.weighting, get_args(Weighting)),
        ):
            if value not in choices:
                raise UserError(f"the objective's {name} is {value!r}; write one of {', '.join(choices)}")
        if not self.huber > 0:
            raise UserError(f"huber is {self.huber}; pseudo-Huber's constant is greater than 0, for example 0.001")

    def per_sample(
        self, prediction: Prediction, x_0: Latent, epsilon: Latent, c: Coefficients
    ) -> Float[Tensor, " batch"]:
        """Losses of predictions about the points with coefficients `c`, in x_0's dtype on its device; `epsilon` is
        `effective_noise`. UserError as `check` says. No host-device synchronisation.
        """
        self.check(c)
        error = column(error_gain(prediction.kind, self.target, c.angle), x_0) * value_error(prediction, x_0, epsilon)
        distance = error.square() if self.distance == "squared" else pseudo_huber(error, self.huber)
        return column(snr_weight(self.weighting, c.angle), x_0).view(-1) * distance.mean(dim=(1, 2, 3))

    @torch.no_grad()
    def gradient_square(
        self, prediction: Prediction, x_0: Latent, epsilon: Latent, c: Coefficients
    ) -> Float[Tensor, " batch"]:
        """Mean squares of the gradients of `per_sample`'s losses in the network's output, times the latent's squared
        size: numbers without a graph, float64, what a law of times is learned from. No host-device synchronisation.

        A sample's loss w mean_i rho(g d_i), with d the error of the value, g its gain and w the weight, has the
        gradient w g rho'(g d_i) / n in the i-th of n numbers of the output. So n^2 times the mean of its square is

            xi^2 = w^2 g^2 mean_i rho'(g d_i)^2.

        It is the gradient in the parameters but for the network's own Jacobian, and up to what this changes with time.
        """
        gain, weight = error_gain(prediction.kind, self.target, c.angle), snr_weight(self.weighting, c.angle)
        error = column(gain, x_0) * value_error(prediction, x_0, epsilon)
        slope = 2 * error if self.distance == "squared" else pseudo_huber_slope(error, self.huber)
        scale = (weight * gain).to(x_0.device, torch.float64, non_blocking=True)
        return scale.square() * slope.square().mean(dim=(1, 2, 3))

    def check(self, c: Coefficients) -> None:
        """Refuse, with UserError, the noise as the target where a path has (next to) no noise of its own.

        The rule: the noise coefficient is less than a tenth of the mean's, at t = 1 sigma < 0.1. The paper's noise
        eps = (x - data x_0 - mean mu) / noise is then an error of x_0 magnified more than ten times, without bound as
        sigma goes to 0, and the effective noise is the target mean under another name.
        """
        if (
            self.target == "noise" and at_hand(c.noise) and bool((c.noise < NOISE_SHARE * c.mean - 1e-9).any())
        ):  # less the rounding of 1 - s
            raise UserError(
                "the objective's target is 'noise' on a path that has almost none (sigma below 0.1, or a paired path): "
                "near sigma = 0 use data or velocity: --set method.objective.target=velocity"
            )


def effective_noise(c: Coefficients, target_mean: Latent, eps: Latent) -> Latent:
    """Unit noise e = (mean mu + noise eps) / b of a path's points, b = sqrt(mean^2 + noise^2).

    At data itself (b = 0) the noise has no effect on the point, and mu is given.
    """
    phase = torch.atan2(c.noise, c.mean)
    return column(phase.cos(), eps) * target_mean + column(phase.sin(), eps) * eps


def true_value(prediction: Prediction, x_0: Latent, epsilon: Latent) -> Latent:
    """The correct output of a network at x = signal x_0 + noise epsilon, in the prediction's kind."""
    match prediction.kind:
        case "sample":
            return x_0
        case "epsilon":
            return epsilon
        case "v_prediction":
            return prediction.signal * epsilon - prediction.noise * x_0
        case "flow_prediction":
            return epsilon - x_0


def value_error(prediction: Prediction, x_0: Latent, epsilon: Latent) -> Latent:
    """Difference of a network's value from the true value of the same kind, in x_0's dtype."""
    return prediction.value.to(x_0.dtype) - true_value(prediction, x_0, epsilon)


def error_gain(kind: Kind, target: Target, angle: Times) -> Times:
    """Factor from an error in a network's value to the error of the target, at angles in radians (module docstring).

    Only the velocity or noise read from a sample prediction is unbounded towards data; it stops growing at `FLOOR`.
    """
    signal, noise = angle.cos(), angle.sin()
    ratio = {"data": -noise, "velocity": torch.ones_like(angle), "noise": signal}[target]
    match kind:
        case "v_prediction":
            return ratio
        case "epsilon":
            return ratio / signal
        case "flow_prediction":
            return ratio / (signal + noise)
        case "sample":
            return torch.ones_like(angle) if target == "data" else -ratio / angle.clamp(min=FLOOR).sin()


def snr_weight(weighting: Weighting, angle: Times) -> Times:
    """Weight of the signal-to-noise ratio SNR = cot^2(angle), at most 1e6; brackets name the target that a paper puts
    it on.

    `snr` (data) is the noise loss of DDPM (2006.11239), `truncated_snr` (data) max(SNR, 1) (Salimans & Ho 2202.00512),
    `min_snr` (data) min(SNR, 5) (Hang et al. 2303.09556), `p2` (noise) 1 / (1 + SNR) (Choi et al. 2204.00227, k = 1,
    gamma = 1).
    """
    snr = angle.clamp(min=FLOOR).tan().reciprocal().square()
    match weighting:
        case "uniform":
            return torch.ones_like(angle)
        case "snr":
            return snr
        case "truncated_snr":
            return snr.clamp(min=1)
        case "min_snr":
            return snr.clamp(max=5)
        case "p2":
            return 1 / (1 + snr)


def pseudo_huber(error: Latent, huber: float) -> Latent:
    """sqrt(d^2 + c^2) - c of each number d, written without the difference of two nearly equal ones (2310.14189)."""
    square = error.square()
    return square / ((square + huber**2).sqrt() + huber)


def pseudo_huber_slope(error: Latent, huber: float) -> Latent:
    """d / sqrt(d^2 + c^2), the derivative of `pseudo_huber` in d."""
    return error / (error.square() + huber**2).sqrt()
