"""Training with two workers against one: words per second, bytes exchanged, and what 8 would give.

The last part is a model, not a measurement: `scaling` says what it is made of.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import srsly
import torch
import typer
from safetensors import safe_open
from spacy.util import load_config
from torch import distributed, multiprocessing
from wasabi import msg

from loop import ROOT, Training
from machine import save
from zero_copy.recording import summarize_recording, with_recording

REDUCTIONS = 50


class Link(NamedTuple):
    """What connects workers; from data sheets, not measured.

    bandwidth (float): Bytes a second that a worker can send while it receives as many.
    latency (float): Seconds that a message takes at least.
    """

    bandwidth: float
    latency: float


LINKS = {
    "NVLink, 450 GB/s": Link(450e9, 5e-6),
    "PCIe 4.0 x16, 25 GB/s": Link(25e9, 10e-6),
    "InfiniBand, 400 Gbit/s": Link(50e9, 10e-6),
    "Ethernet, 25 Gbit/s": Link(3.1e9, 50e-6),
}


def main(
    corpus: Path = typer.Argument(Path("corpus/r8"), help="Folder with train and dev"),
    config: str = typer.Option("cnn", help="Config to train"),
    steps: int = typer.Option(300, help="Steps of each training"),
    rounds: int = typer.Option(2, help="How often each is measured, in turns"),
) -> None:
    """Print and save the median over the rounds."""
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, measured in runs.items():
            measured.append(train(corpus, config, count, steps))
            speed = measured[-1]["words_per_second"]
            msg.info(f"{count} workers: {speed:,.0f} words/s")
    one, two = (median(run["words_per_second"] for run in runs[count]) for count in (1, 2))
    apart = {count: independent(corpus, config, count) for count in (1, 2)}
    size = runs[1][0]["gradient_bytes"]
    reduction = reduce_seconds(size)
    seconds = median(run["step_seconds"] for run in runs[1])
    rows = [
        ["one worker, words/s", f"{one:,.0f}"],
        ["two workers, words/s", f"{two:,.0f}"],
        ["times", f"{two / one:.2f}"],
        ["two trainings that know nothing of each other, times", f"{apart[2] / apart[1]:.2f}"],
        ["gradients of a step, bytes", f"{size:,}"],
        ["on the loopback device, bytes a step", f"{runs[2][-1]['sent_bytes']:,.0f}"],
        ["step of one worker, ms", f"{seconds * 1000:.1f}"],
        ["adding up the gradients of two, ms", f"{reduction * 1000:.1f}"],
    ]
    msg.table(rows, divider=True, aligns=["l", "r"])
    model = scaling(size)
    header = ["link", "step, ms", "8 workers, times"]
    msg.table(
        [[row["link"], f"{row['step_ms']:g}", f"{row['times']:.2f}"] for row in model],
        header=header,
        divider=True,
        aligns=["l", "r", "r"],
    )
    figures = {
        "corpus": str(corpus),
        "config": config,
        "threads_per_worker": 1,
        "runs": runs,
        "ratio": two / one,
        "independent": apart,
        "reduce_seconds_two_workers": reduction,
        "predicted_ratio_two_workers": 2 * seconds / (seconds + reduction),
        "model": {
            "formula": "8 t / (t + 2 * 7/8 * bytes / bandwidth + 14 * latency)",
            "measured": "bytes",
            "not measured": "bandwidth and latency, from data sheets; t, the step of a GPU",
            "rows": model,
        },
    }
    save("ray_speed", figures)


def train(corpus: Path, config: str, count: int, steps: int) -> dict[str, Any]:
    """Train with `scripts/train_ray.py`, as a user would.

    RETURNS (Dict[str, Any]): Words per second of all workers together, evaluations left out;
        seconds of a step; bytes of the gradients, and bytes that passed the loopback device.
    """
    with TemporaryDirectory() as folder:
        path, recording = Path(folder) / f"{config}.cfg", Path(folder) / "recording.jsonl"
        recorded = with_recording(load_config(ROOT / "configs" / f"{config}.cfg"), recording)
        recorded.to_disk(path)
        command = [sys.executable, str(ROOT / "scripts" / "train_ray.py"), str(path), str(corpus)]
        command += [folder, "--workers", str(count), "--gpu-id", "-1"]
        changes = {"max_steps": steps, "eval_frequency": steps // 3}
        command += [word for name in changes for word in (f"--training.{name}", str(changes[name]))]
        before = loopback_bytes()
        start = perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = [*srsly.read_jsonl(recording)]
        *evaluations, _ = rows
        speed = summarize_recording(rows, 0.0)["words_per_second"]
        with safe_open(Path(folder) / "state.safetensors", framework="pt") as state:
            names = [name for name in state.keys() if name.endswith(".weights")]  # noqa: SIM118
            size = sum(state.get_tensor(name).numel() for name in names) * 4
        return {
            # A stripe has as many words as any other's, so the first worker speaks for all.
            "words_per_second": speed * count,
            "step_seconds": median(row["step_seconds"] / row["steps"] for row in evaluations[2:]),
            "gradient_bytes": size,
            "sent_bytes": (loopback_bytes() - before) / steps,
            "seconds": perf_counter() - start,
        }


def independent(corpus: Path, config: str, count: int) -> float:
    """Words per second of so many trainings side by side, of one thread each and without Ray: what
    the machine allows.

    RETURNS (float): Of all together.
    """
    call = f"from ray_speed import step_speed; step_speed({str(corpus.resolve())!r}, {config!r})"
    command = [sys.executable, "-c", call]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, cwd=Path(__file__).parent, env=environment
        )
        for _ in range(count)
    ]
    return sum(float(process.communicate()[0].splitlines()[-1]) for process in running)


def step_speed(corpus: str, config: str, warm_up: int = 20, steps: int = 120) -> None:
    """Print the words per second of some training steps."""
    steps_taken = Training("zero_copy", config, Path(corpus)).steps()
    timed = [next(steps_taken) for _ in range(warm_up + steps)][warm_up:]
    print(sum(words for words, _ in timed) / sum(seconds for _, seconds in timed))


def loopback_bytes() -> int:
    """Bytes that this machine has sent to itself, Ray's own messages among them."""
    text = Path("/proc/net/dev").read_text()
    found = re.search(r"\blo:\s*(\d+)", text)
    return int(found[1]) if found else 0


