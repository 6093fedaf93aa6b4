"""Recipes of every method on the demo's teacher and data, `METHOD_nano` each: `--recipe lcm_nano`."""

from dataclasses import replace

from raystill.flow.premetrics import VectorHuber
from raystill.flow.times import UShapedTimes
from raystill.methods.add import ADD
from raystill.methods.ctm import CTM
from raystill.methods.dmd2 import DMD2
from raystill.methods.lcm import LCM
from raystill.methods.lightning import Lightning
from raystill.methods.perflow import PeRFlow
from raystill.methods.phased import PhasedRectifiedDiffusion
from raystill.methods.rayflow import RayFlow
from raystill.methods.rectified import RectifiedDiffusion
from raystill.methods.reflow import Reflow
from raystill.methods.scott import SCott
from raystill.methods.table import Distilling
from raystill.methods.tcd import TCD
from raystill.recipes import nano
from raystill.run.settings import Run, Targets
from raystill.targets.targets import Encoding


def _run(method: Distilling, name: str | None = None) -> Run:
    """The demo with another method, whose targets are real latents where it needs no pairs."""
    demo, name = nano.run(), name or method.name
    targets = demo.targets if "target_mean" in method.needs else Targets(estimator=Encoding())
    return replace(demo, name=f"{name}-nano", model=f"nano-{name}", method=method, targets=targets)


def _slower(run: Run) -> Run:
    """A run at the lower learning rate of students that are their own targets (docs/results/methods.md)."""
    return replace(run, optimizer=replace(run.optimizer, learning_rate=2e-4))


def rayflow_nano() -> Run:
    """RayFlow: the demo itself."""
    return _run(RayFlow())


def perflow_nano() -> Run:
    """PeRFlow in four windows, hence four sampling steps or more."""
    run = _run(PeRFlow())
    return replace(run, evaluation=replace(run.evaluation, student_steps=(4, 8)))


def reflow_nano() -> Run:
    """Reflow: rectified flow on the teacher's pairs, once."""
    return _run(Reflow())


def instaflow_nano() -> Run:
    """InstaFlow: a reflow whose second half distils one step."""
    return _run(Reflow(one_step_from=50), "instaflow")


def rfpp_nano() -> Run:
    """rf++: reflow with U-shaped times and its Huber distance."""
    return _run(Reflow(times=UShapedTimes(), premetric=VectorHuber()), "rfpp")


def rectified_nano() -> Run:
    """Rectified Diffusion, whose last third is its consistency stage."""
    return _run(RectifiedDiffusion(consistency_from=67))


def phased_nano() -> Run:
    """Phased Rectified Diffusion: four phases, hence four sampling steps or a multiple."""
    run = _run(PhasedRectifiedDiffusion())
    return replace(run, evaluation=replace(run.evaluation, student_steps=(4, 8)))


def lcm_nano() -> Run:
    """LCM-LoRA, at a learning rate at which the student drifts slowly."""
    return _slower(_run(LCM()))


def tcd_nano() -> Run:
    """Trajectory consistency distillation (TCD)."""
    return _run(TCD())


def tscd_nano() -> Run:
    """TSCD of Hyper-SD, in stages of 8, 4, 2 and 1 segments."""
    return _run(TCD(segments=(8, 4, 2, 1), stage_steps=25), "tscd")


def ctm_nano() -> Run:
    """CTM whose teacher leads six steps of the grid at most; the target network follows as fast as the run is short."""
    return _run(CTM(most=6, target_decay=0.95))


def scott_nano() -> Run:
    """SCott, at the learning rate of LCM."""
    return _slower(_run(SCott()))


def dmd2_nano() -> Run:
    """DMD2 in more steps than the demo has, since only every fifth updates the student."""
    run = _run(DMD2())
    return replace(run, training=replace(run.training, steps=250, checkpoint_every=125, picture_every=125))


def lightning_nano() -> Run:
    """SDXL-Lightning, in stages of 32, 8, 4, 2 and 1 sampling steps."""
    return _run(Lightning(stage_steps=20))


def add_nano() -> Run:
    """Adversarial diffusion distillation (ADD)."""
    return _run(ADD())
