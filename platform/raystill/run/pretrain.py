"""Training of a whole pipeline from shards: pictures, tokenizer, autoencoder, latents, UNet and text encoder, written
in diffusers' format.
"""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from raystill.config.digest import canonical
from raystill.config.fingerprint import fingerprint
from raystill.data.batches import local_batches
from raystill.data.derive import Index, Source, Stage
from raystill.data.encode import LatentTransform, PictureTransform
from raystill.data.plan import Plan
from raystill.data.shards import unpack
from raystill.data.store import Store, open_store
from raystill.launch.launcher import Launcher
from raystill.launch.stopping import MakeRecorder
from raystill.methods.autoencoder import to_pictures
from raystill.models.fresh import Tokens, load_tokenizer, save_autoencoder, save_pipeline, tokens_of
from raystill.models.text import train_tokenizer
from raystill.run.checkpoints import train_at
from raystill.run.experiments import prepare_experiment
from raystill.run.settings import Pretraining
from raystill.tracking.tracking import Tracking, tracked
from raystill.training.pretraining import DenoiserTask, first_rows
from raystill.training.task import Task, averages_after, final_averages, read_averages


def pretrain(run: Pretraining, launcher: Launcher, tracking: Tracking) -> Path:
    """Train every part, or find the parts that an earlier run finished; returns the pipeline's directory."""
    run.check()
    source, work, output = Source.of(open_store(run.shards)), open_store(run.work), Path(run.output)
    started = time.monotonic()
    tracking = replace(tracking, inputs=fingerprint(source.identity()))
    decode, allowed = partial(PictureTransform, run.reading), run.reading.max_bad_fraction
    pictures = Stage.at(work, "pictures", source, decode, allowed, reading=run.reading)
    index = launcher.derive(pictures)
    tokens = _tokenizer(run, source, output / "tokenizer")
    prepare_experiment(tracking.uri, tracking.experiment, tracking.artifact_root)
    recorder = _recorder(run, tracking, run.autoencoder)
    trained = _train_autoencoder(run, launcher, recorder, pictures.store, index, work, output / "vae")
    seconds = {"autoencoder": time.monotonic() - started}
    encode = partial(LatentTransform, output / "vae", output / "tokenizer", device=launcher.stage_device)
    latents = Stage.at(
        work, "latents", Source.of(pictures.store), encode, allowed,
        stage="latents", autoencoder=run.autoencoder, trained=trained, shape=run.denoiser.shape,
    )  # fmt: skip
    index = launcher.derive(latents)
    denoiser, recorder = _denoiser(run, tokens, pictures.store), _recorder(run, tracking, run.denoiser)
    _train_denoiser(denoiser, launcher, recorder, latents.store, index, work, output, run.name)
    seconds["all"] = time.monotonic() - started
    (output / "training.json").write_text(json.dumps({"recipe": canonical(run), "seconds": seconds}, indent=1) + "\n")
    return output


def _tokenizer(run: Pretraining, source: Source, directory: Path) -> Tokens:
    """Train the tokenizer on the captions, which are small beside the pictures; return its token ids."""
    shape = run.denoiser.shape
    samples = (sample for key in source.keys for sample in unpack(source.store.read(key), key))
    captions = (sample.members.get("txt", b"").decode(errors="ignore").strip() for sample in samples)
    train_tokenizer(filter(None, captions), shape.vocabulary, shape.text_length, directory)
    return tokens_of(load_tokenizer(directory))


def _recorder(run: Pretraining, tracking: Tracking, task: Task) -> MakeRecorder:
    """The maker of the MLflow run of one of the two trainings."""
    return partial(tracked, replace(tracking, name=f"{run.name}-{task.name}"), {"task": task, "pretraining": run})


def _train_autoencoder(
    run: Pretraining,
    launcher: Launcher,
    recorder: MakeRecorder,
    pictures: Store,
    index: Index,
    work: Store,
    directory: Path,
) -> str:
    """Train the autoencoder and write it with the scale that gives its latents unit variance; return the entity tag of
    its weights, which changes with them.
    """
    checkpoints = train_at(
        work, replace(run.autoencoder, shown=pictures.uri), pictures, index, launcher, recorder, name=run.name
    )
    key = averages_after(checkpoints, run.autoencoder.training.steps)
    assert key is not None
    averages = read_averages(checkpoints, key)
    vae = save_autoencoder(run.autoencoder.shape, averages["autoencoder"], 1.0, directory)
    plan = Plan(shards=index.shards, seed=0, lane_size=min(512, index.count))
    (batch,) = next(local_batches(pictures, plan, [0], 0, 1, torch.device("cpu")))
    with torch.inference_mode():
        latents = vae.encode(to_pictures(batch["image"])).latent_dist.mean
    save_autoencoder(run.autoencoder.shape, averages["autoencoder"], float(1 / latents.std()), directory)
    return checkpoints.list(key)[0].etag


def _denoiser(run: Pretraining, tokens: Tokens, pictures: Store) -> DenoiserTask:
    """The task of UNet and text encoder with what the stages before give it."""
    shape = run.autoencoder.shape
    captions = run.captions or tuple(row["caption"] for row in first_rows(pictures))
    return replace(
        run.denoiser, tokens=tokens, latent_channels=shape.latent_channels,
        latent_size=run.reading.picture_size // shape.factor, directory=run.output, shown=captions,
    )  # fmt: skip


def _train_denoiser(
    task: DenoiserTask,
    launcher: Launcher,
    recorder: MakeRecorder,
    latents: Store,
    index: Index,
    work: Store,
    output: Path,
    name: str,
) -> None:
    """Train UNet and text encoder and write the whole pipeline in half precision."""
    checkpoints = train_at(work, task, latents, index, launcher, recorder, name=name)
    averages = final_averages(checkpoints, task.training.steps)
    assert averages is not None
    networks = task.networks()
    networks.load_state_dict(averages["denoiser"], strict=False)
    save_pipeline(networks.unet, networks.text_encoder, task.kind, output)
