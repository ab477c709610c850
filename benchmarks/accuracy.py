"""Test accuracy of each config and its stock twin, over seeds: mean and spread, never one run."""

import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter

import spacy
import srsly
import typer
from spacy.training import Corpus
from wasabi import msg

from loop import ROOT, SIDES
from machine import read, save


def main(
    corpus: Path = typer.Argument(Path("corpus/r8"), help="Folder with train, dev and test"),
    config: list[str] = typer.Option(["bow", "cnn", "ensemble"], help="Configs to train"),
    side: list[str] = typer.Option(list(SIDES), help="zero_copy, stock"),
    seeds: int = typer.Option(3, help="Seeds, from 0 on"),
    work: Path = typer.Option(Path("training/accuracy"), help="Where runs are kept"),
    gpu_id: str = typer.Option("auto", help="As for scripts/train.py"),
) -> None:
    """Train what has not been trained yet, and save a table of all runs of this corpus.

    Runs in the saved table are kept, and those that another process has made, so that it goes on
    where it was interrupted, and so that several of it can share the work.
    """
    work, name_of_table = work / corpus.name, f"accuracy-{corpus.name}"
    known = {key_of(run): run for run in read(name_of_table, {"runs": []})["runs"]}
    for name in config:
        for seed in range(seeds):
            for which in side:
                result = work / f"{name}-{which}-{seed}.json"
                if (name, which, seed) not in known and not result.exists():
                    run = train(which, name, seed, corpus, work, gpu_id)
                    srsly.write_json(result, run)
                    msg.good(f"{name} {which} seed {seed}: test {run['test_micro_f']:.2%}")
    known |= {key_of(run): run for run in map(srsly.read_json, work.glob("*.json"))}
    runs = [known[key] for key in sorted(known)]
    names = dict.fromkeys(run["config"] for run in runs)
    summaries = [summarize(runs, name, which) for name in names for which in SIDES]
    table = [summary for summary in summaries if summary]
    rows = [
        [
            row["config"],
            row["side"],
            row["seeds"],
            f"{row['accuracy']:.2%}",
            f"{row['accuracy_sd']:.2%}",
            f"{row['macro_f']:.2%}",
            f"{row['dev_accuracy']:.2%}",
        ]
        for row in table
    ]
    header = ["config", "side", "seeds", "test", "± sd", "macro F", "dev"]
    msg.table(rows, header=header, divider=True, aligns=["l", "l", *"rrrrr"])
    save(name_of_table, {"corpus": str(corpus), "summary": table, "runs": runs})


def key_of(run: dict) -> tuple[str, str, int]:
    """What tells a run from others: config, side and seed."""
    return run["config"], run["side"], run["seed"]


def train(side: str, config: str, seed: int, corpus: Path, work: Path, gpu_id: str) -> dict:
    """Train one pipeline, and score it on the test set as `spacy evaluate` does.

    RETURNS (dict): Its scores, and what it was.
    """
    folder, _ = SIDES[side]
    output = work / f"{config}-{side}-{seed}"
    command = [sys.executable, str(ROOT / "scripts" / "train.py")]
    command += [str(ROOT / folder / f"{config}.cfg"), str(corpus), str(output)]
    start = perf_counter()
    done = subprocess.run(
        [*command, "--seed", str(seed), "--gpu-id", gpu_id], capture_output=True, text=True
    )
    if done.returncode:
        msg.fail(f"{config} {side} seed {seed} failed", done.stdout + done.stderr, exits=1)
    seconds = perf_counter() - start
    nlp = spacy.load(output / "model-best")
    scores = nlp.evaluate(Corpus(corpus / "test.spacy")(nlp))
    return {
        "config": config,
        "side": side,
        "seed": seed,
        "test_micro_f": scores["cats_micro_f"],
        "test_macro_f": scores["cats_macro_f"],
        "dev_micro_f": nlp.meta["performance"]["cats_micro_f"],
        "training_seconds": seconds,
    }


def summarize(runs: list[dict], config: str, side: str) -> dict | None:
    """Mean and standard deviation over the seeds of one config and side."""
    chosen = [run for run in runs if run["config"] == config and run["side"] == side]
    if not chosen:
        return None
    accuracies = [run["test_micro_f"] for run in chosen]
    return {
        "config": config,
        "side": side,
        "seeds": len(chosen),
        "accuracy": mean(accuracies),
        "accuracy_sd": stdev(accuracies) if len(chosen) > 1 else 0.0,
        "macro_f": mean(run["test_macro_f"] for run in chosen),
        "dev_accuracy": mean(run["dev_micro_f"] for run in chosen),
    }


if __name__ == "__main__":
    typer.run(main)
