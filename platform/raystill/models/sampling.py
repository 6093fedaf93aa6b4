"""Sampling of students by the schedulers that their adapters carry, which are diffusers' own or have their form."""

import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import torch
from diffusers import DDIMScheduler, LCMScheduler, SchedulerMixin
from torch import Tensor

from raystill.config.digest import canonical
from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced
from raystill.flow import paths
from raystill.flow.jumps import Jump, check_eta, check_jump, own_seeds
from raystill.flow.predictions import Latent, guided
from raystill.flow.starts import StartLaw
from raystill.flow.windows import Piece
from raystill.models.card import RAYSTILL_SCHEDULERS
from raystill.models.conditioning import Condition, joined
from raystill.models.counts import timesteps_of
from raystill.models.ctm import CTMScheduler
from raystill.models.denoiser import Network
from raystill.models.perflow import PeRFlowScheduler
from raystill.models.scheduler import RayFlowScheduler
from raystill.models.stock import StockSampler, ddim_sampler, same_schedule, schedule_settings

Scheduler: TypeAlias = SchedulerMixin
FILE = "scheduler/scheduler_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings of the jumps by which a student is sampled from one time to the next (2503.07699)."""

    jump: Jump = introduced("ode")  # "ode" re-estimates all noise, as stock DDIM does; "anchored" keeps the target mean
    eta: float = introduced(0.0)  # share of fresh noise in every jump, 0 (deterministic) to 1

    def __post_init__(self) -> None:
        check_jump(self.jump, self.eta)

    def check(self, path: paths.Path) -> None:
        """Refuse, with UserError, an eta on a path whose jumps carry no noise."""
        check_eta(path, self.jump, self.eta)


ODE = Sampling()
NORMAL = StartLaw()


@torch.inference_mode()
def draw(network: Network, scheduler: Scheduler, normal: Latent, condition: Condition, steps: int) -> Latent:
    """Clean latents from N(0, I) draws, as a diffusers pipeline gets them with this scheduler in `steps` calls of the
    network per sample. Fresh noise is seeded by each start's own bits, so that no picture depends on its batch.
    """
    scheduler.set_timesteps(steps)
    generators = [torch.Generator().manual_seed(seed) for seed in own_seeds(normal)]
    takes = "generator" in inspect.signature(scheduler.step).parameters  # deterministic ODE solvers take no generator
    fresh = {"generator": generators} if takes else {}
    x = normal * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        value = network(scheduler.scale_model_input(x, t), t.expand(len(x)).to(x.device), condition)
        x = scheduler.step(value, t, x, **fresh, return_dict=False)[0]
    return x


def guided_network(plain: Network, scale: float, empty: Callable[[], Condition]) -> Network:
    """A network under guidance (2207.12598); the network itself where the scale w is 1. `empty` gives the condition of
    guidance's other branch, one row.
    """
    if scale == 1:
        return plain
    without = empty()

    def network(x: Latent, t: Tensor, condition: Condition) -> Latent:
        value = plain(torch.cat([x, x]), t.repeat(2), joined(without, condition))
        unconditional, conditional = value.chunk(2)
        return guided(unconditional, conditional, scale)

    return network


def ray_scheduler(stock: StockSampler, path: paths.Path, sampling: Sampling, start: StartLaw) -> Scheduler:
    """The scheduler of a student on a path, on its teacher's schedule: one of diffusers where the student jumps as DDIM
    does and starts from N(0, I), else `RayFlowScheduler`.

    Stable Diffusion pipelines do not take diffusers' own flow-matching scheduler, so students of flow teachers get
    `RayFlowScheduler`, too. (DPM-Solver++ with `use_flow_sigmas` begins at 1 - 1 / K and gives the network whole
    timesteps: latents differ by 0.08.)
    """
    if sampling == ODE and start == NORMAL and isinstance(stock, DDIMScheduler):
        return ddim_sampler(stock)
    settings = canonical(path)
    return RayFlowScheduler.from_config(
        stock.config, path=settings["kind"], sigma=settings.get("sigma", 0.0),
        end=settings.get("end", "schedule"), jump=sampling.jump, eta=sampling.eta, start=start.to_json(),
    )  # fmt: skip


