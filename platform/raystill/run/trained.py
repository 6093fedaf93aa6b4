"""A trained student: written as an adapter's directory, with which it is evaluated, registered and used."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from raystill.config.digest import canonical, digest
from raystill.config.fingerprint import fingerprint
from raystill.data.store import Store
from raystill.flow.starts import StartLaw
from raystill.methods.method import STUDENT
from raystill.models import artifact
from raystill.models.adapter import Adapter
from raystill.models.card import AdapterCard, Base, model_card
from raystill.models.counts import sigmas_of, timesteps_of
from raystill.models.ctm import landing_of
from raystill.models.hub import published, teacher_at
from raystill.models.pipeline import Pipeline, licence_of, load_pipeline
from raystill.models.sampling import Sampling
from raystill.models.weights import Full, Lora, delta, load_trained, lora_state, peft_config, prepare
from raystill.run.samples import SampleLatents
from raystill.run.settings import Run
from raystill.tracking.commit import code_commit
from raystill.training.distillation import DistillTask
from raystill.training.task import Assembly, read_averages


def base_of(teacher: str, revision: str) -> Base:
    """The base on an adapter's card: a name on the Hub and its commit, or a directory and the digest of its files."""
    name, commit = published(teacher) or (teacher, revision)
    return Base(id=name, revision=commit)


@dataclass(frozen=True, slots=True)
class TrainedStudent:
    """A trained student in its checkpoint store, and how it is sampled."""

    task: DistillTask
    checkpoints: Store
    sampling: Sampling
    start: StartLaw
    averages: str  # key of the student's averaged weights in the checkpoint store

    def draw(self, device: str) -> tuple[Pipeline, SampleLatents]:
        """Load the adapter on a device, as whoever pulls it does; return its pipeline and a function that samples."""
        with TemporaryDirectory() as scratch:
            directory = Path(scratch) / "adapter"
            self.write(directory)
            adapter = Adapter(directory, teacher_at(self.task.teacher), torch.device(device))
        return adapter.pipeline, adapter.sample

    def write(
        self,
        directory: Path,
        run: Run | None = None,
        *,
        evaluation: Mapping[str, Any] | None = None,
        picture: Image | None = None,
        caption: str = "",
    ) -> None:
        """Write the adapter's directory: weights and scheduler, and card and readme as far as they are known. `run` has
        made it, `evaluation` is for its card, `caption` what its readme draws.
        """
        method, teacher = self.task.method, load_pipeline(self.task.teacher)
        scheduler = method.scheduler(teacher.scheduler, self.sampling, self.start)
        steps = (method.default_steps,) if run is None else run.evaluation.student_steps
        card = AdapterCard(
            base=base_of(self.task.teacher, teacher.revision),
            pipeline=str(teacher.backbone.settings.index["_class_name"]),
            method=method.name,
            steps=steps,
            default_steps=method.default_steps,
            timesteps={str(n): timesteps_of(scheduler, n) for n in steps},
            sigmas={str(n): sigmas for n in steps if (sigmas := sigmas_of(scheduler, n))},
            guidance_scale=method.guides,
            start=self.start.to_json(),
            recipe={} if run is None else canonical(run),
            recipe_digest=digest({} if run is None else canonical(run)),
            fingerprint=None if run is None else fingerprint(run),
            commit=code_commit(),
            evaluation=evaluation or {},
        )
        full, licence = isinstance(self.task.weights, Full), licence_of(teacher_at(self.task.teacher))
        readme = model_card(card, scheduler=type(scheduler).__name__, licence=licence, delta=full, caption=caption)
        state, lora, landing = self._weights(teacher)
        config = json.loads(scheduler.to_json_string())
        artifact.write(directory, card, state, config, picture, readme, lora_config=lora, landing=landing)

    def _weights(self, teacher: Pipeline) -> tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, Tensor] | None]:
        """The student's weights as adapters carry them: LoRA tensors or a delta, the LoRA's settings, and the layer
        that only a CTM student has. The teacher's network is changed.
        """
        tensors = read_averages(self.checkpoints, self.averages)[STUDENT]
        landing = landing_of(tensors) or None
        tensors = {name: tensor for name, tensor in tensors.items() if name not in (landing or {})}
        weights = self.task.weights
        if not isinstance(weights, Lora):
            return delta(teacher.network, tensors), None, landing
        load_trained(prepare(teacher.network, weights), tensors)
        return lora_state(teacher.network), peft_config(weights).to_dict(), landing

    def assembly(self, device: torch.device) -> Assembly:
        """Build the task's method, and its networks with their averaged weights."""
        averages = read_averages(self.checkpoints, self.averages)
        built = self.task.build(device)
        load_trained(built.modules[STUDENT], averages[STUDENT])
        for role in built.small:
            built.modules[role].load_state_dict(averages[role])
        return built

    def identity(self) -> dict[str, Any]:
        """Return everything that the samples depend on: weights, method, sampling and start law."""
        found = next(entry for entry in self.checkpoints.list(self.averages))
        return {"adapter": found.etag, "method": self.task.method, "sampling": self.sampling, "start": self.start}
