"""Which machine, versions and command a figure is from, and where figures are kept."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import srsly
from wasabi import msg

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from zero_copy.machine import describe_machine  # noqa: E402


def describe() -> dict[str, Any]:
    """The machine, the versions, the commit and the command of this run.

    RETURNS (Dict[str, Any]): What a reader needs to judge or repeat a figure.
    """
    return {
        **describe_machine(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "command": " ".join(["python", *(_relative(argument) for argument in sys.argv)]),
    }


def save(name: str, figures: Any) -> None:
    """Write figures to results/, named after what was measured and the machine.

    name (str): What was measured.
    figures (Any): The figures, as JSON takes them.
    """
    machine = describe()
    _write(_path(name, machine), {"machine": machine, "figures": figures})


def read(name: str, otherwise: Any) -> Any:
    """Figures that were saved on a machine like this.

    name (str): What was measured.
    otherwise (Any): What to return if it was not.
    RETURNS (Any): The figures.
    """
    path = _path(name, describe())
    return srsly.read_json(path)["figures"] if path.exists() else otherwise


def save_parts(name: str, parts: dict[str, Any]) -> None:
    """Write the parts of a figure that one run has measured; those of earlier runs stay.

    name (str): What was measured.
    parts (Dict[str, Any]): Figures by what they are of, a config say; each keeps its own machine.
    """
    machine = describe()
    path = _path(name, machine)
    kept = srsly.read_json(path) if path.exists() else {}
    _write(path, kept | {part: {"machine": machine, **one} for part, one in parts.items()})


def _path(name: str, machine: dict[str, Any]) -> Path:
    where = machine["gpu"] or f"{machine['processor']} {machine['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")
    return RESULTS / f"{name}-{slug}.json"


def _write(path: Path, figures: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    srsly.write_json(path, figures)
    msg.good(f"Saved {path.relative_to(ROOT)}")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def _relative(argument: str) -> str:
    path = Path(argument)
    return str(path.relative_to(ROOT)) if path.is_absolute() and ROOT in path.parents else argument
