"""The autoencoder's loss, term by term, and its single pass."""

import pytest
import torch
from torch import Tensor, nn

from raystill.flow.randomness import RandomStream
from raystill.methods.autoencoder import Autoencoder, AutoencoderPass, to_pictures
from raystill.models.fresh import AutoencoderShape


class Answer(nn.Module):
    """Gives back what it was made with."""

    def __init__(self, decoded: Tensor, mean: Tensor, log_variance: Tensor) -> None:
        super().__init__()
        self.answer = decoded, mean, log_variance

    def forward(self, pictures: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.answer


def rng(seed: int = 0) -> RandomStream:
    return RandomStream.of(seed)


def images(count: int, height: int, width: int) -> Tensor:
    return rng().integers(0, 256, count * height * width * 3).view(count, height, width, 3).byte()


def test_stored_pictures_become_floats_with_channels_first() -> None:
    image = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    image[1, 2, 3, 0] = 255
    pictures = to_pictures(image)
    assert pictures.shape == (2, 3, 4, 5)
    assert float(pictures[1, 0, 2, 3]) == 1
    assert float(pictures.sum()) == -(2 * 3 * 4 * 5) + 2


@pytest.mark.parametrize("shape", [(2, 6, 10), (3, 3, 3)])
def test_the_loss_is_absolute_error_plus_edges_plus_kl(shape: tuple[int, int, int]) -> None:
    image = images(*shape)
    pictures, offset = to_pictures(image), rng(1).normal((shape[0], 3, *shape[1:]))
    mean, log_variance = (rng(i).normal((shape[0], 4, 2, 3)) for i in (2, 3))
    law = torch.distributions.Normal(mean.double(), (0.5 * log_variance.double()).exp())
    kl = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).sum() / pictures.numel()
    edges = offset.diff(dim=2).abs().mean() + offset.diff(dim=3).abs().mean()
    method = Autoencoder(kl_weight=0.01, edge_weight=0.3)
    network = Answer(pictures + offset, mean, log_variance)
    found = method.losses({"autoencoder": network}, {"image": image}, rng(), 0)["autoencoder"]
    assert float(found.value) == pytest.approx(float(offset.abs().mean() + 0.3 * edges + 0.01 * kl), rel=1e-5)
    assert float(found.metrics["loss/kl"]) == pytest.approx(float(kl), rel=1e-5)
    assert float(found.metrics["quality/reconstruction_mse"]) == pytest.approx(float(offset.square().mean()), rel=1e-5)


def test_a_perfect_reconstruction_from_a_standard_normal_latent_has_no_loss() -> None:
    image = images(2, 4, 6)
    network = Answer(to_pictures(image), torch.zeros(2, 4, 2, 3), torch.zeros(2, 4, 2, 3))
    assert float(Autoencoder().losses({"autoencoder": network}, {"image": image}, rng(), 0)["autoencoder"].value) == 0


def test_the_pass_decodes_the_mean_with_the_key_s_own_noise() -> None:
    torch.manual_seed(0)
    vae = AutoencoderShape(widths=(8, 16), groups=4).build().eval()
    pictures = to_pictures(images(2, 8, 12))
    decoded, mean, log_variance = AutoencoderPass(vae)(pictures, 5)
    assert (decoded.shape, mean.shape, log_variance.shape) == ((2, 3, 8, 12), (2, 4, 4, 6), (2, 4, 4, 6))
    posterior = vae.encode(pictures).latent_dist
    noise = RandomStream(5).normal(mean.shape)
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(decoded, vae.decode(mean + (0.5 * log_variance).exp() * noise).sample)
    assert not torch.equal(decoded, AutoencoderPass(vae)(pictures, 6)[0])


def test_the_latent_noise_s_key_comes_from_the_step_s_own_numbers() -> None:
    class Asked(Answer):
        def forward(self, pictures: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor]:
            keys.append(key)
            return super().forward(pictures, key)

    keys: list[int] = []
    image = images(2, 4, 6)
    network = Asked(to_pictures(image), torch.zeros(2, 4, 2, 3), torch.zeros(2, 4, 2, 3))
    for step in (1, 2, 1):
        Autoencoder().losses({"autoencoder": network}, {"image": image}, rng(step), step)
    assert keys[0] == keys[2] != keys[1]
    assert min(keys) > 2**64
