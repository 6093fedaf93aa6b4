"""One suite over every training method: what the loop may rely on. A method is tested by being in the table."""

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.given import given, prompted
from torch import Tensor, nn

from raystill import methods
from raystill.flow.importance import GridTimes, SecondMomentTimes
from raystill.flow.objectives import Objective
from raystill.flow.paths import PairedDiffusionPath, RayPath
from raystill.flow.predictions import Kind
from raystill.flow.premetrics import VectorHuber
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule
from raystill.flow.stein import SteinTimes
from raystill.flow.times import LogitNormalTimes, SamplingTimes, UniformTimes, UShapedTimes
from raystill.methods.add import ADD
from raystill.methods.autoencoder import Autoencoder, AutoencoderPass
from raystill.methods.ctm import CTM
from raystill.methods.denoising import Denoising, TextToImage
from raystill.methods.dmd2 import DMD2
from raystill.methods.lcm import LCM
from raystill.methods.lightning import Lightning
from raystill.methods.method import STUDENT, TARGET, TEACHER, TIME_SAMPLER, Distillation, Given, Loss, Method, generator
from raystill.methods.perflow import PeRFlow
from raystill.methods.phased import PhasedRectifiedDiffusion
from raystill.methods.rayflow import RayFlow
from raystill.methods.rectified import RectifiedDiffusion
from raystill.methods.reflow import Reflow
from raystill.methods.scott import SCott
from raystill.methods.tcd import TCD
from raystill.methods.teaching import Guidance
from raystill.models.ctm import make_room
from raystill.models.fresh import AutoencoderShape, DenoiserShape, Tokens, stable_diffusion_scheduler
from raystill.models.weights import Lora, prepare

SCHEDULE = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
SIZES = {"distinct": (3, 4, 6, 10), "square": (4, 4, 4, 4)}  # batch, channels, height, width of a latent
TEXT = 4  # width and length of the text, so that the square case is square here too
SHAPE = DenoiserShape(
    widths=(8, 16), groups=4, heads=2, text_width=TEXT, text_layers=1, text_heads=2, text_length=TEXT, vocabulary=9
)

