"""Training speed from a corpus that is streamed, against the same corpus resident, in one run."""

from itertools import islice
from pathlib import Path
from typing import Any

import typer
from wasabi import msg

from loop import Training, in_turns, words_per_second
from machine import save_parts
from zero_copy.streaming import StreamedCorpus

SIDES = ("resident", "streamed")


def main(
    corpus: Path = typer.Argument(Path("corpus/20newsgroups"), help="Folder with train and dev"),
    config: list[str] = typer.Option(["bow", "cnn"], help="Configs to measure"),
    memory: str = typer.Option("1MB", help="What the training corpus may take when streamed"),
    rounds: int = typer.Option(5, help="How often the two sides take turns"),
    words: int = typer.Option(400_000, help="Words a side trains on in each round"),
    gpu_id: int = typer.Option(-1, help="GPU, or -1 for the CPU"),
) -> None:
    """Print and save words per second of both sides.

    The sides take turns, and the median over the rounds counts, so that what else the machine
    does falls on both. A round should go through several windows of the streamed corpus.
    """
    figures = [measure(name, corpus, memory, rounds, words, gpu_id) for name in config]
    rows = [
        [
            row["config"],
            *(f"{row[side]['words_per_second']:,.0f}" for side in SIDES),
            f"{row['ratio']:.3f}",
            f"{row['windows']:.1f}",
        ]
        for row in figures
    ]
    header = ["config", "resident, words/s", "streamed", "ratio", "windows a round"]
    msg.table(rows, header=header, divider=True, aligns=["l"] + ["r"] * 4)
    if any(row["windows"] < 1 for row in figures):
        msg.warn("No window has come in some rounds: give more --words, or less --memory")
    settings = {"corpus": str(corpus), "memory": memory, "rounds": rounds, "words": words}
    save_parts("stream_speed", {row["config"]: settings | row for row in figures})


def measure(
    config: str, corpus: Path, memory: str, rounds: int, words: int, gpu_id: int
) -> dict[str, Any]:
    """Both sides of one config, in turns.

    RETURNS (Dict[str, Any]): Words per second by side, the ratio, and the windows of a round.
    """
    limits = {"resident": "auto", "streamed": memory}
    sides = {
        side: Training("zero_copy", config, corpus, gpu_id, **{"corpora.train.memory": limit})
        for side, limit in limits.items()
    }
    reader, nlp = sides["streamed"].train_corpus, sides["streamed"].nlp
    whole = next(iter(reader(nlp))).batch.corpus.whole
    if not isinstance(whole, StreamedCorpus):
        raise typer.BadParameter(f"{corpus} fits in {memory}: give less --memory")
    share = whole.window_bytes / int(whole.shard_bytes.sum())
    steps = {side: training.steps() for side, training in sides.items()}
    for side in SIDES:
        list(islice(steps[side], 20))  # warm up: caches, memory, derived columns
    figures = in_turns(
        rounds, lambda side: {"words_per_second": words_per_second(steps[side], words)}, SIDES
    )
    resident, streamed = (figures[side]["words_per_second"] for side in SIDES)
    return {
        "config": config,
        **figures,
        "ratio": streamed / resident,
        "windows": words / (share * int(whole.lengths.sum())),
    }


if __name__ == "__main__":
    typer.run(main)
