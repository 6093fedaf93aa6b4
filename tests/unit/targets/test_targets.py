"""Targets computed by a real, tiny teacher: what they are, and what they depend on."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raystill.config.errors import UserError
from raystill.data.derive import Index, Shard, Source, Stage, derive
from raystill.data.local import LocalStore
from raystill.data.pictures import encode_webp
from raystill.data.records import Reading, RejectedSampleError, Row, pack_row, unpack_row
from raystill.data.shards import Sample, pack, unpack
from raystill.data.starts import start_of
from raystill.flow.predictions import Prediction
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule
from raystill.flow.solvers import dpm_solver_2m
from raystill.flow.starts import StartLaw
from raystill.flow.trajectories import angle_times
from raystill.models.conditioning import Condition
from raystill.models.fresh import stable_diffusion_scheduler
from raystill.models.pipeline import load_pipeline
from raystill.targets.estimators import Estimator, Teacher, assignment
from raystill.targets.solved import SOLVERS, SolverEstimator, SolverName
from raystill.targets.targets import (
    Assignment,
    Encoding,
    Expectation,
    Generation,
    IndependentMeans,
    Inversion,
    TargetTransform,
    check_identity,
    fit_start,
    start_law_of,
)

READING = Reading(picture_size=16)
CAPTIONS = ("red heart", "cat face", "blue car", "red car", "cat")


def sample(number: int) -> Sample:
    picture = encode_webp(Image.new("RGB", (16, 16), (40 * number, 90, 200 - 30 * number)))
    return Sample(key=f"s{number}", members={"webp": picture, "txt": CAPTIONS[number].encode()})


def targets(
    pipeline: Path, samples: list[Sample], estimator: Estimator, seed: int = 0, batch_size: int = 4
) -> list[Row]:
    transform = TargetTransform(str(pipeline), estimator, READING, seed, batch_size, "float32")
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


def test_no_two_of_200_000_samples_share_a_start() -> None:
    # Of seeds of 32 bits 4.7 pairs would.
    assert len({start_of(f"s{i}", 0, (1, 1, 8)).numpy().tobytes() for i in range(200_000)}) == 200_000


def test_starts_of_revision_1_are_the_former_ones_to_the_bit() -> None:
    former = [0.5621675252914429, 0.26985853910446167, -1.2670611143112183, 0.685653030872345]
    assert start_of("s1", 0, (1, 2, 2), revision=1).flatten().tolist() == former
    number = int.from_bytes(hashlib.sha256(b"7/s2").digest()[:8], "big") % 2**63
    torch.manual_seed(number)
    assert torch.equal(start_of("s2", 7, (4, 8, 8), revision=1), torch.randn(4, 8, 8))
    assert not torch.equal(start_of("s2", 7, (4, 8, 8)), start_of("s2", 7, (4, 8, 8), revision=1))


def test_estimators_that_use_starts_have_them_at_both_revisions(tiny_pipeline: Path) -> None:
    for estimator in (Generation(solver_steps=1), IndependentMeans(), Assignment()):
        assert estimator.revision == 2
        for revision in (1, 2):
            row = targets(tiny_pipeline, [sample(1)], replace(estimator, revision=revision))[0]
            start = start_of("s1", 0, (4, 8, 8), revision).numpy()
            if isinstance(estimator, Generation):
                schedule, one = load_pipeline(tiny_pipeline).schedule, torch.ones(1, dtype=torch.float64)
                start = (start - float(schedule.signal(one)) * row["x_0"]) / float(schedule.noise(one))
            np.testing.assert_allclose(row["target_mean"], start, atol=1e-5)
        with pytest.raises(UserError, match=r"has revision 3; write 2, or 1 .* --set targets\.estimator\.revision=2"):
            replace(estimator, revision=3)
    assert {Inversion().revision, Expectation().revision, Encoding().revision} == {1}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_generated_targets_lie_on_one_ddim_step_from_the_start(tiny_pipeline: Path, guidance: float) -> None:
    estimator = Generation(solver_steps=3, guidance=guidance)
    teacher = load_pipeline(tiny_pipeline)
    one = torch.ones(1, dtype=torch.float64)
    signal, noise = float(teacher.schedule.signal(one)), float(teacher.schedule.noise(one))
    for row in targets(tiny_pipeline, [sample(i) for i in range(5)], estimator):
        start = start_of(row["key"], 0, (4, 8, 8)).numpy()
        np.testing.assert_allclose(signal * row["x_0"] + noise * row["target_mean"], start, atol=1e-5)
        assert {name: row[name].shape for name in ("x_0", "target_mean", "condition.prompt")} == {
            "x_0": (4, 8, 8),
            "target_mean": (4, 8, 8),
            "condition.prompt": (8, 16),
        }
        assert row["x_0"].dtype == row["target_mean"].dtype == np.float32


def test_generated_data_is_the_teachers_own_sample(tiny_pipeline: Path) -> None:
    teacher = load_pipeline(tiny_pipeline)
    rows = targets(tiny_pipeline, [sample(0), sample(2)], Generation(solver_steps=4, guidance=1.0), seed=7)
    start = torch.stack([start_of(key, 7, (4, 8, 8)) for key in ("s0", "s2")])
    condition = teacher.condition(["red heart", "blue car"])
    denoiser = teacher.denoiser
    with torch.inference_mode():
        expected = dpm_solver_2m(
            lambda x, t: denoiser(x, t, condition), teacher.schedule, start, teacher.schedule.sampling_times(4)
        )
    np.testing.assert_allclose(np.stack([row["x_0"] for row in rows]), expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.stack([row["condition.prompt"] for row in rows]), condition["prompt"].numpy(), atol=1e-6
    )


def test_guidance_and_caption_matter(tiny_pipeline: Path) -> None:
    plain, guided, other = (
        targets(tiny_pipeline, [made], Generation(solver_steps=2, guidance=w))[0]["x_0"]
        for made, w in (
            (sample(0), 1.0),
            (sample(0), 5.0),
            (Sample(key="s0", members={"txt": b"blue car"}), 1.0),
        )
    )
    assert np.abs(plain - guided).max() > 1e-4
    assert np.abs(plain - other).max() > 1e-4


def test_calls_are_counted() -> None:
    assert Generation(solver_steps=12, guidance=3.0).calls == 24
    assert Generation(solver_steps=12, guidance=1.0).calls == 12
    assert IndependentMeans().calls == Assignment().calls == 0


@pytest.mark.parametrize("rho", [None, 2.0])
@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("kind", [Generation, Inversion, Expectation])
def test_calls_are_those_that_the_network_gets(
    tiny_pipeline: Path, kind: Callable[..., SolverEstimator], solver: SolverName, guidance: float, rho: float | None
) -> None:
    teacher = Teacher.of(load_pipeline(tiny_pipeline))
    rows = []
    teacher.pipeline.network.register_forward_hook(lambda unet, given, answer: rows.append(len(given[0])))
    estimator = kind(solver_steps=3, guidance=guidance, solver=solver, rho=rho)
    condition = teacher.pipeline.condition(["red heart", "blue car"])
    with torch.inference_mode():
        estimator.targets(teacher, torch.randn(2, 4, 8, 8), condition, torch.zeros(2, 3, 16, 16))
    assert sum(rows) == 2 * estimator.calls
    assert len(rows) == estimator.calls / (1 if guidance == 1 else 2)  # both branches are one forward


@pytest.mark.parametrize(
    ("estimator", "atol"),  # near data an inversion magnifies the rounding of batches of other sizes
    [
        (Generation(solver_steps=2), 1e-5),
        (IndependentMeans(), 1e-5),
        (Inversion(solver_steps=2), 1e-4),
        (Expectation(solver_steps=2), 1e-4),
    ],
)
def test_targets_do_not_depend_on_how_shards_are_cut(
    tiny_pipeline: Path, tmp_path: Path, estimator: Estimator, atol: float
) -> None:
    samples = [sample(i) for i in range(5)]
    cuts = {"one": [samples], "three": [samples[3:], samples[:1], samples[1:3]]}
    found: dict[str, dict[str, Row]] = {}
    for name, shards in cuts.items():
        source, target = (LocalStore(uri=str(tmp_path / name / part)) for part in ("source", "target"))
        for i, shard in enumerate(shards):
            source.write(f"{i:06d}.tar", pack(shard))
        make = partial(TargetTransform, str(tiny_pipeline), estimator, READING, 5, 2, "float32")
        index = derive(Stage(Source.of(source), target, {}, make))
        rows = [unpack_row(s) for shard in index.shards for s in unpack(target.read(shard.key), shard.key)]
        found[name] = {row["key"]: row for row in rows}
    assert set(found["one"]) == set(found["three"]) == {f"s{i}" for i in range(5)}
    for key, row in found["one"].items():
        for member in ("x_0", "target_mean", "condition.prompt"):
            np.testing.assert_allclose(found["three"][key][member], row[member], rtol=1e-4, atol=atol)


def test_another_seed_gives_other_targets(tiny_pipeline: Path) -> None:
    one, two = (targets(tiny_pipeline, [sample(0)], Generation(solver_steps=2), seed=seed)[0] for seed in (0, 1))
    assert np.abs(one["target_mean"] - two["target_mean"]).mean() > 0.5


def test_the_control_pairs_the_real_latent_with_an_independent_mean(tiny_pipeline: Path) -> None:
    teacher = load_pipeline(tiny_pipeline).to(torch.device("cpu"))
    rows = targets(tiny_pipeline, [sample(i) for i in range(5)], IndependentMeans(), seed=2)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(row["target_mean"], start_of(f"s{i}", 2, (4, 8, 8)).numpy())
        colour = torch.tensor([40.0 * i, 90.0, 200.0 - 30 * i]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 127.5 - 1
        np.testing.assert_allclose(row["x_0"], teacher.encode(colour)[0].numpy(), rtol=1e-3, atol=1e-4)


def test_only_what_starts_from_real_latents_needs_the_picture(tiny_pipeline: Path) -> None:
    blind = Sample(key="s0", members={"txt": b"red heart"})
    assert len(targets(tiny_pipeline, [blind], Generation(solver_steps=1))) == 1
    for estimator in (IndependentMeans(), Assignment(), Inversion(solver_steps=1), Expectation(solver_steps=1)):
        with pytest.raises(RejectedSampleError, match="s0: no picture"):
            targets(tiny_pipeline, [blind], estimator)


def latents_of(pipeline: Path, numbers: list[int]) -> tuple[Teacher, torch.Tensor, Condition]:
    """The teacher, and the real latents and conditions of samples."""
    teacher = Teacher.of(load_pipeline(pipeline).to(torch.device("cpu")))
    colours = torch.tensor([[40.0 * i, 90.0, 200.0 - 30 * i] for i in numbers]).view(-1, 3, 1, 1)
    condition = teacher.pipeline.condition([CAPTIONS[i] for i in numbers])
    return teacher, teacher.pipeline.encode(colours.expand(-1, 3, 16, 16) / 127.5 - 1), condition


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_inverted_target_leads_from_the_real_latent_up_and_back(tiny_pipeline: Path, guidance: float) -> None:
    estimator = Inversion(solver_steps=32, guidance=guidance, solver="heun", rho=1.0)
    row = targets(tiny_pipeline, [sample(1)], estimator)[0]
    teacher, x_0, condition = latents_of(tiny_pipeline, [1])
    np.testing.assert_allclose(row["x_0"], x_0[0].numpy(), atol=2e-2)  # but for the picture's compression
    schedule, x_0 = teacher.denoiser.schedule, torch.from_numpy(row["x_0"])[None]
    one = schedule.angle(torch.ones(1, dtype=torch.float64))
    z = float(one.cos()) * x_0 + float(one.sin()) * torch.from_numpy(row["target_mean"])[None]
    with torch.inference_mode():
        back = SOLVERS["heun"](teacher.guided(condition, guidance), schedule, z, angle_times(schedule, 32, 1.0))
    assert float((back - x_0).abs().max()) < 0.02 * float(z.abs().max())


def test_an_expectation_is_the_mean_over_time_along_the_same_inversion(tiny_pipeline: Path) -> None:
    # Written out for DDIM at even times, where it is a sum of trapezoids and the last prediction's half step.
    row = targets(tiny_pipeline, [sample(2)], Expectation(solver_steps=4, solver="ddim", rho=None))[0]
    teacher, _, condition = latents_of(tiny_pipeline, [2])
    said: list[torch.Tensor] = []

    def listening(x: torch.Tensor, t: torch.Tensor) -> Prediction:
        prediction = teacher.denoiser(x, t, condition)
        said.append(prediction.epsilon)
        return prediction

    with torch.inference_mode():
        x_0 = torch.from_numpy(row["x_0"])[None]
        SOLVERS["ddim"](listening, teacher.denoiser.schedule, x_0, torch.linspace(0, 1, 5, dtype=torch.float64))
    expected = (said[0] / 2 + said[1] + said[2] + 1.5 * said[3]) / 4
    np.testing.assert_allclose(row["target_mean"], expected[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("rho", [None, 2.0])
def test_generated_targets_take_any_solver(tiny_pipeline: Path, rho: float | None) -> None:
    made = {
        name: targets(tiny_pipeline, [sample(0)], Generation(solver_steps=24, solver=name, rho=rho))[0]["x_0"]
        for name in SOLVERS
    }
    for other in ("ddim", "euler", "heun"):
        assert 0 < np.abs(made[other] - made["dpm_solver_2m"]).max() < 0.1 * np.abs(made["ddim"]).max()


def squared_distance(x: np.ndarray, z: np.ndarray) -> float:
    return float(np.square(x - z).sum())


@given(st.integers(2, 5), st.integers(0, 1000))
def test_an_assignment_is_the_shortest_of_all(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, z = (rng.normal(size=(count, 2, 3, 1)).astype(np.float32) for _ in range(2))
    chosen = assignment(x, z)
    assert sorted(chosen) == list(range(count))
    lengths = [squared_distance(x, z[list(order)]) for order in permutations(range(count))]
    assert squared_distance(x, z[chosen]) == pytest.approx(min(lengths))


def test_assigned_targets_are_the_controls_dealt_out_nearer(tiny_pipeline: Path) -> None:
    samples = [sample(i) for i in range(5)]
    control, assigned = (targets(tiny_pipeline, samples, e, seed=2) for e in (IndependentMeans(), Assignment()))
    assert [row["key"] for row in assigned] == [row["key"] for row in control]
    for one, other in zip(assigned, control, strict=True):
        np.testing.assert_array_equal(one["x_0"], other["x_0"])
    means = {name: np.stack([row["target_mean"] for row in rows]) for name, rows in (("c", control), ("a", assigned))}
    order = [int(np.flatnonzero((means["c"] == mean).all(axis=(1, 2, 3)))[0]) for mean in means["a"]]
    assert sorted(order) == list(range(5))
    x_0 = np.stack([row["x_0"] for row in control])
    assert squared_distance(x_0, means["a"]) < squared_distance(x_0, means["c"])


def rows_of(count: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        {
            "key": f"s{i:03d}",
            "x_0": rng.normal(size=(2, 3, 4)).astype(np.float32),
            "target_mean": rng.normal(size=(2, 3, 4)).astype(np.float32),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize(("count", "group"), [(1, 4), (7, 4), (12, 4), (5, 256)])
def test_an_assignment_stays_in_its_group_whatever_the_order(count: int, group: int) -> None:
    rows, estimator = rows_of(count), Assignment(group=group)
    dealt = {row["key"]: row["target_mean"] for row in estimator.arranged(rows)}
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(count)]
    again = estimator.arranged(shuffled)
    assert [row["key"] for row in again] == [row["key"] for row in shuffled]
    for row in again:
        np.testing.assert_array_equal(row["target_mean"], dealt[row["key"]])
    for part in np.array_split(np.arange(count), -(-count // group)):
        assert 1 <= len(part) <= group
        before, after = ({dealt_or[i].tobytes() for i in part} for dealt_or in (
            [row["target_mean"] for row in rows], [dealt[row["key"]] for row in rows],
        ))  # fmt: skip
        assert before == after


def test_larger_groups_bring_the_means_nearer() -> None:
    rows = rows_of(60)
    lengths = []
    for group in (2, 6, 60):
        dealt = Assignment(group=group).arranged(rows)
        lengths.append(sum(squared_distance(row["x_0"], row["target_mean"]) for row in dealt))
    assert lengths[0] > lengths[1] > lengths[2]


def test_a_fitted_start_is_each_channel_s_mean_and_spread() -> None:
    rng = np.random.default_rng(0)
    mean, std = np.array([0.5, -2.0, 0.0]), np.array([0.25, 1.0, 3.0])
    drawn = [
        (rng.normal(size=(3, 4, 5)) * std[:, None, None] + mean[:, None, None]).astype(np.float32) for _ in range(300)
    ]
    law = fit_start(iter(drawn))
    stacked = np.stack(drawn).astype(np.float64)
    assert law.law == "channel_normal"
    assert law.mean == pytest.approx(tuple(stacked.mean(axis=(0, 2, 3))), rel=1e-4, abs=1e-6)
    assert law.std == pytest.approx(tuple(stacked.std(axis=(0, 2, 3))), rel=1e-4)
    assert fit_start(reversed(drawn)) == law


def test_a_fit_needs_targets() -> None:
    with pytest.raises(UserError, match="compute them first"):
        fit_start([])


def test_every_estimator_has_its_law_at_inference(tiny_pipeline: Path, tmp_path: Path) -> None:
    source, target = (LocalStore(uri=str(tmp_path / part)) for part in ("source", "target"))
    source.write("000000.tar", pack([sample(0), sample(1)]))
    source.write("000001.tar", pack([Sample(key="blind", members={"txt": b"cat"})]))
    source.write("000002.tar", pack([sample(2)]))
    make = partial(TargetTransform, str(tiny_pipeline), Expectation(solver_steps=2), READING, 0, 4, "float32")
    index = derive(Stage(Source.of(source), target, {}, make, 0.5))
    schedule, one = load_pipeline(tiny_pipeline).schedule, torch.ones(1, dtype=torch.float64)
    found = start_law_of(Expectation(solver_steps=2), schedule, target, index)
    rows = targets(tiny_pipeline, [sample(i) for i in range(3)], Expectation(solver_steps=2))
    signal, noise = float(schedule.signal(one)), float(schedule.noise(one))
    expected = fit_start(signal * row["x_0"] + noise * row["target_mean"] for row in rows)
    means = fit_start(row["target_mean"] for row in rows)
    assert found.law == "channel_normal"
    assert (*found.mean, *found.std) == pytest.approx((*expected.mean, *expected.std), rel=1e-3, abs=1e-5)
    assert found.mean != pytest.approx(means.mean, rel=1e-2)
    assert start_law_of(Expectation(solver_steps=2), FlowSchedule(), target, index).std == pytest.approx(
        means.std, rel=1e-3
    )
    for estimator in (Generation(), Inversion(), IndependentMeans(), Assignment()):
        assert start_law_of(estimator, schedule, target, index) == StartLaw()


def test_no_more_shards_are_read_than_a_fit_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystill.targets.targets.FITTED_SAMPLES", 3)
    read: list[str] = []

    class Counting(LocalStore):
        def read(self, key: str) -> bytes:
            read.append(key)
            return super().read(key)

    store = Counting(uri=str(tmp_path))
    shards = []
    for name, count in (("a.tar", 2), ("b.tar", 2), ("c.tar", 2)):
        rows = [{**row, "key": f"{name[0]}{row['key']}", "caption": ""} for row in rows_of(count, seed=ord(name[0]))]
        store.write(name, pack(pack_row(row) for row in rows))
        shards.append(Shard(key=name, count=count))
    law = start_law_of(Expectation(), FlowSchedule(), store, Index(identity={}, shards=tuple(shards)))
    assert read == ["a.tar", "b.tar"]
    first = [row["target_mean"] for name in "ab" for row in rows_of(2, seed=ord(name))][:3]
    assert law == fit_start(first)


def test_targets_of_another_teacher_are_refused() -> None:
    ours = {"teacher": "0123", "targets": {"kind": "Generated", "steps": 12}, "source_digest": "ff"}
    check_identity(Index(identity=dict(ours), shards=()), ours, "s3://b/targets/x")
    for name, value in (("teacher", "4567"), ("targets", {"kind": "Generated", "steps": 8}), ("source_digest", "00")):
        with pytest.raises(UserError, match=f"targets at s3://b/targets/x .* {name} is .*Move them away"):
            check_identity(Index(identity={**ours, name: value}, shards=()), ours, "s3://b/targets/x")
    with pytest.raises(UserError, match="teacher is None, this run's '0123'"):
        check_identity(Index(identity={k: v for k, v in ours.items() if k != "teacher"}, shards=()), ours, "here")


@pytest.mark.parametrize("kind", [Generation, Inversion, Expectation])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver_steps": 0}, "has 0 steps; write 1 or more"),
        ({"guidance": -1.0}, "guidance is -1.0; write a number from 0"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"rho": 0.0}, "rho is 0.0; write a number above 0"),
        ({"rho": 11.0}, "rho is 11.0; write a number above 0"),
    ],
)
def test_bad_settings_say_what_to_write(
    kind: Callable[..., SolverEstimator], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        kind(**settings)


def test_an_unknown_solver_is_refused() -> None:
    # Built around the annotations' own check, as a caller outside the tests is.
    estimator = object.__new__(Generation)
    for name, value in {"solver_steps": 2, "guidance": 1.0, "solver": "best", "rho": None}.items():
        object.__setattr__(estimator, name, value)
    with pytest.raises(UserError, match=r"Generation's solver is 'best'; write one of .* --set targets.estimator"):
        estimator.__post_init__()


def test_a_group_of_one_is_no_assignment() -> None:
    with pytest.raises(UserError, match="write 2 or more"):
        Assignment(group=1)


def test_a_teacher_that_an_estimator_cannot_use_is_refused() -> None:
    schedule = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
    for estimator in (Inversion(), Expectation()):
        with pytest.raises(UserError, match="inverts real latents, and a teacher that predicts data"):
            estimator.check(schedule, "sample")
        estimator.check(schedule, "epsilon")
        estimator.check(FlowSchedule(), "flow_prediction")
        with pytest.raises(UserError, match="has 1001 steps and the teacher's schedule 1000"):
            replace(estimator, solver_steps=1001).check(schedule, "epsilon")
    for any_teacher in (Generation(), IndependentMeans(), Assignment()):
        any_teacher.check(schedule, "sample")


def test_half_precision_stays_close(tiny_pipeline: Path) -> None:
    rows = {}
    for precision in ("float32", "bfloat16"):
        transform = TargetTransform(
            str(tiny_pipeline), Generation(solver_steps=2, guidance=1.0), READING, 0, 4, precision
        )
        rows[precision] = transform.compute([transform.read(sample(1))])[0]
    difference = np.abs(rows["float32"]["x_0"] - rows["bfloat16"]["x_0"])
    assert 0 < difference.max() < 0.2 * np.abs(rows["float32"]["x_0"]).max()
    assert rows["bfloat16"]["x_0"].dtype == np.float32
