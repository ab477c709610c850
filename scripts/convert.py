"""Turn labelled texts into tokenized train, dev and test sets."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from zero_copy.convert import Statistics, Tokenize, convert
from zero_copy.errors import UserError, exit_on_error
from zero_copy.progress import TextProgress
from zero_copy.readers import Columns
from zero_copy.tokenizing import tokenize

MOST_LABELS_SHOWN = 60


def main(
    source: Annotated[Path, typer.Argument(help="File of texts, or folder with train.*")],
    output: Annotated[Path, typer.Argument(help="Folder for the .spacy files")],
    test: Annotated[Path | None, typer.Option(help="File of test texts")] = None,
    dev: Annotated[Path | None, typer.Option(help="File of development texts")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the texts")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels")] = None,
    label_separator: Annotated[
        str | None, typer.Option(help="What separates several labels of a text")
    ] = None,
    header: Annotated[
        str, typer.Option(help="Columns of a .csv or .tsv without a header: label,title,text, say")
    ] = "",
    lang: Annotated[str, typer.Option(help="Language of the texts")] = "en",
    dev_size: Annotated[float, typer.Option(help="Share to split off without --dev")] = 0.1,
    test_size: Annotated[float, typer.Option(help="Share to split off without --test")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the splits")] = 0,
    group_separator: Annotated[
        str, typer.Option(help="What ends the group in a label: sci.med is in group sci with '.'")
    ] = "",
    n_process: Annotated[int, typer.Option(help="Processes; -1 is one a core")] = -1,
    ray: Annotated[bool, typer.Option("--ray", help="Tokenize on all machines of Ray")] = False,
    address: Annotated[str, typer.Option(help="Address of a Ray cluster; else this machine")] = "",
) -> None:
    """Tokenize labelled texts (.tab, .csv, .tsv or .jsonl, each also .gz) into .spacy files.

    What has no file of its own, dev or test, is split off the training texts, keeping the share
    of every label.
    """
    with exit_on_error(), tokenizers(ray, address, n_process) as (run, processes):
        with TextProgress("Tokenizing") as bar:
            statistics = convert(
                source,
                output,
                dev=dev,
                test=test,
                columns=Columns(
                    text_column or None,
                    label_column or None,
                    label_separator or None,
                    tuple(header.split(",")) if header else (),
                ),
                lang=lang,
                dev_size=dev_size,
                test_size=test_size,
                seed=seed,
                processes=processes,
                group_separator=group_separator,
                tokenize=run,
                report=bar.report,
            )
        show(statistics, output)


@contextmanager
def tokenizers(on_ray: bool, address: str, processes: int) -> Iterator[tuple[Tokenize, int]]:
    """What tokenizes, and with how many processes.

    on_ray (bool): Whether Ray's machines do.
    address (str): Address of a Ray cluster.
    processes (int): As asked for; -1 is one a core.
    YIELDS (Tuple[Callable, int]): What `convert` takes.
    RAISES (UserError): If Ray is not installed, or can't start.
    """
    if not on_ray:
        yield tokenize, processes
        return
    try:
        from zero_copy import ray_cluster
    except ImportError as error:
        raise UserError("Ray is not installed", "pip install -r requirements-ray.txt") from error
    with ray_cluster.started(address or None, max(processes, 1)):
        yield ray_cluster.tokenize, ray_cluster.cores() if processes == -1 else processes


def show(statistics: Statistics, output: Path) -> None:
    """Tell what was found.

    statistics (Statistics): What was found.
    output (Path): Where it was written.
    """
    splits = statistics.splits
    words = sum(split.words for split in splits.values())
    msg.good(f"{output}: {words:,} words in {statistics.seconds:.1f} s")
    sizes = [(name, f"{it.documents:,}", f"{it.words:,}") for name, it in splits.items()]
    msg.table(sizes, header=("Split", "Texts", "Words"), divider=True, aligns=("l", "r", "r"))
    by_size = sorted(statistics.labels, key=lambda label: -splits["train"].labels[label])
    counts = [
        (label, *(f"{split.labels[label]:,}" for split in splits.values()))
        for label in by_size[:MOST_LABELS_SHOWN]
    ]
    msg.table(counts, header=("Label", *splits), divider=True, aligns=("l", "r", "r", "r"))
    if len(by_size) > MOST_LABELS_SHOWN:
        msg.text(f"... and {len(by_size) - MOST_LABELS_SHOWN:,} labels with fewer texts")
    for name in statistics.split_off:
        msg.info(f"No {name} set was given: it was split off the training texts")
    if statistics.empty:
        msg.info(f"{statistics.empty:,} empty text(s) were dropped")
    if splits["train"].repeated:
        msg.info(f"{splits['train'].repeated:,} training text(s) repeat an earlier one")
    for name in ("dev", "test"):
        if splits[name].in_train:
            msg.warn(
                f"{splits[name].in_train:,} {name} text(s) also stand in the training set: scores "
                "will look better than they are"
            )


if __name__ == "__main__":
    typer.run(main)
