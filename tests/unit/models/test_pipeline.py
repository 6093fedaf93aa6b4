"""Pipelines in diffusers' format: read with checks, encoding and decoding as diffusers does."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file

from raystill.config.errors import UserError
from raystill.config.shipped import located
from raystill.flow.schedules import FlowSchedule
from raystill.flow.solvers import euler
from raystill.models.fitting import sign_of_distillation
from raystill.models.fresh import save_pipeline
from raystill.models.pipeline import Pipeline, check_pipeline, load_pipeline
from raystill.models.revision import _content, former_revisions, is_of, revision


@pytest.fixture
def copied(pipeline_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline_directory, tmp_path / "copy"))


def test_what_is_loaded_is_what_was_written(pipeline_directory: Path) -> None:
    pipeline = load_pipeline(pipeline_directory)
    assert pipeline.kind == "v_prediction"
    assert pipeline.latent_shape == (4, 8, 8)
    assert pipeline.schedule.steps == 1000
    scheduler = pipeline.scheduler.config
    assert (scheduler.timestep_spacing, scheduler.clip_sample, scheduler.set_alpha_to_one) == ("trailing", False, True)
    networks = (pipeline.vae, pipeline.encoder.text_encoder, pipeline.network)
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.float32}


def test_condition_is_what_diffusers_encodes(pipeline_directory: Path) -> None:
    pipeline = load_pipeline(pipeline_directory)
    stock = StableDiffusionPipeline.from_pretrained(pipeline_directory, dtype=torch.float32)
    captions = ["red heart", "", "cat face red heart cat face red heart"]
    expected, _ = stock.encode_prompt(captions, "cpu", 1, do_classifier_free_guidance=False)
    found = pipeline.condition(captions)
    assert list(found) == ["prompt"]
    assert found["prompt"].shape == (3, 6, 12)
    torch.testing.assert_close(found["prompt"], expected)
    torch.testing.assert_close(pipeline.empty()["prompt"], expected[1:2])
    again = pipeline.condition([*captions, *captions[::-1]], batch_size=2)["prompt"]
    torch.testing.assert_close(again, torch.cat([expected, expected.flip(0)]))


def test_a_stage_is_loaded_when_it_is_used_and_let_go(pipeline_directory: Path) -> None:
    pipeline, held = load_pipeline(pipeline_directory), []
    for use in (lambda: pipeline.network, lambda: pipeline.condition(["red heart"]), lambda: pipeline.vae):
        use()
        held.append(set(pipeline._held))
    assert held == [{"network"}, {"network", "encoder"}, {"network", "encoder", "vae"}]
    before = pipeline.network
    pipeline.release("network", "vae")
    assert set(pipeline._held) == {"encoder"}
    assert pipeline.network is not before


def test_latents_are_scaled_means_and_decoding_undoes_the_scale(pipeline_directory: Path) -> None:
    pipeline = load_pipeline(pipeline_directory)
    pictures = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = pipeline.encode(pictures)
    assert latent.shape == (3, 4, 6, 8)
    assert pipeline.vae.config.scaling_factor == 0.5
    with torch.no_grad():
        torch.testing.assert_close(latent, pipeline.vae.encode(pictures).latent_dist.mean * 0.5)
        decoded = (pipeline.vae.decode(latent / 0.5).sample / 2 + 0.5).clamp(0, 1) * 255
    found = pipeline.decode(latent, batch_size=2)
    assert (found.shape, found.dtype) == ((3, 12, 16, 3), torch.uint8)
    assert float((found.permute(0, 3, 1, 2) - decoded).abs().max()) < 0.51


def test_to_freezes_every_network(pipeline_directory: Path) -> None:
    pipeline = load_pipeline(pipeline_directory).to(torch.device("cpu"))
    for network in (pipeline.vae, pipeline.encoder.text_encoder, pipeline.network):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def test_the_revision_is_that_of_the_contents(pipeline_directory: Path, copied: Path) -> None:
    first = revision(pipeline_directory)
    assert len(first) == 16
    assert revision(copied) == first == load_pipeline(copied).revision
    (copied / "README.md").write_text("says nothing of the weights")
    assert revision(copied) == first
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert revision(copied) != first


def test_the_revision_is_blind_to_what_no_loader_reads(pipeline_directory: Path, copied: Path) -> None:
    first = revision(pipeline_directory)
    for name in ("unet/.DS_Store", "unet/README.md", "unet/diffusion_pytorch_model.bin", "vae/old/config.json",
                 "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin.index.json",
                 "text_encoder/flax_model.msgpack", "lora/config.json", "safety_checker/config.json"):  # fmt: skip
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text("{}")
    assert revision(copied) == first
    assert is_of(copied, first)
    assert former_revisions(copied) != (first,)
    assert all(is_of(copied, then) for then in former_revisions(copied))  # adapters that were made beside them fit
    assert not is_of(copied, "0123456789abcdef")
    (copied / "tokenizer" / "added_tokens.json").write_text("{}")
    assert revision(copied) != first


def test_every_part_in_the_pipeline_s_index_counts(copied: Path) -> None:
    first, index = revision(copied), json.loads((copied / "model_index.json").read_text())
    (copied / "text_encoder_2").mkdir()
    (copied / "text_encoder_2" / "config.json").write_text("{}")
    assert revision(copied) == first
    more = {**index, "text_encoder_2": ["transformers", "T5EncoderModel"], "safety_checker": [None, None]}
    (copied / "model_index.json").write_text(json.dumps(more))
    assert revision(copied) != first


def test_the_revision_of_a_state_of_files_is_computed_once(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("raystill.models.revision.LARGE", 0)
    monkeypatch.setattr("raystill.models.revision.SETTLED_S", -1.0)
    first, weights = revision(copied), copied / "unet" / "diffusion_pytorch_model.safetensors"
    (note,) = (tmp_path / "cache" / "revisions").iterdir()
    kept = json.loads(note.read_text())
    assert kept[str(weights.relative_to(copied))][0] == weights.stat().st_size
    _content.cache_clear()  # as another process has it
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("a file was read again"))
    assert revision(copied) == first
    monkeypatch.undo()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert revision(copied) != first


def test_a_cache_that_cannot_be_written_or_read_is_no_error(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("RAYSTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("raystill.models.revision.LARGE", 0)
    monkeypatch.setattr("raystill.models.revision.SETTLED_S", -1.0)
    assert revision(copied) == revision(copied)


def test_the_shipped_teacher_has_the_revision_that_it_always_had() -> None:
    shipped = located("shipped://teachers/nano")
    assert revision(shipped) == "11cc13546aa4a210"  # adapters and targets were made with it
    assert former_revisions(shipped) == ()


def test_a_directory_that_is_no_pipeline_is_refused_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        check_pipeline(tmp_path / "nowhere")
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"expected model_index\.json in it, found: thesis\.tex.*\n.*--set teacher="):
        check_pipeline(tmp_path)


def test_a_pipeline_of_another_kind_is_refused(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    other = {**index, "_class_name": "PixArtAlphaPipeline", "unet": ["diffusers", "PixArtTransformer2DModel"]}
    (copied / "model_index.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="PixArtAlphaPipeline without transformer"):
        load_pipeline(copied)
    (copied / "model_index.json").write_text(json.dumps({**other, "_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UserError, match="whose unet is a PixArtTransformer2DModel; expected a UNet2DConditionModel"):
        load_pipeline(copied)
    (copied / "model_index.json").write_text(json.dumps({**index, "_class_name": "KandinskyPipeline"}))
    with pytest.raises(UserError, match=r"is a KandinskyPipeline; supported are StableDiffusionPipeline, .*backbone"):
        load_pipeline(copied)
    del index["vae"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="StableDiffusionPipeline without vae"):
        load_pipeline(copied)


def test_a_pipeline_without_a_unet_is_refused(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    del index["unet"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="without unet"):
        check_pipeline(copied)


def with_scheduler(directory: Path, scheduler: SchedulerMixin) -> Path:
    """The pipeline in `directory` with another scheduler, as diffusers would have written it."""
    stock = StableDiffusionPipeline.from_pretrained(directory, dtype=torch.float16)
    stock.scheduler = scheduler
    stock.save_pretrained(directory)
    return directory


def test_a_flow_teacher_is_made_saved_loaded_and_sampled(pipeline_directory: Path, copied: Path) -> None:
    parts = load_pipeline(pipeline_directory)
    save_pipeline(parts.network, parts.encoder.text_encoder, "flow_prediction", copied)
    teacher = load_pipeline(copied)
    assert (teacher.kind, teacher.schedule) == ("flow_prediction", FlowSchedule())
    assert type(teacher.scheduler) is FlowMatchEulerDiscreteScheduler
    assert teacher.revision != parts.revision
    denoiser, condition = teacher.denoiser, teacher.condition(["red heart"])
    start = torch.randn(1, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        times = teacher.schedule.sampling_times(3)
        found = euler(lambda x, t: denoiser(x, t, condition), teacher.schedule, start, times)
        teacher.scheduler.set_timesteps(sigmas=[1, 2 / 3, 1 / 3])
        x = start
        for k in teacher.scheduler.timesteps:
            x = teacher.scheduler.step(teacher.network(x, k, condition["prompt"]).sample, k, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def test_a_flow_teacher_in_the_words_of_flow_matching_is_read_with_its_shift(copied: Path) -> None:
    teacher = load_pipeline(with_scheduler(copied, FlowMatchEulerDiscreteScheduler(shift=3.0)))
    assert (teacher.kind, teacher.schedule) == ("flow_prediction", FlowSchedule(1000, 3.0))
    assert teacher.scheduler.config.shift == 3.0


def test_any_diffusion_teacher_gets_stock_ddim_on_its_own_schedule(copied: Path) -> None:
    teacher = load_pipeline(with_scheduler(copied, PNDMScheduler(beta_schedule="squaredcos_cap_v2")))
    assert type(teacher.scheduler) is DDIMScheduler
    assert teacher.kind == "epsilon"
    knots = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alphas = teacher.scheduler.alphas_cumprod.double()
    torch.testing.assert_close(teacher.schedule.signal(knots) ** 2, alphas, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["noise", "flow_prediction", "original_sample"])
def test_an_unknown_prediction_type_is_refused_before_anything_is_loaded(copied: Path, kind: str) -> None:
    with_scheduler(copied, EulerDiscreteScheduler(prediction_type=kind))
    for part in ("unet", "vae", "text_encoder"):
        (copied / part / "config.json").unlink()
    expected = (
        rf"teacher '.*copy': the EulerDiscreteScheduler in scheduler/scheduler_config\.json has prediction_type "
        rf"'{kind}'; expected, on a diffusion schedule, one of epsilon, v_prediction, sample\."
    )
    for refusing in (check_pipeline, load_pipeline):
        with pytest.raises(UserError, match=expected):
            refusing(copied)


def test_a_scheduler_that_diffusers_does_not_have_is_refused(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    for name in ("OurOwnScheduler", "StableDiffusionPipeline"):
        (copied / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", name]}))
        with pytest.raises(UserError, match=f"names the scheduler '{name}', which diffusers .* does not have"):
            check_pipeline(copied)


def test_a_scheduler_without_settings_is_refused(copied: Path) -> None:
    (copied / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match=r"has no scheduler/scheduler_config\.json"):
        check_pipeline(copied)


def variants(directory: Path, to: Path, **how: Any) -> Path:
    """A copy of a pipeline as diffusers writes it under some settings."""
    StableDiffusionPipeline.from_pretrained(directory, dtype=torch.float32).save_pretrained(to, **how)
    return to


@pytest.mark.parametrize(
    "how", [{"variant": "fp16"}, {"max_shard_size": "20KB"}, {"variant": "bf16", "max_shard_size": "20KB"}], ids=str
)
def test_weights_of_a_variant_and_in_parts_are_read_and_count(
    pipeline_directory: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    copy = variants(pipeline_directory, tmp_path / "copy", **how)
    check_pipeline(copy)
    found, expected = load_pipeline(copy), load_pipeline(pipeline_directory)
    for ours, theirs in zip(found.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    written = sorted((copy / "unet").glob("*.safetensors"))
    assert (len(written) > 1) == ("max_shard_size" in how)
    data = bytearray(written[-1].read_bytes())
    data[-1] ^= 1
    written[-1].write_bytes(bytes(data))
    assert revision(copy) != found.revision


def test_plain_weights_win_over_a_variant_beside_them(copied: Path, tmp_path: Path) -> None:
    before = revision(copied)
    for file in variants(copied, tmp_path / "half", variant="fp16").rglob("*.fp16.safetensors"):
        shutil.copy(file, copied / file.parent.name)
    assert revision(copied) == before
    assert load_pipeline(copied).revision == before


def test_pickled_weights_are_refused_with_the_line_that_writes_them_anew(copied: Path) -> None:
    (weights,) = (copied / "unet").glob("*.safetensors")
    weights.rename(copied / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"unet has pickled weights only .*python -c .*use_safetensors=False"):
        check_pipeline(copied)


def test_parts_of_different_variants_only_are_refused(copied: Path) -> None:
    for part, variant in (("unet", "fp16"), ("vae", "bf16")):
        (weights,) = (copied / part).glob("*.safetensors")
        weights.rename(weights.with_suffix(f".{variant}.safetensors"))
    with pytest.raises(UserError, match=r"different variants only: unet in fp16, vae in bf16"):
        check_pipeline(copied)


def test_a_snapshot_of_links_and_a_home_directory(
    pipeline_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (file for file in pipeline_directory.rglob("*") if file.is_file()):
        link = tmp_path / "snapshot" / file.relative_to(pipeline_directory)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_pipeline("~/snapshot").revision == revision(pipeline_directory)


def change(directory: Path, part: str, how: str) -> None:
    """Spoil one tensor of a pipeline's part."""
    (file,) = (directory / part).glob("*.safetensors")
    tensors = load_file(file)
    key = sorted(tensors)[3]
    if how == "missing":
        del tensors[key]
    else:
        tensors[key] = torch.zeros(3, 5) if how == "shape" else tensors[key] * float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


