"""bfloat16 is chosen, and let pass without a word, only where the machine gains by it."""

import pytest
import torch

from raystill.engine.precision import advice, faster_precision


@pytest.mark.parametrize("units", [False, True])
def test_a_cpu_without_units_for_bfloat16(monkeypatch: pytest.MonkeyPatch, units: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr("raystill.engine.precision.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert faster_precision() == ("bfloat16" if units else "float32")
    assert bool(advice("bfloat16", torch.device("cpu"))) != units
    assert not advice("float32", torch.device("cpu"))
    assert not advice("bfloat16", torch.device("cuda"))
