"""Training configs on disk: finding, reading, filling in and writing them."""

import configparser
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import spacy
from spacy.language import Language
from spacy.util import dict_to_dot, get_sourced_components, load_config, load_model_from_config
from thinc.api import Config, ConfigValidationError

from zero_copy.errors import UserError
from zero_copy.export import OWN_SETTINGS
from zero_copy.files import publish, staging
from zero_copy.training import find_config
from zero_copy.wordpieces import SENT_SPANS, is_transformer

CONFIGS = Path(__file__).parents[2] / "configs"


def named_config(name: Path) -> Path:
    """The config of a name, as it is given to a command.

    name (Path): Path of a config, or the name of one in configs/, `cnn` or `stock/cnn` say.
    RETURNS (Path): The file.
    RAISES (UserError): If there is none, naming those that there are.
    """
    if name.is_file() or name.suffix == ".cfg":
        return find_config(name)
    return find_config(Path(os.path.relpath(CONFIGS)) / f"{name}.cfg")


def read_config(path: Path) -> Config:
    """Read a training config, its variables not interpolated.

    path (Path): The config.
    RETURNS (Config): Its settings, as they are written.
    RAISES (UserError): If it is not there, is no config, or has no pipeline.
    """
    with one_message(f"{path} is no config that can be read"):
        config = load_config(find_config(path))
    if not {"lang", "pipeline"} <= set(config.get("nlp", {})):
        raise UserError(
            f"{path} is no training config",
            "It needs an [nlp] section with a language and a pipeline. "
            "`python -m spacy init config` writes one.",
        )
    return config


def build_pipeline(config: Config) -> Language:
    """The pipeline of a config, not initialized.

    config (Config): The config; what it leaves out is filled in with spaCy's defaults.
    RETURNS (Language): The pipeline, with the complete config.
    RAISES (UserError): If a function is not registered, a setting has no meaning, or a pipeline
        that components are sourced from is not there.
    """
    with one_message("No pipeline can be built from the config"):
        return load_model_from_config(config, auto_fill=True)


def transformer_pipeline(
    config: Path | None, lang: str, transformer: str, spans: dict[str, Any]
) -> Language | None:
    """A pipeline with the transformer whose wordpieces a corpus is to hold.

    config (Optional[Path]): A training config.
    lang (str): Language code, where there is no config.
    transformer (str): Name or folder of the transformer; that of the config where it is empty.
    spans (Dict[str, Any]): Config block of the span getter, where there is no config.
    RETURNS (Optional[Language]): The pipeline, or None if no transformer is asked for.
    RAISES (UserError): If there is no such config, or no pipeline can be built from it.
    """
    if config is not None:
        settings = read_config(config)
        blocks = [block for block in settings["components"].values() if is_transformer(block)]
        for block in blocks if transformer else ():
            block["model"]["name"] = transformer
        return build_pipeline(settings) if blocks else None
    if not transformer:
        return None
    nlp = spacy.blank(lang)
    if spans.get("@span_getters") == SENT_SPANS:
        nlp.add_pipe("sentencizer")
        nlp.config["training"]["annotating_components"] = ["sentencizer"]
    with one_message("No transformer can be built from the options"):
        model = {"name": transformer, "get_spans": spans}
        nlp.add_pipe("zero_copy_transformer", config={"model": model})
    return nlp


def fill_config(config: Config) -> Config:
    """Fill in what a config leaves out with spaCy's defaults, as `spacy init fill-config` does.

    config (Config): The config.
    RETURNS (Config): The complete config, or the same one if nothing is missing.
    RAISES (UserError): If no pipeline can be built from it.
    """
    filled = build_pipeline(config).config
    filled["components"].update(get_sourced_components(config))
    complete = filled.merge(config)
    _leave_out_what_is_off(config, complete)
    if "pretraining" not in config and not complete["pretraining"]:
        del complete["pretraining"]  # spaCy fills in the empty section
    return config if settings(complete) == settings(config) else complete


def _leave_out_what_is_off(config: Config, complete: Config) -> None:
    """Take settings of ours out again that are off, so that a config stays next to stock."""
    for section, own_settings in OWN_SETTINGS.items():
        for name, part in complete[section].items():
            written = config.get(section, {}).get(name, {})
            for setting, off in own_settings.items():
                if setting not in written and setting in part and part[setting] == off:
                    del part[setting]


def interpolate(config: Config) -> Config:
    """Put the values of variables in their places.

    config (Config): The config.
    RETURNS (Config): The config with the values.
    RAISES (UserError): If it names a variable that is not there.
    """
    with one_message("A variable of the config has no value"):
        return config.interpolate()


def settings(config: Config) -> dict[str, Any]:
    """All settings of a config under their dotted names, as `spacy train` takes them.

    config (Config): The config.
    RETURNS (Dict[str, Any]): `training.max_steps` and so on, in the config's order.
    """
    return dict_to_dot(config)


def write_config(config: Config, path: Path) -> None:
    """Write a config in spaCy's own form, all at once.

    config (Config): The config.
    path (Path): Where it goes.
    RAISES (OSError): If it can't be written; what stood there is still there.
    """
    with staging(path.parent) as temporary:
        config.to_disk(temporary / path.name, interpolate=False)
        publish(temporary, path.parent)


@contextmanager
def one_message(title: str) -> Iterator[None]:
    """Say in one message what is wrong with a config.

    title (str): What can't be done with it.
    RAISES (UserError): If something in it has no meaning.
    """
    try:
        yield
    except UserError:
        raise
    except ConfigValidationError as error:
        places = [f"{' '.join(place['loc'])}: {place['msg']}" for place in error.errors or []]
        raise UserError(title, "\n".join([str(error.desc or error.title), *places])) from error
    except (ValueError, ImportError, OSError, configparser.Error) as error:
        # The first paragraph: spaCy goes on with lists of all that is registered.
        raise UserError(title, str(error).split("\n\n")[0]) from error
