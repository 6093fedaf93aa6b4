"""The discriminator of the adversarial methods: heads on the frozen teacher's features that tell students' samples from
others.

Heads keep one logit per place of a feature map, and losses are taken of each logit before any mean, as in StyleGAN-T
(2301.09515) and PCM (2405.18407). The mean of the logits would not do: an adversary that is right on average would have
nothing left to learn, however wrong it is at half of the places.

The teacher is not trained, and heads are small and whole on every rank, so that the student's gradient is taken through
them to the sample alone (`input_gradient`): nothing lands in a head's parameters, at any stage of ZeRO.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from math import gcd
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, softplus

from raystill.config.errors import UserError
from raystill.flow.predictions import Latent
from raystill.flow.schedules import Times
from raystill.methods.method import Given, Loss
from raystill.models.conditioning import Condition

ADVERSARY = "discriminator"  # name of the role
GROUPS = 32  # of the heads' group normalisation; their common divisor with the width is taken

FeatureMaps = dict[
    str, Float[Tensor, "batch _channels _height _width"]
]  # by the names of blocks of the teacher's network
Logits = dict[str, Float[Tensor, "batch _places"]]  # one for each place of a map, row by row; high for real samples


class Heads(nn.Module):
    """One convolutional head per feature map, which gives one logit per place."""

    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.names = tuple(widths)
        self.heads = nn.ModuleList(_Head(width) for width in widths.values())

    def forward(self, features: FeatureMaps) -> Logits:
        """Logits of every place of the maps, in float32."""
        heads = zip(self.names, self.heads, strict=True)
        return {name: head(features[name]).flatten(1).float() for name, head in heads}


class _Head(nn.Module):
    """Two 3 x 3 convolutions, the second with a skip connection, and a 1 x 1 convolution to one logit per place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = gcd(GROUPS, width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) for _ in range(2))
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = leaky_relu(self.norms[0](self.first(x)), 0.2)
        found: Tensor = self.out(first + leaky_relu(self.norms[1](self.second(first)), 0.2))
        return found


def check_features(names: tuple[str, ...], there: Mapping[str, int]) -> None:
    """Refuse, with UserError, names of blocks that a teacher's network does not have, or no names."""
    absent = [name for name in names if name not in there]
    if absent or not names:
        advised = "mid_block" if "mid_block" in there else list(there)[len(there) // 2]
        raise UserError(
            f"method.features names {', '.join(absent) or 'nothing'}, and the teacher's network has "
            f"{', '.join(there)}: --set 'method.features=[\"{advised}\"]'"
        )


def heads_of(given: Given, names: tuple[str, ...], points: int = 1) -> Heads:
    """Heads on named blocks of a teacher's network that read the features of `points` points together; UserError for
    blocks that the network does not have.
    """
    check_features(names, given.backbone.features)
    return Heads({name: points * given.backbone.features[name] for name in names})


def features(
    given: Given, teacher: nn.Module, names: tuple[str, ...], x: Latent, t: Times, condition: Condition
) -> FeatureMaps:
    """Feature maps of named blocks of the teacher's network at points of unit length, in float32."""
    found: dict[str, Tensor] = {}
    with _listening(teacher, names, found, partial(given.backbone.feature_map, x=x)), suppress(_HeardError):
        given.denoiser(teacher)(x, t, condition)
    return found


class _HeardError(Exception):
    """Ends a forward once all named blocks have given their features: what comes after them is not computed."""


@contextmanager
def _listening(
    network: nn.Module, names: tuple[str, ...], found: dict[str, Tensor], read: Callable[[Any], Tensor]
) -> Iterator[None]:
    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            found[name] = read(output).float()
            if len(found) == len(names):
                raise _HeardError

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def input_gradient(loss: Callable[[Latent], Tensor], sample: Latent) -> tuple[Tensor, Latent]:
    """The value of a scalar loss of samples, detached, and its gradient in the samples; no parameter gets a
    gradient.
    """
    leaf = sample.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def towards(sample: Latent, gradient: Latent) -> Tensor:
    """A scalar whose gradient in the samples is the given one: 0.5 mean (x - sg(x - g))^2 for g times the numbers of x
    (2405.14867, equation 2 in the form of 2209.14988).
    """
    wanted = (sample - gradient * sample.numel()).detach()
    return 0.5 * (sample - wanted).square().mean()


def mean_over_places(loss: Callable[[Tensor], Tensor], logits: Logits) -> Float[Tensor, ""]:
    """The mean of an elementwise loss of logits: over samples and places of each map, then over maps, so that a map
    does not count more for being larger (as in PCM; StyleGAN-T's maps are of one size).
    """
    return torch.stack([loss(each).mean() for each in logits.values()]).mean()


def non_saturating(logits: Logits) -> Float[Tensor, ""]:
    """The mean of softplus(-D) over places: the student's loss (1406.2661, section 3), and the adversary's of real
    samples.
    """
    return mean_over_places(lambda each: softplus(-each), logits)


def told_apart(real: Logits, faked: Logits, times: Times | None = None) -> Loss:
    """The adversary's loss: the mean over places of softplus(-D) of real samples and of softplus(D) of students'
    samples.
    """
    said = {"adversary/real": real, "adversary/fake": faked}
    metrics = {name: mean_over_places(torch.sigmoid, logits).detach() for name, logits in said.items()}
    return Loss(non_saturating(real) + mean_over_places(softplus, faked), metrics, times=times)


def r1(logits: Logits, features: FeatureMaps) -> Float[Tensor, ""]:
    """R1 of the heads in feature maps of real samples (1801.04406, equation 9 without gamma / 2): the mean over maps of
    |grad_F sum_bp D_bp|^2 / (B P), where logits D, shape (B, P), were computed from leaves F, shape (B, C, height,
    width) with P = height * width places.

    Logits are summed before the gradient, so that one backward serves all, and squares over samples, channels and
    places; the result is divided by the number of logits, B P, as the loss beside it is. Where D_bp is f(F_bp), the
    same f of the C features at every place, that is the mean over b and p of |grad f(F_bp)|^2: R1 of f, whatever P is,
    so that one gamma keeps its strength beside the loss on maps of any size. Without the division it grows as P; R1 of
    the mean logit falls as 1 / P. Where a logit depends on other places, too (neighbours, the normalisation's
    statistics), the slopes of all logits are added at each place before they are squared, as they are in the gradient
    that a student follows whose loss is the mean of -D.
    """
    squares = []
    for name, feature in features.items():
        (slope,) = torch.autograd.grad(logits[name].sum(), feature, create_graph=True)
        squares.append(slope.square().sum() / logits[name].numel())
    return torch.stack(squares).mean()
