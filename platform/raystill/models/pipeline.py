"""Text-to-image pipelines in diffusers' format: facts that their settings give, and their stages, each loaded when it
is first used.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from raystill.flow.predictions import Kind, Latent
from raystill.flow.schedules import Schedule
from raystill.models.backbones.backbone import Backbone, Pictures
from raystill.models.backbones.table import backbone_of
from raystill.models.conditioning import Condition, concatenated, part
from raystill.models.denoiser import Denoiser, Network
from raystill.models.fitting import check_vocabularies
from raystill.models.hub import teacher_at
from raystill.models.parts import load_encoder, load_network, load_vae
from raystill.models.revision import revision
from raystill.models.stock import StockSampler, kind_of, read_scheduler, schedule_of, stock_sampler
from raystill.models.weight_files import weight_variant

Stage = Literal["encoder", "network", "vae"]
AT_ONCE = 2 * 1024**2  # pixels that an autoencoder is given at a time


class Pipeline:
    """A text-to-image pipeline in three stages: what encodes captions, the network, and the autoencoder. Each is loaded
    when it is first used, frozen and in evaluation mode, so that a training never holds the others.
    """

    def __init__(
        self, backbone: Backbone, scheduler: StockSampler, revision: str, stages: Mapping[Stage, Callable[[], Any]]
    ) -> None:
        """Take what makes each stage, and the stock scheduler: DDIM, or Euler for a flow-matching pipeline; `revision`
        is the digest of the files.
        """
        self.backbone, self.scheduler, self.revision = backbone, scheduler, revision
        self.device = torch.device("cpu")
        self._make, self._held = stages, dict[Stage, Any]()

    @property
    def encoder(self) -> Any:
        """The pipeline of diffusers with its tokenizers and text encoders only."""
        return self._stage("encoder")

    @property
    def network(self) -> Any:
        """The network that predicts, a UNet or a transformer of diffusers."""
        return self._stage("network")

    @property
    def vae(self) -> Any:
        """The autoencoder, in float32."""
        return self._stage("vae")

    def _stage(self, name: Stage) -> Any:
        if name not in self._held:
            stage = self._held[name] = self._make[name]()
            for network in _networks(stage):
                network.to(self.device).eval().requires_grad_(False)
        return self._held[name]

    def to(self, device: torch.device) -> "Pipeline":
        """Move the stages to a device: those that are loaded now, the others when they are."""
        self.device = device
        for stage in self._held.values():
            for network in _networks(stage):
                network.to(device)
        return self

    def release(self, *stages: Stage) -> None:
        """Let go of stages; they are loaded anew where they are used again."""
        for name in stages:
            self._held.pop(name, None)

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained on."""
        return schedule_of(self.scheduler)

    @property
    def kind(self) -> Kind:
        """What the network predicts (noise, data, v or flow), by diffusers' name."""
        return kind_of(self.scheduler)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of one latent at the pipeline's own picture size."""
        return self.backbone.latent_shape

    @property
    def call(self) -> Network:
        """The network as a function of latents, timesteps and condition."""
        return self.backbone.bound(self.network)

    @property
    def denoiser(self) -> Denoiser:
        """The network on its own schedule."""
        return Denoiser(self.call, self.schedule, self.kind)

    @torch.no_grad()
    def condition(self, captions: list[str], batch_size: int = 64) -> Condition:
        """What the network is told of captions; each caption is encoded once, in batches."""
        unique = list(dict.fromkeys(captions))
        batches = (unique[i : i + batch_size] for i in range(0, len(unique), batch_size))
        found = concatenated([self.backbone.encode(self.encoder, batch) for batch in batches])
        if len(unique) == len(captions):
            return found
        places = {caption: i for i, caption in enumerate(unique)}
        return part(found, torch.tensor([places[caption] for caption in captions], device=self.device))

    @torch.no_grad()
    def empty(self) -> Condition:
        """What the network is told in guidance's other branch, one row."""
        return self.backbone.empty(self.encoder)

    @torch.no_grad()
    def encode(self, pictures: Pictures) -> Latent:
        """Mean latents of pictures, of about unit variance, computed in float32."""
        with torch.autocast(self.device.type, enabled=False):
            parts = pictures.float().split(at_once(pictures.shape[-1]))
            return torch.cat([self.backbone.latents(self.vae, one) for one in parts])

    @torch.no_grad()
    def decode(self, latents: Latent, batch_size: int | None = None) -> Tensor:
        """Pictures of latents as uint8, shape (batch, rows, columns, channels), on the CPU; as many at a time as fit a
        GPU beside the network, unless a number is given.
        """
        with torch.autocast(self.device.type, enabled=False):
            count = batch_size or min(32, at_once(latents.shape[-1] * self.backbone.factor))
            parts = latents.float().split(count)
            return torch.cat([to_bytes(self.backbone.pictures(self.vae, one)) for one in parts])


