"""The way out: a stock pipeline with the parameters that were trained, and nothing of this project.

Register it as `[training.before_to_disk]`, and what `spacy train` saves loads anywhere.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import spacy
from spacy.language import Language
from spacy.util import load_model_from_config
from thinc.api import Config

from zero_copy.components import PackedPipe

PREFIX = "zero_copy"
STOCK_READER = {"@readers": "spacy.Corpus.v1", "gold_preproc": False}


@spacy.registry.callbacks("zero_copy.to_stock.v1")
def create_to_stock() -> Callable[[Language], Language]:
    """Export the stock pipeline instead of the one that trains.

    RETURNS (Callable[[Language], Language]): The callback for `before_to_disk`.
    """
    return to_stock


def to_stock(nlp: Language) -> Language:
    """The stock pipeline of a training one; it shares the vocab and the parameters.

    nlp (Language): A pipeline with components of this project.
    RETURNS (Language): The same with spaCy's components and a config that `spacy train` takes.
    """
    stock = load_model_from_config(stock_config(nlp.config), vocab=nlp.vocab, auto_fill=True)
    for name, component in nlp.pipeline:
        stock_component: Any = stock.get_pipe(name)
        if isinstance(component, PackedPipe):
            component.flush()
            stock_component.model = component.model
            stock_component.cfg = dict(component.cfg)
        elif hasattr(component, "to_bytes"):
            content = component.to_bytes(exclude=["vocab"])
            stock_component.from_bytes(content, exclude=["vocab"])
    for name in nlp.disabled:
        stock.disable_pipe(name)
    stock.meta.update({"performance": nlp.meta.get("performance", {})})
    return stock


def stock_config(config: Config) -> Config:
    """A training config with stock functions in place of this project's.

    config (Config): The config, its variables not interpolated.
    RETURNS (Config): The same training from `.spacy` files, with spaCy's components.
    """
    stock = config.copy()
    for component in stock["components"].values():
        if component.get("factory", "").startswith(f"{PREFIX}_"):
            component["factory"] = component["factory"].removeprefix(f"{PREFIX}_")
    for name, reader in stock.get("corpora", {}).items():
        if reader.get("@readers") == f"{PREFIX}.Corpus.v1":
            settings = {key: value for key, value in reader.items() if key != "@readers"}
            stock["corpora"][name] = STOCK_READER | settings
            stock["corpora"][name]["path"] = _spacy_path(settings["path"])
    stock["paths"] = {name: _spacy_path(path) for name, path in stock.get("paths", {}).items()}
    training = stock["training"]
    batcher = training["batcher"]
    if batcher.get("@batchers") == f"{PREFIX}.batch_by_words.v1":
        settings = {key: value for key, value in batcher.items() if key != "seed"}
        training["batcher"] = settings | {"@batchers": "spacy.batch_by_words.v1"}
    if (training.get("before_to_disk") or {}).get("@callbacks") == f"{PREFIX}.to_stock.v1":
        del training["before_to_disk"]
    return stock


def _spacy_path(path: Any) -> Any:
    if isinstance(path, str | Path) and str(path).endswith(".safetensors"):
        return str(Path(path).with_suffix(".spacy"))
    return path
