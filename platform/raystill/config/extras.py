"""The parts of raystill that are installed on demand, by the packages that they need."""

import importlib.util
from collections.abc import Mapping

from raystill.config.errors import UserError

EXTRA: Mapping[str, str] = {  # module that is imported where it is used -> extra of pyproject.toml that has it
    "ray": "cluster", "deepspeed": "cluster", "optuna": "cluster", "yaml": "cluster",
    "mlflow": "tracking", "requests": "tracking",
    "tenacity": "store",
}  # fmt: skip


def need(*modules: str, purpose: str, otherwise: str = "") -> None:
    """Refuse, with UserError, a purpose whose modules, all of one extra, are not installed; `otherwise` tells what does
    without.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(_told(purpose, missing, otherwise))


def explained(error: ModuleNotFoundError) -> UserError | None:
    """The error that says which extra has the module that was not found; None where no extra has it, or where it is
    there and another part of it is not.
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA or importlib.util.find_spec(module) is not None:
        return None
    return UserError(_told("this", [module], ""))


def _told(purpose: str, missing: list[str], otherwise: str) -> str:
    are = "is" if len(missing) == 1 else "are"
    return (
        f"{purpose} needs {', '.join(missing)}, which {are} not installed here: pip install "
        f"'raystill[{EXTRA[missing[0]]}]'{f'; or {otherwise}' if otherwise else ''}"
    )
