"""Time to the first update and peak memory, on a corpus as it is and of a million texts."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import typer
from wasabi import msg

HERE = Path(__file__).parent


def main(
    corpus: Path = typer.Argument(Path("corpus/20newsgroups"), help="Folder with train and dev"),
    small: Path = typer.Option(Path("corpus/r8"), help="Corpus to repeat"),
    documents: int = typer.Option(1_000_000, help="Documents to repeat it to"),
    config: str = typer.Option("cnn", help="Config to train"),
    steps: int = typer.Option(200, help="Steps after which memory is read"),
) -> None:
    """Measure each case in a process of its own, after Python's imports."""
    from machine import save

    with TemporaryDirectory() as folder:
        large = repeat(small, Path(folder), documents)
        cases = [
            ("zero_copy", corpus),
            ("stock", corpus),
            ("zero_copy", small),
            ("stock", small),
            ("zero_copy", large),
        ]
        figures = []
        for side, path in cases:
            figures.append(measure(side, path, config, steps))
            figures[-1]["corpus"] = f"{path.name}, repeated" if path == large else str(path)
    rows = [
        [
            row["side"],
            row["corpus"],
            f"{row['documents']:,}",
            f"{row['first_update_seconds']:.2f}",
            f"{row['packed_mb']:,.0f}",
            f"{row['memory_mb']:,.0f}",
            f"{row['memory_mb'] * 1024 / row['documents']:.1f}",
        ]
        for row in figures
    ]
    header = [
        "side",
        "corpus",
        "documents",
        "first update s",
        "packed MB",
        "peak MB",
        "KB a document",
    ]
    msg.table(rows, header=header, divider=True, aligns=["l", "l", *"rrrrr"])
    save("startup", {"config": config, "steps": steps, "cases": figures})


def repeat(corpus: Path, folder: Path, documents: int) -> Path:
    """Repeat a packed training set until it has so many documents.

    RETURNS (Path): The folder of the new corpus, with the old dev set.
    """
    import torch

    import loop  # noqa: F401  finds the library
    from zero_copy.store import read, write

    packed = read(corpus / "train.safetensors")
    columns = dict(packed.columns)
    times = -(-documents // len(packed.lengths))
    lengths = columns["doc_offsets"].diff().repeat(times)
    columns["doc_offsets"] = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    columns["token_types"] = columns["token_types"].repeat(times)
    columns["cats"] = columns["cats"].repeat(times, 1)
    target = folder / corpus.name
    info = packed.info.model_copy(deep=True)
    info.source.name = "none"
    write(target / "train.safetensors", info, columns)
    (target / "dev.safetensors").write_bytes((corpus / "dev.safetensors").read_bytes())
    return target


def measure(side: str, corpus: Path, config: str, steps: int) -> dict:
    """One case in a fresh process."""
    call = f"worker({side!r}, {str(corpus.resolve())!r}, {config!r}, {steps})"
    command = [sys.executable, "-c", f"from startup import worker; {call}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE)
    return json.loads(done.stdout.splitlines()[-1])


def worker(side: str, folder: str, config: str, steps: int) -> None:
    """Train in this process, and print the figures as JSON."""
    from loop import SIDES, Training

    corpus = Path(folder)
    imported = _peak_mb()
    start = perf_counter()
    training = Training(side, config, corpus)
    running = training.steps()
    next(running)
    first_update = perf_counter() - start
    for _ in range(steps):
        next(running)
    if side == "zero_copy":
        documents = len(next(iter(training.train_corpus(training.nlp))).batch.corpus.lengths)
    else:
        documents = sum(1 for _ in training.train_corpus(training.nlp))
    train_file = corpus / f"train.{SIDES[side][1]}"
    figures = {
        "side": side,
        "documents": documents,
        "first_update_seconds": first_update,
        "packed_mb": train_file.stat().st_size / 2**20,
        "memory_mb": _peak_mb() - imported,
        "imported_mb": imported,
    }
    print(json.dumps(figures))


def _peak_mb() -> float:
    # Unlike getrusage's, this peak does not begin with that of the process that started ours.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    typer.run(main)
