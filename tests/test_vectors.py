"""Word vectors: trained on a corpus or brought along, and found when a config needs them."""

import gzip
import subprocess
from pathlib import Path

import numpy
import pytest
import spacy
from spacy.vectors import Mode

from conftest import random_docs, save_docs
from forking import run_script
from zero_copy import store
from zero_copy.errors import UserError
from zero_copy.training import embeds_vectors, find_vectors
from zero_copy.vectors import make_vectors, write_text

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"


@pytest.fixture
def corpus(tmp_path, nlp) -> Path:
    docs = random_docs(nlp, numpy.random.default_rng(0).integers(1, 40, 60))
    docs.append(nlp.make_doc("Wheat \n\n ports"))
    docs[-1].cats = docs[0].cats
    save_docs(tmp_path / "train.spacy", docs)
    store.pack(tmp_path / "train.spacy", tmp_path / "train.safetensors")
    return tmp_path


def word2vec_file(path: Path, words=("wheat", "ships", "é"), width=3) -> Path:
    lines = [f"{len(words)} {width}"]
    lines += [f"{word} " + " ".join(["0.5"] * width) for word in words]
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    return path


def test_text_is_one_document_a_line(corpus, tmp_path):
    write_text(store.read(corpus / "train.safetensors"), tmp_path / "text")
    lines = (tmp_path / "text").read_text(encoding="utf8").splitlines()
    assert len(lines) == 61
    assert lines[-1].split() == ["wheat", "ports"]


def test_trained_vectors_know_words_that_the_corpus_lacks(corpus):
    target = corpus / "vectors"
    make_vectors(corpus / "train.safetensors", target, dim=8, epochs=2, threads=1)
    nlp = spacy.load(target)
    assert nlp.vocab.vectors.mode == Mode.floret
    assert nlp.vocab.vectors_length == 8
    known, upper, unknown = nlp("wheat WHEAT wheatcorntonnes")
    assert known.vector.any()
    assert unknown.vector.any()
    numpy.testing.assert_array_equal(known.vector, upper.vector)
    names = {path.name for path in corpus.iterdir()}
    assert names == {"train.spacy", "train.safetensors", "vectors"}


@pytest.mark.parametrize("ending", ["txt", "gz"])
def test_vectors_of_ones_own(corpus, tmp_path, ending):
    source = word2vec_file(tmp_path / "own.txt")
    if ending == "gz":
        zipped = tmp_path / "own.txt.gz"
        zipped.write_bytes(gzip.compress(source.read_bytes()))
        source = zipped
    make_vectors(corpus / "train.safetensors", corpus / "vectors", source=str(source))
    vocab = spacy.load(corpus / "vectors").vocab
    assert vocab.vectors.mode == Mode.default
    assert vocab.get_vector("é").tolist() == [0.5, 0.5, 0.5]


def test_vectors_of_a_pipeline(corpus, tmp_path):
    make_vectors(corpus / "train.safetensors", tmp_path / "first", dim=8, epochs=1)
    first = str(tmp_path / "first")
    make_vectors(corpus / "train.safetensors", tmp_path / "second", source=first)
    one, other = (spacy.load(tmp_path / name).vocab.vectors for name in ("first", "second"))
    assert one == other


@pytest.mark.parametrize("content", ["", "wheat\nships\n", "2 3\nwheat 1 2 3\nships 1 2\n"])
def test_broken_vectors_are_one_message(corpus, tmp_path, content):
    (tmp_path / "own.txt").write_text(content, encoding="utf8")
    with pytest.raises(UserError, match=r"own\.txt"):
        make_vectors(
            corpus / "train.safetensors", corpus / "vectors", source=str(tmp_path / "own.txt")
        )
    assert not (corpus / "vectors").exists()


def test_vectors_that_are_not_there(corpus):
    with pytest.raises(UserError, match="There are no vectors at none"):
        make_vectors(corpus / "train.safetensors", corpus / "vectors", source="none")


def test_pipeline_without_vectors(corpus, tmp_path, nlp):
    nlp.to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="has no vectors"):
        make_vectors(
            corpus / "train.safetensors", corpus / "vectors", source=str(tmp_path / "blank")
        )


def test_corpus_too_small_to_train_on(tmp_path, nlp):
    docs = random_docs(nlp, [1])
    save_docs(tmp_path / "train.spacy", docs)
    store.pack(tmp_path / "train.spacy", tmp_path / "train.safetensors")
    with pytest.raises(UserError, match="No vectors can be trained"):
        make_vectors(tmp_path / "train.safetensors", tmp_path / "vectors")
    assert not (tmp_path / "vectors").exists()


@pytest.mark.parametrize("folder", [CONFIGS, CONFIGS / "stock"], ids=["ours", "stock"])
def test_configs_that_embed_vectors(folder, tmp_path):
    assert not embeds_vectors(folder / "cnn.cfg")
    assert find_vectors(folder / "cnn.cfg", tmp_path, {}) == {}
    for name in ("vectors", "custom_embedding"):
        config = folder / f"{name}.cfg"
        assert embeds_vectors(config)
        with pytest.raises(UserError, match="project run vectors"):
            find_vectors(config, tmp_path, {})
        assert find_vectors(config, tmp_path, {"paths.vectors": "mine"}) == {}
    (tmp_path / "vectors").mkdir()
    assert find_vectors(config, tmp_path, {}) == {"paths.vectors": str(tmp_path / "vectors")}


def test_an_override_may_ask_for_vectors(tmp_path):
    override = {"components.tok2vec.model.embed.include_static_vectors": True}
    assert embeds_vectors(CONFIGS / "ensemble.cfg", override)


def script(*arguments) -> subprocess.CompletedProcess:
    return run_script(ROOT / "scripts" / "vectors.py", *arguments)


def test_command(corpus):
    done = script(CONFIGS / "bow.cfg", corpus)
    assert done.returncode == 0
    assert "nothing to make" in done.stdout
    done = script(CONFIGS / "vectors.cfg", corpus, "--dim", 8, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    assert "50,000 rows, 8 wide, of subwords" in " ".join(done.stdout.split())
    done = script(CONFIGS / "vectors.cfg", corpus, "--source", "nowhere")
    assert done.returncode == 1
    assert "There are no vectors at nowhere" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
