"""The task that trains a student: the teacher's network with an adapter, or with all of its weights, by any method."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from raystill.config.errors import UserError
from raystill.config.fingerprint import Knob, introduced_group
from raystill.data.store import open_store, removal
from raystill.engine.protocol import Optimizer
from raystill.methods.method import STUDENT, TARGET, TEACHER, Given
from raystill.methods.rayflow import RayFlow
from raystill.methods.table import Distilling
from raystill.models.averaging import Follower
from raystill.models.conditioning import EMPTY, Condition, moved
from raystill.models.ctm import make_room
from raystill.models.pipeline import Pipeline, load_pipeline
from raystill.models.roles import Role, copied, remembering, shared
from raystill.models.weights import Full, Lora, prepare
from raystill.training.loop import Training
from raystill.training.pictures import LawPicture, StudentPicture
from raystill.training.task import Assembly


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillTask:
    """Settings of the student's training on stored targets, by any method."""

    teacher: Knob[str]  # directory of the teacher's pipeline
    method: Distilling = introduced_group(RayFlow)
    weights: Lora | Full = introduced_group(Lora)
    optimizer: Optimizer = introduced_group(Optimizer)
    training: Training = introduced_group(Training)
    picture_captions: Knob[tuple[str, ...]] = ()  # captions drawn during training, at the method's own step counts
    # whether roles have a base of their own each, as ZeRO's stage 3 asks for, which cuts a base up for one of them
    separate: Knob[bool] = False
    targets: Knob[str | None] = None  # uri of the targets; filled in by the stage that computes them
    name: Knob[str] = "student"

    def build(self, device: torch.device) -> Assembly:
        """Build the student from the teacher's network, and the other networks that the method asks for."""
        pipeline = self._pipeline()
        given = given_of(pipeline, self.training.seed, device, self._empty())
        built = Assembly(self.method.bind(given), {}, given=given)
        if isinstance(self.weights, Lora) and not self.separate and not self.method.tells_landing:
            self._share(built, pipeline.network.to(device), self.weights)
        else:
            self._separate(built, pipeline, device)
        heads = self.method.heads(given)
        built.modules |= {role: head.module.to(device) for role, head in heads.items()}
        built.optimizers = {role: constant(head.learning_rate) for role, head in heads.items()}
        built.small = frozenset(heads)
        if self.picture_captions:
            student = built.modules[STUDENT]
            built.pictures[f"samples/{self.name}"] = StudentPicture(
                pipeline.to(device), self._anew if self.separate else lambda: student, given.unconditional, self.method,
                self.picture_captions,
            )  # fmt: skip
        if (times := self.method.learned_times) is not None:
            built.pictures["times/law"] = LawPicture(times, given.backbone.latent_shape[0])
        return built

    def _pipeline(self) -> Pipeline:
        half = isinstance(self.weights, Lora) and self.weights.base == "bfloat16"
        return load_pipeline(self.teacher, torch.bfloat16 if half else torch.float32)

    def _empty(self) -> Condition | None:
        """The condition of guidance's other branch as it lies beside the targets; None where it does not."""
        store = None if self.targets is None else open_store(self.targets)
        if store is None or not store.exists(EMPTY):
            return None
        try:
            return load(store.read(EMPTY))
        except SafetensorError as error:
            file = f"{store.uri}/{EMPTY}"
            raise UserError(
                f"{file} is damaged ({error}); what is removed is computed anew: {removal(file)}"
            ) from error

    def _share(self, built: Assembly, base: Any, lora: Lora) -> None:
        """Make all roles of one base, with a LoRA for each."""
        if self.training.checkpointing:
            base.enable_gradient_checkpointing(remembering(base))
        roles = shared(base, lora, (STUDENT, *self.method.copies))
        built.modules |= roles
        built.sharing = frozenset(self.method.copies)
        if self.method.asks_teacher:
            built.frozen[TEACHER] = Role(base, None)
        if self.method.keeps(0) is not None:
            built.followers[TARGET] = Follower(copied(roles[STUDENT], lora, TARGET), STUDENT, self._kept)

    def _separate(self, built: Assembly, pipeline: Pipeline, device: torch.device) -> None:
        """Make every role with weights of its own."""
        student = built.modules[STUDENT] = self._prepared(pipeline).to(device).train()
        for role in self.method.copies:
            built.modules[role] = self._prepared(self._pipeline()).to(device).train()
        if self.method.asks_teacher:
            built.frozen[TEACHER] = self._pipeline().to(device).network
        if self.method.keeps(0) is not None:
            built.followers[TARGET] = Follower(deepcopy(student), STUDENT, self._kept)

    def _anew(self) -> nn.Module:
        """A student's network of this process's own: that of the training is cut up among all, and one alone draws."""
        return self._prepared(self._pipeline())

    def _prepared(self, pipeline: Pipeline) -> nn.Module:
        if self.training.checkpointing:
            pipeline.network.enable_gradient_checkpointing()
        network: nn.Module = prepare(pipeline.network, self.weights)
        if self.method.tells_landing:
            make_room(network, pipeline.backbone.landing)
        return network

    def _kept(self, step: int) -> float:
        kept = self.method.keeps(step)
        assert kept is not None
        return kept


def given_of(pipeline: Pipeline, seed: int, device: torch.device, empty: Condition | None = None) -> Given:
    """The facts of a teacher, and the seed of a training on a device, that a method is bound to; `empty` is the
    condition of guidance's other branch, which is encoded where it is not given.
    """
    told = moved(pipeline.empty() if empty is None else empty, device)
    pipeline.release("encoder")
    return Given(pipeline.schedule, pipeline.kind, pipeline.backbone, told, seed)


def constant(learning_rate: float) -> Optimizer:
    """The optimizer of a method's small networks: a constant rate, since they follow the student to the end."""
    return Optimizer(learning_rate=learning_rate, warmup_steps=1, decay="constant")
