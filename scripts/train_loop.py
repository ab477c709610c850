"""The loop of `spacy train`, written out over packed batches: a start for a loop of your own."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import typer
from spacy.cli._util import parse_config_overrides, setup_gpu
from spacy.schemas import ConfigSchemaTraining
from spacy.training import Example
from spacy.util import load_config, load_model_from_config, registry, resolve_dot_names
from thinc.api import fix_random_seed

import functions  # noqa: F401  registers what the configs name
from zero_copy.errors import exit_on_error


def train(path: Path, output: Path, overrides: dict) -> None:
    """Train the config; each Example of a batch stands for all documents of it."""
    config = load_config(path, overrides)
    fix_random_seed(config.interpolate()["training"]["seed"])
    nlp = load_model_from_config(config, auto_fill=True)
    config = nlp.config.interpolate()
    T = registry.resolve(config["training"], schema=ConfigSchemaTraining)
    train_corpus, dev_corpus = resolve_dot_names(config, [T["train_corpus"], T["dev_corpus"]])
    sgd, frozen, annotating = T["optimizer"], T["frozen_components"], T["annotating_components"]
    with nlp.select_pipes(disable=frozen):
        nlp.initialize(lambda: train_corpus(nlp), sgd=sgd)
    fix_random_seed(T["seed"])
    epochs = range(T["max_epochs"]) if T["max_epochs"] > 0 else count()
    batches: Iterator[list[Example]] = (b for _ in epochs for b in T["batcher"](train_corpus(nlp)))
    best, best_step = -1.0, 0
    for step, batch in enumerate(batches):
        nlp.update(batch, drop=T["dropout"], sgd=sgd, exclude=frozen, annotates=annotating)
        sgd.step_schedules()
        if step % T["eval_frequency"] == 0:
            with nlp.use_params(sgd.averages or {}):
                scores = nlp.evaluate(dev_corpus(nlp))
                score = sum((scores.get(n) or 0.0) * w for n, w in T["score_weights"].items() if w)
                print(f"step {step}: {score:.4f} on dev")
                best_step = step if score > best else best_step
                if score >= best:
                    best = score
                    T["before_to_disk"](nlp).to_disk(output / "model-best")
        if 0 < T["max_steps"] <= step or 0 < T["patience"] <= step - best_step:
            break


def main(context: typer.Context, config: Path, output: Path, gpu_id: int = -1) -> None:
    """Further options change the config, as in spacy train: --paths.train and --paths.dev, say."""
    with exit_on_error():
        setup_gpu(gpu_id, silent=True)
        output.mkdir(parents=True, exist_ok=True)
        train(config, output, parse_config_overrides(context.args))


if __name__ == "__main__":
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    (app := typer.Typer()).command(context_settings=settings)(main)
    app()
