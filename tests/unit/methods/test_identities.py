"""What is exact about the methods: a teacher that needs one step is a perfect student of each, and the published forms
of targets are ours.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tests.given import given, prompted
from tests.oracles.mixtures import Mixture, MixtureDenoiser
from torch import Tensor, nn

from raystill.flow.paths import Path
from raystill.flow.predictions import Kind, column, point
from raystill.flow.premetrics import PseudoHuber
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule, scaled_linear_alphas
from raystill.flow.times import TimeDraw, UniformTimes
from raystill.flow.windows import window_of
from raystill.methods.consistency import TimePair, consistency_loss, drawn, grid_of
from raystill.methods.ctm import CTM
from raystill.methods.dmd2 import DMD2, FAKE
from raystill.methods.lcm import LCM
from raystill.methods.lightning import Lightning
from raystill.methods.method import STUDENT, TARGET, TEACHER, Distillation, generator
from raystill.methods.perflow import PeRFlow
from raystill.methods.phased import PhasedRectifiedDiffusion
from raystill.methods.rectified import RectifiedDiffusion
from raystill.methods.reflow import Reflow
from raystill.methods.scott import SCott
from raystill.methods.tcd import TCD
from raystill.methods.teaching import Guidance, Teaching, fresh_share
from raystill.models.ctm import embedded

SD = DiffusionSchedule.from_alphas(scaled_linear_alphas())
FLOW = FlowSchedule()
SHAPE = (6, 2, 3, 4)
NONE = Guidance(low=1.0, high=1.0)


def rng(seed: int = 0) -> RandomStream:
    return RandomStream.of(seed)


class OnePicture(nn.Module):
    """The exact network of data that is one latent, the condition's own number everywhere: every trajectory is straight
    in the coordinates of DDIM.
    """

    def __init__(self, schedule: Schedule, kind: Kind) -> None:
        super().__init__()
        self.schedule, self.kind = schedule, kind

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool, timestep_cond: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        steps, straight = self.schedule.steps, isinstance(self.schedule, FlowSchedule)
        t = (timestep.double() if straight else timestep.double() + 1) / steps
        angle = self.schedule.angle(t.clamp(1e-9, 1))
        unit = x.double() / column(self.schedule.input_scale(angle), x.double())
        data = condition[:, :1, :1, None].double().expand_as(unit)
        signal, noise = column(angle.cos(), unit), column(angle.sin(), unit)
        eps = (unit - signal * data) / noise
        value = {"epsilon": eps, "v_prediction": signal * eps - noise * data, "flow_prediction": eps - data}[self.kind]
        return (value.to(x.dtype),)


def batch(schedule: Schedule) -> dict[str, Any]:
    """One latent for each caption, with a pair's noise."""
    condition = torch.linspace(-1, 1, SHAPE[0]).view(-1, 1, 1).expand(-1, 4, 4).double()
    noise = rng(7).normal(SHAPE).double()
    return {
        "x_0": condition[:, :1, :1, None].expand(SHAPE).clone(),
        "target_mean": noise,
        "condition": prompted(condition),
    }


PERFECT: dict[str, tuple[Distillation, Kind, Schedule]] = {
    "phased": (PhasedRectifiedDiffusion(guidance=NONE), "v_prediction", SD),
    "phased-flow": (PhasedRectifiedDiffusion(guidance=NONE), "flow_prediction", FLOW),
    "lcm": (LCM(guidance=NONE), "v_prediction", SD),
    "tcd": (TCD(guidance=NONE), "epsilon", SD),
    "tscd": (TCD(guidance=NONE, segments=(8, 4, 2, 1)), "v_prediction", SD),
    "ctm": (CTM(guidance=NONE, denoising=0.0), "v_prediction", SD),
    "ctm-flow": (CTM(guidance=NONE, denoising=0.0), "flow_prediction", FLOW),
    "lcm-flow": (LCM(guidance=NONE), "flow_prediction", FLOW),
    "scott-without-noise": (SCott(guidance=NONE, eta=0.0), "epsilon", SD),
    "scott": (SCott(guidance=NONE), "v_prediction", SD),
    "scott-reverse-sde": (SCott(guidance=NONE, eta=1.0), "epsilon", SD),
    "lightning": (Lightning(guidance=NONE, stage_steps=1000), "v_prediction", SD),
    "lightning-flow": (Lightning(guidance=NONE, stage_steps=1000), "flow_prediction", FlowSchedule(shift=3.0)),
    "rectified": (RectifiedDiffusion(), "v_prediction", SD),
    "rectified-consistent": (RectifiedDiffusion(consistency_from=0), "v_prediction", SD),
    "reflow": (Reflow(), "flow_prediction", FLOW),
    "reflow-one": (Reflow(one_step_from=0), "flow_prediction", FLOW),
    "velocity": (PeRFlow(target="velocity", guidance=1.0, caption_dropout=0.0), "flow_prediction", FLOW),
}


