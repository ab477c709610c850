"""Remove what the workflow made for a data set."""

import shutil
from pathlib import Path

import typer
from wasabi import msg


def main(dataset: str = typer.Argument(..., help="Name of the data set")) -> None:
    """Remove corpus, pipelines and metrics of a data set; its assets stay."""
    for folder in ("corpus", "training", "metrics"):
        path = Path(folder) / dataset
        if path.exists():
            shutil.rmtree(path)
            msg.good(f"Removed {path}")


if __name__ == "__main__":
    typer.run(main)