def used(pipeline: Pipeline, part: str) -> Any:
    """Load the stage that a part belongs to."""
    return {"unet": lambda: pipeline.network, "vae": lambda: pipeline.vae}.get(part, lambda: pipeline.encoder)()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("how", "message"),
    [("missing", "lack 1 tensors .*would be random"), ("shape", "cannot be read: "), ("nan", "1 tensors .*not finite")],
)
def test_weights_that_loaders_pass_over_are_refused(copied: Path, part: str, how: str, message: str) -> None:
    change(copied, part, how)
    pipeline = load_pipeline(copied)
    with pytest.raises(UserError, match=f"{message}") as refused:
        used(pipeline, part)
    assert part in str(refused.value)


def test_a_part_of_a_class_of_nobody_known_is_refused(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    index["text_encoder"] = ["mine", "Encoder"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"text_encoder is a mine\.Encoder, of neither diffusers nor transformers"):
        used(load_pipeline(copied), "text_encoder")


def rewritten(directory: Path, part: str, **settings: Any) -> None:
    """Change settings of a pipeline's part."""
    file = directory / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("unet", {"addition_embed_type": "text_time"}, "told more than a time and a caption .*text_time"),
        ("unet", {"num_class_embeds": 10}, "told more .*num_class_embeds=10"),
        ("unet", {"in_channels": 9}, "UNet of 9 input channels, and an autoencoder of 4: networks for inpainting"),
        ("vae", {"latent_channels": 16}, "UNet of 4 input channels, and an autoencoder of 16"),
        (
            "text_encoder",
            {"hidden_size": 768},
            "its text encoders give 768 features a token, and its UNet attends to 12",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named_before_anything_is_loaded(
    copied: Path, part: str, settings: dict[str, Any], message: str
) -> None:
    rewritten(copied, part, **settings)
    with pytest.raises(UserError, match=message):
        check_pipeline(copied)


def test_a_tokenizer_that_does_not_fit_is_refused(copied: Path) -> None:
    rewritten(copied, "text_encoder", max_position_embeddings=3)
    with pytest.raises(UserError, match=r"cannot be read: text_encoder|6 tokens a caption, and its text_encoder 3"):
        used(load_pipeline(copied), "text_encoder")
    for file in (copied / "tokenizer").glob("*o*.json"):
        if file.name in ("tokenizer.json", "vocab.json"):
            file.unlink()
    with pytest.raises(UserError, match=r"tokenizer has no vocabulary; expected one of tokenizer\.json, vocab\.json"):
        check_pipeline(copied)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_settings_that_are_none_are_named(copied: Path, text: str) -> None:
    (copied / "vae" / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"vae/config\.json (cannot be read|holds a list)"):
        check_pipeline(copied)


def test_pipelines_that_look_distilled_say_why(copied: Path, tmp_path: Path) -> None:
    assert sign_of_distillation(copied) == ""
    turbo = copied.rename(tmp_path / "sd-turbo")
    assert sign_of_distillation(turbo) == "it is called turbo"
    plain = turbo.rename(tmp_path / "plain")
    (plain / "README.md").write_text("---\ntags:\n- few-step\n---\n# A turbo-charged name in the text is none\n")
    assert sign_of_distillation(plain) == "it is called few-step"
    (plain / "README.md").unlink()
    rewritten(plain, "unet", time_cond_proj_dim=256)
    assert sign_of_distillation(plain) == "its UNet is told a guidance scale"
    index = json.loads((plain / "model_index.json").read_text()) | {"scheduler": ["diffusers", "LCMScheduler"]}
    (plain / "model_index.json").write_text(json.dumps(index))
    assert sign_of_distillation(plain) == "its scheduler is LCMScheduler"
