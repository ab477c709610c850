"""Stock configs turned zero-copy and back: as `spacy init config` writes them, and as users do."""

import subprocess
from pathlib import Path

import numpy
import pytest
import spacy
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jinja2 import Template
from spacy.cli.init_config import RECOMMENDATIONS, TEMPLATE_PATH
from spacy.util import load_config_from_str, registry
from thinc.api import Config, Model, chain

from conftest import TWO_TASKS, WORDS, random_lengths, save_corpus
from forking import run_script
from zero_copy.adopt import REASONS, packed_path, to_stock, to_zero_copy
from zero_copy.configs import CONFIGS, fill_config, interpolate, read_config, settings
from zero_copy.diff import differences
from zero_copy.errors import UserError

ROOT = Path(__file__).parent.parent
# The twins of configs for two tasks have another factory, see test_configs.py.
NAMES = sorted({path.stem for path in CONFIGS.glob("*.cfg")} - {*TWO_TASKS})
FORMS = {
    "efficiency": ("--pipeline", "textcat"),
    "accuracy": ("--pipeline", "textcat", "--optimize", "accuracy"),
    "multilabel": ("--pipeline", "textcat_multilabel"),
    "multilabel-accuracy": ("--pipeline", "textcat_multilabel", "--optimize", "accuracy"),
}


def adopt(*arguments, **options) -> subprocess.CompletedProcess:
    return run_script(ROOT / "scripts" / "adopt.py", *arguments, **options)


def plain(done: subprocess.CompletedProcess) -> str:
    """Output on one line, as a terminal's width has no say in it."""
    return " ".join((done.stdout + done.stderr).split())


def stock(name: str = "ensemble") -> Config:
    return read_config(CONFIGS / "stock" / f"{name}.cfg")


# The configs of this project


@pytest.mark.parametrize("name", NAMES)
def test_stock_twin_becomes_the_config(name):
    assert dict(to_zero_copy(stock(name)).config) == dict(read_config(CONFIGS / f"{name}.cfg"))


@pytest.mark.parametrize("name", NAMES)
def test_config_becomes_the_stock_twin(name):
    adoption = to_stock(read_config(CONFIGS / f"{name}.cfg"))
    assert dict(adoption.config) == dict(stock(name))
    assert adoption.filled == adoption.remarks == []


@pytest.mark.parametrize("name", NAMES)
def test_every_change_is_told_with_its_reason(name):
    adoption = to_zero_copy(stock(name))
    changed = {change.setting for change in adoption.changes}
    assert changed == {change.setting for change in differences(stock(name), adoption.config)}
    assert {setting.rpartition(".")[2] for setting in changed} <= set(REASONS)
    untouched = set(settings(stock(name))) & set(settings(adoption.config)) - changed
    assert len(untouched) > 50
    assert all(
        settings(stock(name))[setting] == settings(adoption.config)[setting]
        for setting in untouched
    )


def test_adopting_twice_changes_nothing_more():
    adopted = to_zero_copy(stock()).config
    again = to_zero_copy(adopted)
    assert again.changes == []
    assert dict(again.config) == dict(adopted)


# Whatever a user may write

