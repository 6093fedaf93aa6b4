"""The examples of docs/extending do what the pages say."""

import re
from pathlib import Path

import pytest
import torch
from tests.workplace import ROOT, Typed, command

from raystill.config.files import load_file
from raystill.evaluation.metrics import METRICS, Metric, Pictures, figures
from raystill.models.artifact import verify

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


def test_the_metric_of_the_page_is_measured(tmp_path: Path) -> None:
    (tmp_path / "metric_of_the_page.py").write_text(code_of("metric.md"))
    metric = load_file(tmp_path / "metric_of_the_page.py").spread
    assert isinstance(metric, Metric)
    features = torch.randn(9, 4)
    found = figures(
        Pictures(features=features, real=features, reference=features, seconds=torch.ones(9)), (*METRICS, metric)
    )
    assert found["spread"] == pytest.approx(float(features.std(dim=0).mean()), rel=1e-4)
