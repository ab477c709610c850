"""What a steady training step asks of a GPU: copies, waits and launches, beside its stock twin."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import torch
import typer
from spacy.training import Example
from wasabi import msg

from loop import SIDES, Training
from machine import save_parts
from zero_copy.corpus import Corpus, PackedExample
from zero_copy.training import why_no_gpu
from zero_copy.transfers import Transfers, watched

# Steps in which columns are placed, kernels compiled and memory is set aside.
WARM_UP = 30
# A document's number is all that goes to the device of it.
NUMBER_BYTES = 8
# What the known work copies: 1,000 numbers of 4 bytes and 500 of 8 there, one of each back.
KNOWN_TO_DEVICE, KNOWN_TO_HOST = (2, 8000), (2, 12)


def main(
    corpus: Path = typer.Argument(Path("corpus/r8"), help="Folder with train and dev"),
    config: list[str] = typer.Option(["bow", "cnn", "shared", "ensemble"], help="Configs to watch"),
    steps: int = typer.Option(20, help="Steps to watch on either side"),
    gpu_id: int = typer.Option(0, help="GPU"),
) -> None:
    """Print and save what was seen a step, from the driver's own records.

    Steps of both sides follow each other without an evaluation. That copies by torch and by CuPy
    are seen is shown first, by copies that are known.
    """
    reason = why_no_gpu(gpu_id)
    if reason:
        msg.fail("Copies can only be counted on a GPU", reason, exits=1)
    missed = missed_copies(watch_known(gpu_id))
    if missed:
        msg.fail("The profiler does not see what is known to be copied", missed, exits=1)
    figures = {
        name: {side: per_step(Training(side, name, corpus, gpu_id), steps) for side in SIDES}
        for name in config
    }
    rows = [
        [
            name if side == "zero_copy" else "its twin",
            *(f"{seen[column]:,.1f}" for column in COLUMNS),
            "" if seen["corpus_bytes"] is None else f"{seen['corpus_bytes']:,.1f}",
            f"{seen['busy']:.0%}",
        ]
        for name, sides in figures.items()
        for side, seen in sides.items()
    ]
    header = ["a step", *COLUMNS.values(), "bytes of the corpus", "busy"]
    msg.table(rows, header=header, divider=True, aligns=["l"] + ["r"] * (len(header) - 1))
    settings = {"corpus": str(corpus), "steps": steps}
    save_parts("copies", {name: settings | sides for name, sides in figures.items()})


COLUMNS = {
    "to_device": "to device",
    "to_device_bytes": "bytes",
    "to_host": "to host",
    "to_host_bytes": "bytes",
    "pageable": "pageable",
    "waits": "waits",
    "launches": "launches",
    "kernels": "kernels",
}


def watch_steps(training: Training, steps: int) -> tuple[Transfers, int]:
    """Watch some steps of a training, when it has warmed up.

    training (Training): The training.
    steps (int): How many steps.
    RETURNS (Tuple[Transfers, int]): What was seen, and the documents of the steps.
    """
    batches = training.batches()
    for _ in islice(batches, WARM_UP):
        pass
    taken: list[list[Example]] = []
    seen = watched(lambda: taken.extend(islice(batches, steps)))
    return seen, sum(documents_of(batch) for batch in taken)


def documents_of(batch: list[Example]) -> int:
    """How many documents a batch has.

    batch (List[Example]): Packed or ordinary examples.
    RETURNS (int): The documents.
    """
    return sum(len(example.batch) if isinstance(example, PackedExample) else 1 for example in batch)


def per_step(training: Training, steps: int) -> dict[str, Any]:
    """What was seen, a step.

    training (Training): The training.
    steps (int): How many steps to watch.
    RETURNS (Dict[str, Any]): The figures. Bytes of the corpus are what goes to the device beside
        the documents' numbers, and None for a stock twin, where they can't be told apart.
    """
    seen, documents = watch_steps(training, steps)
    is_packed = isinstance(training.train_corpus, Corpus)
    corpus_bytes = seen.to_device_bytes - NUMBER_BYTES * documents
    return {
        **{name: getattr(seen, name) / steps for name in COLUMNS},
        "corpus_bytes": corpus_bytes / steps if is_packed else None,
        "documents": documents / steps,
        "busy": seen.busy_seconds / seen.seconds,
        "seconds": seen.seconds / steps,
    }


def watch_known(gpu_id: int) -> Transfers:
    """Watch copies that are known, by torch and by CuPy.

    gpu_id (int): The GPU.
    RETURNS (Transfers): What was seen.
    """
    import cupy  # Not where there is no GPU.

    single, double = torch.ones(1000), numpy.ones(500)

    def work() -> None:
        float(single.to(f"cuda:{gpu_id}").sum())
        float(cupy.asarray(double).sum())

    with cupy.cuda.Device(gpu_id):
        work()  # compiles
        return watched(work)


def missed_copies(seen: Transfers) -> str | None:
    """What of the known copies was not seen.

    seen (Transfers): What was.
    RETURNS (Optional[str]): In words, or None if all were.
    """
    counted = (seen.to_device, seen.to_device_bytes), (seen.to_host, seen.to_host_bytes)
    if counted == (KNOWN_TO_DEVICE, KNOWN_TO_HOST) and seen.waits >= 2:
        return None
    return (
        f"Of 2 copies to the device (8,000 bytes), 2 back (12 bytes) and 2 waits it saw "
        f"{seen.to_device} ({seen.to_device_bytes:,}), {seen.to_host} ({seen.to_host_bytes:,}) "
        f"and {seen.waits}. Do other profilers run, or is CUPTI not the one of torch's CUDA?"
    )


if __name__ == "__main__":
    typer.run(main)