SCHEDULE = {"@schedules": "compounding.v1", "start": 10, "stop": 100, "compound": 1.1, "t": 0.0}
sizes = st.integers(1, 5000) | st.just(SCHEDULE)
batchers = st.one_of(
    st.fixed_dictionaries(
        {
            "@batchers": st.just("spacy.batch_by_words.v1"),
            "size": sizes,
            "tolerance": st.floats(0, 1),
            "discard_oversize": st.booleans(),
            "get_length": st.none(),
        }
    ),
    st.fixed_dictionaries(
        {
            "@batchers": st.just("spacy.batch_by_sequence.v1"),
            "size": sizes,
            "get_length": st.none(),
        }
    ),
    st.fixed_dictionaries(
        {
            "@batchers": st.just("spacy.batch_by_padded.v1"),
            "size": sizes,
            "buffer": st.integers(1, 500),
            "discard_oversize": st.booleans(),
            "get_length": st.none(),
        }
    ),
)
paths = st.sampled_from([None, "train.spacy", "./data/a b.spacy", "${paths.root}/x.spacy"])
readers = st.fixed_dictionaries(
    {
        "@readers": st.just("spacy.Corpus.v1"),
        "path": paths | st.just("${paths.train}"),
        "gold_preproc": st.just(False),
        "max_length": st.integers(0, 300),
        "limit": st.integers(0, 10),
        "augmenter": st.none(),
    }
)


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.differing_executors]
)
@given(
    st.sampled_from(["bow", "cnn", "ensemble"]),
    st.sampled_from(["textcat", "textcat_multilabel"]),
    *(batchers, readers, readers, paths, st.sampled_from([3, "${system.seed}"])),
)
def test_there_and_back_is_the_same_config(name, factory, batcher, train, dev, path, seed):
    config = stock(name)
    config["components"]["textcat"]["factory"] = factory
    config["paths"] |= {"train": path, "root": "corpus"}
    config["corpora"] = {"train": train, "dev": dev}
    config["training"] |= {"batcher": batcher, "seed": seed}
    complete = fill_config(config)
    adoption = to_zero_copy(config)
    for reader in interpolate(adoption.config)["corpora"].values():
        assert reader["path"] is None or reader["path"].endswith(".safetensors")
    assert settings(adoption.config)["training.batcher.seed"] == seed
    assert dict(to_stock(adoption.config).config) == dict(complete)


def test_names_of_components_and_other_corpora_stay():
    config = stock("bow")
    config["components"]["topics"] = config["components"].pop("textcat")
    config["nlp"]["pipeline"] = ["topics"]
    config["corpora"]["test"] = config["corpora"]["dev"] | {"path": "test.spacy"}
    adopted = to_zero_copy(config).config
    assert adopted["components"]["topics"]["factory"] == "zero_copy_textcat"
    assert adopted["corpora"]["test"] == config["corpora"]["test"]


@pytest.mark.parametrize(
    ("path", "packed"),
    [
        ("corpus/train.spacy", "corpus/train.safetensors"),
        ("./train.spacy", "./train.safetensors"),
        ("corpus/train", "corpus/train.safetensors"),
        ("corpus/train/", "corpus/train.safetensors"),
    ],
)
def test_packed_path_is_where_pack_writes(path, packed):
    assert packed_path(path) == packed
    assert Path(path).with_suffix(".safetensors") == Path(packed)


def test_folder_of_a_corpus_comes_back(tmp_path):
    (tmp_path / "train").mkdir()
    config = stock("bow")
    config["paths"]["train"] = str(tmp_path / "train")
    adopted = to_zero_copy(config).config
    assert adopted["paths"]["train"] == str(tmp_path / "train.safetensors")
    assert dict(to_stock(adopted).config) == dict(config)


def test_what_has_another_meaning_is_said():
    config = stock("bow")
    assert to_zero_copy(config).remarks == []
    config["corpora"]["train"]["max_length"] = 100
    config["system"]["gpu_allocator"] = None
    config["initialize"]["lookups"] = {
        "@misc": "spacy.LookupsDataLoader.v1",
        "lang": "en",
        "tables": ["lexeme_norm"],
    }
    said = " ".join(to_zero_copy(config).remarks)
    for setting in ("corpora.train.max_length = 100", "gpu_allocator", "initialize.lookups"):
        assert setting in said
    assert "corpora.dev" not in said


# What is refused


@registry.architectures("test_adopt.Unknown.v1")
def create_unknown(tok2vec: Model, nO: int | None = None) -> Model:
    def forward(model, X, is_train):
        return X, lambda dY: dY

    return chain(tok2vec, Model("unknown", forward))


@registry.batchers("test_adopt.batcher.v1")
def create_batcher():
    return list


@registry.callbacks("test_adopt.callback.v1")
def create_callback():
    return lambda nlp: nlp


@registry.misc("test_adopt.length.v1")
def create_length():
    return len


@registry.scorers("test_adopt.scorer.v1")
def create_scorer():
    return lambda examples, **kwargs: {}


