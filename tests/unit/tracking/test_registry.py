"""Adapters are registered whole, fetched whole, and draw as they were trained to."""

import ast
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from mlflow import MlflowClient
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from raystill.config.digest import digest
from raystill.flow.starts import StartLaw
from raystill.models import artifact
from raystill.models.artifact import ArtifactError
from raystill.models.card import SCHEDULER_MODULE, AdapterCard, Base, model_card
from raystill.models.scheduler import RayFlowScheduler
from raystill.models.student import ODE, Sampling, sampling_json
from raystill.tracking.companions import needed
from raystill.tracking.pull import PullError, pull
from raystill.tracking.registry import DIGEST_TAG, register
from raystill.tracking.runs import open_experiment

TIMES = {"1": (999,), "2": (999, 499), "4": (999, 749, 499, 249)}
Export = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Stable Diffusion pipeline in miniature, with a many-step scheduler, as published ones have."""
    home = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (home / "vocab.json").write_text(json.dumps(vocabulary))
    (home / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(home / "vocab.json"), str(home / "merges.txt"), model_max_length=12)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 8), latent_channels=4, sample_size=16, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=CLIPTextModel(config), tokenizer=tokenizer, scheduler=PNDMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(home / "pipeline")
    return home / "pipeline"


@pytest.fixture
def export(base: Path, tmp_path: Path) -> Export:
    """Write an adapter of the base with a given 4-step distance."""

    def write(distance: float | None = 17.0, evaluation: str = "e1", seed: int = 0, sampling: Sampling = ODE) -> Path:
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
        config = LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
        unet.add_adapter(config)
        recipe = {"kind": "Run", "seed": seed}
        figures: dict[str, Any] = {"digest": evaluation, "features": "tiny-net", "frechet": {"4": distance}}
        card = AdapterCard(
            base=Base(id=str(base)), method="rayflow", path={"kind": "Ray"}, steps=(1, 2, 4), default_steps=4,
            timesteps=TIMES, guidance_scale=1.0, recipe=recipe, recipe_digest=digest(recipe), commit="f00d",
            start=sampling_json(sampling, StartLaw()),
            evaluation={} if distance is None else figures,
        )  # fmt: skip
        scheduler: Any = DDIMScheduler(timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
        if sampling != ODE:
            scheduler = RayFlowScheduler.from_config(scheduler.config, sigma=0.3, jump=sampling.jump, eta=sampling.eta)
        directory = tmp_path / f"export-{seed}-{evaluation}-{distance}"
        readme = model_card(card, scheduler=type(scheduler).__name__, licence="Apache-2.0", here=str(directory))
        state = get_peft_model_state_dict(unet)
        settings = json.loads(scheduler.to_json_string())
        artifact.write(directory, card, state, settings, Image.new("RGB", (4, 6)), readme, lora_config=config.to_dict())
        return directory

    return write


@pytest.fixture
def run_id(uri: str, client: MlflowClient, experiment: str) -> str:
    """A run to register from."""
    return str(client.create_run(open_experiment(uri, experiment)).info.run_id)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("RAYSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_registered_can_be_pulled(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str, cache: Path, tmp_path: Path
) -> None:
    directory = export(17.0)
    made = register(uri, experiment, directory, run_id)
    assert made.uri == f"models:/{experiment}/1"
    assert made.promotion.promoted
    version = client.get_model_version_by_alias(experiment, "champion")
    assert version.run_id == run_id
    assert version.tags == {
        DIGEST_TAG: artifact.sha256(directory / "adapter.json"),
        "base": artifact.verify(directory).base.id, "method": "rayflow",
        "recipe_digest": digest({"kind": "Run", "seed": 0}), "evaluation_digest": "e1", "frechet_4": "17.0",
    }  # fmt: skip
    pulled = pull(f"models:/{experiment}@champion", tracking_uri=uri)
    assert pulled.is_relative_to(cache)
    assert artifact.verify(pulled) == artifact.verify(directory)
    elsewhere = pull(f"models:/{experiment}/1", tmp_path / "mine", tracking_uri=uri)
    assert elsewhere == tmp_path / "mine"
    assert artifact.verify(elsewhere) == artifact.verify(directory)


def test_the_second_pull_comes_from_the_cache(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = register(uri, experiment, export(), run_id)
    first = pull(made.uri, tracking_uri=uri)
    stamp = first.stat().st_ino
    assert pull(made.uri, tracking_uri=uri).stat().st_ino == stamp
    (first / "README.md").write_text("damaged")
    again = pull(made.uri, tracking_uri=uri)
    assert again.stat().st_ino != stamp
    assert "damaged" not in (again / "README.md").read_text()


def test_registering_twice_gives_one_version(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str
) -> None:
    directory = export()
    assert register(uri, experiment, directory, run_id).version == 1
    again = register(uri, experiment, directory, run_id)
    assert again.version == 1
    assert again.promotion.reason == "version 1 is the champion already"


def test_only_a_comparable_and_better_version_becomes_champion(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str
) -> None:
    def champion() -> str:
        return str(client.get_model_version_by_alias(experiment, "champion").version)

    unmeasured = register(uri, experiment, export(None, seed=9), run_id)
    assert not unmeasured.promotion.promoted
    assert "evaluate before" in unmeasured.promotion.reason
    assert register(uri, experiment, export(20.0, seed=1), run_id).promotion.promoted
    assert champion() == "2"
    worse = register(uri, experiment, export(21.0, seed=2), run_id)
    assert worse.promotion.reason == "21 is no better than 20 of the champion, version 2"
    other = register(uri, experiment, export(1.0, "e2", seed=3), run_id)
    assert not other.promotion.promoted
    assert "measured by evaluation e2, the champion (version 2) by e1" in other.promotion.reason
    assert champion() == "2"
    better = register(uri, experiment, export(12.5, seed=4), run_id)
    assert better.promotion.reason == "12.5 is better than 20 of version 2"
    assert champion() == "5"
    assert str(client.get_model_version_by_alias(experiment, "candidate").version) == "5"


def test_a_damaged_adapter_is_not_registered(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str
) -> None:
    directory = export()
    (directory / "picture.png").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"picture\.png has SHA-256"):
        register(uri, experiment, directory, run_id)
    assert client.search_registered_models(f"name = '{experiment}'") == []


def test_the_served_model_draws_with_the_adapters_own_settings(
    uri: str, run_id: str, export: Export, experiment: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = export()
    made = register(uri, experiment, directory, run_id)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    model = mlflow.pyfunc.load_model(made.uri)
    first, second = model.predict({"prompt": ["a cat", "a dog"]})
    pipeline = by_hand(directory, base)
    generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
    expected = pipeline(["a cat", "a dog"], num_inference_steps=4, guidance_scale=1.0, generator=generators).images
    for found, picture in zip((first, second), expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(found))), np.asarray(picture))
    (two,) = model.predict({"prompt": ["a dog"]}, params={"steps": 2, "seed": 1})
    assert two != second
    with pytest.raises(ValueError, match=r"draws in \[1, 2, 4\] steps, 3 were asked for"):
        model.predict({"prompt": ["a cat"]}, params={"steps": 3})


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_the_served_model_brings_raystill_s_scheduler_where_the_adapter_needs_it(
    eta: float, uri: str, run_id: str, export: Export, experiment: str, base: Path
) -> None:
    directory = export(sampling=Sampling(jump="anchored", eta=eta))
    made = register(uri, experiment, directory, run_id)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    model = mlflow.pyfunc.load_model(made.uri)
    (found,) = model.predict({"prompt": ["a cat"]}, params={"steps": 2, "seed": 5})
    pipeline = by_hand(directory, base, RayFlowScheduler)
    generator = torch.Generator().manual_seed(5)
    (expected,) = pipeline("a cat", num_inference_steps=2, guidance_scale=1.0, generator=generator).images
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found))), np.asarray(expected))
    served = type(model.unwrap_python_model()._pipeline.scheduler).__module__  # not the one that is installed here
    assert served.startswith("raystill_")
    assert served.endswith(".models.scheduler")


def test_raystill_s_scheduler_needs_nothing_of_raystill_but_its_mathematics() -> None:
    assert set(needed(SCHEDULER_MODULE)) == {
        "raystill.config.errors", "raystill.flow.jumps", "raystill.flow.paths", "raystill.flow.predictions",
        "raystill.flow.schedules", "raystill.flow.starts", "raystill.models.scheduler", "raystill.models.stock",
    }  # fmt: skip
    third = {name.split(".")[0] for text in needed(SCHEDULER_MODULE).values() for name in imported(text)}
    assert third - set(sys.stdlib_module_names) == {"raystill", "torch", "diffusers", "jaxtyping"}


def imported(text: str) -> list[str]:
    nodes = list(ast.walk(ast.parse(text)))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


@pytest.mark.parametrize("sampling", [ODE, Sampling(jump="anchored")], ids=["stock", "raystill"])
def test_nothing_that_is_registered_is_a_pickle(
    sampling: Sampling, uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str
) -> None:
    made = register(uri, experiment, export(sampling=sampling), run_id)
    source = client.get_model_version(experiment, str(made.version)).source
    assert source is not None
    root = Path(source.removeprefix("file://"))
    suffixes = {p.suffix for p in root.rglob("*") if p.is_file() and p.name != "MLmodel"}
    assert suffixes == {".json", ".md", ".png", ".py", ".safetensors", ".txt", ".yaml"}


def by_hand(directory: Path, base: Path, kind: Any = DDIMScheduler) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.scheduler = kind.from_pretrained(directory, subfolder="scheduler")
    pipeline.load_lora_weights(directory)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("sampling", [ODE, Sampling(jump="anchored")], ids=["stock", "raystill"])
def test_the_lines_of_the_readme_run(sampling: Sampling, export: Export, base: Path) -> None:
    directory = export(sampling=sampling)
    code = (directory / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102  # what a reader of the model card does
    assert names["picture"].size == (16, 16)
    assert names["pipeline"].scheduler.timesteps.tolist() == list(TIMES["4"])


def test_unknown_things_are_answered_with_what_there_is(uri: str, run_id: str, export: Export, experiment: str) -> None:
    register(uri, experiment, export(), run_id)
    with pytest.raises(PullError, match=rf"no model 'nothing'; there are: .*{experiment}"):
        pull("models:/nothing@champion", tracking_uri=uri)
    with pytest.raises(PullError, match=r"no alias 'best'; it has: candidate \(version 1\), champion \(version 1\)"):
        pull(f"models:/{experiment}@best", tracking_uri=uri)
    with pytest.raises(PullError, match="no version 7; it has: 1"):
        pull(f"models:/{experiment}/7", tracking_uri=uri)
    with pytest.raises(PullError, match="expected models:/NAME@champion or models:/NAME/3"):
        pull("the best one", tracking_uri=uri)


def test_a_full_destination_is_left_alone(uri: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(PullError, match="not an empty directory"):
        pull("models:/a@champion", tmp_path / "mine", tracking_uri=uri)
