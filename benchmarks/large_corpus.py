"""Time and memory of every stage with ten million documents, on one machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import typer
from wasabi import msg

HERE = Path(__file__).parent
SAMPLES = 8


def main(
    folder: Path = typer.Argument(..., help="Where it goes: 14 GB for ten million documents"),
    documents: int = typer.Option(10_000_000, help="How many"),
    spacy_documents: int = typer.Option(
        0,
        help="How many go through .spacy files and `pack`; the others are packed as they are made",
    ),
    config: str = typer.Option("cnn", help="Config to train"),
    steps: int = typer.Option(400, help="Training steps"),
) -> None:
    """Run each stage in a process of its own, and save the figures."""
    from machine import save

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    through_spacy = spacy_documents or documents
    where = repr(str(folder))
    stages = [run(f"generate_stage({where}, {through_spacy})"), run(f"pack_stage({where})")]
    if through_spacy < documents:
        stages.append(run(f"packed_stage({where}, {documents})"))
    stages.append(run(f"train_stage({where}, {config!r}, {steps})"))
    rows = [
        [name, f"{seconds:,.1f}", f"{stage['peak_mb']:,.0f}", f"{stage['own_mb']:,.0f}"]
        for stage in stages
        for name, seconds in stage["seconds"].items()
    ]
    header = ["stage", "s", "peak MB, with mapped files", "MB of its own at the end"]
    msg.table(rows, header=header, divider=True, aligns=["l", "r", "r", "r"])
    msg.info(f"MB of its own while training: {stages[-1]['samples_mb']}")
    save("large_corpus", {"documents": documents, "config": config, "stages": stages})
    shutil.rmtree(folder)


def run(call: str) -> dict[str, Any]:
    """A stage, in a fresh process."""
    msg.info(call)
    command = [sys.executable, "-c", f"import large_corpus; large_corpus.{call}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE)
    return json.loads(done.stdout.splitlines()[-1])


def generate_stage(folder: str, documents: int) -> None:
    """Make the corpus, and a dev set of 10,000 documents."""
    from corpus_generator import generate

    start = perf_counter()
    for split, count, seed in (("dev", 10_000, 1), ("train", documents, 0)):
        for done in generate(Path(folder) / f"{split}.spacy", count, seed=seed):
            print(f"{done:,} documents, {memory()['own_mb']:,.0f} MB", file=sys.stderr)
    size = sum(path.stat().st_size for path in Path(folder).rglob("*.spacy") if path.is_file())
    name = f"make {documents:,} documents"
    _tell({name: perf_counter() - start}, spacy_mb=size / 2**20)


def pack_stage(folder: str) -> None:
    """Pack it."""
    import loop  # noqa: F401  finds the library
    from zero_copy.store import pack

    seen, samples = 0, []

    def report(documents: int) -> None:
        nonlocal seen
        seen += documents
        samples.append(round(memory()["own_mb"]))
        print(f"{seen:,} documents, {samples[-1]:,} MB", file=sys.stderr)

    start = perf_counter()
    for split in ("dev", "train"):
        source = Path(folder) / f"{split}.spacy"
        pack(source, source.with_suffix(".safetensors"), report=report)
    size = (Path(folder) / "train.safetensors").stat().st_size
    _tell({f"pack {seen:,}": perf_counter() - start}, packed_mb=size / 2**20, samples_mb=samples)


def packed_stage(folder: str, documents: int) -> None:
    """Make a larger training corpus in packed form."""
    from corpus_generator import generate_packed

    start = perf_counter()
    path = Path(folder) / "train.safetensors"
    shutil.rmtree(Path(folder) / "train.spacy", ignore_errors=True)
    for done in generate_packed(path, documents):
        print(f"{done:,} documents, {memory()['own_mb']:,.0f} MB", file=sys.stderr)
    name = f"make {documents:,} documents, packed"
    _tell({name: perf_counter() - start}, packed_mb=path.stat().st_size / 2**20)


def train_stage(folder: str, config: str, steps: int) -> None:
    """Train on it for some steps, in spaCy's loop."""
    from loop import Training

    imported = memory()
    start = perf_counter()
    training = Training("zero_copy", config, Path(folder))
    initialized = perf_counter()
    running = training.steps()
    next(running)
    first = perf_counter()
    samples, words = [], 0
    for number in range(1, steps):
        words += next(running)[0]
        if number % max(steps // SAMPLES, 1) == 0:
            samples.append(round(memory()["own_mb"]))
    end = perf_counter()
    evaluation, _ = training.evaluate()
    seconds = {
        "initialize": initialized - start,
        "first update": first - initialized,
        f"{steps - 1} further steps": end - first,
        "evaluation of dev, 10,000 documents": evaluation,
    }
    speed = words / (end - first)
    _tell(seconds, samples_mb=samples, imported_mb=imported["own_mb"], words_per_second=speed)


def memory() -> dict[str, float]:
    """The peak of what the process has in memory, and what of it now is its own: mapped files are
    not, the system takes their pages back when it needs them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return {"peak_mb": int(values["VmHWM"]) / 1024, "own_mb": int(values["RssAnon"]) / 1024}


def _tell(seconds: dict[str, float], **rest: Any) -> None:
    print(json.dumps({"seconds": seconds, **memory(), **rest}))


if __name__ == "__main__":
    typer.run(main)
