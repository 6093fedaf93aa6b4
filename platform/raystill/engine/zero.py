"""The engine of several processes by DeepSpeed ZeRO, stages 0 to 3: the only module that imports deepspeed."""

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raystill.config.errors import UserError
from raystill.engine.local import adamw, learnable, read_state, write_state
from raystill.engine.protocol import NonFiniteError, Optimizer

if not torch.cuda.is_available():
    # DeepSpeed chooses its accelerator once, while it is imported, and guesses wrongly without one.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed import utils as zero

# These warnings are about torch functions that DeepSpeed calls, not raystill.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+_tensor` is deprecated", category=FutureWarning)
# DeepSpeed compiles a shared-memory all-reduce on first use, for inference only; an empty table spares g++ and ninja.
deepspeed.ops.__compatible_ops__ = {}

_MOMENTS = ("exp_avg", "exp_avg_sq")


def agree(value: str) -> None:
    """Raise `UserError` on every rank where the ranks do not all pass the same `value`. Collective."""
    # 15 hex digits, because a full 64-bit digest would not fit a signed integer.
    mine = torch.tensor([int(hashlib.sha256(value.encode()).hexdigest()[:15], 16)], device=_device())
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)  # COLLECTIVE
    digests = [int(one.item()) for one in found]  # HOST SYNC
    odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if odd:
        raise UserError(
            f"ranks {odd} disagree with rank 0; rank {dist.get_rank()} has {value}. Start every worker from the same "
            "code and the same resolved run, and give all ranks equally many batches"
        )


def anywhere(flag: bool) -> bool:
    """Whether `flag` holds on any rank. Collective."""
    found = torch.tensor([float(flag)], device=_device())
    dist.all_reduce(found)  # COLLECTIVE
    return bool(found > 0)  # HOST SYNC


def total(values: Tensor) -> Tensor:
    """The sum over ranks of a tensor on any device, of any shape. Collective."""
    found = values.to(_device())
    dist.all_reduce(found)  # COLLECTIVE
    return found


