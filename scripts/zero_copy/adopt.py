"""Turning a stock training config into its zero-copy form, and back.

Only those settings change without which nothing would train from a packed corpus. What has no
counterpart is refused by name before anything trains.
"""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from spacy.language import Language
from spacy.util import dot_to_object, registry, set_dot_to_object
from thinc.api import Config

from zero_copy.configs import build_pipeline, fill_config, interpolate, settings
from zero_copy.corpus import refuse_pipeline
from zero_copy.diff import Difference, differences
from zero_copy.errors import UserError
from zero_copy.export import PREFIX, TO_STOCK, registered_name, stock_config
from zero_copy.lowering import check_lowered
from zero_copy.packed_pipe import PackedPipe
from zero_copy.textcat import PackedTextCategorizer

CORPORA = ("train_corpus", "dev_corpus")
# Settings that a packed corpus does not have, and their one value that changes nothing.
READER_DEFAULTS: dict[str, Any] = {"gold_preproc": False, "augmenter": None}
REASONS = {
    "factory": "The same model and settings, able to train from packed examples",
    "@readers": "Reads the packed corpus, and places it on the device once",
    "gold_preproc": "A packed corpus has no such setting, and false changes nothing",
    "@batchers": "Cuts the packed corpus into batches by the same rule",
    "seed": "The batcher draws the order of the documents itself",
    "@callbacks": "Saves the stock pipeline, which loads without this project",
    "path": "The packed form of the same corpus",
}


class Adoption(NamedTuple):
    """A config in its other form.

    complete (Config): The config as it was, with what it left out filled in.
    config (Config): The config in its other form.
    filled (List[Difference]): What it left out, and spaCy's defaults for it.
    changes (List[Difference]): What makes the other form.
    remarks (List[str]): What stays as it is and deserves a look.
    """

    complete: Config
    config: Config
    filled: list[Difference]
    changes: list[Difference]
    remarks: list[str]


def to_zero_copy(config: Config) -> Adoption:
    """Turn a stock config into its zero-copy form.

    config (Config): A config that `spacy train` takes; what it leaves out is filled in.
    RETURNS (Adoption): The config to train from a packed corpus, and what was changed.
    RAISES (UserError): If a setting or a component has no counterpart, naming it.
    """
    refuse_curated_transformers(config)
    complete = fill_config(config)
    adopted = complete.copy()
    adopt_components(adopted)
    adopt_corpora(adopted)
    adopt_batcher(adopted)
    adopt_export(adopted)
    check_trains(adopted)
    return _adoption(config, complete, adopted, remarks(complete))


def to_stock(config: Config) -> Adoption:
    """Turn a zero-copy config into its stock form.

    config (Config): A config with functions of this project.
    RETURNS (Adoption): The same training from `.spacy` files, and what was changed.
    RAISES (UserError): If no pipeline can be built from it.
    """
    complete = fill_config(config)
    return _adoption(config, complete, fill_config(stock_config(complete)), [])


def _adoption(config: Config, complete: Config, result: Config, remarks: list[str]) -> Adoption:
    known, before, after = settings(config), settings(complete), settings(result)
    filled = [
        Difference(setting, None, value)
        for setting, value in before.items()
        if setting not in known and value is not None
    ]
    # The lines of the two files, with their variables as they are written.
    changes = [
        Difference(change.setting, before.get(change.setting), after.get(change.setting))
        for change in differences(complete, result)
    ]
    return Adoption(complete, result, filled, changes, remarks)


def reason(change: Difference) -> str:
    """Why a setting changes in the zero-copy form.

    change (Difference): One of the changes of `to_zero_copy`.
    RETURNS (str): In a few words.
    """
    return REASONS.get(change.setting.rpartition(".")[2], REASONS["path"])


