"""The two trainings of a pipeline from scratch: its autoencoder, then its UNet together with its text encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL.Image import Image

from raystill.config.fingerprint import Knob, introduced, introduced_group
from raystill.data.records import Row, unpack_row
from raystill.data.shards import list_shards, unpack
from raystill.data.store import Store, open_store
from raystill.engine.protocol import Optimizer
from raystill.evaluation.pictures import grid
from raystill.flow.predictions import Kind
from raystill.methods.autoencoder import Autoencoder, AutoencoderPass, to_pictures
from raystill.methods.denoising import Denoising, TextToImage
from raystill.models.averaging import Average
from raystill.models.fresh import (
    AutoencoderShape,
    DenoiserShape,
    Tokens,
    fresh_scheduler,
    load_autoencoder,
    load_tokenizer,
    pipeline_in_memory,
)
from raystill.models.pipeline import to_bytes
from raystill.models.stock import schedule_of, stock_sampler
from raystill.models.stock_pipeline import StockPipeline
from raystill.training.loop import Training
from raystill.training.task import Assembly

SHOWN = 6  # pictures that are drawn during a training
SHOWN_STEPS, SHOWN_GUIDANCE = (8, 25), 3.0  # numbers of steps, and guidance scale, at which a denoiser draws


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderTask:
    """Training of the autoencoder on stored pictures."""

    shape: AutoencoderShape = introduced_group(AutoencoderShape)
    method: Autoencoder = introduced_group(Autoencoder)
    optimizer: Optimizer = introduced_group(Optimizer)
    training: Training = introduced_group(Training)
    name: Knob[str] = "autoencoder"
    # uri of the stored pictures, the first of which are drawn; filled in by the stage before
    shown: Knob[str | None] = None

    def build(self, device: torch.device) -> Assembly:
        """Build the autoencoder behind one forward pass; `run_task` has set the seed of its weights."""
        autoencoder = self.shape.build()
        if self.training.checkpointing:
            autoencoder.enable_gradient_checkpointing()
        built = Assembly(self.method, {"autoencoder": AutoencoderPass(autoencoder).to(device)})
        if self.shown is not None:
            built.pictures["samples/reconstructions"] = self._picture
        return built

    @torch.inference_mode()
    def _picture(self, averages: Mapping[str, Average], _step: int) -> Image:
        """Pictures of the data beside what the averaged autoencoder makes of them."""
        assert self.shown is not None
        values = averages["autoencoder"].values
        with torch.random.fork_rng(devices=[]):  # random weights are drawn first: no other number may change by it
            vae = self.shape.build().eval()
        vae.load_state_dict({name.removeprefix("vae."): tensor for name, tensor in values.items()})
        vae.to(device := next(iter(values.values())).device)
        rows = first_rows(open_store(self.shown))
        real = np.stack([row["image"] for row in rows])
        decoded = vae.decode(vae.encode(to_pictures(torch.from_numpy(real).to(device))).latent_dist.mean).sample
        pairs = zip(real, to_bytes(decoded).numpy(), strict=True)
        return grid([list(pair) for pair in pairs], [row["caption"] for row in rows], ["data", "reconstruction"])


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserTask:
    """Training of UNet and text encoder on stored latents and tokens."""

    tokens: Tokens
    latent_channels: int
    latent_size: int
    kind: Kind  # flow_prediction trains on the straight schedule, the others on Stable Diffusion's
    caption_dropout: float = introduced(0.1)
    shape: DenoiserShape = introduced_group(DenoiserShape)
    optimizer: Optimizer = introduced_group(Optimizer)
    training: Training = introduced_group(Training)
    name: Knob[str] = "denoiser"
    # filled in by the stages before: the directory of autoencoder and tokenizer, and the captions that are drawn
    directory: Knob[str | None] = None
    shown: Knob[tuple[str, ...]] = ()

    revision: ClassVar[int] = 2  # raised whenever its numbers change; 2: random numbers of 128-bit keys

    def networks(self) -> TextToImage:
        """Untrained UNet and text encoder."""
        text = self.shape.text_encoder(self.tokens)
        return TextToImage(self.shape.unet(self.latent_channels, self.latent_size), text)

    def build(self, device: torch.device) -> Assembly:
        """Build UNet and text encoder behind one forward pass."""
        schedule = schedule_of(fresh_scheduler(self.kind))
        method = Denoising(
            schedule=schedule, kind=self.kind, empty_tokens=self.tokens.empty, caption_dropout=self.caption_dropout
        )
        networks = self.networks()
        unet: Any = networks.unet  # mypy takes what diffusers' models have for tensors
        if self.training.checkpointing:
            unet.enable_gradient_checkpointing()
        built = Assembly(method, {"denoiser": networks.to(device)})
        if self.shown and self.directory is not None:
            built.pictures["samples/denoiser"] = self._picture
        return built

    def _picture(self, averages: Mapping[str, Average], _step: int) -> Image:
        """Pictures that the whole pipeline draws with the averaged networks."""
        assert self.directory is not None
        values, place = averages["denoiser"].values, Path(self.directory)
        with torch.random.fork_rng(devices=[]):
            networks = self.networks()
        networks.load_state_dict(values, strict=False)
        scheduler = stock_sampler(fresh_scheduler(self.kind))
        vae, tokenizer = load_autoencoder(place / "vae"), load_tokenizer(place / "tokenizer")
        pipeline = pipeline_in_memory(networks.unet, networks.text_encoder, vae, tokenizer, scheduler)
        pipeline.to(next(iter(values.values())).device)
        drawing, captions = StockPipeline(pipeline, SHOWN_GUIDANCE), list(self.shown)
        columns = [drawing.draw(captions, steps).numpy() for steps in SHOWN_STEPS]
        rows = [[column[i] for column in columns] for i in range(len(captions))]
        return grid(rows, captions, [f"{steps} steps" for steps in SHOWN_STEPS])


def first_rows(pictures: Store) -> list[Row]:
    """The first stored rows of pictures that are drawn during a training, one for each caption."""
    first = list_shards(pictures)[0].key
    rows = {row["caption"]: row for row in map(unpack_row, unpack(pictures.read(first), first))}
    return list(rows.values())[:SHOWN]
