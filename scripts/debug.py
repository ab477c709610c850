"""Look for flaws in the data with `spacy debug data`."""

from pathlib import Path

import typer
from spacy.cli.debug_data import debug_data

from zero_copy.errors import exit_on_error
from zero_copy.training import find_config, find_corpus


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
        debug_data(find_config(config), config_overrides=paths, silent=False)


if __name__ == "__main__":
    typer.run(main)