def refuse_curated_transformers(config: Config) -> None:
    """Refuse curated transformers by name: without their package nothing could be built.

    config (Config): Any config.
    RAISES (UserError): If it has one.
    """
    for name, component in config.get("components", {}).items():
        if component.get("factory") == "curated_transformer":
            raise UserError(
                f"Component {name!r} (curated_transformer) can't train from a packed corpus",
                "Use spacy-transformers' transformer in its place, as `python -m spacy init config "
                "--pipeline textcat --gpu` writes it, or train with the stock config.",
            )


def adopt_components(config: Config) -> None:
    """Give every component for which there is one the factory of ours.

    config (Config): A complete config; it is changed.
    """
    for component in config["components"].values():
        ours = f"{PREFIX}_{component.get('factory')}"
        if Language.has_factory(ours):
            component["factory"] = ours


def adopt_corpora(config: Config) -> None:
    """Read the corpora of training and evaluation packed.

    config (Config): A complete config; it is changed.
    RAISES (UserError): If one is not read by `spacy.Corpus.v1`, or with settings that change the
        examples.
    """
    for setting in CORPORA:
        place = config["training"][setting]
        reader = _reader(config, place)
        name = registered_name(reader, "@readers")
        if name == f"{PREFIX}.Corpus.v1":
            continue
        if name != "spacy.Corpus.v1":
            raise UserError(
                f"[{place}] can't be read packed: {name or 'it names no reader'}",
                "Write its documents to a .spacy file (spacy.tokens.DocBin), and read that with "
                "spacy.Corpus.v1.",
            )
        for key, default in READER_DEFAULTS.items():
            if reader.pop(key, default) != default:
                raise UserError(
                    f"[{place}] has {key}, which changes the examples as they are read",
                    f"A packed corpus is read as it is. Remove {key}, and convert the documents "
                    "as they are to be; or train with the stock config.",
                )
        reader["@readers"] = f"{PREFIX}.Corpus.v1"
        _follow(config, f"{place}.path", packed_path)


def _reader(config: Config, place: str) -> Any:
    try:
        return dot_to_object(config, place)
    except KeyError as error:
        raise UserError(
            f"[training] names a corpus {place}, which is not there", "Add it to [corpora]."
        ) from error


def _follow(config: Config, setting: str, change: Callable[[str], str]) -> None:
    """Change the ending of a path where it is written, in another setting perhaps."""
    value = dot_to_object(config, setting)
    variable = re.search(r"\$\{([^}]+)\}$", value) if isinstance(value, str) else None
    if variable:
        _follow(config, variable[1].replace(":", "."), change)
    elif value is not None:
        set_dot_to_object(config, setting, change(str(value)))


def packed_path(path: str) -> str:
    """Where `pack` puts the packed form of a corpus.

    path (str): A `.spacy` file or a folder of them.
    RETURNS (str): The `.safetensors` file beside it.
    """
    return os.path.splitext(path.rstrip("/"))[0] + ".safetensors"


def adopt_batcher(config: Config) -> None:
    """Cut batches from the packed corpus.

    config (Config): A complete config; it is changed.
    RAISES (UserError): If the batcher is not one of spaCy's, or measures documents by a function of
        its own.
    """
    batcher = config["training"]["batcher"]
    name = registered_name(batcher, "@batchers")
    if name.startswith(f"{PREFIX}."):
        return
    ours = name.replace("spacy.", f"{PREFIX}.", 1)
    if not name.startswith("spacy.") or not registry.has("batchers", ours):
        raise UserError(
            f"[training.batcher] can't cut a packed corpus: {name or 'it names no batcher'}",
            "Use spacy.batch_by_words.v1, spacy.batch_by_sequence.v1 or spacy.batch_by_padded.v1.",
        )
    if batcher.pop("get_length", None) is not None:
        raise UserError(
            "[training.batcher] has get_length, which needs ordinary documents",
            "Remove it: the length of a packed document is its number of words.",
        )
    batcher |= {"@batchers": ours, "seed": config["training"]["seed"]}