NER = {"factory": "ner"}
TOK2VEC = {"@architectures": "spacy.HashEmbedCNN.v2", "width": 8, "depth": 1, "embed_size": 50}
TOK2VEC |= {"window_size": 1, "maxout_pieces": 2, "subword_features": True}
TOK2VEC |= {"pretrained_vectors": None}
AUGMENTER = {"@augmenters": "spacy.lower_case.v1", "level": 0.5}
EDITS = {
    "nlp.pipeline": ({"names": NER}, r"'names' \(ner\) can't train from a packed corpus"),
    "components.textcat.model": (
        {"@architectures": "test_adopt.Unknown.v1", "tok2vec": TOK2VEC},
        r"test_adopt.Unknown.v1 of component 'textcat' can't be lowered.*'unknown'",
    ),
    "components.textcat.model.@architectures": ("spacy.TextCatBOW.v2", "use spacy.TextCatBOW.v3"),
    "components.textcat.scorer": ({"@scorers": "test_adopt.scorer.v1"}, "scorer of its own"),
    "corpora.train.augmenter": (AUGMENTER, r"\[corpora.train\] has augmenter"),
    "corpora.dev.gold_preproc": (True, r"\[corpora.dev\] has gold_preproc"),
    "corpora.dev": (
        {"@readers": "spacy.JsonlCorpus.v1", "path": None},
        r"\[corpora.dev\] can't be read packed: spacy.JsonlCorpus.v1",
    ),
    "training.train_corpus": ("corpora.other", "corpora.other, which is not there"),
    "training.batcher": ({"@batchers": "test_adopt.batcher.v1"}, "test_adopt.batcher.v1"),
    "training.batcher.get_length": ({"@misc": "test_adopt.length.v1"}, "has get_length"),
    "training.before_to_disk": (
        {"@callbacks": "test_adopt.callback.v1"},
        "is taken: test_adopt.callback.v1",
    ),
}


@pytest.mark.parametrize("setting", EDITS)
def test_what_has_no_counterpart_is_refused_by_name(setting):
    config = stock("bow")
    value, message = EDITS[setting]
    if setting == "nlp.pipeline":
        config["components"] |= value
        config["nlp"]["pipeline"] = ["textcat", *value]
    elif setting.endswith("@architectures"):
        config["components"]["textcat"]["model"] |= {"@architectures": value}
        del config["components"]["textcat"]["model"]["length"]
    else:
        section, _, key = setting.rpartition(".")
        spacy.util.dot_to_object(config, section)[key] = value
    with pytest.raises(UserError, match=f"(?s){message}"):
        to_zero_copy(config)


def test_frozen_component_is_left_alone():
    config = stock("bow")
    config["components"]["names"] = NER
    config["nlp"]["pipeline"] = ["textcat", "names"]
    config["training"]["frozen_components"] = ["names"]
    adopted = to_zero_copy(config).config
    assert adopted["components"]["names"]["factory"] == "ner"


