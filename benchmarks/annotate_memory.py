"""Resident memory of annotating texts full of new words, in all processes together."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

import typer
from wasabi import msg

from machine import ROOT, save

WARM_UP = 0.3  # of the run: until then caches fill


def main(
    model: Path = typer.Argument(Path("training/r8/bow/model-best"), help="The pipeline"),
    words: int = typer.Option(6_000_000, help="How many words, all of them new"),
    n_process: int = typer.Option(2, help="Processes that tokenize"),
) -> None:
    """Print and save the memory over time, and its peak after the warm-up against its mean."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "texts.txt"
        source.write_text("".join(new_texts(words)), encoding="utf8")
        command = [sys.executable, ROOT / "scripts" / "annotate.py", source, f"{folder}/out.jsonl"]
        start = perf_counter()
        with Popen([*command, "--model", model, "--n-process", str(n_process)]) as run:
            samples = []
            while run.poll() is None:
                samples.append((perf_counter() - start, memory_of(run.pid)))
                sleep(0.25)
    after = [memory for second, memory in samples if second > WARM_UP * samples[-1][0]]
    mean = sum(after) / len(after)
    for second, memory in samples[:: max(len(samples) // 20, 1)]:
        print(f"{second:6.1f} s {memory / 2**20:8,.0f} MB " + "#" * int(memory / 2**24))
    msg.info(f"After the warm-up {mean / 2**20:,.0f} MB, at most {max(after) / mean - 1:+.1%}")
    figures = {"words": words, "n_process": n_process, "mean": mean, "peak": max(after)}
    save("annotate_memory", figures | {"samples": samples})


def new_texts(words: int) -> Iterator[str]:
    """Lines of 50 words that have not been seen before."""
    order = random.Random(0)
    for _ in range(words // 50):
        yield " ".join(f"{order.getrandbits(60):x}" for _ in range(50)) + "\n"


def memory_of(pid: int) -> int:
    """Bytes that a process and its children have to themselves, and their share of the rest."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return own * 1024 + sum(memory_of(int(child)) for child in children)


if __name__ == "__main__":
    typer.run(main)