Roles = dict[str, nn.Module]
Fields = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A method with networks to train and a batch of the given latent shape."""

    method: Method
    networks: Callable[[], Roles]
    batch: Callable[[tuple[int, ...]], Fields]
    descends: bool = True  # whether the student's loss is a function whose gradient is followed
    draws: bool = True  # whether its losses depend on the step's generator
    step: int = 0  # of a training, at which its losses are looked at
    settings: Distillation | None = None  # of a distillation, and what they are bound to
    told: Given | None = None


def distilling(settings: Distillation, told: Given, networks: Any, batch: Any, *, descends: bool = True) -> Case:
    return Case(settings.bind(told), networks, batch, descends=descends, settings=settings, told=told)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def student() -> Roles:
    unet = prepare(SHAPE.unet(4, 8), Lora(rank=2, alpha=2.0))
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:  # a fresh adapter is the identity, whose lora_A has no gradient yet
            parameter.data.normal_(0, 0.1)
    return {"student": unet}


def targets(shape: tuple[int, ...]) -> Fields:
    x_0, mu = (torch.randn(shape, generator=rng(i)) for i in (1, 2))
    return {"x_0": x_0, "target_mean": mu, "condition": prompted(torch.randn(shape[0], TEXT, TEXT, generator=rng(3)))}


def ray(kind: Kind = "v_prediction", schedule: Schedule = SCHEDULE, **settings: Any) -> Case:
    method = RayFlow(**{"times": SamplingTimes(), **settings})
    return distilling(method, given(schedule, kind), student, targets)


def consistent(
    method: Distillation, kind: Kind = "v_prediction", schedule: Schedule = SCHEDULE, *, descends: bool = True
) -> Case:
    """A method that asks a frozen teacher; with a target network apart from the student its loss can only fall."""
    told = given(schedule, kind)

    def networks() -> Roles:
        frozen = {role: SHAPE.unet(4, 8).requires_grad_(False) for role in (TEACHER, TARGET)}
        learner, copies = student(), {role: student()[STUDENT] for role in method.copies}
        if method.tells_landing:
            for unet in (learner[STUDENT], frozen[TARGET]):
                make_room(unet, "time_embedding")
            frozen[TARGET].requires_grad_(False)
        return {**learner, **frozen, **copies, **{r: h.module for r, h in method.heads(told).items()}}

    def batch(shape: tuple[int, ...]) -> Fields:
        return {name: value for name, value in targets(shape).items() if name in method.needs}

    return distilling(method, told, networks, batch, descends=descends)


def taught(times: SecondMomentTimes | GridTimes | SteinTimes, **settings: Any) -> Case:
    def networks() -> Roles:
        law = times.network(4)
        for parameter in law.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
        return {**student(), TIME_SAMPLER: law}

    method = RayFlow(times=times, **settings)
    return distilling(method, given(SCHEDULE, "v_prediction"), networks, targets)


def denoising(kind: Kind, schedule: Schedule = SCHEDULE) -> Case:
    method = Denoising(schedule=schedule, kind=kind, empty_tokens=(1, 8, 8, 8), caption_dropout=0.3)

    def networks() -> Roles:
        text = SHAPE.text_encoder(Tokens(vocabulary=9, start=1, end=8, empty=method.empty_tokens))
        return {"denoiser": TextToImage(SHAPE.unet(4, 8), text)}

    def batch(shape: tuple[int, ...]) -> Fields:
        tokens = torch.randint(2, 8, (shape[0], TEXT), generator=rng(2))
        tokens[:, 0], tokens[:, -1] = 1, 8
        return {"latent": torch.randn(shape, generator=rng(1)), "tokens": tokens}

    return Case(method, networks, batch)


def pictures(shape: tuple[int, ...]) -> Fields:
    return {"image": torch.randint(0, 256, (shape[0], *shape[2:], 3), generator=rng(1), dtype=torch.uint8)}


CASES = {
    "rayflow": ray(),
    "rayflow-noisy": ray(path=RayPath(sigma=0.3), times=UniformTimes(), objective=Objective(target="data")),
    "rayflow-logit-normal": ray(times=LogitNormalTimes(importance=0.1)),
    "rayflow-u-shaped": ray(times=UShapedTimes()),
    "rayflow-second-moment": taught(SecondMomentTimes()),
    "rayflow-grid": taught(GridTimes(base=SamplingTimes(student_steps=4))),
    "rayflow-stein": taught(SteinTimes(), path=RayPath(sigma=0.3)),
    "rayflow-paired": ray("epsilon", path=PairedDiffusionPath(), times=SamplingTimes(student_steps=4)),
    "rayflow-sample": ray("sample", objective=Objective(target="data")),
    "rayflow-flow": ray("flow_prediction", FlowSchedule(shift=3.0)),
    "lcm": consistent(LCM()),
    "lcm-flow": consistent(LCM(intervals=10, guidance=Guidance(low=1.0, high=1.0)), "flow_prediction", FlowSchedule()),
    "tcd": consistent(TCD(immiscible=True), "epsilon"),
    "tcd-segments": replace(
        consistent(TCD(intervals=16, segments=(8, 2), guidance=Guidance(low=2.0, high=9.0)), "sample"), step=250
    ),
    "ctm": consistent(CTM(most=3), descends=False),
    "ctm-consistent": consistent(
        CTM(intervals=4, most=4, denoising=0.0), "flow_prediction", FlowSchedule(), descends=False
    ),
    "scott": consistent(SCott(), "epsilon"),
    "perflow": consistent(PeRFlow(caption_dropout=0.3), "epsilon"),
    "perflow-chain": consistent(PeRFlow(target="diff_eps", synchronised=True, windows=2, substeps=3)),
    "perflow-flow": consistent(PeRFlow(target="velocity"), "flow_prediction", FlowSchedule(shift=3.0)),
    "phased": consistent(PhasedRectifiedDiffusion()),
    "phased-sample": consistent(PhasedRectifiedDiffusion(windows=1), "sample"),
    "reflow": consistent(Reflow()),
    "reflow-epsilon": consistent(Reflow(), "epsilon"),
    "reflow-one-epsilon": replace(consistent(Reflow(one_step_from=0), "epsilon"), draws=False),
    "lightning-flow": consistent(
        Lightning(stages=(4, 2), first=8, stage_steps=6), "flow_prediction", FlowSchedule(shift=3.0)
    ),
    "ctm-guided": consistent(CTM(most=2, guidance=Guidance(low=4.0, high=4.0)), "epsilon", descends=False),
    "reflow-rf++": consistent(Reflow(times=UShapedTimes(), premetric=VectorHuber())),
    "reflow-one": replace(consistent(Reflow(one_step_from=0), "flow_prediction", FlowSchedule()), draws=False),
    "rectified": consistent(RectifiedDiffusion(times=LogitNormalTimes(importance=0.2)), "epsilon"),
    "rectified-consistent": consistent(RectifiedDiffusion(consistency_from=0)),
    "dmd2": consistent(DMD2(), descends=False),
    "dmd2-flow": consistent(DMD2(student_steps=2, adversarial=0.0), "flow_prediction", FlowSchedule(), descends=False),
    "add": consistent(ADD(features=("down_blocks.0", "mid_block")), descends=False),
    "lightning": consistent(Lightning(stages=(8, 4), first=16, stage_steps=6)),
    "lightning-later": replace(
        consistent(Lightning(stages=(4, 2, 1), first=8, stage_steps=1), "epsilon", descends=False), step=1
    ),
    "lightning-last": replace(consistent(Lightning(stages=(4, 2, 1), first=8, stage_steps=1), descends=False), step=2),
    "denoising-v": denoising("v_prediction"),
    "denoising-epsilon": denoising("epsilon"),
    "denoising-sample": denoising("sample"),
    "denoising-flow": denoising("flow_prediction", FlowSchedule()),
    "autoencoder": Case(
        Autoencoder(),
        lambda: {"autoencoder": AutoencoderPass(AutoencoderShape(widths=(8, 16), groups=4).build())},
        pictures,
    ),
}


@cache
def built(name: str) -> tuple[Roles, dict[str, Fields]]:
    """A case's networks, and their state; built once, since most of a test's time would go there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = CASES[name].networks()
    return networks, {role: deepcopy(network.state_dict()) for role, network in networks.items()}