def _networks(stage: Any) -> list[torch.nn.Module]:
    """The networks of a stage, which is one itself or a pipeline of diffusers."""
    components = getattr(stage, "components", {"": stage})
    return [part for part in components.values() if isinstance(part, torch.nn.Module)]


def at_once(side: int) -> int:
    """How many pictures of so many pixels a side an autoencoder is given at a time: one of 1024 takes gigabytes."""
    return max(1, AT_ONCE // side**2)


def to_bytes(pictures: Pictures) -> Tensor:
    """Pictures in [-1, 1] as uint8, shape (batch, rows, columns, channels), on the CPU."""
    return ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """Facts about a teacher that its pipeline's settings give without loading it."""

    schedule: Schedule
    kind: Kind
    features: Mapping[str, int]  # names and channels of its network's blocks
    scheduler: StockSampler
    time_condition: bool  # whether its network has a condition on the time embedding, as distilled ones may
    picture_shape: tuple[int, int]  # side in pixels, and channels, of its pictures
    layers: tuple[str, ...]  # names of the layers that scripts for its family give a LoRA
    told_frames: bool  # whether its network is told the size that a picture was cut from
    channels: int  # of a latent


def teacher_facts(directory: Path) -> TeacherFacts:
    """Read a teacher's facts; UserError where the directory is no pipeline or its scheduler is of an unknown kind."""
    backbone = check_pipeline(directory)
    scheduler = read_scheduler(directory)
    return TeacherFacts(
        schedule_of(scheduler), kind_of(scheduler), backbone.features, stock_sampler(scheduler),
        backbone.settings[backbone.network].get("time_cond_proj_dim") is not None, backbone.picture_shape,
        backbone.layers, backbone.told_frames, backbone.latent_shape[0],
    )  # fmt: skip


def licence_of(directory: Path) -> str:
    """The SPDX identifier in the header of a pipeline's README, "unknown" where there is none."""
    readme = directory / "README.md"
    found = re.search(r"^license:\s*(\S+)", readme.read_text(), re.MULTILINE) if readme.is_file() else None
    return found[1] if found else "unknown"


def load_pipeline(directory: str | Path, dtype: torch.dtype = torch.float32) -> Pipeline:
    """Load a pipeline from a directory in diffusers' format, its encoders and network in a precision, when they are
    used; UserError where it is none, is of an unknown family, or, then, lacks weights.
    """
    path = teacher_at(str(directory))
    backbone, scheduler = check_pipeline(path), stock_sampler(read_scheduler(path))
    return Pipeline(
        backbone, scheduler, revision(path),
        {
            "encoder": partial(load_encoder, path, backbone, scheduler, dtype),
            "network": partial(load_network, path, backbone, dtype),
            "vae": partial(load_vae, path, backbone),
        },
    )  # fmt: skip


def check_pipeline(path: Path) -> Backbone:
    """The family of a pipeline; UserError for a directory that holds none, one of an unknown family, or one whose parts
    do not fit each other. Reads small files only.
    """
    backbone = backbone_of(path)
    read_scheduler(path)
    backbone.check()
    check_vocabularies(backbone)
    parts = [name for name in (*backbone.encoders, backbone.network, "vae") if not name.startswith("tokenizer")]
    weight_variant(path, [name for name in parts if backbone.settings.part_class(name)])
    return backbone
