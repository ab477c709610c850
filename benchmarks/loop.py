"""spaCy's own training loop, opened so that its steps and evaluations can be timed."""

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from spacy import util
from spacy.schemas import ConfigSchemaTraining
from spacy.training import Example
from spacy.training.initialize import init_nlp
from spacy.training.loop import create_train_batches, train_while_improving
from thinc.api import require_gpu

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import functions  # noqa: E402, F401  registers what the configs name
from zero_copy.pretraining import find_pretrained  # noqa: E402
from zero_copy.training import find_vectors  # noqa: E402

Figures = dict[str, dict[str, Any]]
SIDES = {"zero_copy": ("configs", "safetensors"), "stock": ("configs/stock", "spacy")}


class Training:
    """One side of a comparison: a config of this project or its stock twin, on a corpus.

    side (str): `zero_copy` or `stock`.
    config (str): Name of the config.
    corpus (Path): Folder with train and dev, both as .spacy and as .safetensors.
    gpu_id (int): GPU, or -1 for the CPU.
    overrides (Any): Settings to change.
    """

    def __init__(
        self, side: str, config: str, corpus: Path, gpu_id: int = -1, **overrides: Any
    ) -> None:
        folder, ending = SIDES[side]
        if gpu_id >= 0:
            require_gpu(gpu_id)
        paths = {f"paths.{split}": str(corpus / f"{split}.{ending}") for split in ("train", "dev")}
        source = ROOT / folder / f"{config}.cfg"
        overrides = paths | overrides
        overrides |= find_vectors(source, corpus, overrides)
        overrides |= find_pretrained(source, corpus, overrides)
        loaded = util.load_config(source, overrides=overrides, interpolate=False)
        self.gpu_id = gpu_id
        self.nlp = init_nlp(loaded, use_gpu=gpu_id)
        resolved = self.nlp.config.interpolate()
        self.settings = util.registry.resolve(resolved["training"], schema=ConfigSchemaTraining)
        readers = [self.settings["train_corpus"], self.settings["dev_corpus"]]
        self.train_corpus, self.dev_corpus = util.resolve_dot_names(resolved, readers)

    def batches(self) -> Iterator[list[Example]]:
        """The batches of spaCy's loop, each when its step has been taken, without evaluations."""
        steps = train_while_improving(
            self.nlp,
            self.settings["optimizer"],
            create_train_batches(self.nlp, self.train_corpus, self.settings["batcher"], 0),
            lambda: (0.0, {}),
            dropout=self.settings["dropout"],
            eval_frequency=10**9,
            accumulate_gradient=1,
            patience=0,
            max_steps=0,
            exclude=self.settings["frozen_components"],
            annotating_components=self.settings["annotating_components"],
            before_update=None,
        )
        for batch, _, _ in steps:
            yield batch

    def steps(self) -> Iterator[tuple[int, float]]:
        """Words and seconds of one step after another."""
        start = perf_counter()
        for batch in self.batches():
            self.wait()
            end = perf_counter()
            yield sum(len(example) for example in batch), end - start
            start = perf_counter()

    def evaluate(self) -> tuple[float, dict[str, Any]]:
        """Seconds that an evaluation of the dev set takes, and its scores."""
        start = perf_counter()
        scores = self.nlp.evaluate(self.dev_corpus(self.nlp))
        self.wait()
        return perf_counter() - start, scores

    def wait(self) -> None:
        """Wait for the device, so that a time is that of the work."""
        if self.gpu_id >= 0:
            torch.cuda.synchronize()


def in_turns(
    rounds: int, measure: Callable[[str], dict[str, float]], sides: Iterable[str] = tuple(SIDES)
) -> Figures:
    """Measure the sides in turns, so that what else the machine does falls on both.

    rounds (int): How often each has its turn.
    measure (Callable[[str], Dict[str, float]]): Measures some figures of a side.
    sides (Iterable[str]): Their names.
    RETURNS (Dict[str, Dict[str, Any]]): By side the median of each figure, and all of them as
        `<figure>_by_round`.
    """
    turns = [{side: measure(side) for side in sides} for _ in range(rounds)]
    figures: Figures = {side: {} for side in turns[0]}
    for side, of_side in figures.items():
        for name in turns[0][side]:
            values = [turn[side][name] for turn in turns]
            of_side |= {name: median(values), f"{name}_by_round": values}
    return figures


def ratio(figures: Figures, name: str) -> float:
    """How many times as large a figure of ours is as stock's.

    figures (Dict[str, Dict[str, Any]]): By side.
    name (str): Which figure.
    RETURNS (float): The ratio.
    """
    return figures["zero_copy"][name] / figures["stock"][name]


def words_per_second(steps: Iterator[tuple[int, float]], words: int) -> float:
    """The speed of some training steps.

    steps (Iterator[Tuple[int, float]]): Words and seconds of each.
    words (int): How many words to go on for.
    RETURNS (float): Words per second.
    """
    done, seconds = 0, 0.0
    while done < words:
        step_words, step_seconds = next(steps)
        done += step_words
        seconds += step_seconds
    return done / seconds
