"""The examples of docs/extending do what the pages say."""

import re
from pathlib import Path

import pytest
import torch
from tests.tiny import aura_flow, ready
from tests.workplace import ROOT, Typed, command

from raystill.config.files import load_file
from raystill.evaluation.metrics import METRICS, Metric, Pictures, figures
from raystill.flow.solvers import ddim
from raystill.models.artifact import verify
from raystill.models.backbones.table import BACKBONES
from raystill.models.denoiser import GuidedDenoiser
from raystill.models.pipeline import load_pipeline
from raystill.models.weights import Lora, prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PAGES = ROOT / "docs" / "extending"


def code_of(page: str) -> str:
    """The only block of Python on a page."""
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)
    return str(code)


def test_the_method_of_the_page_distils_an_adapter(workplace: Path, few: Path, typed: Typed) -> None:
    (workplace / "my_method.py").write_text(code_of("method.md"))
    (workplace / "own-work").mkdir()
    typed_line = re.search(r"--set (method=\S+) --set (method\.power=1)", (PAGES / "method.md").read_text())
    assert typed_line is not None
    plain = {"shards": "few", "sample": "null", "store": "environment", "artifacts": "null", "work": "own-work"}
    own = [flag for words in typed_line.groups() for flag in ("--set", words)]
    done = typed([*command(**plain), *own, "--local"], workplace)
    assert done.returncode == 0, done.stderr[-3000:]
    card = verify(workplace / done.stdout.splitlines()[-1])
    assert card.method == "direct"
    assert card.recipe["method"]["power"] == 1


def test_the_backbone_of_the_page_draws_what_its_stock_pipeline_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backbone_of_the_page.py").write_text(code_of("backbone.md"))
    family = load_file(tmp_path / "backbone_of_the_page.py").AuraFlow
    monkeypatch.setitem(BACKBONES, "AuraFlowPipeline", family)
    pipeline = ready(aura_flow)
    pipeline.save_pretrained(tmp_path / "tiny")
    ours = load_pipeline(tmp_path / "tiny")
    assert ours.latent_shape == (4, 16, 16)
    start, captions = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)), ["a red heart", "cat"]
    expected = pipeline(
        captions, latents=start, num_inference_steps=4, guidance_scale=3.0, output_type="latent", height=32, width=32,
        sigmas=[1.0, 0.75, 0.5, 0.25],
    ).images  # fmt: skip
    condition, schedule = ours.condition(captions), ours.schedule
    with torch.no_grad():
        guided = GuidedDenoiser(ours.denoiser, ours.empty(), 3.0)
        found = ddim(lambda x, t: guided(x, t, condition), schedule, start, schedule.sampling_times(4))
    assert float(expected.std()) > 1e-2
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    prepare(ours.network, Lora(rank=2, targets=family.layers))  # the names of the page are those of layers


def test_the_metric_of_the_page_is_measured(tmp_path: Path) -> None:
    (tmp_path / "metric_of_the_page.py").write_text(code_of("metric.md"))
    metric = load_file(tmp_path / "metric_of_the_page.py").spread
    assert isinstance(metric, Metric)
    features = torch.randn(9, 4)
    found = figures(
        Pictures(features=features, real=features, reference=features, seconds=torch.ones(9)), (*METRICS, metric)
    )
    assert found["spread"] == pytest.approx(float(features.std(dim=0).mean()), rel=1e-4)
