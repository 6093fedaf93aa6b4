"""Every family of pipelines through the whole chain, small: targets, trainings by several methods, an adapter that the
stock pipeline loads itself, and a merge onto a fine-tune.
"""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tests.tiny import networks, tiny
from torch import Tensor

from raystill.data.batches import collate, local_batches
from raystill.data.derive import Index, Source, Stage, derive
from raystill.data.local import LocalStore
from raystill.data.plan import Plan
from raystill.data.records import Reading, pack_row, unpack_row
from raystill.data.shards import Sample, pack, unpack
from raystill.data.tensors import to_device
from raystill.engine.local import LocalEngine
from raystill.engine.protocol import Optimizer
from raystill.flow.starts import StartLaw
from raystill.methods.ctm import CTM
from raystill.methods.dmd2 import DMD2
from raystill.methods.rayflow import RayFlow
from raystill.methods.table import Distilling
from raystill.methods.tcd import TCD
from raystill.models.adapter import Adapter
from raystill.models.backbones.table import BACKBONES
from raystill.models.ctm import CTMScheduler
from raystill.models.merging import merge_adapter
from raystill.models.pipeline import load_pipeline
from raystill.models.sampling import ODE, draw, load_scheduler
from raystill.models.weights import Lora
from raystill.run.trained import TrainedStudent
from raystill.targets.targets import Encoding, Generation, TargetTransform
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training
from raystill.training.task import Place, averages_after, run_task

pytestmark = [pytest.mark.slow]
CAPTIONS = ("a red heart", "blue cat", "the grass")
STEPS = 3


