"""Windows of time and the straight pieces that a student follows in them (PeRFlow 2405.07510).

A piece goes from the point x_s at a window's noisy edge s to x_e at its other edge e. Both are points of unit length;
lines are drawn in the teacher's own coordinates, x times the schedule's `input_scale`, which for a variance-preserving
one are the same.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from raystill.flow.predictions import Latent, Prediction, column
from raystill.flow.schedules import Grid, Schedule, Times

Piece = Literal["ddim_eps", "diff_eps", "velocity"]  # quantity that is constant along a piece, and is learned
SOONEST = 1e-6  # least time of a training point; at data itself a piece has nothing to learn
Angles = Float[Tensor, " batch"]


@dataclass(frozen=True, slots=True)
class Window:
    """The window of time of each sample: the times of its edges, and the position of the sample's point between
    them.
    """

    start: Times  # s, the noisy edge
    end: Times  # e, the edge at the side of data
    share: Times  # position (t - e) / (s - e) of the point, 1 at the noisy edge


def window_of(count: int, t: Times) -> Window:
    """The window of each time, one of `count` equal windows of [0, 1] with e < t <= s; t = 0 is in the window at
    data.
    """
    end = ((t * count - 1e-9).ceil() - 1).clamp(min=0)  # 1 - i / K may come out above its edge
    return Window((end + 1) / count, end / count, t * count - end)


def window_between(edges: Grid, t: Times) -> Window:
    """The window of each time, between neighbours of ascending `edges` that begin at 0, with e < t <= s; t = 0 is in
    the window at data.
    """
    above = torch.searchsorted(edges, t).clamp(min=1)
    start, end = edges[above], edges[above - 1]
    return Window(start, end, (t - end) / (start - end))


def on_line(schedule: Schedule, window: Window, t: Times, x_s: Latent, x_e: Latent) -> Latent:
    """The point at time t on the line from x_s to x_e, in coordinates of unit length."""
    scale = schedule.input_scale
    noisy = column(window.share * scale(schedule.angle(window.start)), x_s) * x_s
    clean = column((1 - window.share) * scale(schedule.angle(window.end)), x_e) * x_e
    return (noisy + clean) / column(scale(schedule.angle(t)), x_s)


def constant_of(piece: Piece, schedule: Schedule, window: Window, x_s: Latent, x_e: Latent) -> Latent:
    """The quantity that is constant along the piece from x_s to x_e:

    - `ddim_eps`: the noise whose DDIM jump leads from x_s to x_e, (cos_s x_e - cos_e x_s) / sin(e - s);
    - `diff_eps`: the forward chain's noise between the edges, (x_s - g x_e) / sqrt(1 - g^2), g = cos_s / cos_e;
    - `velocity`: dx / dt, in the teacher's own coordinates.
    """
    a_s, a_e = schedule.angle(window.start), schedule.angle(window.end)
    match piece:
        case "ddim_eps":
            return (column(a_s.cos(), x_s) * x_e - column(a_e.cos(), x_s) * x_s) / column((a_e - a_s).sin(), x_s)
        case "diff_eps":
            g = a_s.cos() / a_e.cos()
            return (x_s - column(g, x_s) * x_e) / column((1 - g.square()).sqrt(), x_s)
        case "velocity":
            scale = schedule.input_scale
            gone = column(scale(a_s), x_s) * x_s - column(scale(a_e), x_s) * x_e
            return gone / column(window.start - window.end, x_s)


def along(piece: Piece, schedule: Schedule, window: Window, t: Times, p: Prediction, later: Times) -> Latent:
    """The point of a piece at the time `later` (later in sampling: closer to data, down to the piece's lower edge),
    from a prediction of the piece's constant at t.
    """
    a_s, a_e = schedule.angle(window.start), schedule.angle(window.end)
    scale, x = schedule.input_scale, p.x
    here, there = window.share, (later - window.end) / (window.start - window.end)
    if piece == "velocity":
        native = column(scale(schedule.angle(t)), x) * x + column(later - t, x) * p.flow
    elif piece == "diff_eps":
        g = a_s.cos() / a_e.cos()
        spread = (1 - g.square()).sqrt()
        clean = (x - column(here * spread, x) * p.epsilon) / column(here * g + 1 - here, x)
        native = column(there * g + 1 - there, x) * clean + column(there * spread, x) * p.epsilon
    else:  # both edges have the same data and noise, x = cos data + sin noise
        data_here, noise_here = _mixed(schedule, window, here)
        data_there, noise_there = _mixed(schedule, window, there)
        edge = column((here == 1).to(t), x) > 0  # there the network says the data, also where none is seen
        known = column(scale(schedule.angle(t)), x) * x - column(noise_here, x) * p.epsilon
        data = torch.where(edge, p.data, known / column(data_here.clamp(min=1e-6), x))
        native = column(data_there, x) * data + column(noise_there, x) * p.epsilon
    return native / column(scale(schedule.angle(later)), x)


def _mixed(schedule: Schedule, window: Window, share: Times) -> tuple[Angles, Angles]:
    """Coefficients of the edges' common data and noise at a position on the line, in the teacher's coordinates."""
    a_s, a_e = schedule.angle(window.start), schedule.angle(window.end)
    noisy, clean = share * schedule.input_scale(a_s), (1 - share) * schedule.input_scale(a_e)
    return noisy * a_s.cos() + clean * a_e.cos(), noisy * a_s.sin() + clean * a_e.sin()


def window_times(count: int, steps: int) -> Times:
    """Times of a sampler of `steps` steps through `count` equal windows, from 1 to 0, evenly spaced in each window;
    where `count` does not divide `steps`, the first windows have one step more. ValueError for fewer steps than
    windows.
    """
    if steps < count:
        raise ValueError(f"a sampler takes at least one step in each of {count} windows, found {steps} steps")
    times = []
    for i in range(count):
        own = steps // count + (i < steps % count)
        times += [1 - (i + k / own) / count for k in range(own)]
    return torch.tensor([*times, 0.0], dtype=torch.float64)
