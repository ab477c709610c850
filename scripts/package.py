"""Build a wheel of a trained pipeline with `spacy package`, and a model card with it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import srsly
import typer
from spacy.cli.package import package
from wasabi import msg

import functions  # noqa: F401  registers what the configs name
from zero_copy.errors import exit_on_error
from zero_copy.model_card import gather_facts, make_meta, missing_facts
from zero_copy.packaging import clear_package, code_files, find_wheel, load_pipeline_config


def main(
    pipeline: Path = typer.Argument(..., help="Folder of the pipeline, model-best say"),
    output: Path = typer.Argument(..., help="Folder for the package"),
    name: str = typer.Option(..., help="Name of the package, without the language"),
    version: str = typer.Option("0.1.0", help="Version of the package"),
    corpus: Path = typer.Option(Path("corpus"), help="Folder of the corpus, for the card"),
    metrics: Path = typer.Option(Path("metrics"), help="Folder of the scores, for the card"),
    config: str = typer.Option("", help="Name of the config, for the card"),
    description: str = typer.Option("", help="What the pipeline is for, for the card"),
    license: str = typer.Option("", help="License of the pipeline"),
) -> None:
    """Files of this folder with functions that the pipeline's config names go into the wheel, which
    requires spaCy and whatever else the pipeline needs."""
    with exit_on_error():
        code = code_files(load_pipeline_config(pipeline))
        facts = gather_facts(pipeline, corpus, metrics, config or pipeline.parent.name)
        own = {"name": name, "version": version, "description": description, "license": license}
        facts["meta"] |= {key: value for key, value in own.items() if value}
        for what, command in missing_facts(facts).items():
            msg.warn(f"The model card lacks {what}", f"python -m spacy project run {command}")
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as folder:
            meta = make_meta(facts)
            srsly.write_json(Path(folder) / "meta.json", meta)
            clear_package(output, meta)
            package(
                pipeline,
                output,
                meta_path=Path(folder) / "meta.json",
                code_paths=code,
                create_sdist=False,
                create_wheel=True,
                require_parent=True,
                silent=False,
            )
        wheel = find_wheel(output, meta)
        msg.good("Wrote the package and its README.md, the model card", f"pip install {wheel}")


if __name__ == "__main__":
    typer.run(main)
