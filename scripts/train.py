"""Train a pipeline: `spacy train` with this project's functions, corpora and choice of device."""

from pathlib import Path
from time import perf_counter

import typer
from spacy.cli._util import parse_config_overrides
from spacy.cli.train import train
from spacy.util import load_config
from wasabi import msg

import functions  # noqa: F401  registers what the configs name
from zero_copy.device_memory import out_of_memory_told
from zero_copy.errors import UserError, exit_on_error
from zero_copy.state import FILE, keeps_state, resumable, tell_state, unfinished
from zero_copy.training import choose_gpu, find_config, overrides_of, record_training, run_command


def main(
    context: typer.Context,
    config: Path = typer.Argument(..., help="Training config"),
    corpus: Path = typer.Argument(..., help="Folder with train and dev"),
    output: Path = typer.Argument(..., help="Folder for model-best and model-last"),
    gpu_id: str = typer.Option("auto", help="GPU, -1 for the CPU, or auto"),
    seed: int = typer.Option(0, help="Seed of parameters, order and dropout"),
    resume: bool = typer.Option(
        False, "--resume/--no-resume", "--resume-on/--resume-off", help="Go on after a kill"
    ),
) -> None:
    """Further options change the config, as in spacy train: --training.max_steps 100, say.

    A config of stock functions trains from the .spacy files of the same folder.
    """
    with exit_on_error():
        find_config(config)
        device, reason = choose_gpu(gpu_id)
        msg.info(f"Training on {reason}")
        start = perf_counter()
        changes = parse_config_overrides(context.args)
        overrides = overrides_of(config, corpus, seed, changes)
        loaded = load_config(config, overrides=overrides)
        if resume and not keeps_state(loaded):
            raise UserError(
                f"{config} reads ordinary examples, from which no training can be resumed",
                "Start anew, without --resume.",
            )
        with out_of_memory_told(loaded, output):
            if keeps_state(loaded):
                tell_state(output / FILE, resume=resume)
                with unfinished(output) as folder:
                    resumable(loaded, output / FILE, resume=resume).to_disk(folder / config.name)
                    train(folder / config.name, folder, use_gpu=device)
                msg.good(f"Moved to {output}")
            else:
                train(config, output, use_gpu=device, overrides=overrides)
        record_training(output, reason, perf_counter() - start)


if __name__ == "__main__":
    run_command(main)
