"""Whether this machine gains by bfloat16."""

from platform import machine

import torch


def faster_precision() -> str:
    """ "bfloat16" where this machine has a GPU, or else a CPU, with units for it; else "float32"."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if _cpu_has_units() else "float32"


def advice(precision: str, device: torch.device) -> str:
    """A line against a precision that a device is slow in; empty where there is nothing to say."""
    if precision != "bfloat16" or device.type != "cpu" or _cpu_has_units() or machine() not in ("x86_64", "AMD64"):
        return ""  # of the units of other processors nothing is known here
    return "this CPU has no units for bfloat16, so it is slower; another run: --set training.precision=float32"


def _cpu_has_units() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX."""
    found: bool = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return found
