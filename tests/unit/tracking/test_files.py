"""Without MLflow a training run is a folder, which goes on where it was, and which reading does not change."""

import json
from contextlib import suppress
from pathlib import Path

from PIL import Image

from raystill.tracking.files import ABOUT, METRICS, FileRun
from raystill.tracking.tracking import Tracking, history, tracked


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / METRICS).read_text().splitlines()]


def test_a_run_goes_on_and_logs_nothing_twice(tmp_path: Path) -> None:
    with FileRun(tmp_path, {"sigma": 0.1}) as run:
        for step in range(3):
            run.metrics(step, {"loss/student": step / 2})
        run.picture("samples/student", Image.new("RGB", (4, 4)), 2)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 3, "loss/stu')  # killed in the middle of a line
    with suppress(KeyboardInterrupt), FileRun(tmp_path, {"sigma": 0.1}) as run:
        for step in range(1, 5):
            run.metrics(step, {"loss/student": 9.0})
        raise KeyboardInterrupt
    assert steps(tmp_path) == [0, 1, 2, 3, 4]
    assert FileRun(tmp_path, {}).history("loss/student") == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 9.0), (4, 9.0)]
    about = json.loads((tmp_path / ABOUT).read_text())
    assert (about["status"], about["recipe"]) == ("KILLED", {"sigma": 0.1})
    assert (tmp_path / "samples" / "student-2.png").is_file()


def test_reading_a_run_does_not_begin_it_again(tmp_path: Path) -> None:
    tracking = Tracking(uri=None, experiment="none", name="../my run", directory=tmp_path)
    with suppress(ValueError), tracked(tracking, {}) as run:
        run.metrics(1, {"loss/student": 2.0})
        raise ValueError("bad")
    assert history(tracking, {}, "loss/student") == [2.0]
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("___my run-")
    assert json.loads((folder / ABOUT).read_text())["status"] == "FAILED"