def fresh(name: str) -> Roles:
    """A case's networks as they were built; those that were given before are the same ones."""
    networks, states = built(name)
    for role, network in networks.items():
        network.load_state_dict(states[role])
        network.zero_grad()
    return dict(networks)


def rebuilt(name: str) -> Case:
    """A case whose networks are as they were built."""
    return replace(CASES[name], networks=partial(fresh, name))


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return rebuilt(request.param)


@pytest.fixture(params=list(SIZES))
def size(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return SIZES[request.param]


def losses(
    case: Case, networks: Mapping[str, nn.Module], batch: Fields, at: tuple[int, int, int] | None = None
) -> dict[str, Loss]:
    """Losses of the step (seed, rank, step), by default the case's, as the loop asks for them."""
    at = (0, 0, case.step) if at is None else at
    return case.method.losses(networks, batch, generator(*at), at[2])


def tensors_of(batch: Fields) -> dict[str, Tensor]:
    """The tensors of a batch, those of its condition among them."""
    told: dict[str, Tensor] = batch.get("condition", {})
    return {**{name: value for name, value in batch.items() if name != "condition"}, **told}


def test_every_file_of_a_method_has_a_case() -> None:
    files = {path.stem for path in Path(next(iter(methods.__path__))).glob("*.py")}
    files -= {"__init__", "method", "table", "teaching", "consistency", "adversary", "coupling"}
    assert files == {name.split("-")[0] for name in CASES}


def test_roles_and_fields_are_declared(case: Case) -> None:
    method = case.method
    assert isinstance(method, Method)
    assert set(case.networks()) >= set(method.learners) > set()
    assert len(set(method.learners)) == len(method.learners)
    for step in range(20):
        assert set(method.turn(step)) <= set(method.learners)
        assert method.turn(step)
    for role in method.learners:
        assert any(role in method.turn(step) for step in range(20)), f"{role} has no turn"


def test_losses_are_finite_scalars_of_the_roles_whose_turn_it_is(case: Case, size: tuple[int, ...]) -> None:
    batch = case.batch(size)
    found = losses(case, case.networks(), batch)
    assert set(found) == set(case.method.turn(case.step))
    for loss in found.values():
        assert loss.value.shape == ()
        assert loss.value.requires_grad
        assert bool(torch.isfinite(loss.value))
        for name, metric in loss.metrics.items():
            assert re.fullmatch(r"[a-z]+/[a-z0-9_]+", name)
            assert metric.shape == ()
            assert not metric.requires_grad
            assert bool(torch.isfinite(metric))
        if loss.times is not None:
            assert loss.times.shape == size[:1]
            assert loss.times.device.type == "cpu"


def test_needs_are_what_is_read(case: Case, size: tuple[int, ...]) -> None:
    batch, networks = case.batch(size), case.networks()
    assert set(case.method.needs) == set(batch)
    for field in case.method.needs:
        with pytest.raises(KeyError, match=field):
            losses(case, networks, {name: value for name, value in batch.items() if name != field})


def test_gradients_reach_the_role_s_own_parameters_only(case: Case, size: tuple[int, ...]) -> None:
    networks, batch = case.networks(), case.batch(size)
    found = losses(case, networks, batch)
    for role, loss in found.items():
        for other, network in networks.items():
            learned = [p for p in network.parameters() if p.requires_grad]
            if not learned:  # a frozen network
                continue
            reached = torch.autograd.grad(loss.value, learned, retain_graph=True, allow_unused=True)
            if other != role:
                assert all(g is None for g in reached), f"the loss of {role} reaches {other}"
        loss.value.backward()
        unreached = [n for n, p in networks[role].named_parameters() if p.requires_grad and p.grad is None]
        assert unreached == []
        total = sum(float(p.grad.abs().sum()) for p in networks[role].parameters() if p.grad is not None)
        assert 0 < total < float("inf")
        assert all(p.grad is None for p in networks[role].parameters() if not p.requires_grad)
    assert all(not tensor.requires_grad for tensor in tensors_of(batch).values())


def test_losses_are_a_function_of_seed_rank_and_step(case: Case, size: tuple[int, ...]) -> None:
    networks, batch = case.networks(), case.batch(size)
    before = torch.get_rng_state()

    def values(*at: int) -> list[float]:
        return [float(loss.value.detach()) for loss in losses(case, networks, batch, (at[0], at[1], at[2])).values()]

    first = values(3, 1, 5)
    assert values(3, 1, 5) == first
    for other in ((4, 1, 5), (3, 2, 5), (3, 1, 6)):
        assert (values(*other) != first) is case.draws
    assert torch.equal(before, torch.get_rng_state()), "the global generator was drawn from"


def test_the_batch_is_left_as_it_was(case: Case, size: tuple[int, ...]) -> None:
    batch = case.batch(size)
    before = {name: tensor.clone() for name, tensor in tensors_of(batch).items()}
    losses(case, case.networks(), batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(batch).items())


def test_the_loss_falls_when_its_gradient_is_followed(case: Case, size: tuple[int, ...]) -> None:
    networks, batch = case.networks(), case.batch(size)
    first = losses(case, networks, batch)
    for role, loss in first.items():
        if role == STUDENT and not case.descends:
            continue
        learned = [p for p in networks[role].parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss.value, learned)
        square = float(sum(g.square().sum() for g in gradients))
        rate = 1e-4 * float(loss.value.detach()) / square  # a fall of 0.01 %, to first order
        with torch.no_grad():
            for p, g in zip(learned, gradients, strict=True):
                p.sub_(rate * g)
        after = float(losses(case, networks, batch)[role].value.detach())
        with torch.no_grad():  # the other roles' losses were taken before this one moved
            for p, g in zip(learned, gradients, strict=True):
                p.add_(rate * g)
        assert after / float(loss.value.detach()) == pytest.approx(1 - 1e-4, abs=5e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.settings is not None])
