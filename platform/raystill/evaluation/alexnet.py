"""AlexNet's convolutions with the weights of the LPIPS metric, in plain torch."""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from raystill.config.errors import UserError
from raystill.config.shipped import located

WEIGHTS = "shipped://features/alexnet.safetensors"
# Pinned, because figures are named after the network: another file would give other figures under the same name.
SHA256 = "b277f01d5eca8708c936cbf452795218c5170d8a4832461e410daa8f0c72b222"
# Input channels, output channels, kernel, stride, padding. A 3 x 3 max-pool of stride 2 stands before those in POOLED.
CONVOLUTIONS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
POOLED = (1, 2)
# ImageNet's mean and standard deviation for pictures in [-1, 1], as LPIPS rounds them.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class AlexNet(nn.Module):
    """The five convolutions of AlexNet and the linear heads of LPIPS (Zhang et al. 2018, arXiv:1801.03924), frozen.

    Its parameters are empty until `load_alexnet` fills them."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, k, stride=s, padding=p) for i, o, k, s, p in CONVOLUTIONS)
        self.heads = nn.ParameterList(torch.zeros(o) for _, o, _, _, _ in CONVOLUTIONS)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, pictures: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """Give the five rectified activations of pictures in [0, 1], whose sides are at least 31 pixels."""
        x = (2 * pictures.to(self.shift) - 1 - self.shift) / self.scale
        activations = []
        for layer, convolution in enumerate(self.convolutions):
            x = functional.max_pool2d(x, 3, 2) if layer in POOLED else x
            x = functional.relu(convolution(x))
            activations.append(x)
        return activations

    def resized(self, pictures: Float[Tensor, "n 3 h w"], resolution: int) -> Float[Tensor, "n 3 r r"]:
        """Bring pictures to `resolution` pixels a side: bilinear upwards, averaging downwards."""
        if pictures.shape[-2:] == (resolution, resolution):
            return pictures
        # antialias changes nothing upwards; downwards it keeps detail from folding into false colours.
        size = (resolution, resolution)
        return functional.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)


def load_alexnet(weights: Path | None = None) -> AlexNet:
    """Build the network from the weight file that comes with raystill, or one given; on the CPU, in float32. UserError
    where the file is not the known one.
    """
    path = located(WEIGHTS) if weights is None else weights
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise UserError(
            f"{path} has SHA-256 {found}, expected {SHA256}: figures made with other weights must not carry this "
            "network's name. Install raystill again"
        )
    network = AlexNet()
    network.load_state_dict(load(data))
    return network.requires_grad_(False).eval()