def reduce_seconds(size: int) -> float:
    """Seconds that two processes of this machine take to add up so many bytes of gradients."""
    with TemporaryDirectory() as folder:
        multiprocessing.spawn(_reduce, (folder, size), 2)
        return float((Path(folder) / "seconds").read_text())


def _reduce(rank: int, folder: str, size: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    tensor = torch.ones(size // 4)
    times = []
    for _ in range(REDUCTIONS):
        distributed.barrier()
        start = perf_counter()
        distributed.all_reduce(tensor)
        times.append(perf_counter() - start)
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(median(times)))
    distributed.destroy_process_group()


def scaling(size: int, count: int = 8) -> list[dict[str, Any]]:
    """How much faster so many GPUs would be than one, by link and by the time of a step.

    A ring sends and receives 2 * (count - 1) / count of the bytes, in 2 * (count - 1) messages,
    after the step's gradients are there. Nothing of it overlaps with the backward pass: the tables
    of embeddings are half of the bytes, and their gradients come last.

    size (int): Bytes of the gradients.
    count (int): How many GPUs.
    RETURNS (List[Dict[str, Any]]): A row for each link and step.
    """
    rows = []
    for name, link in LINKS.items():
        seconds = 2 * (count - 1) / count * size / link.bandwidth
        seconds += 2 * (count - 1) * link.latency
        for step in (0.001, 0.003, 0.01):
            times = count * step / (step + seconds)
            rows.append({"link": name, "step_ms": step * 1000, "times": times})
    return rows


if __name__ == "__main__":
    typer.run(main)
