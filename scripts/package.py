"""Build a wheel of a trained pipeline with `spacy package`."""

from pathlib import Path

import typer
from spacy.cli.package import package

import functions  # noqa: F401  registers what the configs name
from zero_copy.errors import exit_on_error
from zero_copy.packaging import code_files, load_pipeline_config


def main(
    pipeline: Path = typer.Argument(..., help="Folder of the pipeline, model-best say"),
    output: Path = typer.Argument(..., help="Folder for the package"),
    name: str = typer.Option(..., help="Name of the package, without the language"),
    version: str = typer.Option("0.1.0", help="Version of the package"),
) -> None:
    """Files of this folder with functions that the pipeline's config names go into the wheel."""
    with exit_on_error():
        config = load_pipeline_config(pipeline)
        output.mkdir(parents=True, exist_ok=True)
        package(
            pipeline,
            output,
            code_paths=code_files(config),
            name=name,
            version=version,
            create_sdist=False,
            create_wheel=True,
            force=True,
            silent=False,
        )


if __name__ == "__main__":
    typer.run(main)
