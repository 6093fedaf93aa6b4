"""The learning rate of one step: a pure function, so that a resumed run needs no scheduler state."""

import math

from raystill.config.errors import UserError
from raystill.engine.protocol import Optimizer

DECAYS = ("cosine", "constant")


def learning_rate(optimizer: Optimizer, step: int, steps: int) -> float:
    """Learning rate of update `step` (0 ... steps - 1): linear warm-up, then decay; UserError for an unknown decay."""
    check_decay("optimizer.decay", optimizer)
    if not 0 <= step < steps:
        raise ValueError(f"step {step} lies outside a run of {steps} steps (0 ... {steps - 1})")
    # Counted in updates finished: a rate of exactly 0 would waste the first batch.
    done = step + 1
    if done < optimizer.warmup_steps:
        return optimizer.learning_rate * done / optimizer.warmup_steps
    if optimizer.decay == "constant" or steps <= optimizer.warmup_steps:
        return optimizer.learning_rate
    progress = (done - optimizer.warmup_steps) / (steps - optimizer.warmup_steps)
    fraction = 0.5 * (1.0 + math.cos(math.pi * progress))
    return optimizer.learning_rate * (optimizer.final_fraction + (1.0 - optimizer.final_fraction) * fraction)


def depends_on_total(optimizer: Optimizer) -> bool:
    """Whether the learning rate of a step depends on the total of steps, so that a longer run is another run."""
    return optimizer.decay != "constant"


def check_decay(path: str, optimizer: Optimizer) -> None:
    """Refuse, with UserError, a decay that `learning_rate` does not know; `path` is the dotted path of the setting."""
    if optimizer.decay not in DECAYS:
        raise UserError(f'{path} is "{optimizer.decay}"; write "cosine" or "constant": --set {path}=cosine')
