"""Two claims about paths, measured: how far an output moves when its start moves a little, and how diverse the outputs
of one caption are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from raystill.config.fingerprint import introduced
from raystill.data.records import Reading, Row, caption_of
from raystill.data.shards import Sample
from raystill.data.starts import start_of
from raystill.evaluation.features import extract, feature_network
from raystill.models.pipeline import Pipeline
from raystill.run.samples import SampleLatents

MakeSampler = Callable[[], tuple[Pipeline, SampleLatents]]  # picklable: it is called where the stage runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Settings of the probes of stability and diversity."""

    shards: int = introduced(1)  # shards of the source that are probed
    captions: int = introduced(64)  # captions of each shard
    starts: int = introduced(4)  # starts per caption, for the diversity
    # distance d of the moved start: z' = sqrt(1 - d^2) z + d xi keeps the start's law
    distance: float = introduced(0.05)
    seed: int = introduced(5000)  # seed of the starts

    revision: ClassVar[int] = 2  # raised whenever its numbers change; 2: random numbers of 128-bit keys


class ProbeTransform:
    """The transform of captions to Lipschitz estimates and diversities of a sampler at each step count."""

    def __init__(
        self, make: MakeSampler, steps: tuple[int, ...], probe: Probe, reading: Reading, features: str
    ) -> None:
        self.pipeline, self.draw = make()
        self.steps, self.probe, self.reading = steps, probe, reading
        self.features = feature_network(features)

    def read(self, sample: Sample) -> Row:
        """Read a sample's caption."""
        return {"key": sample.key, "caption": caption_of(sample, self.reading)}

    @torch.inference_mode()
    def compute(self, rows: list[Row]) -> list[Row]:
        """One row per caption with `lipschitz_4`, `diversity_4` and so on."""
        rows = rows[: self.probe.captions]
        condition = self.pipeline.condition([row["caption"] for row in rows])
        starts = torch.stack([self._starts(row["key"]) for row in rows], dim=1)  # (starts + 1, rows, ...)
        starts = starts.to(self.pipeline.device)
        for steps in self.steps:
            drawn = torch.stack([self.draw(start, condition, steps).float() for start in starts])
            lipschitz = _norms(drawn[-1] - drawn[0]) / _norms(starts[-1] - starts[0])
            diversity = self._diversity(drawn[:-1])
            for i, row in enumerate(rows):
                row |= {f"lipschitz_{steps}": lipschitz[i].cpu().numpy(), f"diversity_{steps}": diversity[i].numpy()}
        return rows

    def _starts(self, key: str) -> Float[Tensor, "starts channels height width"]:
        """Independent starts, and last of all the first one moved a little."""
        probe, shape = self.probe, self.pipeline.latent_shape
        starts = [start_of(key, probe.seed + i, shape) for i in range(probe.starts)]
        other = start_of(key, probe.seed + probe.starts, shape)
        moved = (1 - probe.distance**2) ** 0.5 * starts[0] + probe.distance * other
        return torch.stack([*starts, moved])

    def _diversity(self, drawn: Float[Tensor, "starts captions channels height width"]) -> Float[Tensor, " captions"]:
        """Mean distance of features over pairs of starts, for each caption."""
        found = [extract(self.features, self.pipeline.decode(latents).numpy()) for latents in drawn]
        pairs = [_norms(a - b) for i, a in enumerate(found) for b in found[:i]]
        return torch.stack(pairs).mean(dim=0).cpu()


def _norms(x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    """Euclidean length of each sample."""
    lengths: Tensor = x.flatten(1).norm(dim=1)
    return lengths


def means(rows: list[Row], steps: tuple[int, ...]) -> dict[str, float]:
    """The mean of every probe over captions, by its name."""
    names = [f"{kind}_{n}" for kind in ("lipschitz", "diversity") for n in steps]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}
