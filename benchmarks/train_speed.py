"""Steady training speed and evaluation time of each config against its stock twin, in one run."""

from itertools import islice
from pathlib import Path
from typing import Any

import typer
from wasabi import msg

from loop import SIDES, Training, in_turns, ratio, words_per_second
from machine import save_parts


def main(
    corpus: Path = typer.Argument(Path("corpus/r8"), help="Folder with train and dev"),
    config: list[str] = typer.Option(["bow", "cnn", "ensemble"], help="Configs to measure"),
    rounds: int = typer.Option(5, help="How often the two sides take turns"),
    words: int = typer.Option(100_000, help="Words a side trains on in each round"),
    gpu_id: int = typer.Option(-1, help="GPU, or -1 for the CPU"),
) -> None:
    """Print and save words per second, batches of 1,000 words unless the config says otherwise.

    The sides take turns, and the median over the rounds counts, so that what else the machine
    does falls on both.
    """
    figures = [measure(name, corpus, rounds, words, gpu_id) for name in config]
    rows = [
        [
            row["config"],
            *(f"{row[side]['words_per_second']:,.0f}" for side in SIDES),
            f"{row['speedup']:.1f}",
            *(f"{row[side]['evaluation_seconds']:.3f}" for side in SIDES),
            f"{row['evaluation_speedup']:.1f}",
        ]
        for row in figures
    ]
    header = ["config", "words/s", "stock", "times", "evaluation s", "stock", "times"]
    msg.table(rows, header=header, divider=True, aligns=["l"] + ["r"] * 6)
    settings = {"corpus": str(corpus), "rounds": rounds, "words": words}
    save_parts("train_speed", {row["config"]: settings | row for row in figures})


def measure(config: str, corpus: Path, rounds: int, words: int, gpu_id: int) -> dict[str, Any]:
    """Both sides of one config, in turns.

    RETURNS (Dict[str, Any]): Words per second and seconds of an evaluation by side, and the ratios.
    """
    sides = {side: Training(side, config, corpus, gpu_id) for side in SIDES}
    steps = {side: training.steps() for side, training in sides.items()}
    for side in SIDES:
        list(islice(steps[side], 20))  # warm up: caches, memory, derived columns
        sides[side].evaluate()

    def turn(side: str) -> dict[str, float]:
        return {
            "words_per_second": words_per_second(steps[side], words),
            "evaluation_seconds": sides[side].evaluate()[0],
        }

    figures = in_turns(rounds, turn)
    return {
        "config": config,
        **figures,
        "speedup": ratio(figures, "words_per_second"),
        "evaluation_speedup": 1 / ratio(figures, "evaluation_seconds"),
    }


if __name__ == "__main__":
    typer.run(main)