class ZeroEngine:
    """AdamW on the trainable parameters of a module, spread over the ranks of the default process group."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        stage: int,
        precision: str = "float32",
        device: torch.device | str | None = None,
    ) -> None:
        """Wrap `module` at a ZeRO stage 0 to 3; ranks take rank 0's values. `UserError` for bad settings. Collective.

        `precision` "bfloat16" makes the forward autocast: DeepSpeed switches an autocast from outside off.
        """
        _check(stage, precision)
        self._stage = stage
        self._device = torch.device(device) if device is not None else _device()
        self._named = learnable(module.to(self._device))
        self._shapes = {name: parameter.shape for name, parameter in self._named.items()}  # stage 3 empties them
        self._adamw = adamw(self._named.values(), optimizer)
        self._clip_norm = optimizer.clip_norm
        self._loss = torch.zeros((), device=self._device)
        self._norm = torch.zeros((), device=self._device)
        self._updates = 0
        if stage == 0:
            # DeepSpeed drops the norm that it clips by at stage 0, and would apply one that is not finite.
            self._adamw.register_step_pre_hook(self._clip)
        elements = sum(parameter.numel() for parameter in self._named.values())
        settings = _settings(stage, precision, optimizer.clip_norm, elements)
        with _contiguous(module, restored=stage < 3):  # stage 3 keeps no whole tensor to lay out
            self._engine, *_ = deepspeed.initialize(model=module, optimizer=self._adamw, config=settings)
        if precision == "float32":
            self._engine.register_forward_pre_hook(_refuse_autocast)
        self._create_moments()

    @property
    def module(self) -> nn.Module:
        """The DeepSpeed engine around the module, to call in a loss; it passes attributes of the module on."""
        engine: nn.Module = self._engine
        return engine

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of a scalar loss, shape (), of this rank; the update averages over ranks. Collective."""
        self._loss += loss.detach()
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> Tensor:
        """Clip, update and zero the gradients; returns the global norm before clipping, shape (). Collective.

        Raises `NonFiniteError` on every rank, without an update, where a loss or the norm is not finite."""
        self._check_losses()
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        if self._stage > 0:
            self._norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self._device)
            # HOST SYNC. DeepSpeed skips the update on every rank, silently, where this norm is not finite.
            if not bool(torch.isfinite(self._norm)):
                raise NonFiniteError(f"global gradient norm {self._norm.item()}; the update was not applied")
        self._loss.zero_()
        self._updates += 1
        return self._norm

    @contextmanager
    def trainable(self) -> Iterator[Mapping[str, Tensor]]:
        """Give the full trainable tensors by name, on every rank, valid inside the context only. Collective."""
        # COLLECTIVE: stage 3 keeps a slice per rank, and a tensor read without gathering is empty.
        with deepspeed.zero.GatheredParameters(list(self._named.values()), enabled=self._stage == 3):
            yield {name: parameter.data for name, parameter in self._named.items()}

    def save(self, directory: Path) -> None:
        """Write one state, from rank 0, that any engine, stage and number of ranks can load. Collective."""
        tensors: dict[str, Tensor] = {}
        with self.trainable() as full:
            tensors.update({f"parameter/{name}": tensor.detach().cpu().clone() for name, tensor in full.items()})
        for name, parameter in self._named.items():
            for kind in _MOMENTS:
                tensors[f"{kind}/{name}"] = self._moment(parameter, kind).cpu()
        if dist.get_rank() == 0:
            write_state(directory, tensors, self._updates)
        dist.barrier()  # COLLECTIVE: no rank may go on to read what is not yet written.

    def load(self, directory: Path) -> None:
        """Restore the state that `save` of any engine wrote, from a directory that every rank sees. Collective."""
        tensors, self._updates = read_state(directory, self._shapes)
        parameters = list(self._named.values())
        # COLLECTIVE: the values of rank 0 are handed out at the end of the context.
        with torch.no_grad(), deepspeed.zero.GatheredParameters(parameters, 0, enabled=self._stage == 3):
            for name, parameter in self._named.items():
                parameter.data.copy_(tensors[f"parameter/{name}"])
        for name, parameter in self._named.items():
            for kind in ("parameter", *_MOMENTS):
                self._restore(parameter, kind, tensors[f"{kind}/{name}"].to(self._device))
        for state in self._adamw.state.values():
            state["step"].fill_(self._updates)

    def _check_losses(self) -> None:
        flags = torch.zeros(dist.get_world_size(), device=self._device)
        flags[dist.get_rank()] = (~torch.isfinite(self._loss)).float()
        dist.all_reduce(flags)  # COLLECTIVE
        bad = flags.nonzero().flatten().tolist()  # HOST SYNC
        if bad:
            raise NonFiniteError(
                f"loss not finite on ranks {bad}, {self._loss.item()} here; the update was not applied"
            )

    def _clip(self, *_: Any) -> None:
        # Runs after the reduction over ranks, so that every rank sees the same norm.
        self._norm = nn.utils.clip_grad_norm_(self._named.values(), self._clip_norm)
        if not bool(torch.isfinite(self._norm)):  # HOST SYNC
            raise NonFiniteError(f"global gradient norm {self._norm.item()}; the update was not applied")

    def _create_moments(self) -> None:
        """Create AdamW's moments as zeros before the first step, so that a state can be saved and loaded before it."""
        owners: list[Tensor] = list(self._named.values())
        if self._stage in (1, 2):
            owners = self._engine.optimizer.single_partition_of_fp32_groups
        if self._stage == 3:
            owners = self._engine.optimizer.fp32_partitioned_groups_flat
        for owner in owners:
            moments = {kind: torch.zeros_like(owner) for kind in _MOMENTS}
            self._adamw.state[owner] = {"step": torch.tensor(0.0), **moments}
        if self._stage in (1, 2):
            # Private, and done by the first step otherwise; it connects a parameter to its part of the moments.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _moment(self, parameter: nn.Parameter, kind: str) -> Tensor:
        if self._stage == 0:
            return torch.as_tensor(self._adamw.state[parameter][kind])
        return torch.as_tensor(zero.safe_get_full_optimizer_state(parameter, kind))  # COLLECTIVE

    def _restore(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Set a moment of a parameter, or the optimizer's copy of it, which the next update would else write back."""
        if self._stage == 0:
            if kind in _MOMENTS:
                self._adamw.state[parameter][kind].copy_(value)
        elif self._stage == 3:
            # Not through the calls for full tensors, which fail where the ranks do not divide the number of elements.
            mine = _slice(value, zero.safe_get_local_fp32_param(parameter).numel())
            if kind in _MOMENTS:
                zero.safe_set_local_optimizer_state(parameter, mine, kind)
            else:
                zero.safe_set_local_fp32_param(parameter, mine)
        elif kind in _MOMENTS:
            zero.safe_set_full_optimizer_state(parameter, value, kind)
        else:
            zero.safe_set_full_fp32_param(parameter, value)


@contextmanager
def _contiguous(module: nn.Module, *, restored: bool) -> Iterator[None]:
    """Give channels-last parameters the contiguous layout while DeepSpeed sends them to all ranks, and where `restored`
    frozen ones their own layout afterwards; trained ones, which DeepSpeed lays out anew, stay contiguous.
    """
    last = torch.channels_last
    turned = [p for p in module.parameters() if p.ndim == 4 and p.is_contiguous(memory_format=last)]
    for parameter in turned:  # a copy, for the strides of a 1 x 1 kernel: both layouts are contiguous there
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    yield
    for parameter in turned if restored else ():
        if not parameter.requires_grad:
            parameter.data = parameter.data.contiguous(memory_format=last)


def _slice(value: Tensor, size: int) -> Tensor:
    """The `size` elements of this rank at stage 3, whose last rank is padded with zeros; shape (size,)."""
    padded = value.new_zeros(size * dist.get_world_size())
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, size * dist.get_rank(), size)


def _device() -> torch.device:
    if not dist.is_initialized():
        raise UserError("ZeRO needs a process group: start it under Ray Train, or use the local engine")
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _refuse_autocast(*_: Any) -> None:
    # DeepSpeed would switch it off for this forward with no more than one warning.
    if torch.is_autocast_enabled("cuda"):
        raise UserError('autocast is on, but the engine was made for float32; give it precision="bfloat16"')


def _check(stage: int, precision: str) -> None:
    if stage not in (0, 1, 2, 3):
        raise UserError(f"the ZeRO stage is {stage!r}; write 0, 1, 2 or 3")
    if precision not in ("float32", "bfloat16"):
        raise UserError(f'the precision is "{precision}"; write "float32" or "bfloat16"')


def _settings(stage: int, precision: str, clip_norm: float, elements: int) -> dict[str, Any]:
    # DeepSpeed allocates its buckets anew in every backward: 5e8 elements by default, whatever the module has.
    bucket = min(-(-elements // 4096) * 4096, 500_000_000)  # a multiple of 4096, because it asks for an aligned one
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # only feeds a throughput counter: our loop batches
        "managed_gradient_accumulation": False,  # step() ends an accumulation, not a count of backward calls
        "gradient_clipping": clip_norm if stage > 0 else 0.0,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            # One buffer against fragmentation costs a copy per tensor: 15 % of a small step. Not tried at stage 3.
            "contiguous_gradients": stage == 3,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
    }
    if precision == "bfloat16":
        # The empty list keeps gradients and their reduction in float32.
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return settings