@pytest.fixture(scope="module", params=["sd15", "sdxl", "pixart-sigma", "sd3"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def place(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a family's tiny pipeline."""
    directory = tmp_path_factory.mktemp("training") / name
    tiny(name).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def targets(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, Index]:
    """Targets of six samples in two shards."""
    folder = tmp_path_factory.mktemp("targets")
    source, target = (LocalStore(uri=str(folder / part)) for part in ("source", "targets"))
    for i in range(2):
        samples = (Sample(key=f"s{i}{j}", members={"txt": CAPTIONS[j].encode()}) for j in range(3))
        source.write(f"{i:06d}.tar", pack(samples))
    make = partial(TargetTransform, str(place), Generation(solver_steps=2), Reading(), 0, 2, "float32")
    return target, derive(Stage(Source.of(source), target, {}, make))


def lora(name: str) -> Lora:
    """A LoRA on the layers that the family's scripts give one."""
    family = BACKBONES[type(tiny(name)).__name__]
    return Lora(rank=2, alpha=3.0, targets=family.layers)


def trained(task: DistillTask, targets: tuple[LocalStore, Index], checkpoints: LocalStore) -> TrainedStudent:
    """A student after a few steps in this process."""
    store, index = targets
    plan = Plan(shards=index.shards, seed=0, lanes=1, lane_size=2)
    device = torch.device("cpu")

    def batches(step: int) -> Iterator[list[dict[str, Any]]]:
        return local_batches(store, plan, [0], step, STEPS - step, device)

    run_task(task, Place(checkpoints, LocalEngine, batches))
    averages = averages_after(checkpoints, STEPS)
    assert averages is not None
    return TrainedStudent(task, checkpoints, ODE, StartLaw(), averages)


def task_of(place: Path, weights: Lora, method: Distilling, store: LocalStore, **training: Any) -> DistillTask:
    return DistillTask(
        teacher=str(place), method=method, weights=weights, targets=store.uri,
        optimizer=Optimizer(learning_rate=3e-2, warmup_steps=1),
        training=Training(
            steps=STEPS, lane_size=2, log_every=1, checkpoint_every=STEPS, picture_every=0, average_decay=0.1,
            **training,
        ),
    )  # fmt: skip


def test_what_is_stored_is_enough_for_a_training(place: Path, targets: tuple[LocalStore, Index]) -> None:
    store, index = targets
    rows = [unpack_row(s) for shard in index.shards for s in unpack(store.read(shard.key), shard.key)]
    pipeline = load_pipeline(place)
    condition = pipeline.condition([row["caption"] for row in rows])
    for key, tensor in condition.items():
        stored = torch.stack([torch.from_numpy(row[f"condition.{key}"]) for row in rows])
        torch.testing.assert_close(stored, tensor, rtol=1e-4, atol=1e-5)
        assert stored.dtype == tensor.dtype
    assert not {f"condition.{key}" for key in pipeline.backbone.fixed} & set(rows[0])
    built = task_of(place, Lora(rank=2, targets=("to_q",)), RayFlow(), store).build(torch.device("cpu"))
    assert built.given is not None
    for key, tensor in pipeline.empty().items():
        torch.testing.assert_close(built.given.unconditional[key], tensor, rtol=0, atol=0)


def test_targets_of_cropped_pictures_are_stored_in_half_the_bytes_with_their_frames(
    name: str, place: Path, tmp_path: Path
) -> None:
    """Sizes and crops are told exactly: bfloat16 has no 1023."""
    picture = io.BytesIO()
    Image.new("RGB", (1023, 64), "red").save(picture, format="PNG")
    samples = [Sample(key=f"s{i}", members={"txt": b"a red heart", "png": picture.getvalue()}) for i in range(2)]
    reading = Reading(picture_size=32, crop="random")
    found = []
    for half in (False, True):
        transform = TargetTransform(str(place), Encoding(), reading, 0, 2, "float32", half=half)
        found.append(transform.compute([transform.read(sample) for sample in samples]))
    whole, half_ = ([pack_row(row) for row in rows] for rows in found)
    sizes = [sum(len(data) for member, data in row.members.items() if member != "txt") for row in (whole[0], half_[0])]
    assert sizes[1] < 0.75 * sizes[0]  # a header of 128 bytes for each array
    batches = [to_device(collate([unpack_row(row) for row in rows]), torch.device("cpu")) for rows in (whole, half_)]
    for batch in batches:
        assert batch["x_0"].dtype is torch.float32
    torch.testing.assert_close(batches[1]["x_0"], batches[0]["x_0"], rtol=1e-3, atol=1e-3)
    for key, tensor in batches[0]["condition"].items():
        kept = batches[1]["condition"][key]
        assert kept.dtype is (torch.bfloat16 if key in ("prompt", "pooled") else tensor.dtype)
        torch.testing.assert_close(
            kept.to(tensor.dtype), tensor, rtol=1e-2, atol=1e-2 if kept.dtype != tensor.dtype else 0
        )
    if name == "sdxl":
        ids = batches[1]["condition"]["time_ids"]
        assert ids[:, :2].tolist() == [[64.0, 1023.0]] * 2
        assert ids[:, 4:].tolist() == [[32.0, 32.0]] * 2
        assert ids[0, 3] != ids[1, 3]  # cut at another place
        assert float(ids[:, 3].max()) <= round(1023 / 2) - 32
    denoiser = load_pipeline(place).denoiser
    t = torch.full((2,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        values = [denoiser(batch["x_0"], t, batch["condition"]).value for batch in batches]
    assert float((values[1] - values[0]).abs().max()) < 2e-2 * float(values[0].abs().max())


def features(place: Path) -> tuple[str, ...]:
    """The block in the middle of a family's network."""
    names = list(load_pipeline(place).backbone.features)
    return (names[len(names) // 2],)


@pytest.mark.parametrize("method", ["rayflow", "tcd", "dmd2", "ctm"])
def test_a_student_is_trained_exported_and_drawn_by_the_stock_pipeline(
    method: str, name: str, place: Path, targets: tuple[LocalStore, Index], tmp_path: Path
) -> None:
    methods: dict[str, Distilling] = {
        "rayflow": RayFlow(), "tcd": TCD(), "dmd2": DMD2(ratio=2, features=features(place)), "ctm": CTM(most=2),
    }  # fmt: skip
    chosen = methods[method]
    task = task_of(place, lora(name), chosen, targets[0])
    student = trained(task, targets, LocalStore(uri=str(tmp_path / "checkpoints")))
    student.write(tmp_path / "adapter")
    adapter = Adapter(tmp_path / "adapter", place)
    count = chosen.default_steps
    shape = (len(CAPTIONS), *adapter.pipeline.latent_shape)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = adapter.sample(start, adapter.pipeline.condition(list(CAPTIONS)), count)
    assert bool(torch.isfinite(found).all())
    plain = load_pipeline(place)
    if method != "ctm":  # whose sampler is bound to its network
        without = draw(plain.call, adapter.scheduler, start, plain.condition(list(CAPTIONS)), count)
        assert float((found - without).abs().max()) > 1e-3 * float(found.abs().max())
    if not chosen.noisy(ODE):  # DMD2's noise comes from a generator: each has its own
        expected = by_the_stock_pipeline(place, tmp_path / "adapter", adapter, start, count)
        assert float((found - expected).abs().max()) < 1e-4 * float(found.abs().max())


def by_the_stock_pipeline(place: Path, directory: Path, adapter: Adapter, start: Tensor, steps: int) -> Tensor:
    """Latents that diffusers draws with the adapter, loaded by its own loader or peft's."""
    pipeline = DiffusionPipeline.from_pretrained(place, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {}
    if adapter.card.loads_lora:
        pipeline.load_lora_weights(directory, weight_name="pytorch_lora_weights.safetensors")
    else:
        pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, directory)
        call["use_resolution_binning"] = False
    for network in networks(pipeline):
        network.eval()
    pipeline.scheduler = load_scheduler(directory)
    if isinstance(pipeline.scheduler, CTMScheduler):
        part = getattr(pipeline, adapter.card.part)
        pipeline.scheduler.attach(part, load_file(directory / "landing.safetensors"))
    latents: Tensor = pipeline(
        list(CAPTIONS), latents=start, num_inference_steps=steps, guidance_scale=1.0, output_type="latent",
        height=32, width=32, **call,
    ).images  # fmt: skip
    return latents


def test_checkpointing_changes_no_gradient(
    name: str, place: Path, targets: tuple[LocalStore, Index], tmp_path: Path
) -> None:
    """With three roles on one base, whose blocks are computed again when another role has acted since."""
    method = DMD2(ratio=1, adversarial=0.0)
    found = []
    for checkpointing in (False, True):
        task = task_of(place, lora(name), method, targets[0], checkpointing=checkpointing)
        store = LocalStore(uri=str(tmp_path / str(checkpointing)))
        student = trained(task, targets, store)
        found.append(student.assembly(torch.device("cpu")).modules["student"])
    for (key, one), (_, other) in zip(*(sorted(network.named_parameters()) for network in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=key)


def test_an_adapter_is_merged_onto_a_fine_tune(
    name: str, place: Path, targets: tuple[LocalStore, Index], tmp_path: Path
) -> None:
    student = trained(
        task_of(place, lora(name), RayFlow(), targets[0]), targets, LocalStore(uri=str(tmp_path / "checkpoints"))
    )
    student.write(tmp_path / "adapter")
    tuned = DiffusionPipeline.from_pretrained(place, local_files_only=True)
    part = load_pipeline(place).backbone.network
    with torch.no_grad():
        for parameter in getattr(tuned, part).parameters():
            parameter.mul_(1.1)
    tuned.save_pretrained(tmp_path / "tuned")
    merge_adapter(tmp_path / "adapter", tmp_path / "tuned", tmp_path / "onto")
    merge_adapter(tmp_path / "adapter", place, tmp_path / "own")
    onto, own, fine, base = (
        load_pipeline(one).network for one in (tmp_path / "onto", tmp_path / "own", tmp_path / "tuned", place)
    )
    changed = 0
    for key, parameter in onto.named_parameters():
        gained = own.get_parameter(key) - base.get_parameter(key)
        torch.testing.assert_close(parameter - fine.get_parameter(key), gained, rtol=1e-3, atol=1e-5)
        changed += bool(gained.abs().max() > 1e-4)
    assert changed
