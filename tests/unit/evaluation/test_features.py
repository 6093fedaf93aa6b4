import functools
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image
from torch.nn import functional

from raystill.config.errors import UserError
from raystill.config.shipped import located
from raystill.evaluation.alexnet import WEIGHTS, AlexNet, load_alexnet
from raystill.evaluation.distances import frechet
from raystill.evaluation.features import AlexNetFeatures, Lpips, extract, pairwise, to_unit

SHARDS = located("shipped://samples/noto")
COUNT = 1000  # of each half


@functools.cache
def alexnet() -> AlexNet:
    return load_alexnet()


@functools.cache
def emoji() -> UInt8[np.ndarray, "n 32 32 3"]:
    """The first 2000 sample pictures, shuffled, at 32 pixels a side on white."""
    pictures: list[UInt8[np.ndarray, "32 32 3"]] = []
    for shard in sorted(SHARDS.glob("*.tar.gz")):
        with tarfile.open(shard) as members:
            for member in members:
                opened = members.extractfile(member) if member.name.endswith(".webp") else None
                if opened is not None and len(pictures) < 2 * COUNT:
                    picture = Image.open(io.BytesIO(opened.read())).convert("RGBA")
                    page = Image.new("RGBA", picture.size, "white")
                    page.alpha_composite(picture)
                    pictures.append(np.asarray(page.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)))
    return np.stack(pictures)[np.random.default_rng(0).permutation(len(pictures))]


def noise_pictures(count: int, side: int, seed: int) -> UInt8[np.ndarray, "n h w 3"]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def blurred(pictures: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w 3"]:
    x = to_unit(pictures)
    x = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    result: UInt8[np.ndarray, "n h w 3"] = (255 * x).round().byte().permute(0, 2, 3, 1).numpy()
    return result


def damaged() -> dict[str, UInt8[np.ndarray, "n 32 32 3"]]:
    fresh = emoji()[COUNT:]
    noise = np.random.default_rng(1).normal(0, 20, fresh.shape)
    yellow = fresh.astype(int) - np.array([0, 0, 40])
    return {
        "blur": blurred(fresh),
        "noise": (fresh + noise).clip(0, 255).astype(np.uint8),
        "colour": yellow.clip(0, 255).astype(np.uint8),
        "shape": np.ascontiguousarray(np.roll(fresh, 16, axis=2)),  # left and right halves exchanged
        "collapse": np.tile(fresh[:50], (COUNT // 50, 1, 1, 1)),
    }


def test_activations_have_alexnets_shapes() -> None:
    shapes = [tuple(x.shape) for x in alexnet()(torch.zeros(2, 3, 64, 70))]
    assert shapes == [(2, 64, 15, 16), (2, 192, 7, 7), (2, 384, 3, 3), (2, 256, 3, 3), (2, 256, 3, 3)]


def test_heads_of_lpips_are_not_negative_and_nothing_trains() -> None:
    assert all(float(head.min()) >= 0 and float(head.max()) > 0 for head in alexnet().heads)
    assert not any(parameter.requires_grad for parameter in alexnet().parameters())


def test_features_are_the_averages_of_two_layers() -> None:
    network = AlexNetFeatures(alexnet=alexnet())
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    activations = alexnet()(pictures)
    found = network(pictures)
    assert found.shape == (3, network.size)
    torch.testing.assert_close(found[:, :192], activations[1].flatten(2).mean(2))
    torch.testing.assert_close(found[:, 192:], activations[4].flatten(2).mean(2))


def test_names_tell_the_resolution() -> None:
    assert AlexNetFeatures(alexnet=alexnet()).name == "alexnet"
    assert AlexNetFeatures(alexnet=alexnet(), resolution=96).name == "alexnet_96"
    assert Lpips(alexnet=alexnet()).name == "lpips_alexnet"
    assert Lpips(alexnet=alexnet(), resolution=None).name == "lpips_alexnet_native"


def test_extract_does_not_depend_on_the_batch_size() -> None:
    network = AlexNetFeatures(alexnet=alexnet())
    pictures = noise_pictures(7, 32, seed=0)
    whole, parts = extract(network, pictures), extract(network, pictures, batch_size=3)
    assert whole.shape == (7, 448)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_grey_pictures_are_their_repetition() -> None:
    network = AlexNetFeatures(alexnet=alexnet())
    grey = noise_pictures(2, 32, seed=1)[..., :1]
    torch.testing.assert_close(extract(network, grey), extract(network, grey.repeat(3, axis=3)))


def test_pictures_that_cannot_be_used_are_refused() -> None:
    network = AlexNetFeatures(alexnet=alexnet())
    with pytest.raises(UserError, match="4 channels"):
        extract(network, np.zeros((2, 8, 8, 4), np.uint8))
    with pytest.raises(UserError, match="no pictures"):
        extract(network, np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="no pairs"):
        pairwise(Lpips(alexnet=alexnet()), np.zeros((0, 8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8))


def test_lpips_is_a_symmetric_distance() -> None:
    lpips = Lpips(alexnet=alexnet())
    a, b = noise_pictures(4, 40, seed=2), noise_pictures(4, 40, seed=3)
    assert pairwise(lpips, a, a).tolist() == [[0, 0, 0, 0]]
    there, back = pairwise(lpips, a, b, batch_size=3), pairwise(lpips, b, a)
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-6)
    assert float(there.min()) > 0
    both = pairwise(lpips, a, b, a[::-1].copy())
    torch.testing.assert_close(both[:1], there, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(both[1:], pairwise(lpips, a, a[::-1].copy()), rtol=1e-4, atol=1e-6)


def test_lpips_of_known_pictures() -> None:
    # From this code on the day it gave the 0.722 and 0.138 that the authors publish for their two example pairs.
    down, across = np.mgrid[0:64, 0:64]
    ramp = np.stack([4 * down, 4 * across, 2 * (down + across)], axis=-1).astype(np.uint8)[None]
    lpips = Lpips(alexnet=alexnet())
    assert float(pairwise(lpips, ramp, 255 - ramp)) == pytest.approx(0.590277, rel=1e-3)
    assert float(pairwise(lpips, ramp, np.ascontiguousarray(ramp[:, ::-1]))) == pytest.approx(0.458606, rel=1e-3)


def test_frechet_distance_sees_what_a_bad_sampler_does() -> None:
    network = AlexNetFeatures(alexnet=alexnet())
    reference = extract(network, emoji()[:COUNT])
    fresh = frechet(reference, extract(network, emoji()[COUNT:]))
    found = {name: frechet(reference, extract(network, x)) / fresh for name, x in damaged().items()}
    assert {name: ratio for name, ratio in found.items() if ratio < 1.5} == {}


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "alexnet.safetensors"
    path.write_bytes(located(WEIGHTS).read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="SHA-256"):
        load_alexnet(path)
