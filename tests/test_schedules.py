"""Schedules of the rate, the batch size and dropout, in trainings from a packed corpus."""

import re
from itertools import islice
from pathlib import Path

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.training.loop import train_while_improving
from spacy.util import load_config, load_model_from_config, registry
from thinc.api import Adam, compounding, warmup_linear

from conftest import random_docs, save_docs
from test_components import PIPELINES, make
from test_export import CONFIGS, corpus, plain, spacy_train  # noqa: F401  a fixture
from zero_copy import store
from zero_copy.batcher import create_batch_by_words
from zero_copy.corpus import Corpus
from zero_copy.errors import UserError
from zero_copy.export import stock_config, to_stock
from zero_copy.schedules import WARMUP_COSINE, create_warmup_cosine

COSINE = {"@schedules": WARMUP_COSINE, "warmup_steps": 4, "total_steps": 12, "initial_rate": 0.1}


def test_rates_by_hand():
    rates = list(islice(create_warmup_cosine(2, 6, 0.4, 0.1), 8))
    half = 0.15 / 2**0.5
    assert rates == pytest.approx([0, 0.2, 0.4, 0.25 + half, 0.25, 0.25 - half, 0.1, 0.1])


@given(st.integers(0, 50), st.integers(1, 200), st.floats(1e-5, 10), st.floats(0, 1))
def test_it_rises_then_falls_and_stays(warmup, fall, rate, share):
    total, final = warmup + fall, rate * share
    rates = list(islice(create_warmup_cosine(warmup, total, rate, final), total + 3))
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup] == max(rates) == pytest.approx(rate)
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[total:] == [final] * 3


@given(st.integers(0, 50), st.integers(2, 200))
def test_it_is_above_the_straight_line_first_and_below_it_then(warmup, fall):
    total = warmup + fall
    ours = list(islice(create_warmup_cosine(warmup, total, 1.0), total))
    line = list(islice(warmup_linear(1.0, warmup, total), total))
    assert ours[: warmup + 1] == pytest.approx(line[: warmup + 1])
    for step in range(warmup, total):
        middle = step - warmup - fall / 2
        assert (ours[step] - line[step]) * middle <= 1e-9


@pytest.mark.parametrize(("warmup", "total"), [(10, 10), (0, 0), (-1, 5)])
def test_steps_that_leave_no_fall_are_refused(warmup, total):
    with pytest.raises(UserError, match="total_steps"):
        create_warmup_cosine(warmup, total, 0.1)


def test_thinc_s_optimizer_follows_it():
    section = {"optimizer": {"@optimizers": "Adam.v1", "learn_rate": COSINE}}
    optimizer = registry.resolve(section)["optimizer"]
    rates = []
    for _ in range(14):
        rates.append(optimizer.learn_rate)
        optimizer.step_schedules()
    expected = islice(create_warmup_cosine(4, 12, 0.1), 14)
    assert rates == pytest.approx(list(expected))


def test_export_leaves_a_stock_schedule():
    config = load_config(CONFIGS / "bow.cfg")
    optimizer = config["training"]["optimizer"]
    optimizer["learn_rate"] |= {"@schedules": WARMUP_COSINE, "final_rate": 0.0001}
    optimizer["beta1"] = {"@schedules": "constant_then.v1", "rate": 0.9, "steps": 3}
    optimizer["beta1"]["schedule"] = COSINE
    exported = to_stock(load_model_from_config(config)).config["training"]["optimizer"]
    rate = load_config(CONFIGS / "bow.cfg")["training"]["optimizer"]["learn_rate"]
    assert exported["learn_rate"] == rate
    assert exported["beta1"]["schedule"] == COSINE | {"@schedules": "warmup_linear.v1"}


def test_a_twin_keeps_it():
    """thinc's optimizer takes any schedule, so both sides of a comparison follow the same."""
    config = load_config(CONFIGS / "wide_mlp.cfg")
    rate = stock_config(config)["training"]["optimizer"]["learn_rate"]
    assert rate == config["training"]["optimizer"]["learn_rate"]
    assert rate["@schedules"] == WARMUP_COSINE


