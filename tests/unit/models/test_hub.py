"""Teachers by names on the Hub: from a local server in its place, in processes of their own, since the library reads
its endpoint while it is imported.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny
from tests.workplace import ROOT

from raystill.models.pipeline import load_pipeline
from raystill.models.revision import revision

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_quite_secret_indeed"
ERRORS = {"org/gated": (403, "GatedRepo"), "org/private": (401, "RepoNotFound"), "org/absent": (404, "RepoNotFound")}


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does, for one pipeline under several names."""

    root: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.asked.append(f"{self.path} {self.headers.get('authorization', '')}")
        path = self.path.partition("?")[0]
        repo = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if repo in ERRORS:
            status, code = ERRORS[repo]
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body)
        elif path.startswith("/api/models"):
            self._send(200, json.dumps(self._about(repo, tree="/tree/" in path)).encode(), {}, body)
        else:
            at, _, name = path.partition("/resolve/")[2].partition("/")
            self._file(repo, at, name, body)

    def _about(self, repo: str, *, tree: bool) -> Any:
        sizes = {str(f.relative_to(self.root)): f.stat().st_size for f in self.root.rglob("*") if f.is_file()}
        if tree:
            return [{"type": "file", "path": n, "size": size, "oid": "0" * 40} for n, size in sorted(sizes.items())]
        return {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": n} for n in sorted(sizes)], "private": False}

    def _file(self, repo: str, at: str, name: str, body: bool) -> None:
        file, known = self.root / name, {"X-Repo-Commit": COMMIT}
        if at not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        elif not file.is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", **known}, body)
        else:
            data, headers = file.read_bytes(), {"ETag": f'"{name.replace("/", "-")}"', **known}
            cut = repo == "org/cut" and body and name.endswith(".safetensors")
            sent = data[: len(data) // 2] if cut else data
            self._send(200, sent, {**headers, "Content-Length": str(len(data))}, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)
        self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tiny_pipeline: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a Hub that has the tiny pipeline, with files beside it that nobody needs."""
    root = tmp_path / "hub"
    for file in (f for f in tiny_pipeline.rglob("*") if f.is_file()):
        copy = root / file.relative_to(tiny_pipeline)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    for name in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "all.safetensors",
                 "pipeline.py", "safety_checker/pytorch_model.bin"):  # fmt: skip
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"not to be fetched")
    (root / "README.md").write_text("---\nlicense: openrail++\n---\n")
    Hub.root, Hub.asked = root, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(code: str, place: Path, endpoint: str, *arguments: str) -> dict[str, Any]:
    """What a process of its own prints as JSON."""
    said = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(place / "home"), "HF_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT / "platform"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **said},
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


FETCH = """
import json
from raystill.models.hub import pinned, teacher_at
from raystill.models.pipeline import licence_of, load_pipeline
from raystill.models.revision import is_of, revision
place = teacher_at("org/tiny")
pipeline = load_pipeline("org/tiny@main")
pipeline.network, pipeline.condition(["red heart"]), pipeline.vae
files = sorted(str(f.relative_to(place)) for f in place.rglob("*") if f.is_file())
print(json.dumps({
    "place": str(place), "pinned": pinned("org/tiny"), "revision": revision(place), "licence": licence_of(place),
    "is_of": is_of(place, place.name), "files": files,
}))
"""


def test_a_name_is_fetched_once_at_one_commit_without_what_could_be_run(
    hub: str, tiny_pipeline: Path, tmp_path: Path
) -> None:
    found = run(FETCH, tmp_path, hub)
    assert found["pinned"] == f"org/tiny@{COMMIT}"
    assert found["revision"] == revision(tiny_pipeline) == load_pipeline(tiny_pipeline).revision
    assert found["licence"] == "openrail++"
    assert found["is_of"]
    assert not [
        name for name in found["files"] if name.endswith((".bin", ".py")) or "fp16" in name or name[:3] == "all"
    ]
    assert {name.partition("/")[0] for name in found["files"]} >= {"unet", "vae", "text_encoder", "tokenizer"}
    assert any(TOKEN in line for line in Hub.asked)
    bodies = [line for line in Hub.asked if "safetensors" in line]
    Hub.asked.clear()
    assert run(FETCH, tmp_path, hub) == found
    assert len([line for line in Hub.asked if "safetensors" in line]) < len(bodies)
    assert run(FETCH, tmp_path, "http://127.0.0.1:9") == found  # without a network, from the cache


LOCAL = """
import json, sys
from raystill.models.pipeline import load_pipeline
for place in sys.argv[1:]:
    pipeline = load_pipeline(place)
    pipeline.network, pipeline.condition(["red heart"]), pipeline.vae
print(json.dumps({"loaded": len(sys.argv) - 1}))
"""


def test_directories_are_loaded_without_a_question_to_the_hub(hub: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    places = [tiny_pipeline]
    for name in ("sdxl", "pixart-sigma", "sd3"):
        tiny(name).save_pretrained(tmp_path / name)
        places.append(tmp_path / name)
    assert run(LOCAL, tmp_path, hub, *map(str, places)) == {"loaded": 4}
    assert Hub.asked == []


REFUSED = """
import json, sys
from raystill.config.errors import UserError
from raystill.models.hub import teacher_at
said = {}
for name in sys.argv[1:]:
    try:
        said[name] = str(teacher_at(name))
    except UserError as error:
        said[name] = f"refused: {error}"
print(json.dumps(said))
"""


def test_what_cannot_be_fetched_is_said_in_one_sentence(hub: str, tmp_path: Path) -> None:
    names = ("org/gated", "org/private", "org/absent", "org/tiny@v9")
    said = run(REFUSED, tmp_path, hub, *names)
    assert "is gated: accept its licence at https://huggingface.co/org/gated" in said["org/gated"]
    for name in ("org/private", "org/absent"):
        assert f"there is no directory '{name}' here, and no model of that name on the Hub" in said[name]
        assert "hf auth login" in said[name]
    assert "org/tiny has no revision 'v9' on the Hub" in said["org/tiny@v9"]
    away = run(REFUSED, tmp_path / "hub", "http://127.0.0.1:9", *names)
    assert all("the Hub does not answer; give a directory" in text for text in away.values())


def test_a_file_that_is_cut_off_is_said(hub: str, tmp_path: Path) -> None:
    assert "org/cut could not be fetched from the Hub: " in run(REFUSED, tmp_path, hub, "org/cut")["org/cut"]


def test_pickled_weights_and_repositories_without_a_pipeline_are_refused(hub: str, tmp_path: Path) -> None:
    for weights in (Hub.root / "unet").glob("*.safetensors"):
        weights.unlink()
    assert "unet has pickled weights only" in run(REFUSED, tmp_path, hub, "org/tiny")["org/tiny"]
    (Hub.root / "model_index.json").unlink()
    other = run(REFUSED, tmp_path, hub, "org/other")
    assert "org/other on the Hub is not a diffusers pipeline" in other["org/other"]
