"""Pieces of windows: from any point of a piece its constant leads to its end, and the published formulae agree."""

import pytest
import torch
from torch import Tensor

from raystill.flow.predictions import Prediction, column, point
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule, scaled_linear_alphas, zero_terminal_snr
from raystill.flow.solvers import ddim_between
from raystill.flow.windows import Piece, along, constant_of, on_line, window_between, window_of, window_times

SD = DiffusionSchedule.from_alphas(scaled_linear_alphas())
ZERO = DiffusionSchedule.from_alphas(zero_terminal_snr(scaled_linear_alphas()))
FLOW = FlowSchedule()
SHAPE = (5, 2, 3, 4)
CASES: list[tuple[Piece, Schedule]] = [
    ("ddim_eps", SD), ("ddim_eps", ZERO), ("ddim_eps", FLOW), ("diff_eps", SD), ("velocity", FLOW),
]  # fmt: skip


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(*seeds: int) -> list[Tensor]:
    return [torch.randn(SHAPE, generator=rng(seed), dtype=torch.float64) for seed in seeds]


def knowing(piece: Piece, schedule: Schedule, t: Tensor, x: Tensor, constant: Tensor) -> Prediction:
    """What a network says that knows the piece's constant at t."""
    angle = schedule.angle(t)
    signal, noise = column(angle.cos(), x), column(angle.sin(), x)
    if piece == "velocity":
        return Prediction("flow_prediction", constant, x, signal, noise)
    return Prediction("epsilon", constant, x, signal, noise)


@pytest.mark.parametrize(("piece", "schedule"), CASES, ids=str)
@pytest.mark.parametrize("count", [1, 4])
def test_from_any_point_of_a_piece_its_constant_leads_to_every_later_one(
    piece: Piece, schedule: Schedule, count: int
) -> None:
    x_s, x_e = latents(1, 2)
    t = torch.tensor([0.99, 0.8, 0.51, 0.3, 0.05], dtype=torch.float64)
    window = window_of(count, t)
    constant, x = constant_of(piece, schedule, window, x_s, x_e), on_line(schedule, window, t, x_s, x_e)
    p = knowing(piece, schedule, t, x, constant)
    torch.testing.assert_close(along(piece, schedule, window, t, p, window.end), x_e, rtol=1e-8, atol=1e-8)
    later = (t + window.end) / 2
    found = along(piece, schedule, window, t, p, later)
    expected = on_line(schedule, window_of(count, later), later, x_s, x_e)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", [SD, ZERO, FLOW], ids=["sd", "zero-snr", "flow"])
def test_one_unguided_step_of_the_teacher_gives_its_own_noise_as_the_constant(schedule: Schedule) -> None:
    x_s, says = latents(1, 2)
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.2], dtype=torch.float64)
    window = window_of(4, t)

    def teacher(x: Tensor, at: Tensor) -> Prediction:
        angle = schedule.angle(at)
        return Prediction("v_prediction", says, x, column(angle.cos(), x), column(angle.sin(), x))

    x_e = ddim_between(teacher, schedule, x_s, window.start, window.end, 1)
    found = constant_of("ddim_eps", schedule, window, x_s, x_e)
    torch.testing.assert_close(found, teacher(x_s, window.start).epsilon, rtol=1e-8, atol=1e-8)


def test_the_constants_are_the_published_ones() -> None:
    x_s, x_e = latents(1, 2)
    window = window_of(4, torch.tensor([0.9, 0.7, 0.6, 0.3, 0.1], dtype=torch.float64))
    s, n = (column(f(window.start), x_s) for f in (SD.signal, SD.noise))
    s_e, n_e = (column(f(window.end), x_s) for f in (SD.signal, SD.noise))
    phased = (x_e / s_e - x_s / s) / (n_e / s_e - n / s)  # 2410.07303, equation 4
    lam = s_e / s
    eta = n_e - lam * n
    for published in (phased, (x_e - lam * x_s) / eta):  # the second: 2405.07510's ddim_eps
        torch.testing.assert_close(constant_of("ddim_eps", SD, window, x_s, x_e), published, rtol=1e-8, atol=1e-8)
    g = s / s_e
    lam, eta = 1 / g, -((1 - g**2).sqrt()) / g  # diff_eps
    found = constant_of("diff_eps", SD, window, x_s, x_e)
    torch.testing.assert_close(found, (x_e - lam * x_s) / eta, rtol=1e-8, atol=1e-8)


def test_points_on_a_line_at_its_edges_are_the_edges() -> None:
    x_s, x_e = latents(1, 2)
    for schedule in (SD, FLOW):
        for share, edge in ((1.0, x_s), (0.0, x_e)):
            t = torch.full((5,), 0.5 + 0.25 * share, dtype=torch.float64)
            window = window_of(4, torch.full((5,), 0.75, dtype=torch.float64))
            window = type(window)(window.start, window.end, torch.full((5,), share, dtype=torch.float64))
            torch.testing.assert_close(on_line(schedule, window, t, x_s, x_e), edge)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (4, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (5, [1.0, 0.875, 0.75, 0.5, 0.25, 0.0]),
        (6, [1.0, 0.875, 0.75, 0.625, 0.5, 0.25, 0.0]),
        (8, [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]),
    ],
)
def test_a_sampler_spreads_its_steps_over_the_windows(steps: int, expected: list[float]) -> None:
    assert window_times(4, steps).tolist() == expected


def test_fewer_steps_than_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one step in each of 4 windows, found 3"):
        window_times(4, 3)


def test_noise_and_data_of_a_piece_make_its_edges() -> None:
    data, noise = latents(3, 4)
    window = window_of(2, torch.full((5,), 0.9, dtype=torch.float64))
    x_s, x_e = (point(data, noise, SD.angle(t)) for t in (window.start, window.end))
    torch.testing.assert_close(constant_of("ddim_eps", SD, window, x_s, x_e), noise)


@pytest.mark.parametrize("count", range(1, 33))
def test_a_window_s_noisy_edge_is_in_the_window(count: int) -> None:
    edges = torch.tensor([1 - i / count for i in range(count)], dtype=torch.float64)
    window = window_of(count, edges)
    torch.testing.assert_close(window.start, edges)
    torch.testing.assert_close(window.share, torch.ones_like(edges))


@pytest.mark.parametrize("count", [1, 3, 4, 7])
@pytest.mark.parametrize("schedule", [SD, FLOW, FlowSchedule(shift=3.0)], ids=["sd", "flow", "shifted"])
def test_a_sampler_s_jumps_cross_no_edge_between_the_times_of_fewer(schedule: Schedule, count: int) -> None:
    edges, asked = schedule.sampling_times(count).flip(0), schedule.sampling_times(2 * count)
    window = window_between(edges, asked[:-1])
    assert bool((window.end <= asked[1:]).all())
    assert set(window.start.tolist()) == set(edges[1:].tolist())
    torch.testing.assert_close(torch.lerp(window.end, window.start, window.share), asked[:-1])
    assert float(window_between(edges, torch.zeros(1, dtype=torch.float64)).share) == 0


def test_equal_windows_are_those_between_equal_edges() -> None:
    t = 1 - torch.rand(1000, generator=rng(1), dtype=torch.float64)
    equal, between = window_of(4, t), window_between(torch.linspace(0, 1, 5, dtype=torch.float64), t)
    assert torch.equal(equal.start, between.start)
    assert torch.equal(equal.end, between.end)
    torch.testing.assert_close(equal.share, between.share)
