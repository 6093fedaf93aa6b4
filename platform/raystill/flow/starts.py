"""The law that sampling starts from: standard normal, or one fitted to the starts of the targets that a student learnt
from.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced
from raystill.flow.predictions import Latent

Law = Literal["normal", "channel_normal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartLaw:
    """N(0, I), or an independent normal law for every number of a latent with a mean and spread per channel."""

    law: Law = introduced("normal")  # "normal" is N(0, I)
    mean: tuple[float, ...] = introduced(())  # mean of each latent channel, for "channel_normal" only
    std: tuple[float, ...] = introduced(())  # spread of each channel, greater than 0, for "channel_normal" only

    def __post_init__(self) -> None:
        if self.law not in get_args(Law):
            raise UserError(f"the start law is {self.law!r}; write one of {', '.join(get_args(Law))}")
        if (self.law == "normal") != (not self.mean) or len(self.mean) != len(self.std):
            raise UserError(
                f"the start law {self.law!r} has means {list(self.mean)} and spreads {list(self.std)}; "
                "'channel_normal' has one of each per latent channel, 'normal' has none"
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < s < math.inf for s in self.std):
            raise UserError(
                f"the start law's means {list(self.mean)} and spreads {list(self.std)} must be finite, and spreads "
                "greater than 0; fit them again on targets of one teacher"
            )

    def apply(self, normal: Latent) -> Latent:
        """Turn N(0, I) draws into draws of this law; UserError where the number of channels differs."""
        if self.law == "normal":
            return normal
        if normal.shape[1] != len(self.mean):
            raise UserError(
                f"the start law is of {len(self.mean)} channels and the latent has {normal.shape[1]}; "
                "an adapter draws with the base model that it was trained on"
            )
        mean, std = (torch.tensor(v, dtype=torch.float64).to(normal).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return mean + std * normal

    def to_json(self) -> dict[str, Any]:
        """The law as plain JSON values, the form in an adapter's card and scheduler; `from_json` reads it back."""
        if self.law == "normal":
            return {"law": self.law}
        return {"law": self.law, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "StartLaw":
        """The law whose `to_json` gave a mapping; UserError for any other mapping."""
        unknown = sorted(set(found) - {"law", "mean", "std"})
        if "law" not in found or unknown:
            raise UserError(f"a start law has law, mean and std, found {sorted(found)}; write {{'law': 'normal'}}")
        return cls(law=found["law"], mean=tuple(found.get("mean", ())), std=tuple(found.get("std", ())))