def load_scheduler(directory: Path) -> Scheduler:
    """The scheduler that an adapter's directory carries, one of diffusers or of raystill; UserError for any other."""
    name = str(json.loads((directory / FILE).read_text())["_class_name"])
    module: Any = importlib.import_module(RAYSTILL_SCHEDULERS[name]) if name in RAYSTILL_SCHEDULERS else diffusers
    kind: Any = getattr(module, name, None)
    known = isinstance(kind, type) and issubclass(kind, SchedulerMixin)
    if not known:
        raise UserError(
            f"the adapter's scheduler is {name!r}, which diffusers {diffusers.__version__} does not have: install the "
            "diffusers that it was exported with"
        )
    made: Scheduler = kind.from_pretrained(directory, subfolder="scheduler", local_files_only=True)
    return made


def lcm_scheduler(stock: StockSampler, intervals: int) -> Scheduler:
    """The scheduler of multistep consistency sampling, which estimates x_0 and noises it anew in turn (2310.04378,
    algorithm 3): `LCMScheduler`, at times of the grid that a student was trained on, where the grid's intervals divide
    the teacher's times; for flow-matching teachers `RayFlowScheduler` with fresh noise only, at the stock times.
    """
    if isinstance(stock, DDIMScheduler):
        return LCMScheduler(**schedule_settings(stock), clip_sample=False, original_inference_steps=intervals)
    return ray_scheduler(stock, paths.DiffusionPath(), Sampling(eta=1.0), NORMAL)


def solver(stock: Scheduler, name: str) -> Scheduler:
    """The diffusers scheduler `name`, a training-free solver, on a diffusion teacher's schedule, trailing timesteps."""
    kind: Any = getattr(diffusers, name)
    made: Scheduler = kind.from_config(stock.config, timestep_spacing="trailing")
    return made


def check_solver(stock: Scheduler, name: str) -> None:
    """Refuse, with UserError, a scheduler class that diffusers does not have, that does not understand the teacher's
    schedule, or that calls the network more than once a step.
    """
    kind = getattr(diffusers, name, None)
    known = isinstance(kind, type) and issubclass(kind, SchedulerMixin) and hasattr(kind, "scale_model_input")
    if not known:
        raise UserError(
            f"there is no scheduler {name!r} in diffusers that pipelines of any family take; write such as "
            "--set 'solvers=[\"DDIMScheduler\"]'"
        )
    made = solver(stock, name)
    if not same_schedule(made, stock):
        raise UserError(
            f"{name} does not understand the teacher's {type(stock).__name__}: leave it out, such as --set 'solvers=[]'"
        )
    if (calls := len(timesteps_of(made, 4))) != 4:
        raise UserError(
            f"{name} calls the network {calls} times in 4 steps, which does not compare with others: leave it out, "
            "such as --set 'solvers=[\"DDIMScheduler\"]'"
        )


def ctm_scheduler(stock: StockSampler) -> Scheduler:
    """The scheduler of a CTM student: DDIM steps, the end of each of which is given to the attached network."""
    made: Scheduler = CTMScheduler.from_config(stock.config, path="DiffusionPath")
    return made


def perflow_scheduler(stock: StockSampler, windows: int, piece: Piece) -> Scheduler:
    """PeRFlow's scheduler on a teacher's schedule."""
    if isinstance(stock, DDIMScheduler):
        return PeRFlowScheduler(**schedule_settings(stock), windows=windows, piece=piece)
    return PeRFlowScheduler(
        num_train_timesteps=stock.config.num_train_timesteps, use_flow_sigmas=True, flow_shift=stock.config.shift,
        prediction_type="flow_prediction", windows=windows, piece=piece,
    )  # fmt: skip
