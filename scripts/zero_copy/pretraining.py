"""A tok2vec that has read the training texts before it sees a label: stock `spacy pretrain`.

What it leaves is spaCy's own file of parameters, for `[initialize] init_tok2vec` of both twins.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spacy
import srsly
from catalogue import RegistryError
from spacy.tokens import DocBin
from spacy.training.corpus import FILE_TYPE, walk_corpus
from spacy.training.pretrain import get_tok2vec_ref, pretrain
from spacy.util import load_config, load_model_from_config
from thinc.api import Config, ConfigValidationError

from zero_copy.errors import UserError
from zero_copy.files import publish, staging

RAW_TEXT, PRETRAINED = "raw.jsonl", "pretrained.bin"
# What spaCy calls the parameters after the last epoch.
LAST = "model-last.bin"


def is_pretrained(config: Path, overrides: dict[str, Any] | None = None) -> bool:
    """Whether a config is one for pretraining.

    config (Path): The config.
    overrides (Optional[Dict[str, Any]]): Settings of it to change, by their dotted names.
    RETURNS (bool): True if it has a [pretraining] section that is not empty.
    """
    return bool(load_config(config, overrides or {}).get("pretraining"))


def find_pretrained(config: Path, corpus: Path, overrides: dict[str, Any]) -> dict[str, str]:
    """The pretrained parameters that a config starts from and does not name.

    config (Path): The config.
    corpus (Path): Folder of the corpus.
    overrides (Dict[str, Any]): Settings of the config to change, by their dotted names.
    RETURNS (Dict[str, str]): The override `paths.init_tok2vec`, or nothing.
    RAISES (UserError): If there are none, saying which command makes them, or they are those of
        another model.
    """
    if not is_pretrained(config, overrides):
        return {}
    complete = load_config(config, overrides, interpolate=True)
    named = complete["initialize"].get("init_tok2vec")
    path = Path(named) if named else corpus / PRETRAINED
    again = f"Run `python -m spacy project run pretrain . --vars.config {config.stem}`"
    if not path.is_file():
        raise UserError(
            f"{config.stem} starts from pretrained parameters, and there are none at {path}",
            f"{again} first, or give some of your own with --paths.init_tok2vec.",
        )
    check_fits(complete, path, again)
    return {} if named else {"paths.init_tok2vec": str(path)}


def check_fits(config: Config, path: Path, remedy: str) -> None:
    """Make sure that pretrained parameters are those of a config's model.

    config (Config): The config, interpolated.
    path (Path): The parameters.
    remedy (str): What to do if they are not.
    RAISES (UserError): If they can't be loaded into the component that pretraining names.
    """
    try:
        nlp = load_model_from_config(config, auto_fill=True)
        layer = get_tok2vec_ref(nlp, config["pretraining"])
    except (ConfigValidationError, RegistryError):
        return  # spaCy, which reads the config next, says why
    try:
        layer.from_bytes(path.read_bytes())
    except Exception as error:  # thinc and msgpack raise whatever they stumble upon
        raise UserError(
            f"{path} does not fit component {config['pretraining']['component']!r}: {error}",
            f"{remedy} again.",
        ) from error


def make_pretrained(
    config: Path, source: Path, target: Path, *, gpu_id: int = -1, **overrides: Any
) -> int:
    """Write the texts of a corpus, and pretrain a config's tok2vec on them.

    config (Path): A config with a [pretraining] section.
    source (Path): The `.spacy` file, or a folder of them.
    target (Path): Folder for `raw.jsonl` and `pretrained.bin`, both of which are replaced once all
        is well.
    gpu_id (int): GPU, or -1 for the CPU.
    overrides (Any): Settings of the config to change, by their dotted names.
    RETURNS (int): How many texts there are.
    RAISES (UserError): If there is no text.
    """
    with staging(target) as folder:
        raw, output = folder / RAW_TEXT, folder / "epochs"
        overrides = {**overrides, "paths.raw_text": str(raw)}
        complete = load_config(config, overrides, interpolate=True)
        texts = write_raw_text(source, raw, lang=complete["nlp"]["lang"])
        output.mkdir()
        pretrain(complete, output, use_gpu=gpu_id, silent=False)
        os.replace(output / LAST, folder / PRETRAINED)
        shutil.rmtree(output)
        publish(folder, target)
    return texts


def write_raw_text(source: Path, path: Path, *, lang: str) -> int:
    """Write the texts of a corpus as `spacy pretrain` reads them: a JSON object a line.

    source (Path): The `.spacy` file, or a folder of them.
    path (Path): The `.jsonl` file.
    lang (str): Language code.
    RETURNS (int): How many texts there are.
    RAISES (UserError): If there is none.
    """
    count = 0

    def lines() -> Iterator[dict[str, str]]:
        nonlocal count
        vocab = spacy.blank(lang).vocab
        for part in sorted(walk_corpus(source, FILE_TYPE)):
            for doc in DocBin().from_disk(part).get_docs(vocab):
                if doc.text.strip():
                    count += 1
                    yield {"text": doc.text}

    srsly.write_jsonl(path, lines())
    if not count:
        raise UserError(f"{source} holds no text to pretrain on")
    return count
