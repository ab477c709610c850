"""The way out: a stock pipeline with the parameters that were trained, and nothing of this project.

Register it as `[training.before_to_disk]`, and what `spacy train` saves loads anywhere.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import spacy
from spacy.language import Language
from spacy.util import load_model_from_config
from thinc.api import Config, Model

from zero_copy.imbalance import OFF
from zero_copy.packed_pipe import PackedPipe
from zero_copy.schedules import WARMUP_COSINE
from zero_copy.streaming import AUTO
from zero_copy.transformer_layers import LISTENER, OUR_LISTENER

PREFIX = "zero_copy"
TO_STOCK = f"{PREFIX}.to_stock.v1"
# Settings of ours that stock components and readers do not have, by section of the config, and what
# they are where nothing is set.
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "components": {**OFF, "half_precision": "bfloat16"},
    "corpora": {"memory": AUTO},
}
STOCK_READER = {"@readers": "spacy.Corpus.v1", "gold_preproc": False}


@spacy.registry.callbacks(TO_STOCK)
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
    config = stock_config(nlp.config)
    _use_thinc_schedules(config["training"])
    stock = load_model_from_config(config, vocab=nlp.vocab, auto_fill=True)
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
    if any(wraps_modules(component) for _, component in nlp.pipeline):
        stock.meta["requirements"] = ["torch"]  # `spacy package` makes the wheel require it
    return stock


def wraps_modules(component: Any) -> bool:
    """Whether a component's model has layers that thinc wraps around another library's.

    component (Any): A component of a pipeline.
    RETURNS (bool): True if one of its layers has a shim.
    """
    model = getattr(component, "model", None)
    return isinstance(model, Model) and any(layer.shims for layer in model.walk())


def stock_config(config: Config) -> Config:
    """A training config with stock functions in place of this project's.

    config (Config): The config, its variables not interpolated.
    RETURNS (Config): The same training from `.spacy` files, with spaCy's components.
    """
    stock = config.copy()
    for component in stock["components"].values():
        if component.get("factory", "").startswith(f"{PREFIX}_"):
            component["factory"] = component["factory"].removeprefix(f"{PREFIX}_")
            # They are the training's, and spaCy has none like them.
            for setting in OWN_SETTINGS["components"]:
                component.pop(setting, None)
        _use_stock_listeners(component)
    for name, reader in stock.get("corpora", {}).items():
        if registered_name(reader, "@readers") == f"{PREFIX}.Corpus.v1":
            ours = {"@readers", *OWN_SETTINGS["corpora"]}
            settings = {key: value for key, value in reader.items() if key not in ours}
            stock["corpora"][name] = STOCK_READER | settings
            stock["corpora"][name]["path"] = _spacy_path(settings["path"])
    stock["paths"] = {name: _spacy_path(path) for name, path in stock.get("paths", {}).items()}
    training = stock["training"]
    batcher = registered_name(training["batcher"], "@batchers")
    if batcher.startswith(f"{PREFIX}.batch_by_"):
        settings = {key: value for key, value in training["batcher"].items() if key != "seed"}
        training["batcher"] = settings | {"@batchers": batcher.replace(PREFIX, "spacy", 1)}
    if registered_name(training.get("before_to_disk"), "@callbacks") == TO_STOCK:
        training["before_to_disk"] = None
    return stock


def _use_stock_listeners(section: dict[str, Any]) -> None:
    """Put spacy-transformers' listener in the place of ours, whose gradient factor may be a
    schedule; the stock one knows numbers only."""
    if registered_name(section, "@architectures") == OUR_LISTENER:
        section["@architectures"] = LISTENER
        if isinstance(section.get("grad_factor"), dict):
            section["grad_factor"] = 1.0
    for value in section.values():
        if isinstance(value, dict):
            _use_stock_listeners(value)


def _use_thinc_schedules(section: dict[str, Any]) -> None:
    """Put thinc's nearest schedule in the place of ours, which only their names tell apart: thinc
    has no cosine. It too rises to the rate and falls from it until the same step, to 0.0 always."""
    for key, value in section.items():
        if registered_name(value, "@schedules") == WARMUP_COSINE:
            kept = {name: setting for name, setting in value.items() if name != "final_rate"}
            section[key] = kept | {"@schedules": "warmup_linear.v1"}
        elif isinstance(value, dict):
            _use_thinc_schedules(value)


def registered_name(block: Any, registry: str) -> str:
    """The registered function that a block of a config calls.

    block (Any): A section, or whatever else stands in its place.
    registry (str): `@readers`, `@batchers` and so on.
    RETURNS (str): Its name; empty if the block calls none.
    """
    return block.get(registry, "") if isinstance(block, dict) else ""


def _spacy_path(path: Any) -> Any:
    if isinstance(path, str | Path) and str(path).endswith(".safetensors"):
        source = str(path).removesuffix(".safetensors")
        # A folder of .spacy files is packed into one file beside it.
        return source if Path(source).is_dir() else f"{source}.spacy"
    return path
