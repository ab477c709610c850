"""Words per second of conversion, with one process and with one a core."""

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import typer
from wasabi import msg

from loop import ROOT  # noqa: F401  finds the library
from machine import save
from zero_copy.convert import convert


def main(
    source: Path = typer.Argument(Path("assets/20newsgroups"), help="File or folder of texts"),
    rounds: int = typer.Option(3, help="How often each is measured, in turns"),
) -> None:
    """Print and save the median over the rounds."""
    speeds: dict[int, list[float]] = {1: [], -1: []}
    with TemporaryDirectory() as folder:
        for _ in range(rounds):
            for processes, measured in speeds.items():
                statistics = convert(source, Path(folder) / "corpus", processes=processes)
                words = sum(split.words for split in statistics.splits.values())
                measured.append(words / statistics.seconds)
    one, all_cores = median(speeds[1]), median(speeds[-1])
    rows = [["one process", f"{one:,.0f}"], ["all cores", f"{all_cores:,.0f}"]]
    msg.table(rows, header=["", "words/s"], divider=True, aligns=["l", "r"])
    msg.info(f"{all_cores / one:.2f} times")
    save(
        "convert_speed",
        {"source": str(source), "words": words, "one": speeds[1], "all_cores": speeds[-1]}
        | {"ratio": all_cores / one},
    )


if __name__ == "__main__":
    typer.run(main)
