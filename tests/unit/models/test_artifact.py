"""An adapter directory: written whole, read by stock diffusers with the same function, and checked before use."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from raystill.config.digest import digest
from raystill.models import artifact
from raystill.models.artifact import ArtifactError
from raystill.models.card import AdapterCard, Base, CardError, model_card

RECIPE = {"kind": "Run", "method": {"kind": "RayFlow", "sigma": 0.1}, "seed": 3}


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=2,
    )  # fmt: skip


def adapted(alpha: int = 16) -> tuple[UNet2DConditionModel, LoraConfig]:
    unet = tiny_unet()
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "to_v"], init_lora_weights=False)
    unet.add_adapter(config)
    return unet, config


def a_card(**changes: Any) -> AdapterCard:
    settings: dict[str, Any] = {
        "base": Base(id="someone/base", revision="abc123"), "method": "rayflow",
        "steps": (1, 2), "default_steps": 2, "timesteps": {"1": (999,), "2": (999, 499)}, "guidance_scale": 1.0,
        "recipe": RECIPE, "recipe_digest": digest(RECIPE), "commit": "f00d",
        "evaluation": {"digest": "e1", "features": "digits-net", "frechet": {"1": 28.5, "2": 17.0}},
    }  # fmt: skip
    return AdapterCard(**{**settings, **changes})


def write(directory: Path, card: AdapterCard | None = None, alpha: int = 16) -> AdapterCard:
    unet, config = adapted(alpha)
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    card = card or a_card()
    readme = model_card(card, scheduler="DDIMScheduler", licence="Apache-2.0")
    picture = Image.new("RGB", (6, 4), "red")
    state = get_peft_model_state_dict(unet)
    return artifact.write(
        directory, card, state, json.loads(scheduler.to_json_string()), picture, readme, lora_config=config.to_dict()
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_what_is_written_is_what_verify_reads(tmp_path: Path) -> None:
    written = write(tmp_path / "adapter")
    read = artifact.verify(tmp_path / "adapter")
    assert read == written
    assert set(read.files) == {
        "README.md",
        "picture.png",
        "pytorch_lora_weights.safetensors",
        "scheduler/scheduler_config.json",
    }
    assert read.frechet(2) == 17.0
    modes = {path.stat().st_mode for path in (tmp_path / "adapter").rglob("*") if path.is_file()}
    (tmp_path / "adapter" / "new.md").touch()
    assert modes == {(tmp_path / "adapter" / "new.md").stat().st_mode}  # others read it, where they read new files
    assert read.frechet(8) is None
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]  # no scratch left


def test_diffusers_reads_it_and_computes_the_same_function(directory: Path) -> None:
    # alpha 16 over rank 4: a reader that takes alpha = rank is off by a factor of four
    unet, _ = adapted(alpha=16)
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(directory, return_lora_metadata=True)
    fresh = tiny_unet()
    StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=fresh, metadata=metadata)
    x, text, time = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 8), torch.tensor([3, 500, 999])
    with torch.no_grad():
        expected, found, base = (u(x, time, text).sample for u in (unet, fresh, tiny_unet()))
    torch.testing.assert_close(found, expected)
    assert (expected - base).abs().max() > 1e-2


def test_the_scheduler_reads_back(directory: Path) -> None:
    scheduler = DDIMScheduler.from_pretrained(directory, subfolder="scheduler")
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == [999, 499]


def test_an_earlier_adapter_is_replaced_and_anything_else_is_not(directory: Path, tmp_path: Path) -> None:
    write(directory, a_card(method="reflow"))
    assert artifact.verify(directory).method == "reflow"
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not empty and holds no adapter"):
        write(other)
    (directory / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds thesis\.tex"):
        write(directory)
    assert (directory / "thesis.tex").read_text() == "years of work"


def test_a_changed_byte_is_noticed(directory: Path) -> None:
    path = directory / artifact.LORA_NAME
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"pytorch_lora_weights\.safetensors has SHA-256 .* changed or damaged"):
        artifact.verify(directory)


@pytest.mark.parametrize("name", ["evil.pkl", "model.bin", "code.py", "other.safetensors", "scheduler/other.json"])
def test_strangers_are_refused(directory: Path, name: str) -> None:
    (directory / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        artifact.verify(directory)


def test_a_picture_beside_it_is_fine_but_a_link_is_not(directory: Path) -> None:
    (directory / "mine.png").write_bytes(b"x")
    assert artifact.verify(directory).method == "rayflow"
    (directory / "link.png").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match="symbolic link"):
        artifact.verify(directory)


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 4}, r"has format 4, this version of raystill reads 3"),
        ({"colour": "red"}, r"unknown \['colour'\]"),
        ({"default_steps": 3}, r"default_steps is 3"),
        ({"timesteps": {"1": [999], "2": [999]}}, r"timesteps\['2'\] has 1 entries, expected 2"),
        ({"sigmas": {"2": [1.0]}}, r"sigmas\['2'\] has 1 entries, expected as many as its timesteps"),
        ({"recipe": {"seed": 4}}, r"the recipe's own digest is"),
        ({"files": {"../../etc/passwd": "0"}}, r"does not lie inside"),
        ({"files": {}}, r"lists no pytorch_lora_weights.safetensors"),
    ],
)
def test_a_wrong_card_says_what_is_wrong(directory: Path, changes: dict[str, Any], message: str) -> None:
    edit(directory, **changes)
    with pytest.raises((CardError, ArtifactError), match=message):
        artifact.verify(directory)


def test_cards_of_earlier_formats_are_read(directory: Path) -> None:
    path, now = directory / "adapter.json", artifact.verify(directory)
    second = {name: value for name, value in json.loads(path.read_text()).items() if name != "fingerprint"}
    path.write_text(json.dumps({**second, "format": 2}))
    assert artifact.verify(directory) == now
    more = {"path": {"kind": "RayPath", "sigma": 0.0}, "start": {"law": "normal", "jump": "ode", "eta": 0.0}}
    path.write_text(json.dumps({**second, **more, "format": 1}))
    assert artifact.verify(directory) == now
    assert now.recipe_name == now.recipe_digest
    edit(directory, recipe={"seed": 4})
    with pytest.raises(CardError, match="the recipe's own digest is"):
        artifact.verify(directory)


def test_the_card_of_a_flow_teacher_s_student_has_the_sigmas_of_its_pipeline(tmp_path: Path) -> None:
    sigmas = {"1": (1.0,), "2": (1.0, 0.5)}
    write(tmp_path / "flow", a_card(timesteps={"1": (1000.0,), "2": (1000.0, 750.0)}, sigmas=sigmas))
    card = artifact.verify(tmp_path / "flow")
    assert card.sigmas == sigmas
    text = model_card(card, scheduler="FlowMatchEulerDiscreteScheduler", licence="Apache-2.0")
    assert "num_inference_steps=2, guidance_scale=1.0, sigmas=[1.0, 0.5]).images[0]" in text
    write(tmp_path / "bent")
    assert "sigmas" not in (tmp_path / "bent" / "adapter.json").read_text()  # as cards were before


def test_a_missing_file_and_a_missing_card_are_named(directory: Path) -> None:
    (directory / "picture.png").unlink()
    with pytest.raises(ArtifactError, match=r"lacks picture\.png"):
        artifact.verify(directory)
    (directory / "adapter.json").unlink()
    with pytest.raises(ArtifactError, match="no raystill adapter"):
        artifact.verify(directory)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: {n: torch.empty(0) for n in state}, "is empty: under ZeRO-3"),
        (lambda state: {n: t * float("nan") for n, t in state.items()}, "NaN or infinite"),
        (lambda state: {n: t for n, t in state.items() if "lora_A" in n}, "lora_A and lora_B for every"),
        (lambda state: {f"unet.{n}": t for n, t in state.items()}, "already carries a prefix"),
        (lambda state: {}, "has no weights"),
    ],
)
def test_broken_weights_are_never_written(tmp_path: Path, spoil: Any, message: str) -> None:
    unet, config = adapted()
    state = spoil(get_peft_model_state_dict(unet))
    with pytest.raises(ArtifactError, match=message):
        artifact.write(
            tmp_path / "a", a_card(), state, {"_class_name": "DDIMScheduler"}, None, "", lora_config=config.to_dict()
        )
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="JSON has no nan"):
        write(tmp_path / "a", a_card(evaluation={"digest": "e", "frechet": {"2": float("nan")}}))
    assert list(tmp_path.iterdir()) == []


def test_the_model_card_says_how_to_sample(directory: Path) -> None:
    text = (directory / "README.md").read_text()
    assert "license: apache-2.0" in text
    assert "| 2 | 999, 499 | 17 |" in text
    assert "from_pretrained('someone/base', revision='abc123', dtype=torch.float32)" in text
    assert "num_inference_steps=2, guidance_scale=1.0" in text


def test_the_model_card_of_raystill_s_own_scheduler_imports_it_after_diffusers() -> None:
    card = a_card(
        start={"law": "normal", "jump": "anchored", "eta": 0.0}, timesteps={"1": (999,), "2": (1000.0, 750.5)}
    )
    text = model_card(card, scheduler="RayFlowScheduler", licence="Apache-2.0")
    lines = text.split("```python\n")[1].splitlines()
    assert lines.index("from raystill.models.scheduler import RayFlowScheduler") > lines.index(
        "from diffusers import DiffusionPipeline"
    )
    assert "pipeline.scheduler = RayFlowScheduler.from_pretrained('.', subfolder='scheduler')" in lines
    assert "The scheduler comes with raystill." in text
    assert "| 2 | 1000, 750.5 | 17 |" in text
    assert '- start: {"law": "normal", "jump": "anchored", "eta": 0.0}' in text


def test_the_class_of_the_scheduler_is_known(directory: Path) -> None:
    assert artifact.scheduler_class(directory) == "DDIMScheduler"