def test_calls_are_the_evaluations_of_the_teacher_s_network(name: str) -> None:
    case, steps, seen = rebuilt(name), 20, 0
    assert case.settings is not None
    networks, batch = case.networks(), case.batch(SIZES["square"])

    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    counter = networks[TEACHER].register_forward_pre_hook(count) if TEACHER in networks else None
    for step in range(steps):
        losses(case, networks, batch, (0, 0, step))
    if counter is not None:
        counter.remove()
    found = seen / SIZES["square"][0] / steps
    # CTM's teacher leads a random number of steps
    assert found == pytest.approx(case.settings.calls(steps), rel=0.2 if name.startswith("ctm") else 1e-9)


COMPOSED = [
    (name, part, value)
    for name, case in CASES.items()
    if case.settings is not None and "-" not in name
    for part, value in (("immiscible", True), ("times", UShapedTimes()), ("premetric", VectorHuber()))
    if hasattr(case.settings, part)
]


@pytest.mark.parametrize(("name", "part", "value"), COMPOSED, ids=lambda value: str(value).partition("(")[0])
def test_couplings_laws_of_times_and_premetrics_compose_with_methods(name: str, part: str, value: Any) -> None:
    """rf++ (2405.20320) and immiscible noise (2406.12303) are parts of other methods."""
    case = rebuilt(name)
    assert case.told is not None
    networks, batch = case.networks(), case.batch((9, *SIZES["distinct"][1:]))  # so many that noise is dealt anew
    settings: Any = case.settings
    value = not settings.immiscible if part == "immiscible" else value
    composed = replace(case, method=replace(settings, **{part: value}).bind(case.told))
    plain, found = (losses(one, networks, batch)[STUDENT].value.detach() for one in (case, composed))
    assert bool(torch.isfinite(found))
    assert not torch.equal(found, plain)


def test_which_methods_compose_with_what() -> None:
    with_part = {part: {name for name, other, _ in COMPOSED if other == part} for _, part, _ in COMPOSED}
    assert with_part["immiscible"] >= {"perflow", "phased", "lcm", "tcd", "ctm", "scott", "lightning", "add"}
    assert with_part["times"] >= {"rayflow", "perflow", "phased", "reflow", "rectified"}
    assert with_part["premetric"] >= with_part["immiscible"] - {"add"} | {"reflow", "rectified"}
