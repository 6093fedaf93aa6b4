"""Targets computed by a real, tiny teacher: what they are, and what they depend on."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raystill.data.derive import Source, derive
from raystill.data.local import LocalStore
from raystill.data.pictures import encode_webp
from raystill.data.records import Reading, RejectedSampleError, Row, unpack_row
from raystill.data.shards import Sample, pack, unpack
from raystill.data.targets import Generated, Independent, TargetTransform, start_of
from raystill.flow.solvers import dpm_solver_2m
from raystill.models.denoiser import Denoiser
from raystill.models.pipeline import load_pipeline

READING = Reading(picture_size=16)
CAPTIONS = ("red heart", "cat face", "blue car", "red car", "cat")


def sample(number: int) -> Sample:
    picture = encode_webp(Image.new("RGB", (16, 16), (40 * number, 90, 200 - 30 * number)))
    return Sample(key=f"s{number}", members={"webp": picture, "txt": CAPTIONS[number].encode()})


def targets(
    pipeline: Path, samples: list[Sample], estimator: Generated | Independent, seed: int = 0, batch_size: int = 4
) -> list[Row]:
    transform = TargetTransform(pipeline, estimator, READING, seed, batch_size, "float32")
    return transform.compute([transform.read(s) for s in samples])


def test_a_start_depends_on_key_and_seed_alone() -> None:
    shape = (4, 8, 8)
    torch.manual_seed(0)
    start = start_of("s1", 0, shape)
    torch.manual_seed(1)
    torch.testing.assert_close(start_of("s1", 0, shape), start, rtol=0, atol=0)
    for other in (start_of("s2", 0, shape), start_of("s1", 1, shape), start_of("1/s1", 0, shape)):
        assert float((other - start).abs().mean()) > 0.5


def test_starts_are_standard_normal() -> None:
    starts = torch.stack([start_of(f"s{i}", 3, (4, 8, 8)) for i in range(200)])
    n = starts.numel()
    assert abs(float(starts.mean())) < 4 / n**0.5
    assert abs(float(starts.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((starts[::2] * starts[1::2]).mean())) < 4 / (n / 2) ** 0.5


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_generated_targets_lie_on_one_ddim_step_from_the_start(tiny_pipeline: Path, guidance: float) -> None:
    estimator = Generated(steps=3, guidance=guidance)
    teacher = load_pipeline(tiny_pipeline)
    one = torch.ones(1, dtype=torch.float64)
    signal, noise = float(teacher.schedule.signal(one)), float(teacher.schedule.noise(one))
    for row in targets(tiny_pipeline, [sample(i) for i in range(5)], estimator):
        start = start_of(row["key"], 0, (4, 8, 8)).numpy()
        np.testing.assert_allclose(signal * row["x_0"] + noise * row["target_mean"], start, atol=1e-5)
        assert {name: row[name].shape for name in ("x_0", "target_mean", "condition")} == {
            "x_0": (4, 8, 8),
            "target_mean": (4, 8, 8),
            "condition": (8, 16),
        }
        assert row["x_0"].dtype == row["target_mean"].dtype == np.float32


def test_generated_data_is_the_teachers_own_sample(tiny_pipeline: Path) -> None:
    teacher = load_pipeline(tiny_pipeline)
    rows = targets(tiny_pipeline, [sample(0), sample(2)], Generated(steps=4, guidance=1.0), seed=7)
    start = torch.stack([start_of(key, 7, (4, 8, 8)) for key in ("s0", "s2")])
    condition = teacher.condition(["red heart", "blue car"])
    denoiser = Denoiser(teacher.unet, teacher.schedule, teacher.kind)
    with torch.inference_mode():
        expected = dpm_solver_2m(
            lambda x, t: denoiser(x, t, condition), teacher.schedule, start, teacher.schedule.sampling_times(4)
        )
    np.testing.assert_allclose(np.stack([row["x_0"] for row in rows]), expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.stack([row["condition"] for row in rows]), condition.numpy(), atol=1e-6)


def test_guidance_and_caption_matter(tiny_pipeline: Path) -> None:
    plain, guided, other = (
        targets(tiny_pipeline, [made], Generated(steps=2, guidance=w))[0]["x_0"]
        for made, w in (
            (sample(0), 1.0),
            (sample(0), 5.0),
            (Sample(key="s0", members={"txt": b"blue car"}), 1.0),
        )
    )
    assert np.abs(plain - guided).max() > 1e-4
    assert np.abs(plain - other).max() > 1e-4


def test_calls_are_counted() -> None:
    assert Generated(steps=12, guidance=3.0).calls == 24
    assert Generated(steps=12, guidance=1.0).calls == 12
    assert Independent().calls == 0


@pytest.mark.parametrize("estimator", [Generated(steps=2), Independent()])
def test_targets_do_not_depend_on_how_shards_are_cut(
    tiny_pipeline: Path, tmp_path: Path, estimator: Generated | Independent
) -> None:
    samples = [sample(i) for i in range(5)]
    cuts = {"one": [samples], "three": [samples[3:], samples[:1], samples[1:3]]}
    found: dict[str, dict[str, Row]] = {}
    for name, shards in cuts.items():
        source, target = (LocalStore(uri=str(tmp_path / name / part)) for part in ("source", "target"))
        for i, shard in enumerate(shards):
            source.write(f"{i:06d}.tar", pack(shard))
        make = partial(TargetTransform, tiny_pipeline, estimator, READING, 5, 2, "float32")
        index = derive(Source.of(source), target, make, {}, 0.0)
        rows = [unpack_row(s) for shard in index.shards for s in unpack(target.read(shard.key), shard.key)]
        found[name] = {row["key"]: row for row in rows}
    assert set(found["one"]) == set(found["three"]) == {f"s{i}" for i in range(5)}
    for key, row in found["one"].items():
        for member in ("x_0", "target_mean", "condition"):
            np.testing.assert_allclose(found["three"][key][member], row[member], rtol=1e-4, atol=1e-5)


def test_another_seed_gives_other_targets(tiny_pipeline: Path) -> None:
    one, two = (targets(tiny_pipeline, [sample(0)], Generated(steps=2), seed=seed)[0] for seed in (0, 1))
    assert np.abs(one["target_mean"] - two["target_mean"]).mean() > 0.5


def test_the_control_pairs_the_real_latent_with_an_independent_mean(tiny_pipeline: Path) -> None:
    teacher = load_pipeline(tiny_pipeline).to(torch.device("cpu"))
    rows = targets(tiny_pipeline, [sample(i) for i in range(5)], Independent(), seed=2)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(row["target_mean"], start_of(f"s{i}", 2, (4, 8, 8)).numpy())
        colour = torch.tensor([40.0 * i, 90.0, 200.0 - 30 * i]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 127.5 - 1
        np.testing.assert_allclose(row["x_0"], teacher.encode(colour)[0].numpy(), rtol=1e-3, atol=1e-4)


def test_only_the_control_needs_the_picture(tiny_pipeline: Path) -> None:
    blind = Sample(key="s0", members={"txt": b"red heart"})
    assert len(targets(tiny_pipeline, [blind], Generated(steps=1))) == 1
    with pytest.raises(RejectedSampleError, match="s0: no picture"):
        targets(tiny_pipeline, [blind], Independent())


def test_half_precision_stays_close(tiny_pipeline: Path) -> None:
    rows = {}
    for precision in ("float32", "bfloat16"):
        transform = TargetTransform(tiny_pipeline, Generated(steps=2, guidance=1.0), READING, 0, 4, precision)
        rows[precision] = transform.compute([transform.read(sample(1))])[0]
    difference = np.abs(rows["float32"]["x_0"] - rows["bfloat16"]["x_0"])
    assert 0 < difference.max() < 0.2 * np.abs(rows["float32"]["x_0"]).max()
    assert rows["bfloat16"]["x_0"].dtype == np.float32
