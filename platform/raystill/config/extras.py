"""The parts of raystill that are installed on demand, by the packages that they need."""

import importlib.util
from collections.abc import Mapping

from raystill.config.errors import UserError

EXTRAS: Mapping[str, tuple[str, ...]] = {  # extra of pyproject.toml -> modules that are imported where it is used
    "cluster": ("ray", "deepspeed", "optuna", "yaml"),
    "tracking": ("mlflow", "requests"),
    "store": ("tenacity",),  # and a program, `weed`
}


def need(extra: str, purpose: str, otherwise: str = "") -> None:
    """Refuse, with UserError, a purpose whose extra is not installed; `otherwise` tells what does without."""
    missing = [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(_told(purpose, missing, extra, otherwise))


def explained(error: ModuleNotFoundError) -> UserError | None:
    """The error that says which extra has the module that was not found; None where no extra has it."""
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    return None if extra is None else UserError(_told("this", [module], extra, ""))


def _told(purpose: str, missing: list[str], extra: str, otherwise: str) -> str:
    are = "is" if len(missing) == 1 else "are"
    return (
        f"{purpose} needs {', '.join(missing)}, which {are} not installed here: pip install 'raystill[{extra}]'"
        f"{f'; or {otherwise}' if otherwise else ''}"
    )
