"""Training speed of the transformer configs against their stock twins, in one run, and how much of
a step is the model's own arithmetic."""

from cProfile import Profile
from pathlib import Path
from pstats import Stats
from time import process_time
from typing import Any

import typer
from wasabi import msg

from loop import SIDES, Training, in_turns, ratio
from machine import save

# Where a step is inside of the Hugging Face model, on either side.
OURS, THINC = "zero_copy/transformer.py", "thinc/shims/pytorch.py"
ARITHMETIC = {
    "zero_copy": ((OURS, "compute"), (OURS, "backprop")),
    "stock": ((THINC, "begin_update"), (THINC, "predict"), (THINC, "backprop")),
}


def main(
    corpus: Path = typer.Argument(Path("corpus/r8"), help="Folder with train and dev"),
    config: list[str] = typer.Option(["transformer"], help="Configs to measure"),
    rounds: int = typer.Option(3, help="How often the two sides take turns"),
    words: int = typer.Option(12_000, help="Words a side trains on in each round"),
    gpu_id: int = typer.Option(-1, help="GPU, or -1 for the CPU"),
) -> None:
    """Print and save words per second, and the share of the model.

    The sides take turns, and the median over the rounds counts. Beside the ratio of the times
    that of the processor's seconds, which other work on the machine hardly changes.
    """
    figures = [measure(name, corpus, rounds, words, gpu_id) for name in config]
    rows = [
        [
            row["config"],
            *(f"{row[side]['words_per_second']:,.0f}" for side in SIDES),
            f"{row['speedup']:.2f}",
            f"{row['speedup_by_cpu_time']:.2f}",
            *(f"{row[side]['share_of_model']:.0%}" for side in SIDES),
        ]
        for row in figures
    ]
    header = ["config", "words/s", "stock", "times", "times by CPU", "model", "model of stock"]
    msg.table(rows, header=header, divider=True, aligns=["l"] + ["r"] * 6)
    save("transformer_speed", {"corpus": str(corpus), "rounds": rounds, "configs": figures})


def measure(config: str, corpus: Path, rounds: int, words: int, gpu_id: int) -> dict[str, Any]:
    """Both sides of one config, in turns.

    RETURNS (Dict[str, Any]): Words per second and the model's share by side, and the ratio.
    """
    steps = {side: Training(side, config, corpus, gpu_id).steps() for side in SIDES}
    for side in SIDES:
        next(steps[side])  # a frozen transformer computes all of its vectors here

    def turn(side: str) -> dict[str, float]:
        done, seconds, profile, cpu_start = 0, 0.0, Profile(), process_time()
        while done < words:
            profile.enable()
            step_words, step_seconds = next(steps[side])
            profile.disable()
            done, seconds = done + step_words, seconds + step_seconds
        return {
            "words_per_second": done / seconds,
            "words_per_cpu_second": done / (process_time() - cpu_start),
            "share_of_model": _seconds_in_model(profile, side) / seconds,
        }

    figures = in_turns(rounds, turn)
    return {
        "config": config,
        **figures,
        "speedup": ratio(figures, "words_per_second"),
        "speedup_by_cpu_time": ratio(figures, "words_per_cpu_second"),
    }


def _seconds_in_model(profile: Profile, side: str) -> float:
    """Seconds inside of the Hugging Face model, forwards and back."""
    functions = Stats(profile).stats.items()  # type: ignore[attr-defined]
    return sum(
        cumulative
        for (file, _, name), (_, _, _, cumulative, _) in functions
        if any(file.endswith(module) and name == function for module, function in ARITHMETIC[side])
    )


if __name__ == "__main__":
    typer.run(main)