def adopt_export(config: Config) -> None:
    """Save a stock pipeline.

    config (Config): A complete config; it is changed.
    RAISES (UserError): If something else is to happen before a pipeline is saved.
    """
    before = config["training"].get("before_to_disk")
    name = registered_name(before, "@callbacks")
    if before is not None and name != TO_STOCK:
        raise UserError(
            f"[training.before_to_disk] is taken: {name or before}",
            f"Its place is needed for {TO_STOCK}. Remove it, and do what it does with the "
            "pipeline that training leaves.",
        )
    config["training"]["before_to_disk"] = {"@callbacks": TO_STOCK}


def check_trains(config: Config) -> None:
    """Make sure that the pipeline of a config can train from a packed corpus.

    config (Config): A complete zero-copy config.
    RAISES (UserError): If a component, an architecture or a setting can't, naming it.
    """
    nlp = build_pipeline(config)
    refuse_pipeline(nlp)
    for name, component in nlp.pipeline:
        if not isinstance(component, PackedPipe):
            _refuse_listeners(nlp, name, component)
        if isinstance(component, PackedPipe):
            try:
                component.check_model()
            except UserError as error:
                block = interpolate(config)["components"][name]["model"]
                architecture = unlowered_architecture(block) or "the model"
                title = f"{architecture} of component {name!r} can't be lowered: {error.title}"
                raise UserError(title, error.desc) from error
        if isinstance(component, PackedTextCategorizer):
            component.check_scorer()


def _refuse_listeners(nlp: Language, name: str, component: Any) -> None:
    for listener in getattr(component, "listening_components", ()):
        if isinstance(nlp.get_pipe(listener), PackedPipe):
            raise UserError(
                f"Component {listener!r} listens to {name!r}, which is sourced from another "
                "pipeline and can't compute its vectors from a packed corpus",
                f"Give [components.{name}] a factory and a model of its own, or {listener!r} a "
                "tok2vec in its model in place of the listener.",
            )


def unlowered_architecture(block: dict[str, Any]) -> str | None:
    """The innermost architecture of a model that can't be lowered.

    block (Dict[str, Any]): The config of a model, interpolated.
    RETURNS (Optional[str]): Its registered name, or None if the whole model can be lowered.
    """
    for value in block.values():
        found = unlowered_architecture(value) if isinstance(value, dict) else None
        if found:
            return found
    name = registered_name(block, "@architectures")
    try:
        if name:
            check_lowered(registry.resolve({"model": block})["model"])
    except UserError:
        return name
    return None


def remarks(config: Config) -> list[str]:
    """What stays as it is, and has another meaning or needs care with a packed corpus.

    config (Config): A complete config.
    RETURNS (List[str]): A sentence or two each.
    """
    said = []
    for place in {config["training"][setting]: None for setting in CORPORA}:
        longest = _reader(config, place).get("max_length")
        if longest:
            said.append(
                f"{place}.max_length = {longest}: longer documents are left out; spaCy splits "
                "those whose sentence boundaries are known."
            )
    tokenizer = registered_name(config["nlp"]["tokenizer"], "@tokenizers")
    if tokenizer != "spacy.Tokenizer.v1":
        said.append(
            f"nlp.tokenizer = {tokenizer}: a packed corpus keeps the tokens of the .spacy file, "
            "so write that with this tokenizer."
        )
    for setting in ("lookups", "vocab_data"):
        if config["initialize"].get(setting) is not None:
            said.append(
                f"initialize.{setting}: a packed corpus keeps the norms of the .spacy file, so "
                "write that with the same data loaded."
            )
    if config["training"].get("accumulate_gradient", 1) > 1:
        said.append(
            f"training.accumulate_gradient = {config['training']['accumulate_gradient']}: a packed "
            "batch is not divided, as the sum over its parts is the same gradient. A transformer's "
            "max_batch_items bounds the memory that it takes."
        )
    if config["system"].get("gpu_allocator") is None:
        said.append(
            'system.gpu_allocator = null: set it to "pytorch" if you train on a GPU, so that '
            "thinc and torch share its memory."
        )
    return said
