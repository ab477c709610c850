"""Annotate any number of texts with the categories of a trained pipeline."""

import os

# A thread that waits for others must not keep a core from tokenizing. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import setup_gpu
from wasabi import msg

import functions  # noqa: F401  registers what the configs name
from zero_copy.annotating import Plan, Summary, annotate, make_plan
from zero_copy.documents import Document
from zero_copy.errors import exit_on_error
from zero_copy.formats import count
from zero_copy.progress import TextProgress
from zero_copy.readers import Columns
from zero_copy.training import choose_gpu

MOST_FAILURES_SHOWN = 20


def main(
    source: Annotated[Path, typer.Argument(help="File of texts")],
    output: Annotated[Path, typer.Argument(help="File to write: .jsonl, .csv or .spacy")],
    model: Annotated[str, typer.Option(help="The pipeline: a folder, or the name of a package")],
    text_column: Annotated[str | None, typer.Option(help="Column of the texts")] = None,
    header: Annotated[
        str, typer.Option(help="Columns of a .csv or .tsv without a header: label,title,text, say")
    ] = "",
    exclude: Annotated[list[str], typer.Option(help="Components to leave out")] = [],  # noqa: B006
    n_process: Annotated[int, typer.Option(help="Processes that tokenize; -1 is one a core")] = -1,
    gpu_id: Annotated[str, typer.Option(help="GPU, -1 for the CPU, or auto")] = "auto",
) -> None:
    """Annotate the texts of a file (.jsonl, .csv, .tsv, .tab or .txt, each also .gz), in order.

    Interrupted, it goes on where it stopped: run the same command again. A text that fails is
    reported with its number, the rest goes on, and the exit code is 1.
    """
    bar = TextProgress("Annotating")
    failures = 0

    def warn(number: int, document: Document, failure: str) -> None:
        nonlocal failures
        failures += 1
        if failures <= MOST_FAILURES_SHOWN:
            bar.console.print(f"⚠ Text {number:,} (line {document.line:,}): {failure}")
        elif failures == MOST_FAILURES_SHOWN + 1:
            bar.console.print("⚠ More texts fail, which are only counted")

    with exit_on_error():
        device, reason = choose_gpu(gpu_id)
        setup_gpu(device, silent=True)
        plan = make_plan(model, tuple(exclude))
        show_plan(plan, reason)
        with bar:
            summary = annotate(
                source,
                output,
                plan,
                columns=Columns(
                    text=text_column or None, header=tuple(header.split(",")) if header else ()
                ),
                processes=n_process,
                report=bar.report,
                warn=warn,
                tell=msg.info,
            )
        show_summary(summary, output)


def show_plan(plan: Plan, device: str) -> None:
    """Tell how the pipeline will be run.

    plan (Plan): The pipeline.
    device (str): Where.
    """
    if plan.lowered is not None:
        msg.info(f"The pipeline runs lowered on {device}: {', '.join(plan.nlp.pipe_names)}")
        return
    msg.warn(
        f"The whole stock pipeline runs, more slowly: {plan.reason}",
        "Components that have no say in the categories can be left out with --exclude.",
    )


def show_summary(summary: Summary, output: Path) -> None:
    """Tell what was done; ends with exit code 1 if a text has failed.

    summary (Summary): What was done.
    output (Path): Where it was written.
    """
    before = f", {summary.kept:,} of them before" if summary.kept else ""
    msg.good(
        f"{output}: {summary.documents:,} texts{before}, {summary.words:,} words, "
        f"{count(summary.words_per_second)} words/s"
    )
    if summary.failed:
        msg.fail(f"{summary.failed:,} of {summary.documents:,} texts have failed", exits=1)


if __name__ == "__main__":
    typer.run(main)
