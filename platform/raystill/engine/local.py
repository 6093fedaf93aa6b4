"""The engine of one process in plain torch, for a laptop or one GPU."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raystill.config.errors import UserError
from raystill.engine.protocol import NonFiniteError, Optimizer

_TENSORS = "state.safetensors"
_PROGRESS = "state.json"


def adamw(parameters: Iterable[nn.Parameter], optimizer: Optimizer) -> torch.optim.AdamW:
    """The torch AdamW that every engine uses; its learning rate is overwritten before each step."""
    return torch.optim.AdamW(
        parameters,
        lr=optimizer.learning_rate,
        betas=(optimizer.beta_1, optimizer.beta_2),
        weight_decay=optimizer.weight_decay,
    )


def learnable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name; raises `ValueError` where there are none."""
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not named:
        raise ValueError("no parameter of the module requires a gradient: add the adapter, or unfreeze it, first")
    return named


def write_state(directory: Path, tensors: Mapping[str, Tensor], updates: int) -> None:
    """Write a resume state: tensors named `<kind>/<parameter>` and the number of updates behind them."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, directory / _TENSORS)
    (directory / _PROGRESS).write_text(json.dumps({"format": 1, "updates": updates}))


def read_state(directory: Path, shapes: Mapping[str, torch.Size]) -> tuple[dict[str, Tensor], int]:
    """Read the tensors and the number of updates of a resume state; `UserError` where its names or shapes differ."""
    tensors = load_file(directory / _TENSORS)
    found = {name.removeprefix("parameter/") for name in tensors if name.startswith("parameter/")}
    if found != set(shapes):
        raise UserError(
            f"{directory} holds {len(found)} parameters, the module trains {len(shapes)}; first mismatch: "
            f"{min(found ^ set(shapes))}. Resume with the recipe that wrote the state"
        )
    for name, shape in shapes.items():
        there = tensors[f"parameter/{name}"].shape
        if there != shape:
            raise UserError(
                f"{directory} holds {name} of shape {tuple(there)}, the module trains {tuple(shape)}. "
                "Resume with the recipe that wrote the state"
            )
    return tensors, int(json.loads((directory / _PROGRESS).read_text())["updates"])


class LocalEngine:
    """AdamW on the trainable parameters of a module, on the device where it is."""

    def __init__(self, module: nn.Module, optimizer: Optimizer, device: torch.device | str = "cpu") -> None:
        """Move `module` to `device`; raises `ValueError` where nothing in it is trainable."""
        self._module = module.to(device)
        self._named = learnable(module)
        self._shapes = {name: parameter.shape for name, parameter in self._named.items()}
        self._clip_norm = optimizer.clip_norm
        self._adamw = adamw(self._named.values(), optimizer)
        self._loss = torch.zeros((), device=device)
        self._updates = 0

    @property
    def module(self) -> nn.Module:
        """The module to call in a loss."""
        return self._module

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of a scalar loss, shape ()."""
        self._loss += loss.detach()
        loss.backward()

    def step(self, learning_rate: float) -> Tensor:
        """Clip, update and zero the gradients; returns the norm before clipping, shape (); raises `NonFiniteError`."""
        norm = self._clip()
        # HOST SYNC: the only one of a step. The loss is added because an infinite one can have finite gradients.
        if not bool(torch.isfinite(norm + self._loss)):
            raise NonFiniteError(f"gradient norm {norm.item()}, loss {self._loss.item()}; the update was not applied")
        return self._update(learning_rate, norm)

    def _clip(self) -> Tensor:
        """Clip the gradients; returns their global norm before clipping, shape ()."""
        return nn.utils.clip_grad_norm_(self._named.values(), self._clip_norm)

    def _update(self, learning_rate: float, norm: Tensor) -> Tensor:
        """Apply one update, zero the gradients and the summed loss, and return `norm`."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._loss.zero_()
        self._updates += 1
        return norm

    @contextmanager
    def trainable(self) -> Iterator[Mapping[str, Tensor]]:
        """Give the live trainable tensors by name, without copies, for reading inside the context."""
        yield {name: parameter.data for name, parameter in self._named.items()}

    def save(self, directory: Path) -> None:
        """Write parameters and optimizer state as safetensors and JSON."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._named.items():
            # A parameter that no loss has reached yet has no moments; AdamW would start them at 0.
            state = self._adamw.state.get(parameter, {})
            tensors[f"parameter/{name}"] = parameter
            for kind in ("exp_avg", "exp_avg_sq"):
                tensors[f"{kind}/{name}"] = state.get(kind, torch.zeros_like(parameter))
        write_state(directory, tensors, self._updates)

    def load(self, directory: Path) -> None:
        """Restore the state that `save` of any engine wrote; raises `UserError` where the parameters differ."""
        tensors, self._updates = read_state(directory, self._shapes)
        for name, parameter in self._named.items():
            parameter.data.copy_(tensors[f"parameter/{name}"])
            self._adamw.state[parameter] = {
                "step": torch.tensor(float(self._updates)),
                "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
            }