@pytest.mark.parametrize("name", PERFECT)
def test_the_teacher_of_straight_trajectories_is_a_perfect_student(name: str) -> None:
    method, kind, schedule = PERFECT[name]
    network = OnePicture(schedule, kind)
    roles = {STUDENT: network, TEACHER: network, TARGET: network}
    bound = method.bind(given(schedule, kind))
    for step in (0, 300, 600, 900):
        loss = bound.losses(roles, batch(schedule), rng(step), step)[STUDENT]
        assert float(loss.value) < 1e-5, step


def test_lcm_s_target_is_the_published_one_and_tcd_s_at_landing_0() -> None:
    lcm, told = LCM(guidance=Guidance(low=2.0, high=2.0)), given(SD, "v_prediction")
    teacher, target = (Random(seed) for seed in (1, 2))
    roles = {STUDENT: Random(3), TEACHER: teacher, TARGET: target}
    fields = batch(SD)
    found = lcm.losses(told, roles, fields, rng(5), 0)[STUDENT].value
    again = rng(5)
    draw = drawn(grid_of(SD, 50), torch.zeros_like, again, SHAPE[0], any_landing=False)
    teaching = Teaching.of(roles, told, fields, lcm.guidance, again)
    eps = again.normal(SHAPE).double()
    to_zero = TimePair(draw.t, draw.led, torch.zeros_like(draw.t))
    tcd = consistency_loss(roles, told, fields, to_zero, teaching.step, eps, PseudoHuber()).value
    assert float(tcd) == float(found)
    x = point(fields["x_0"], eps, SD.angle(draw.t))
    led = teaching.step(x, draw.t, draw.led)
    published = boundary(roles[STUDENT], x, draw.t, fields["condition"]["prompt"]) - boundary(
        target, led, draw.led, fields["condition"]["prompt"]
    )
    expected = ((published.square() + 1e-6).sqrt() - 1e-3).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_tcd_s_loss_at_landing_0_is_lcm_s() -> None:
    """A grid of one interval has no other landing."""
    roles, told = {STUDENT: Random(3), TEACHER: Random(1), TARGET: Random(2)}, given(SD, "v_prediction")
    guided = Guidance(low=2.0, high=2.0)
    tcd, lcm = (
        method.losses(told, roles, batch(SD), rng(5), 0)[STUDENT].value
        for method in (TCD(intervals=1, guidance=guided), LCM(intervals=1, guidance=guided))
    )
    assert float(tcd) == float(lcm) > 0.1


class Random(nn.Module):
    """A fixed smooth function of point and time."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.phase = float(seed)

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
        return (torch.sin(1.3 * x + self.phase + timestep.to(x).view(-1, 1, 1, 1) / 400),)


class Seen(Random):
    """Keeps what it was asked and what it said."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seen: list[Tensor] = []
        self.times: list[Tensor] = []
        self.said: list[Tensor] = []

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
        self.seen.append(x.detach())
        self.times.append(timestep.detach().double())
        self.said.append(super().forward(x, timestep, condition, return_dict=return_dict)[0])
        return (self.said[-1],)


