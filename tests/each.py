"""Every method, with settings that show each of its stages and turns in four steps."""

from raystill.flow.premetrics import PseudoHuber
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

SMOOTH = PseudoHuber(c=0.1)  # consistency methods' own is nearly |d|: its signs turn in rounding
EACH: list[Distilling] = [
    RayFlow(),
    PeRFlow(substeps=2),
    Reflow(one_step_from=2),
    RectifiedDiffusion(consistency_from=2, premetric=SMOOTH),
    PhasedRectifiedDiffusion(substeps=2),
    LCM(target_decay=0.5, premetric=SMOOTH),
    TCD(intervals=16, segments=(8, 2), stage_steps=2, premetric=SMOOTH),
    CTM(most=2, target_decay=0.5, premetric=SMOOTH),
    SCott(premetric=SMOOTH),
    DMD2(ratio=2),
    Lightning(stages=(8, 4), first=16, stage_steps=2),
    ADD(),
]
