"""Whether this machine gains by bfloat16."""

import torch


def faster_precision() -> str:
    """ "bfloat16" where this machine has a GPU, or a CPU with units for it (AVX512-BF16 or AMX); else "float32"."""
    return "bfloat16" if torch.cuda.is_available() or _cpu_has_units() else "float32"


def advice(precision: str, device: torch.device) -> str:
    """A line against a precision that a device is slow in; empty where there is nothing to say."""
    if precision != "bfloat16" or device.type != "cpu" or _cpu_has_units():
        return ""
    return "this CPU has no units for bfloat16, so it is slower; another run: --set training.precision=float32"


def _cpu_has_units() -> bool:
    found: bool = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return found
