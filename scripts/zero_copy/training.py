"""What stands around `spacy train`: which device, which config, which corpora."""

import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import srsly
import torch
import typer
from catalogue import RegistryError
from spacy.util import load_config, load_model_from_config
from thinc.api import ConfigValidationError, Model

from zero_copy.cuda_builds import cupy_build, has_driver, torch_build, why_unusable
from zero_copy.errors import UserError
from zero_copy.machine import describe_machine
from zero_copy.pretraining import find_pretrained
from zero_copy.static_vectors import uses_vectors

# The folder of word vectors beside a corpus.
VECTORS = "vectors"
TRAINING_RECORD = "training.json"


def run_command(main: Callable) -> None:
    """Run a script as a command that also takes changes to its config, as `spacy train` does.

    main (Callable): With a typer.Context, in whose `args` the changes will be.
    """
    app = typer.Typer()
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=settings)(main)
    app()


def find_config(path: Path) -> Path:
    """A config that is there.

    path (Path): The config asked for.
    RETURNS (Path): The same.
    RAISES (UserError): If there is none, naming those that there are.
    """
    if path.is_file():
        return path
    there = sorted(config.stem for config in path.parent.glob("*.cfg"))
    raise UserError(
        f"There is no config {path}",
        f"In {path.parent} there are: {', '.join(there) or 'none'}.",
    )


def find_corpus(folder: Path, split: str, ending: str) -> Path:
    """The file of a split.

    folder (Path): Folder of the corpus.
    split (str): `train`, `dev` or `test`.
    ending (str): `.spacy` or `.safetensors`.
    RETURNS (Path): The file.
    RAISES (UserError): If it is not there, saying which command makes it.
    """
    path = folder / f"{split}{ending}"
    if not path.exists():
        command = "pack" if ending == ".safetensors" else "convert"
        raise UserError(
            f"There is no {path}", f"Run `python -m spacy project run {command}` first."
        )
    return path


def overrides_of(
    config: Path, corpus: Path, seed: int, changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a training changes in its config.

    config (Path): The config. One of stock functions trains from the `.spacy` files.
    corpus (Path): Folder of the corpus.
    seed (int): Seed of parameters, order and dropout.
    changes (Optional[Dict[str, Any]]): Further settings to change, by their dotted names.
    RETURNS (Dict[str, Any]): Settings by their dotted names.
    RAISES (UserError): If something that the config needs is not there.
    """
    text = find_config(config).read_text(encoding="utf8")
    ending = ".safetensors" if "zero_copy.Corpus" in text else ".spacy"
    overrides = {
        "paths.train": str(find_corpus(corpus, "train", ending)),
        "paths.dev": str(find_corpus(corpus, "dev", ending)),
        "system.seed": seed,
        **find_labels(config, corpus),
        **(changes or {}),
    }
    overrides |= find_vectors(config, corpus, overrides)
    return overrides | find_pretrained(config, corpus, overrides)


def find_labels(config: Path, corpus: Path) -> dict[str, str]:
    """The labels of the tasks of a config that has more than one.

    config (Path): The config.
    corpus (Path): Folder of the corpus.
    RETURNS (Dict[str, str]): The override `paths.labels`, or nothing.
    RAISES (UserError): If the corpus has one task.
    """
    paths = load_config(config)["paths"]
    if "labels" not in paths or paths["labels"] is not None:
        return {}
    path = corpus / "labels"
    if not path.exists():
        raise UserError(
            f"{config.stem} is for two tasks, and {corpus} has the labels of one",
            "Convert the texts with --group-separator, as `python -m spacy project run groups` "
            "does, or choose another config.",
        )
    return {"paths.labels": str(path)}


def find_vectors(config: Path, corpus: Path, overrides: dict[str, Any]) -> dict[str, str]:
    """The vectors that a config needs and does not name.

    config (Path): The config.
    corpus (Path): Folder of the corpus.
    overrides (Dict[str, Any]): Settings of the config to change, by their dotted names.
    RETURNS (Dict[str, str]): The override `paths.vectors`, or nothing.
    RAISES (UserError): If there are no vectors, saying which command makes them.
    """
    if not embeds_vectors(config, overrides):
        return {}
    if load_config(config, overrides, interpolate=True)["initialize"].get("vectors"):
        return {}
    path = corpus / VECTORS
    if not path.exists():
        raise UserError(
            f"{config.stem} embeds word vectors, and there are none at {path}",
            f"Run `python -m spacy project run vectors . --vars.config {config.stem}` first, or "
            "give vectors of your own with --paths.vectors.",
        )
    return {"paths.vectors": str(path)}


def embeds_vectors(config: Path, overrides: dict[str, Any] | None = None) -> bool:
    """Whether a config's pipeline embeds word vectors.

    config (Path): The config.
    overrides (Optional[Dict[str, Any]]): Settings of it to change, by their dotted names.
    RETURNS (bool): True if a component has a layer for them. False too if no pipeline can be made
        of the config: what reads it next says why.
    """
    try:
        nlp = load_model_from_config(load_config(config, overrides or {}), auto_fill=True)
    except (ConfigValidationError, RegistryError):
        return False
    models = (getattr(component, "model", None) for _, component in nlp.pipeline)
    return any(uses_vectors(model) for model in models if isinstance(model, Model))


def choose_gpu(gpu_id: str) -> tuple[int, str]:
    """The device to train on.

    gpu_id (str): Number of a GPU, -1 for the CPU, or `auto`.
    RETURNS (Tuple[int, str]): What `spacy train --gpu-id` takes, and why this one.
    RAISES (UserError): If it is neither a number nor `auto`, or the GPU can't be used.
    """
    if gpu_id == "auto":
        reason = why_no_gpu()
        if reason:
            return -1, f"CPU ({reason})"
        return 0, f"GPU 0 ({torch.cuda.get_device_name(0)})"
    if not gpu_id.lstrip("-").isdigit():
        raise UserError(f"gpu_id is {gpu_id!r}", "Use auto, -1 for the CPU or a GPU's number.")
    number = int(gpu_id)
    if number < 0:
        return -1, "CPU"
    reason = why_no_gpu(number)
    if reason:
        raise UserError(f"GPU {number} can't be used: {reason}", "Use auto, or -1 for the CPU.")
    return number, f"GPU {number} ({torch.cuda.get_device_name(number)})"


def why_no_gpu(number: int = 0) -> str | None:
    """Why torch and CuPy can't both use a GPU.

    number (int): The GPU.
    RETURNS (Optional[str]): The reason, or None if they can.
    """
    return why_unusable(torch_build(number), cupy_build(number), has_driver=has_driver())


def record_training(output: Path, device: str, seconds: float) -> None:
    """Keep how a pipeline was trained, which nobody can tell from the pipeline.

    output (Path): Folder of model-best and model-last.
    device (str): On what.
    seconds (float): How long it took.
    """
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "device": device,
        "seconds": seconds,
        "machine": describe_machine(),
    }
    srsly.write_json(output / TRAINING_RECORD, record)
