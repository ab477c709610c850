"""Train a pipeline on Ray: on several cores or GPUs of a machine, or on several machines."""

import os
from pathlib import Path

import typer
from spacy.cli._util import parse_config_overrides
from spacy.util import load_config
from wasabi import msg

import functions  # noqa: F401  registers what the configs name
from zero_copy.errors import UserError, exit_on_error
from zero_copy.state import FILE, keeps_state, tell_state
from zero_copy.training import choose_gpu, find_config, overrides_of, run_command


def main(
    context: typer.Context,
    config: Path = typer.Argument(..., help="Training config"),
    corpus: Path = typer.Argument(..., help="Folder with train and dev, on every machine"),
    output: Path = typer.Argument(..., help="Folder that all machines see"),
    workers: int = typer.Option(2, min=1, help="Processes that train together"),
    threads: int = typer.Option(1, min=1, help="Threads of each"),
    gpu_id: str = typer.Option("auto", help="-1 for the CPU, or auto: a GPU for each worker"),
    seed: int = typer.Option(0, help="Seed of parameters, order and dropout"),
    failures: int = typer.Option(3, min=0, help="How often workers may die"),
    address: str = typer.Option("", help="Address of a Ray cluster; else this machine"),
    resume: bool = typer.Option(
        False, "--resume/--no-resume", "--resume-on/--resume-off", help="Go on after a kill"
    ),
) -> None:
    """Further options change the config, as in spacy train: --training.max_steps 100, say.

    Each worker takes batches of the config's size, so that a step has as many times the words.
    """
    with exit_on_error():
        try:
            from zero_copy import ray_cluster, ray_training
        except ImportError as error:
            raise UserError(
                "Ray is not installed", "pip install -r requirements-ray.txt"
            ) from error
        ray_training.check_folder(output)
        find_config(config)
        changes = parse_config_overrides(context.args)
        loaded = load_config(config, overrides_of(config, corpus.resolve(), seed, changes))
        if not keeps_state(loaded):
            raise UserError(f"{config} reads ordinary examples", "Only packed corpora are shared.")
        packed = [Path(loaded["paths"][split]) for split in ("train", "dev")]
        ray_training.check_corpora(packed, workers)
        tell_state(output / FILE, resume=resume)
        with ray_cluster.started(address or None, workers * threads):
            if address or "RAY_ADDRESS" in os.environ:
                gpu = gpu_id != "-1" and ray_cluster.has_gpus()  # here there may be none
            else:
                gpu = choose_gpu(gpu_id)[0] >= 0
            msg.info(f"Training with {workers} workers on {'GPUs' if gpu else 'CPUs'}")
            ray_training.train(
                loaded,
                output,
                count=workers,
                gpu=gpu,
                threads=threads,
                resume=resume,
                failures=failures,
                write=lambda text: print(text, end="", flush=True),
            )
        msg.good(f"Moved to {output}")


if __name__ == "__main__":
    run_command(main)