def test_any_config_takes_it_as_an_override(corpus, tmp_path):  # noqa: F811
    """It has the settings of the schedule in the configs, so its name alone is to be changed."""
    schedule = ("--training.optimizer.learn_rate.@schedules", WARMUP_COSINE)
    steps = ("--training.optimizer.learn_rate.warmup_steps", 5)
    output = tmp_path / "out"
    done = spacy_train(CONFIGS / "bow.cfg", corpus, output, *schedule, *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (output / "model-best" / "config.cfg").read_text(encoding="utf8")
    assert "zero_copy" not in text
    learn_rate = load_config(output / "model-best" / "config.cfg")["training"]["optimizer"]
    assert learn_rate["learn_rate"]["@schedules"] == "warmup_linear.v1"
    assert spacy.load(output / "model-best")("wheat").cats


def test_refused_schedule_is_one_message(corpus, tmp_path):  # noqa: F811
    schedule = ("--training.optimizer.learn_rate.@schedules", WARMUP_COSINE)
    steps = ("--training.optimizer.learn_rate.total_steps", 50)
    done = spacy_train(CONFIGS / "bow.cfg", corpus, tmp_path / "out", *schedule, *steps)
    assert done.returncode == 1
    assert "has warmup_steps = 100 and total_steps = 50" in plain(done.stdout)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def packed(nlp, tmp_path) -> Path:
    docs = random_docs(nlp, [10] * 120)
    store.pack(save_docs(tmp_path / "train.spacy", docs), tmp_path / "train.safetensors")
    return tmp_path / "train.safetensors"


def test_batches_grow_over_epochs(packed):
    """A schedule of the size goes on in the next epoch where the last one left it."""
    pipeline = make(PIPELINES["bow"])
    size = {"@schedules": "compounding.v1", "start": 20, "stop": 300, "compound": 1.5}
    section = {"@batchers": "zero_copy.batch_by_words.v1", "size": size, "tolerance": 0.0}
    batcher = registry.resolve({"batcher": section})["batcher"]
    reader = Corpus(packed)
    epochs = [[len(batch[0]) for batch in batcher(reader(pipeline))] for _ in range(3)]
    words = [size for sizes in epochs for size in sizes[:-1]]  # the last takes what is left
    assert words == sorted(words)
    assert words[0] == 20
    assert words[-1] == 300
    assert [sum(sizes) for sizes in epochs] == [1200] * 3


def test_dropout_follows_a_schedule_in_spacy_s_loop(packed):
    """`train_while_improving` takes one, and packed updates are given its rates."""
    pipeline = make(PIPELINES["cnn"])
    reader = Corpus(packed)
    pipeline.initialize(lambda: reader(pipeline))
    batches = ((0, batch) for batch in create_batch_by_words(100)(reader(pipeline)))
    rates = []
    component = pipeline.get_pipe("textcat")

    def note(nlp, moment):
        rates.append({layer.attrs.get("dropout_rate") for layer in component.model.walk()})

    steps = train_while_improving(
        *(pipeline, Adam(0.01), batches, lambda: (0.0, {})),
        dropout=compounding(0.1, 0.4, 1.3),
        eval_frequency=100,
        accumulate_gradient=1,
        patience=0,
        max_steps=6,
        exclude=[],
        annotating_components=[],
        before_update=note,
    )
    list(steps)
    assert len(rates) == 7
    seen = [max(rate for rate in step if rate is not None) for step in rates[1:]]
    assert seen == pytest.approx(list(islice(compounding(0.1, 0.4, 1.3), len(seen))))


def test_a_config_takes_no_schedule_for_dropout(corpus, tmp_path):  # noqa: F811
    """spaCy's own schema wants a float there, of every config."""
    text = (CONFIGS / "bow.cfg").read_text(encoding="utf8")
    text = re.sub(r"(?m)^dropout = .*\n", "", text)
    text += '\n[training.dropout]\n@schedules = "constant.v1"\nrate = 0.1\n'
    (tmp_path / "dropout.cfg").write_text(text, encoding="utf8")
    done = spacy_train(tmp_path / "dropout.cfg", corpus, tmp_path / "out")
    assert done.returncode == 1
    assert "dropout" in plain(done.stdout)
    assert "Traceback" not in done.stdout + done.stderr
