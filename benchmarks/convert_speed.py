"""Words per second of conversion, with one process and with one a core, and of spaCy's own way."""

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import spacy
import typer
from spacy.tokens import DocBin
from wasabi import msg

from loop import ROOT  # noqa: F401  finds the library
from machine import save
from zero_copy.convert import convert


def main(
    source: Path = typer.Argument(Path("assets/20newsgroups"), help="Folder of texts"),
    rounds: int = typer.Option(3, help="How often each is measured, in turns"),
    times: int = typer.Option(20, help="How often the training texts are repeated"),
) -> None:
    """Print and save the median over the rounds."""
    speeds: dict[int, list[float]] = {1: [], -1: []}
    with TemporaryDirectory() as folder:
        train, test = Path(folder) / "train.tab", source / "test.tab"
        # As bytes: texts hold other characters that Python takes for the end of a line.
        lines = (source / "train.tab").read_bytes().rstrip(b"\n").split(b"\n")
        train.write_bytes(b"\n".join(lines[:3] + lines[3:] * times))
        for _ in range(rounds):
            for processes, measured in speeds.items():
                statistics = convert(train, Path(folder) / "corpus", test=test, processes=processes)
                words = sum(split.words for split in statistics.splits.values())
                measured.append(words / statistics.seconds)
        texts = [line.partition(b"\t")[2].decode("utf8") for line in lines[3:5003]]
        stock = stock_speed(texts)
    one, all_cores = median(speeds[1]), median(speeds[-1])
    rows = [["one process", f"{one:,.0f}"], ["all cores", f"{all_cores:,.0f}"]]
    rows.append(["tokenizer and DocBin.add, one process", f"{stock:,.0f}"])
    msg.table(rows, header=["", "words/s"], divider=True, aligns=["l", "r"])
    msg.info(f"{all_cores / one:.2f} times")
    save(
        "convert_speed",
        {"source": str(source), "words": words, "one": speeds[1], "all_cores": speeds[-1]}
        | {"ratio": all_cores / one, "stock": stock},
    )


def stock_speed(texts: list[str]) -> float:
    """Words per second of the plain way: spaCy's tokenizer, `DocBin.add` and `to_bytes`."""
    nlp = spacy.blank("en")
    start = perf_counter()
    docs = DocBin(attrs=["ORTH", "NORM"])
    words = 0
    for doc in map(nlp.make_doc, texts):
        docs.add(doc)
        words += len(doc)
    docs.to_bytes()
    return words / (perf_counter() - start)


if __name__ == "__main__":
    typer.run(main)
