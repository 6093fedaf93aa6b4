"""What comes inside the package: a small teacher, a sample of shards, and the network that measures pictures."""

from pathlib import Path

from raystill.config.errors import UserError

SCHEME = "shipped://"
ROOT = Path(__file__).parents[1] / "shipped"
FORMER = ("teachers/nano", "samples/noto")  # paths of what was shipped beside the package, as adapters and lines have


def located(address: str) -> Path:
    """The directory or file of an address: what comes with raystill for shipped://NAME, else the path that it is;
    UserError where nothing of that name comes with raystill.
    """
    if not address.startswith(SCHEME):
        path = Path(address).expanduser()
        former = path.as_posix() in FORMER and not path.exists()
        return ROOT / path if former else path
    name = address.removeprefix(SCHEME).rstrip("/")
    shipped = sorted(f"{SCHEME}{place.relative_to(ROOT).as_posix()}" for place in ROOT.glob("*/*"))
    if f"{SCHEME}{name}" not in shipped:
        raise UserError(f"nothing called {address} comes with raystill; there are: {', '.join(shipped)}")
    return ROOT / name
