"""Look for flaws in the data with `spacy debug data`."""

from pathlib import Path

import typer
from spacy.cli.debug_data import debug_data

import functions  # noqa: F401  registers what the configs name
from zero_copy.errors import exit_on_error
from zero_copy.training import find_config, find_corpus, find_labels, find_vectors


def main(
    config: Path = typer.Argument(..., help="Training config of stock functions"),
    corpus: Path = typer.Argument(..., help="Folder with train.spacy and dev.spacy"),
) -> None:
    """Report what spaCy finds in a corpus, and fail where training would."""
    with exit_on_error():
        paths = {
            f"paths.{split}": str(find_corpus(corpus, split, ".spacy"))
            for split in ("train", "dev")
        }
        paths |= find_labels(find_config(config), corpus)
        overrides = paths | find_vectors(config, corpus, paths)
        debug_data(config, config_overrides=overrides, silent=False)


if __name__ == "__main__":
    typer.run(main)
