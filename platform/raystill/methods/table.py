"""Every method that distils a teacher; being listed here is enough to be run and tested."""

from typing import get_args

from raystill.methods.add import ADD
from raystill.methods.ctm import CTM
from raystill.methods.dmd2 import DMD2
from raystill.methods.lcm import LCM
from raystill.methods.lightning import Lightning
from raystill.methods.method import Distillation
from raystill.methods.perflow import PeRFlow
from raystill.methods.phased import PhasedRectifiedDiffusion
from raystill.methods.rayflow import RayFlow
from raystill.methods.rectified import RectifiedDiffusion
from raystill.methods.reflow import Reflow
from raystill.methods.scott import SCott
from raystill.methods.tcd import TCD

Shipped = (
    RayFlow
    | PeRFlow
    | Reflow
    | RectifiedDiffusion
    | PhasedRectifiedDiffusion
    | LCM
    | TCD
    | CTM
    | SCott
    | DMD2
    | Lightning
    | ADD
)
METHODS: tuple[type[Shipped], ...] = get_args(Shipped)
# What a run's `method` may be, by the class's name or that of one in anybody's file: --set method=my_method.py:MyMethod
Distilling = Shipped | Distillation
