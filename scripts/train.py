"""Train a pipeline: `spacy train` with this project's functions, corpora and choice of device."""

from pathlib import Path
from time import perf_counter

import typer
from spacy.cli._util import parse_config_overrides
from spacy.cli.train import train
from wasabi import msg

import functions  # noqa: F401  registers what the configs name
from zero_copy.errors import exit_on_error
from zero_copy.pretraining import find_pretrained
from zero_copy.training import (
    choose_gpu,
    find_config,
    find_corpus,
    find_labels,
    find_vectors,
    record_training,
)


def main(
    context: typer.Context,
    config: Path = typer.Argument(..., help="Training config"),
    corpus: Path = typer.Argument(..., help="Folder with train and dev"),
    output: Path = typer.Argument(..., help="Folder for model-best and model-last"),
    gpu_id: str = typer.Option("auto", help="GPU, -1 for the CPU, or auto"),
    seed: int = typer.Option(0, help="Seed of parameters, order and dropout"),
) -> None:
    """Further options change the config, as in spacy train: --training.max_steps 100, say.

    A config of stock functions trains from the .spacy files of the same folder.
    """
    with exit_on_error():
        text = find_config(config).read_text(encoding="utf8")
        ending = ".safetensors" if "zero_copy.Corpus" in text else ".spacy"
        device, reason = choose_gpu(gpu_id)
        msg.info(f"Training on {reason}")
        overrides = {
            "paths.train": str(find_corpus(corpus, "train", ending)),
            "paths.dev": str(find_corpus(corpus, "dev", ending)),
            "system.seed": seed,
            **find_labels(config, corpus),
        }
        overrides |= parse_config_overrides(context.args)
        overrides |= find_vectors(config, corpus, overrides)
        overrides |= find_pretrained(config, corpus, overrides)
        start = perf_counter()
        train(config, output, use_gpu=device, overrides=overrides)
        record_training(output, reason, perf_counter() - start)


if __name__ == "__main__":
    app = typer.Typer()
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=settings)(main)
    app()
