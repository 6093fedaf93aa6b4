"""Adapters folded into pipelines."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from raystill.cli.main import main
from raystill.config.digest import canonical, digest
from raystill.config.errors import UserError
from raystill.models import artifact
from raystill.models.adapter import Adapter
from raystill.models.card import AdapterCard, Base
from raystill.models.merging import merge_adapter
from raystill.models.pipeline import load_pipeline
from raystill.models.sampling import perflow_scheduler
from raystill.models.weights import Full, Lora, delta, lora_state, peft_config, prepare

LORA = Lora(rank=2, alpha=4.0, targets=("to_q", "conv1"))
CAPTIONS = ["red heart", "cat face"]


def adapter(
    base: Path, to: Path, weights: Lora | Full, *, own_scheduler: bool = False, landing: dict[str, Tensor] | None = None
) -> Path:
    """An adapter of random weights on a pipeline."""
    pipeline = load_pipeline(base)
    prepare(pipeline.network, weights)
    rng = torch.Generator().manual_seed(1)
    learned = {n: p for n, p in pipeline.network.named_parameters() if p.requires_grad}
    trained: dict[str, Tensor] = {
        n: p.detach() + 0.02 * torch.randn(p.shape, generator=rng) for n, p in learned.items()
    }
    if isinstance(weights, Full):
        state, config = delta(pipeline.network, trained), None
    else:
        for name, parameter in learned.items():
            parameter.data.copy_(trained[name])
        state, config = lora_state(pipeline.network), peft_config(weights).to_dict()
    scheduler = perflow_scheduler(pipeline.scheduler, 4, "ddim_eps") if own_scheduler else pipeline.scheduler
    recipe = canonical({"made": "here"})
    card = AdapterCard(
        base=Base(id=str(base), revision=pipeline.revision), method="test", steps=(4,), default_steps=4,
        timesteps={"4": (999, 749, 499, 249)}, guidance_scale=1.0, recipe=recipe,
        recipe_digest=digest(recipe), commit="0",
    )  # fmt: skip
    settings = json.loads(scheduler.to_json_string())
    picture = Image.new("L", (4, 4))
    artifact.write(to, card, state, settings, picture, "An adapter.", lora_config=config, landing=landing)
    return to


@pytest.mark.parametrize("weights", [LORA, Full()], ids=["lora", "full"])
def test_a_merged_pipeline_draws_what_the_adapter_draws(
    weights: Lora | Full, pipeline_directory: Path, tmp_path: Path
) -> None:
    directory = adapter(pipeline_directory, tmp_path / "adapter", weights)
    said = merge_adapter(directory, None, tmp_path / "merged")
    assert f"the adapter on its base, {pipeline_directory}; sample it with its own DDIMScheduler" in said
    found = StableDiffusionPipeline.from_pretrained(tmp_path / "merged", local_files_only=True)
    found.set_progress_bar_config(disable=True)
    made = Adapter(directory)
    normal = torch.randn(2, *made.pipeline.latent_shape, generator=torch.Generator().manual_seed(3))
    drawn = found(CAPTIONS, latents=normal, num_inference_steps=4, guidance_scale=1.0, output_type="latent").images
    torch.testing.assert_close(drawn, made.latents(CAPTIONS, 4, 3), rtol=1e-3, atol=1e-3)
    own = load_pipeline(pipeline_directory)
    assert not torch.equal(found.unet.conv_in.weight, own.network.conv_in.weight) or weights == LORA


def test_a_delta_goes_onto_another_fine_tune_of_the_base(
    pipeline_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = adapter(pipeline_directory, tmp_path / "adapter", Full(), own_scheduler=True)
    other = StableDiffusionPipeline.from_pretrained(pipeline_directory, local_files_only=True)
    with torch.no_grad():
        for parameter in other.unet.parameters():
            parameter.mul_(1.1)
    other.save_pretrained(tmp_path / "other")
    line = ["raystill", "merge", str(directory), "--onto", str(tmp_path / "other"), "--out", str(tmp_path / "merged")]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "another pipeline than its base" in said
    assert f"sample it with the adapter's PeRFlowScheduler, {directory}/scheduler, and guidance scale 1" in said
    base, merged = load_pipeline(pipeline_directory).network, load_pipeline(tmp_path / "merged").network
    for name, tensor in load_file(directory / "unet_delta.safetensors").items():
        expected = 1.1 * base.get_parameter(name) + tensor
        torch.testing.assert_close(merged.get_parameter(name), expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_goes_onto_another_fine_tune_of_the_base(pipeline_directory: Path, tmp_path: Path) -> None:
    directory, other = adapter(pipeline_directory, tmp_path / "adapter", LORA), tmp_path / "other"
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_directory, local_files_only=True)
    with torch.no_grad():
        for parameter in pipeline.unet.parameters():
            parameter.mul_(1.1)
    pipeline.save_pretrained(other)
    assert "another pipeline than its base" in merge_adapter(directory, other, tmp_path / "onto")
    merge_adapter(directory, None, tmp_path / "own")
    moved, merged, tuned, base = (
        load_pipeline(place).network for place in (tmp_path / "onto", tmp_path / "own", other, pipeline_directory)
    )
    changed = 0
    for name, parameter in moved.named_parameters():
        gained = merged.get_parameter(name) - base.get_parameter(name)
        torch.testing.assert_close(parameter - tuned.get_parameter(name), gained, rtol=1e-4, atol=1e-5)
        changed += bool(gained.abs().max() > 1e-4)
    assert changed


def test_nothing_is_written_over_or_merged_into_what_it_is_not_for(pipeline_directory: Path, tmp_path: Path) -> None:
    directory = adapter(pipeline_directory, tmp_path / "adapter", LORA)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").touch()
    with pytest.raises(UserError, match="is there already; name a new directory"):
        merge_adapter(directory, None, tmp_path / "there")
    with pytest.raises(UserError, match=r"is not a diffusers pipeline: expected model_index.json"):
        merge_adapter(directory, tmp_path / "nowhere", tmp_path / "out")
    ctm = adapter(
        pipeline_directory, tmp_path / "ctm", LORA, landing={"time_embedding.cond_proj.weight": torch.ones(8, 64)}
    )
    with pytest.raises(UserError, match=r"a CTM student is told where each step lands, which no plain pipeline does"):
        merge_adapter(ctm, None, tmp_path / "out")
    card = json.loads((directory / "adapter.json").read_text())
    moved = shutil.copytree(pipeline_directory, tmp_path / "moved")
    weights = load_file(moved / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(
        {name: 2 * tensor for name, tensor in weights.items()}, moved / "unet/diffusion_pytorch_model.safetensors"
    )
    (directory / "adapter.json").write_text(json.dumps(card | {"base": card["base"] | {"id": str(moved)}}))
    with pytest.raises(UserError, match=r"at revision [0-9a-f]+, and it is at [0-9a-f]+ now; name what to merge into"):
        merge_adapter(directory, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [{"beta_end": 0.02}, {"rescale_betas_zero_snr": True}, {"prediction_type": "sample"}, {"num_train_timesteps": 500}],
    ids=lambda change: next(iter(change)),
)
def test_a_pipeline_of_another_schedule_is_refused(
    change: dict[str, Any], pipeline_directory: Path, tmp_path: Path
) -> None:
    directory = adapter(pipeline_directory, tmp_path / "adapter", LORA)
    other = shutil.copytree(pipeline_directory, tmp_path / "other")
    settings = other / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
    with pytest.raises(UserError, match=r"on the schedule of .*, and .*other predicts .* on its own; give a fine-tune"):
        merge_adapter(directory, other, tmp_path / "out")


def test_step_counts_that_cannot_be_drawn_are_refused_with_the_nearest(
    pipeline_directory: Path, tmp_path: Path
) -> None:
    made = Adapter(adapter(pipeline_directory, tmp_path / "adapter", LORA))
    made.card = replace(made.card, steps=(1, 4), timesteps={"1": (999,), **made.card.timesteps})
    with pytest.raises(UserError, match="trained for 1, 4 steps, found 2: write --steps 1, or --force"):
        made.draw(CAPTIONS, 2)
    assert made.draw(CAPTIONS, 2, force=True).shape == (2, 16, 16, 3)
    with pytest.raises(UserError, match="DDIMScheduler cannot draw in 61 steps: write --steps 60 or --steps 62"):
        made.draw(CAPTIONS, 61, force=True)
