"""The configs: valid, and different from their stock twins only in what makes them zero-copy."""

from pathlib import Path

import pytest
from spacy.util import load_config, load_model_from_config, registry
from thinc.api import Config

from conftest import TWO_TASKS
from zero_copy.export import stock_config

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.cfg"))
# Functions that stock components and the stock optimizer take as they are.
FOR_BOTH_TWINS = (
    "zero_copy.TorchHead.v1",
    "zero_copy.StaticPlusLearned.v1",
    "zero_copy.TfidfBOW.v1",
    "zero_copy.WideMLP.v1",
    "zero_copy.count_documents.v1",
    "zero_copy.warmup_cosine.v1",
    "zero_copy.load_transformer.v1",
)


def filled(config: Config) -> Config:
    return load_model_from_config(config, auto_fill=True).config


def test_every_config_has_a_stock_twin():
    assert sorted(path.stem for path in (CONFIGS / "stock").glob("*.cfg")) == NAMES
    assert {"bow", "cnn", "ensemble"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_twin_differs_only_in_what_makes_it_zero_copy(name):
    ours = load_config(CONFIGS / f"{name}.cfg")
    stock = load_config(CONFIGS / "stock" / f"{name}.cfg")
    if name in TWO_TASKS:
        assert stock["components"]["textcat"]["factory"] == "textcat_multilabel"
        stock["components"]["textcat"]["factory"] = "textcat"
    assert dict(filled(stock_config(ours))) == dict(filled(stock))


@pytest.mark.parametrize("name", NAMES)
def test_stock_twin_has_no_name_of_ours(name):
    text = (CONFIGS / "stock" / f"{name}.cfg").read_text(encoding="utf8")
    for name in FOR_BOTH_TWINS:
        text = text.replace(f'"{name}"', "")
    assert "zero_copy" not in text


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.cfg")), ids=lambda path: path.stem)
def test_every_registered_name_resolves(path, tmp_path):
    config = load_config(path, overrides={"paths.train": "train", "paths.dev": "dev"})
    registry.resolve(config.interpolate()["training"])
    registry.resolve(config.interpolate()["corpora"])
    assert load_model_from_config(config, auto_fill=True).pipe_names