def boundary(network: nn.Module, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """f = c_skip x + c_out x_0 with sigma_data 0.5 and times 10 times the step (2310.04378, equation 9), v."""
    index = SD.timestep(t)
    value = network(x, index, condition, return_dict=False)[0]
    angle = SD.angle(t)
    data = column(angle.cos(), x) * x - column(angle.sin(), x) * value
    tau = 10 * index * (t > 0)
    found: Tensor = column(0.25 / (tau**2 + 0.25), x) * x + column(tau / (tau**2 + 0.25).sqrt(), x) * data
    return found


def test_scott_s_teacher_without_noise_and_in_one_step_is_lcm_s() -> None:
    roles, fields = {TEACHER: Random(1)}, batch(SD)
    teaching = Teaching.of(roles, given(SD, "epsilon"), fields, Guidance(low=3.0, high=5.0), rng(2))
    t = torch.linspace(0.1, 1, SHAPE[0], dtype=torch.float64)
    x = rng(3).normal(SHAPE).double()
    found = teaching.noisy_steps(x, t, t - 0.1, steps=1, eta=0.0, rng=rng(4))
    torch.testing.assert_close(found, teaching.step(x, t, t - 0.1))
    noisy = teaching.noisy_steps(x, t, t - 0.1, steps=3, eta=0.5, rng=rng(4))
    assert float((noisy - found).abs().max()) > 1e-2


MIXTURE = Mixture.random(3, (2, 3, 4), torch.Generator().manual_seed(5))
DRAWN = MIXTURE.draw(SHAPE[0], torch.Generator().manual_seed(8))


class Mixed(nn.Module):
    """The exact network of a Gaussian mixture, a velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = MixtureDenoiser(MIXTURE, SD, "v_prediction")

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
        return (self.exact(x.double(), (timestep.double() + 1) / SD.steps).value,)


class Follows(Mixed):
    """A perfect student of DDIM on a grid: from every point of it where the teacher's steps arrive at the landing."""

    def __init__(self, intervals: int) -> None:
        super().__init__()
        self.intervals = intervals
        self.grid = torch.arange(intervals + 1, dtype=torch.float64) / intervals

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool, timestep_cond: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        knots = ((timestep.double() + 1) / SD.steps * self.intervals).round().long()
        knots = torch.where(timestep == 0, 0, knots)
        landing = torch.zeros_like(knots)
        if timestep_cond is not None:
            landing = torch.cdist(timestep_cond, embedded(SD.timestep(self.grid))).argmin(dim=1)
        end = x.double()
        for i in range(self.intervals, 0, -1):
            t = torch.full((len(x),), i / self.intervals, dtype=torch.float64)
            moved = self.exact(end, t).moved(SD.angle(t - 1 / self.intervals))
            goes = (i <= knots) & (i > landing)
            end = torch.where(goes[:, None, None, None], moved, end)
        here, there = SD.angle(knots.double() / self.intervals), SD.angle(landing.double() / self.intervals)
        turn = torch.where(knots > landing, here - there, torch.ones_like(here))
        # x_there = cos(turn) x - sin(turn) v, whatever v is called
        return ((column(turn.cos(), end) * x.double() - end) / column(turn.sin(), end),)


@pytest.mark.parametrize(
    ("method", "intervals"),
    [
        (LCM(guidance=NONE, intervals=20), 20),
        (SCott(guidance=NONE, intervals=20, eta=0.0, substeps=1), 20),
        (CTM(guidance=NONE, intervals=20, most=9, denoising=0.0), 20),
        (Lightning(guidance=NONE, stages=(1,), first=8), 8),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_perfect_student_of_a_mixture_has_no_loss(method: Distillation, intervals: int) -> None:
    student = Follows(intervals)
    roles = {STUDENT: student, TARGET: student, TEACHER: Mixed()}
    fields = {**batch(SD), "x_0": DRAWN}
    told = given(SD, "v_prediction")
    perfect = [float(method.losses(told, roles, fields, rng(step), step)[STUDENT].value) for step in range(5)]
    assert max(perfect) < 1e-8
    another = {**roles, STUDENT: Mixed()} if method.name != "ctm" else {**roles, TEACHER: Random(1)}
    assert float(method.losses(told, another, fields, rng(1), 1)[STUDENT].value) > 1e-4


class Leaps(Mixed):
    """A perfect student of windows at their starts: from there where three steps of the teacher arrive at the end."""

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
        t, end = (timestep.double() + 1) / SD.steps, x.double()
        for i in range(3):
            end = self.exact(end, t - i / 12).moved(SD.angle(t - (i + 1) / 12))
        turn = SD.angle(t) - SD.angle(t - 0.25)
        return ((column(turn.cos(), end) * x.double() - end) / column(turn.sin(), end),)


@pytest.mark.parametrize(
    ("method", "student"),
    [
        (TCD(guidance=NONE, intervals=8, segments=(8,)), Mixed()),  # every landing is where the teacher's one step is
        (PeRFlow(guidance=1.0, caption_dropout=0.0, substeps=3), Leaps()),
        (PhasedRectifiedDiffusion(guidance=NONE, substeps=3), Leaps()),
    ],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)
def test_a_perfect_student_of_a_mixture_s_pieces_has_no_loss(method: Distillation, student: Mixed) -> None:
    method = replace(method, times=AtEdges()) if isinstance(method, PeRFlow | PhasedRectifiedDiffusion) else method
    fields, told = {**batch(SD), "x_0": DRAWN}, given(SD, "v_prediction")
    for network, perfect in ((student, True), (Random(1), False)):
        roles = {STUDENT: network, TARGET: network, TEACHER: Mixed()}
        losses = [float(method.losses(told, roles, fields, rng(step), step)[STUDENT].value) for step in range(4)]
        assert (max(losses) < 1e-8) is perfect


def test_dmd2_s_student_rests_where_the_fake_score_is_the_teacher_s() -> None:
    method = DMD2(guidance=1.0, adversarial=0.0)
    student, wanted = nn.Conv2d(2, 2, 1).double(), given(SD, "v_prediction")

    class Learns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = student

        def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
            return (self.layer(x.double()),)

    fields = {**batch(SD), "x_0": DRAWN}
    for fake, rests in ((Mixed(), True), (Random(2), False)):
        roles = {STUDENT: Learns(), FAKE: fake, TEACHER: Mixed()}
        loss = method.losses(wanted, roles, fields, rng(1), 0)[STUDENT].value
        (gradient,) = torch.autograd.grad(loss, [student.weight])
        assert (float(gradient.abs().max()) < 1e-12) is rests


class OnItsLine(OnePicture):
    """What PeRFlow's student should say of one latent: the constant noise of the line through the point."""

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool, timestep_cond: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        window = window_of(4, (timestep.double() + 1) / 1000)
        edges = [self.schedule.angle(edge) for edge in (window.start, window.end)]
        signal, noise = (window.share * f(edges[0]) + (1 - window.share) * f(edges[1]) for f in (torch.cos, torch.sin))
        data = condition[:, :1, :1, None].double().expand_as(x)
        return ((x.double() - column(signal, x.double()) * data) / column(noise, x.double()),)


def test_perflow_s_perfect_student_knows_its_lines() -> None:
    method = PeRFlow(guidance=1.0, caption_dropout=0.0)
    roles = {STUDENT: OnItsLine(SD, "epsilon"), TEACHER: OnePicture(SD, "epsilon")}
    loss = method.bind(given(SD, "epsilon")).losses(roles, batch(SD), rng(1), 0)[STUDENT]
    assert float(loss.value) < 1e-6
    off = {**roles, STUDENT: OnePicture(SD, "epsilon")}  # right on the teacher's arc, not on the line under it
    assert float(method.bind(given(SD, "epsilon")).losses(off, batch(SD), rng(1), 0)[STUDENT].value) > 1e-5


def test_unsynchronised_students_lose_captions_that_the_teacher_keeps() -> None:
    seen: dict[str, Tensor] = {}

    class Sees(OnePicture):
        def forward(
            self,
            x: Tensor,
            timestep: Tensor,
            condition: Tensor,
            *,
            return_dict: bool,
            timestep_cond: Tensor | None = None,
        ) -> tuple[Tensor, ...]:
            seen[self.kind] = condition
            return super().forward(x, timestep, condition, return_dict=return_dict)

    told = given(SD, "epsilon")
    for synchronised in (False, True):
        student, teacher = Sees(SD, "epsilon"), Sees(SD, "v_prediction")
        method = PeRFlow(guidance=1.0, caption_dropout=0.5, synchronised=synchronised)
        method.losses(told, {STUDENT: student, TEACHER: teacher}, batch(SD), rng(1), 0)
        lost = (seen["epsilon"] == told.unconditional["prompt"].double()).all(dim=(1, 2))
        assert 0 < int(lost.sum()) < SHAPE[0]
        assert torch.equal(seen["epsilon"], seen["v_prediction"]) is synchronised


def test_ddpm_s_posterior_is_eta_1() -> None:
    t, r = (torch.tensor(v, dtype=torch.float64) for v in ([0.9, 0.5, 0.3], [0.6, 0.4, 0.0]))
    a_t, a_r = SD.signal(t) ** 2, SD.signal(r) ** 2
    published = ((1 - a_r) / (1 - a_t) * (1 - a_t / a_r)).sqrt()  # 2010.02502, equation 16
    found = fresh_share(SD.angle(t), SD.angle(r), 1.0) * SD.noise(r)
    torch.testing.assert_close(found, published)


@dataclass(frozen=True, slots=True, kw_only=True)
class AtEdges(UniformTimes):
    """Times at the starts of four windows, or just above their ends."""

    share: float = 1.0  # of the window, above its end

    def draw(self, count: int, path: Path, schedule: Schedule, rng: RandomStream) -> TimeDraw:
        t = (torch.arange(count, dtype=torch.float64) % 4 + self.share) / 4
        return TimeDraw(t, torch.ones_like(t), t)


ONE_STEP = (PeRFlow(substeps=1, guidance=1.0, caption_dropout=0.0), PhasedRectifiedDiffusion(substeps=1, guidance=NONE))


@pytest.mark.parametrize("method", ONE_STEP, ids=lambda one: one.name)
def test_one_unguided_step_a_window_asks_for_the_teacher_s_own_prediction(
    method: PeRFlow | PhasedRectifiedDiffusion,
) -> None:
    """K' = 1 at the windows' starts: the teacher is the perfect student, and another network is not."""
    at_starts, told = replace(method, times=AtEdges()), given(SD, "epsilon")
    for student, perfect in ((Random(1), True), (Random(2), False)):
        loss = at_starts.losses(told, {STUDENT: student, TEACHER: Random(1)}, batch(SD), rng(3), 0)[STUDENT].value
        assert (float(loss) < 1e-20) is perfect


@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("share", [1.0, 1e-4])
def test_phased_rectified_diffusion_is_perflow_s_ddim_eps_at_the_ends_of_windows(share: float, substeps: int) -> None:
    """Both ask at the teacher's own x_s and x_e there, for the noise that leads from one to the other."""
    times, told = AtEdges(share=share), given(SD, "epsilon")
    for method in (replace(one, times=times, substeps=substeps) for one in ONE_STEP):
        student, teacher = Seen(2), Seen(1)
        loss = method.losses(told, {STUDENT: student, TEACHER: teacher}, batch(SD), rng(3), 0)[STUDENT].value
        t = torch.arange(SHAPE[0], dtype=torch.float64) % 4 / 4
        a_s, a_e = SD.angle(t + 0.25), SD.angle(t)
        x_s, x, said, last = teacher.seen[0], teacher.seen[-1], teacher.said[-1], SD.angle(t + 0.25 / substeps)
        x_e = point((x - column(last.sin(), x) * said) / column(last.cos(), x), said, a_e)
        eps = (column(a_s.cos(), x) * x_e - column(a_e.cos(), x) * x_s) / column((a_e - a_s).sin(), x)
        close = 1e-6 if share == 1.0 else 2e-3  # a ten-thousandth of a window above its end
        torch.testing.assert_close(student.seen[0], x_s if share == 1.0 else x_e, rtol=close, atol=close)
        if share == 1.0:  # where both ask for the same jump
            wrong = student.said[0] - eps
            jump = column(a_e.sin() - a_s.sin() * a_e.cos() / a_s.cos(), x_s) * wrong  # what it misses x_e by
            distance = wrong if isinstance(method, PeRFlow) else jump
            assert float(loss) == pytest.approx(float(method.premetric.per_sample(distance).mean()), rel=1e-5)


def test_phases_begin_at_the_times_of_a_shifted_teacher_s_sampler() -> None:
    schedule, teacher = FlowSchedule(shift=3.0), Seen(1)
    method = PhasedRectifiedDiffusion(substeps=1, guidance=NONE)
    told, fields = given(schedule, "flow_prediction"), batch(schedule)
    for step in range(8):
        method.losses(told, {STUDENT: Random(2), TEACHER: teacher}, fields, rng(step), 0)
    asked = {round(float(t)) for times in teacher.times for t in times}
    assert asked == {1000, 900, 750, 500}


@pytest.mark.parametrize("segments", [1, 2, 4, 8])
def test_landings_do_not_cross_a_segment_s_lower_edge(segments: int) -> None:
    length = 40 // segments
    draw = drawn(grid_of(SD, 40), lambda j: (j - 1) // length * length, rng(1), 4000, any_landing=True)
    lowest = ((draw.t * segments).ceil() - 1) / segments
    assert bool((draw.landing >= lowest - 1e-9).all())
    assert bool((draw.landing <= draw.led).all())
    torch.testing.assert_close(draw.t - draw.led, torch.full_like(draw.t, 1 / 40))
    assert float((draw.landing == draw.led).double().mean()) >= 1 / length - 0.03


def test_tscd_s_stages_land_within_fewer_and_fewer_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[TimePair] = []

    def spied(*args: Any, **kwargs: Any) -> TimePair:
        draws.append(drawn(*args, **kwargs))
        return draws[-1]

    monkeypatch.setattr("raystill.methods.tcd.drawn", spied)
    method, network = TCD(guidance=NONE, segments=(8, 4, 2, 1), stage_steps=40), OnePicture(SD, "v_prediction")
    roles, told = dict.fromkeys((STUDENT, TEACHER, TARGET), network), given(SD, "v_prediction")
    for step in range(160):
        method.losses(told, roles, batch(SD), rng(step), step)
    for stage, segments in enumerate(method.segments):
        t, landing = (
            torch.cat([getattr(one, name) for one in draws[40 * stage : 40 * (stage + 1)]]) for name in ("t", "landing")
        )
        assert bool((landing >= ((t * segments).ceil() - 1) / segments - 1e-9).all())
        assert float((t - landing).max()) > 0.8 / segments  # and uses the whole of them


def test_lightning_s_teachers_are_asked_where_they_were_trained() -> None:
    schedule = FlowSchedule(shift=3.0)
    method, told = Lightning(stages=(8, 4), first=16, stage_steps=1, guidance=NONE), given(schedule, "flow_prediction")
    for step, (role, before) in enumerate(((TEACHER, 16), (TARGET, 8))):
        asked = Seen(1)
        heads = {name: head.module.double() for name, head in method.heads(told).items()}
        roles = {STUDENT: Random(2), TEACHER: Random(3), TARGET: Random(4), **heads, role: asked}
        try:
            method.losses(told, roles, batch(schedule), rng(step), step)
        except AttributeError:  # the adversary reads features, which these networks lack
            assert step == 1
        trained = schedule.timestep(schedule.sampling_times(before)[:-1])
        found = torch.cat(asked.times)
        assert float((found[:, None] - trained[None]).abs().amin(dim=1).max()) < 1e-3


@pytest.mark.parametrize("method", [DMD2(guidance=1.0, adversarial=0.0), CTM(guidance=NONE, denoising=0.0)])
def test_what_all_ranks_draw_alike_changes_with_the_seed(method: Distillation) -> None:
    calls: list[int] = []

    class Counts(OnePicture):
        def forward(
            self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool,
            timestep_cond: Tensor | None = None,
        ) -> tuple[Tensor, ...]:  # fmt: skip
            calls.append(len(x))
            return super().forward(x, timestep, condition, return_dict=return_dict)

    network = Counts(SD, "v_prediction")
    roles = dict.fromkeys((STUDENT, TEACHER, TARGET, FAKE), network)

    def counted(seed: int, rank: int) -> list[int]:
        found = []
        for step in range(1, 20):
            calls.clear()
            told = replace(given(SD, "v_prediction"), seed=seed)
            method.losses(told, roles, batch(SD), generator(seed, rank, step), step)
            found.append(len(calls))
        return found

    assert counted(0, 0) == counted(0, 1) != counted(1, 0)
