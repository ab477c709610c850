"""Pretrain the tok2vec of a config on the training texts: stock `spacy pretrain`."""

from pathlib import Path

import typer
from spacy.cli._util import parse_config_overrides, setup_gpu, show_validation_error
from wasabi import msg

import functions  # noqa: F401  registers what the configs name
from zero_copy.errors import exit_on_error
from zero_copy.pretraining import PRETRAINED, is_pretrained, make_pretrained
from zero_copy.training import choose_gpu, find_config, find_corpus, run_command


def main(
    context: typer.Context,
    config: Path = typer.Argument(..., help="Training config"),
    corpus: Path = typer.Argument(..., help="Folder with train.spacy"),
    gpu_id: str = typer.Option("auto", help="GPU, -1 for the CPU, or auto"),
    seed: int = typer.Option(0, help="Seed of parameters and dropout"),
) -> None:
    """Further options change the config, as in spacy pretrain: --pretraining.max_epochs 1, say.

    A config without a [pretraining] section needs nothing pretrained.
    """
    with show_validation_error(config), exit_on_error():
        overrides = {"system.seed": seed} | parse_config_overrides(context.args)
        if not is_pretrained(find_config(config), overrides):
            msg.info(f"{config.stem} starts from no pretrained parameters: nothing to make")
            return
        source = find_corpus(corpus, "train", ".spacy")
        device, reason = choose_gpu(gpu_id)
        msg.info(f"Pretraining on {reason}")
        setup_gpu(device)
        texts = make_pretrained(config, source, corpus, gpu_id=device, **overrides)
        msg.good(f"{corpus / PRETRAINED}: pretrained on {texts:,} texts")


if __name__ == "__main__":
    run_command(main)
