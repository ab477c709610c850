"""Words per second of annotating raw texts, against stock `nlp.pipe` with the best `n_process`."""

import os

# A thread that waits for others must not keep a core from tokenizing. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gzip
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import spacy
import torch
import typer
from wasabi import msg

from loop import ROOT  # noqa: F401  finds the library
from machine import save
from zero_copy.annotating import annotate, make_plan

# What each side annotates in a round: some seconds of work, so that starting does not count much.
WORDS = {"bow": (4_000_000, 2_000_000), "cnn": (1_000_000, 200_000)}
STOCK_PROCESSES = (1, 2)


def main(
    models: Path = typer.Argument(Path("training/r8"), help="Folder of trained pipelines"),
    source: Path = typer.Argument(Path("assets/20newsgroups/train.tab"), help="Texts, .tab"),
    config: list[str] = typer.Option(list(WORDS), help="Pipelines to measure"),
    rounds: int = typer.Option(3, help="How often the sides take turns"),
) -> None:
    """Print and save the median over the rounds.

    Ours is all of a run: reading a .jsonl.gz file, starting the processes, writing JSONL. Stock is
    nothing but `nlp.pipe` over texts in memory.
    """
    lines = source.read_bytes().rstrip(b"\n").split(b"\n")[3:]
    texts = [line.partition(b"\t")[2].decode("utf8") for line in lines]
    texts = [text for text in texts if text.strip()]  # stock layers fail on an empty one in a batch
    figures = [measure(name, models / name / "model-best", texts, rounds) for name in config]
    rows = [
        [figure["config"], f"{figure['ours']:,.0f}"]
        + [f"{figure['stock'][processes]:,.0f}" for processes in STOCK_PROCESSES]
        + [f"{figure['ratio']:.2f}", f"{figure['per_cpu_second']['ours']:,.0f}"]
        for figure in figures
    ]
    header = ["words/s", "annotate", *(f"nlp.pipe, {n} process(es)" for n in STOCK_PROCESSES)]
    header += ["times the best", "annotate, per CPU second"]
    msg.table(rows, header=header, divider=True, aligns=["l"] + ["r"] * 5)
    save("annotate_speed", {"source": str(source), "rounds": rounds, "configs": figures})


def measure(config: str, model: Path, texts: list[str], rounds: int) -> dict:
    """Both sides of one pipeline, in turns."""
    ours, theirs = WORDS.get(config, WORDS["cnn"])
    nlp = spacy.load(model)
    words_per_text = sum(len(nlp.make_doc(text)) for text in texts[:500]) / 500
    speeds: list[float] = []
    stock: dict[int, list[float]] = {processes: [] for processes in STOCK_PROCESSES}
    per_cpu_second: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl.gz"
        with gzip.open(path, "wt", encoding="utf8", compresslevel=3) as file:
            for number in range(int(ours / words_per_text)):
                file.write(json.dumps({"id": number, "text": texts[number % len(texts)]}) + "\n")
        plan = make_plan(str(model))
        for turn in range(rounds):
            start = cpu_seconds()
            summary = annotate(path, Path(folder) / "out.jsonl", plan)
            speeds.append(summary.words_per_second)
            per_cpu_second["ours"].append(summary.words / (cpu_seconds() - start))
            some = int(theirs / words_per_text)
            first = turn * some % max(len(texts) - some, 1)
            for processes, measured in stock.items():
                start = cpu_seconds()
                speed, words = stock_speed(nlp, texts[first : first + some], processes)
                measured.append(speed)
                per_cpu_second[f"stock {processes}"].append(words / (cpu_seconds() - start))
    best = max(median(measured) for measured in stock.values())
    return {
        "config": config,
        "words": summary.words,
        "ours": median(speeds),
        "ours_by_round": speeds,
        "stock": {processes: median(measured) for processes, measured in stock.items()},
        "stock_by_round": stock,
        "ratio": median(speeds) / best,
        "per_cpu_second": {side: median(measured) for side, measured in per_cpu_second.items()},
        "threads": torch.get_num_threads(),
    }


def stock_speed(nlp: spacy.Language, texts: list[str], processes: int) -> tuple[float, int]:
    """Words per second of `nlp.pipe`, and how many words."""
    start = perf_counter()
    words = sum(len(doc) for doc in nlp.pipe(texts, n_process=processes) if doc.cats)
    return words / (perf_counter() - start), words


def cpu_seconds() -> float:
    """Seconds of all cores that this process and those it has started and ended have used.

    Unlike the time on the clock they say something of a machine that others use, too.
    """
    return sum(os.times()[:4])


if __name__ == "__main__":
    typer.run(main)
