"""Compare variants: train what has not been trained yet, and show all of it on one page."""

from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from spacy.cli._util import parse_config_overrides
from wasabi import msg

import functions  # noqa: F401  registers what the configs name
from zero_copy.compare import (
    Result,
    Run,
    Setting,
    check_corpus,
    find_results,
    only_one,
    plan_runs,
    train_missing,
)
from zero_copy.diff import show_diff
from zero_copy.errors import UserError, exit_on_error
from zero_copy.report import make_report, write_report

app = typer.Typer(no_args_is_help=True, add_completion=False)
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
CORPUS = typer.Argument(..., help="Folder with train, dev and test")
WORK = typer.Option(None, help="Folder for the runs; training/<corpus>/compare by default")
OUTPUT = typer.Option(None, help="Folder for the report; metrics/<corpus> by default")


@app.command(context_settings=EXTRA)
def run(
    context: typer.Context,
    corpus: Path = CORPUS,
    variants: str = typer.Argument(..., help="Names of configs, separated by spaces"),
    seeds: int = typer.Option(1, help="Seeds, from 0 on"),
    twins: str = typer.Option("off", help="on to train the stock twins, too"),
    gpu_id: str = typer.Option("auto", help="GPU, -1 for the CPU, or auto"),
    configs: Path = typer.Option(Path("configs"), help="Folder of configs; twins are in its stock"),
    work: Path | None = WORK,
    output: Path | None = OUTPUT,
) -> None:
    """Train each variant, and write report.html, report.md and report.json.

    What has been trained already is kept. Further options change the configs, as in spacy train:
    --training.max_steps 100, say.
    """
    with exit_on_error():
        if twins not in ("on", "off"):
            raise UserError(f"twins is {twins!r}", "Use on or off.")
        parse_config_overrides([*context.args])  # Refused here rather than in every run.
        setting = Setting(corpus, work or default_work(corpus), gpu_id, tuple(context.args))
        runs = plan_runs(variants.split(), configs, seeds, twins == "on")
        check_corpus(corpus)
        with only_one(setting.work):
            results, failures = train_with_progress(runs, setting)
            for name, reason in failures.items():
                msg.fail(name, reason)
            if results:
                show(make_report(results, setting, failures), output or default_output(corpus))
        if failures:
            raise UserError(
                f"{len(failures)} of {len(runs)} runs failed", "What went well has been kept."
            )


@app.command()
def report(corpus: Path = CORPUS, work: Path | None = WORK, output: Path | None = OUTPUT) -> None:
    """Write the report again, of all runs that are there."""
    with exit_on_error():
        check_corpus(corpus)
        setting = Setting(corpus, work or default_work(corpus))
        results = find_results(setting)
        show(make_report(results, setting, {}), output or default_output(corpus))


@app.command()
def diff(
    left: Path = typer.Argument(..., help="A config, or the name of one in configs/"),
    right: Path = typer.Argument(..., help="Another; stock/cnn is cnn's twin, say"),
) -> None:
    """Show in which settings two configs differ."""
    with exit_on_error():
        show_diff(left, right)


def default_work(corpus: Path) -> Path:
    """Where the runs of a corpus are kept."""
    return Path("training") / corpus.name / "compare"


def default_output(corpus: Path) -> Path:
    """Where the report of a corpus is written."""
    return Path("metrics") / corpus.name


def train_with_progress(runs: list[Run], setting: Setting) -> tuple[list[Result], dict[str, str]]:
    """Train, showing how far the whole plan is and the run that goes on."""
    console = Console()
    bar = Progress(
        TextColumn("{task.completed:.0f}/{task.total} runs"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
    )
    task = bar.add_task("", total=len(runs))
    over = 0

    def progress(run: Run, share: float, words: str) -> None:
        bar.update(task, completed=over + share, description=f"{run.name}: {words}")

    def done(run: Run, result: Result, was_there: bool) -> None:
        nonlocal over
        over += 1
        scores = ", ".join(
            f"{name} {classifier['test']['micro_f']:.2%}"
            for name, classifier in result["classifiers"].items()
        )
        how = "kept" if was_there else f"{result['train_seconds']:,.0f} s"
        console.print(f"{run.name}: {scores} on test ({how})", highlight=False)
        bar.update(task, completed=over)

    with bar:
        return train_missing(runs, setting, progress, done)


def show(made: dict, folder: Path) -> None:
    """Write a report, and say where it is and what it comes to."""
    write_report(made, folder)
    msg.good(f"Wrote {folder / 'report.html'}, report.md and report.json", " ".join(made["advice"]))


if __name__ == "__main__":
    app()