@pytest.fixture(scope="module")
def other_pipeline(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("other") / "pipeline"
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec")
    nlp.add_pipe("ner").add_label("PERSON")
    nlp.initialize()
    nlp.to_disk(path)
    return path


def sourced(name: str, pipeline: Path, *, frozen: bool) -> Config:
    config = stock("ensemble")
    config["components"]["textcat"]["model"]["tok2vec"]["width"] = 96
    config["components"][name] = {"source": str(pipeline)}
    if name not in config["nlp"]["pipeline"]:
        config["nlp"]["pipeline"].append(name)
    if frozen:
        config["training"] |= {"frozen_components": [name], "annotating_components": [name]}
    return config


def test_sourced_component_has_to_be_frozen(other_pipeline):
    with pytest.raises(UserError, match=r"'ner' \(ner\) can't train"):
        to_zero_copy(sourced("ner", other_pipeline, frozen=False))
    adopted = to_zero_copy(sourced("ner", other_pipeline, frozen=True)).config
    assert adopted["components"]["ner"] == {"source": str(other_pipeline)}


def test_classifier_can_not_listen_to_a_sourced_tok2vec(other_pipeline):
    with pytest.raises(UserError, match="'textcat' listens to 'tok2vec', which is sourced"):
        to_zero_copy(sourced("tok2vec", other_pipeline, frozen=True))


def test_pipeline_that_is_not_there_is_one_message():
    with pytest.raises(UserError, match="Can't find model 'nowhere'"):
        to_zero_copy(sourced("ner", Path("nowhere"), frozen=True))


@pytest.mark.parametrize("components", [["textcat"], ["textcat", "textcat_multilabel"]])
@pytest.mark.parametrize("optimize", ["efficiency", "accuracy"])
def test_transformer_of_the_quickstart_is_adopted(optimize, components):
    """What `spacy init config --pipeline textcat --gpu` writes, without an edit."""
    text = Template(TEMPLATE_PATH.read_text(encoding="utf8")).render(
        lang="en",
        components=components,
        optimize=optimize,
        hardware="gpu",
        transformer_data=RECOMMENDATIONS["en"]["transformer"],
        word_vectors=None,
        has_letters=True,
    )
    config = load_config_from_str(text)
    adoption = to_zero_copy(config)
    assert adoption.config["components"]["transformer"]["factory"] == "zero_copy_transformer"
    assert any("accumulate_gradient = 3" in remark for remark in adoption.remarks)
    assert dict(to_stock(adoption.config).config) == dict(fill_config(config))


def test_curated_transformer_is_refused_by_name():
    config = stock("bow")
    config["components"]["transformer"] = {"factory": "curated_transformer"}
    with pytest.raises(UserError, match=r"'transformer' \(curated_transformer\) can't train"):
        to_zero_copy(config)


# As commands


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A small corpus, packed, and word vectors for it."""
    lengths = {"train": random_lengths(19, 30), "dev": random_lengths(19, 10, 1)}
    folder = save_corpus(tmp_path_factory.mktemp("corpus"), lengths)
    nlp = spacy.blank("en")
    order = numpy.random.default_rng(0)
    for word in WORDS:
        nlp.vocab.set_vector(word, order.normal(size=10).astype("float32"))
    nlp.to_disk(folder / "vectors")
    return folder


@pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=pytest.mark.slow if "multi" in form else ()) for form in FORMS],
)
def test_config_of_init_config_trains_without_an_edit(form, corpus, tmp_path):
    config, mine, output = tmp_path / "config.cfg", tmp_path / "mine.cfg", tmp_path / "out"
    assert run_script("-m", "spacy", "init", "config", config, *FORMS[form]).returncode == 0
    done = adopt(config, "-o", mine)
    assert done.returncode == 0, plain(done)
    assert "Filled in" not in plain(done)

    code = ("--code", ROOT / "scripts" / "functions.py")
    paths = [*("--paths.train", corpus / "train.safetensors")]
    paths += [*("--paths.dev", corpus / "dev.safetensors")]
    if "accuracy" in form:
        paths += ["--paths.vectors", corpus / "vectors"]
    steps = ("--training.max_steps", 4, "--training.eval_frequency", 2)
    done = run_script(
        *("-m", "spacy", "train", mine, *code, *paths, *steps, "--output", output), cwd=tmp_path
    )
    assert done.returncode == 0, plain(done)
    nlp = spacy.load(output / "model-best")
    assert set(nlp("wheat and ships").cats) == {"grain", "ship", "trade"}
    assert "zero_copy" not in nlp.config.to_str()


QUICKSTART = """
[paths]
train = "corpus/train.spacy"
dev = "corpus/dev.spacy"

[nlp]
lang = "en"
pipeline = ["textcat"]

[components]

[components.textcat]
factory = "textcat"

[corpora]

[corpora.train]
@readers = "spacy.Corpus.v1"
path = ${paths.train}

[training]
max_steps = 7
"""


def test_what_a_config_leaves_out_is_filled_in_as_spacy_does(tmp_path):
    (tmp_path / "base.cfg").write_text(QUICKSTART, encoding="utf8")
    base, full = tmp_path / "base.cfg", tmp_path / "full.cfg"
    done = run_script("-m", "spacy", "init", "fill-config", base, full)
    assert done.returncode == 0, plain(done)
    done = adopt(tmp_path / "base.cfg", "-o", tmp_path / "mine.cfg")
    assert done.returncode == 0, plain(done)
    assert "settings with spaCy's defaults" in plain(done)
    assert "+ training.patience = 1600" in plain(done)
    assert 'paths.dev = "corpus/dev.spacy" -> "corpus/dev.safetensors"' in plain(done)
    full, mine = (read_config(tmp_path / f"{name}.cfg") for name in ("full", "mine"))
    assert settings(to_zero_copy(full).config) == settings(mine)
    done = adopt(tmp_path / "mine.cfg", "--to-stock", "-o", tmp_path / "back.cfg")
    assert done.returncode == 0, plain(done)
    assert settings(read_config(tmp_path / "back.cfg")) == settings(full)


def test_stock_twin_is_kept_where_its_folder_is(tmp_path):
    (tmp_path / "stock").mkdir()
    (tmp_path / "base.cfg").write_text(QUICKSTART, encoding="utf8")
    assert adopt(tmp_path / "base.cfg", "-o", tmp_path / "mine.cfg").returncode == 0
    twin = read_config(tmp_path / "stock" / "mine.cfg")
    assert dict(twin) == dict(fill_config(load_config_from_str(QUICKSTART)))
    # A twin that is itself the source is left as it is.
    before = (tmp_path / "stock" / "mine.cfg").read_bytes()
    done = adopt(tmp_path / "stock" / "mine.cfg", "-o", tmp_path / "mine.cfg", "--force")
    assert done.returncode == 0
    assert (tmp_path / "stock" / "mine.cfg").read_bytes() == before


def test_own_functions_come_by_code(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(
        "import spacy\n"
        "@spacy.registry.architectures('mine.Bow.v1')\n"
        "def create(nO: int | None = None):\n"
        "    name = 'spacy.TextCatBOW.v3'\n"
        "    return spacy.registry.architectures.get(name)(True, 1, False, 1000, nO)\n",
        encoding="utf8",
    )
    config = stock("bow")
    config["components"]["textcat"]["model"] = {"@architectures": "mine.Bow.v1"}
    config.to_disk(tmp_path / "own.cfg", interpolate=False)
    assert "mine.Bow.v1" in plain(adopt(tmp_path / "own.cfg"))
    done = adopt(tmp_path / "own.cfg", "--code", code, "-o", tmp_path / "mine.cfg")
    assert done.returncode == 0, plain(done)


def test_without_an_output_nothing_is_written(tmp_path):
    done = adopt(CONFIGS / "stock" / "bow.cfg", cwd=tmp_path)
    assert done.returncode == 0
    assert '"textcat" -> "zero_copy_textcat"' in plain(done)
    assert "Nothing was written" in plain(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "-o", "new.cfg"], "There is no config"),
        (["text.txt", "-o", "new.cfg"], "no config that can be read"),
        ([CONFIGS / "stock" / "bow.cfg", "-o", "text.txt"], "--force"),
        ([CONFIGS / "stock" / "bow.cfg", "-o", "folder"], "is a folder"),
        (["ner.cfg", "-o", "new.cfg"], "'ner' (ner) can't train from a packed corpus"),
        ([CONFIGS / "stock" / "bow.cfg", "--code", "none.py"], "not found"),
    ],
)
def test_bad_input_is_one_message(tmp_path, arguments, message):
    (tmp_path / "text.txt").write_text("a text", encoding="utf8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "ner.cfg").write_text(
        QUICKSTART.replace('["textcat"]', '["textcat", "ner"]')
        + '\n[components.ner]\nfactory = "ner"\n',
        encoding="utf8",
    )
    done = adopt(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in plain(done)
    assert "Traceback" not in plain(done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "ner.cfg", "text.txt"]
    assert (tmp_path / "text.txt").read_text(encoding="utf8") == "a text"
