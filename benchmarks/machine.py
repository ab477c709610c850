"""Which machine, versions and command a figure is from, and where figures are kept."""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import srsly
import torch
from wasabi import msg

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


def describe() -> dict[str, Any]:
    """The machine, the versions, the commit and the command of this run.

    RETURNS (Dict[str, Any]): What a reader needs to judge or repeat a figure.
    """
    packages = ("spacy", "thinc", "torch", "numpy", "safetensors")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "command": " ".join(["python", *(_relative(argument) for argument in sys.argv)]),
    }


def processor() -> str:
    """Name of the processor.

    RETURNS (str): As the system has it.
    """
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def save(name: str, figures: Any) -> None:
    """Write figures to results/, named after what was measured and the machine.

    name (str): What was measured.
    figures (Any): The figures, as JSON takes them.
    """
    machine = describe()
    where = machine["gpu"] or f"{machine['processor']} {machine['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")
    path = RESULTS / f"{name}-{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    srsly.write_json(path, {"machine": machine, "figures": figures})
    msg.good(f"Saved {path.relative_to(ROOT)}")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def _relative(argument: str) -> str:
    path = Path(argument)
    return str(path.relative_to(ROOT)) if path.is_absolute() and ROOT in path.parents else argument
