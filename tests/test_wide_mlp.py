"""TF-IDF is scikit-learn's, the margins are those of a support vector machine, and the file is all
that a pipeline trained with it needs."""

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from spacy.language import Language
from spacy.tokens import Doc
from thinc.api import zero_init

import wide_mlp
from conftest import LABELS, random_docs, save_docs
from wide_mlp import Keep, Tokens, choose_ngrams, count_documents, tokens_of, weigh_ngrams
from zero_copy import store

TEXTS = st.lists(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), min_size=2, max_size=8
)


def make_bag(ngram_size: int = 2, longer_documents: int = 1, length: int = 1000) -> wide_mlp.Model:
    keep = Keep(ngram_size, length, longer_documents)
    return wide_mlp.weighted_bag(keep, 0.5, "NORM", "tfidf", zero_init, 3)


def table_of(bag: wide_mlp.Model, docs: list[Doc]) -> numpy.ndarray:
    """What a bag makes of documents, `(documents, rows)`."""
    found = weigh_ngrams(bag, tokens_of(docs, "NORM"))
    table = numpy.zeros((len(docs), bag.get_dim("rows")))
    table[found.docs, found.ngrams] = found.amounts
    return table


@settings(max_examples=30, deadline=None)
@given(texts=TEXTS, others=TEXTS, longer_documents=st.integers(1, 3))
def test_weights_are_those_of_scikit_learn(
    texts: list[list[str]], others: list[list[str]], longer_documents: int
) -> None:
    nlp = spacy.blank("en")
    docs, unseen = ([Doc(nlp.vocab, words) for words in part] for part in (texts, others))
    bag = make_bag(longer_documents=longer_documents)
    choose_ngrams(bag, iter([tokens_of(docs, "NORM")]))
    ours = table_of(bag, docs), table_of(bag, unseen)
    first = 0
    for size, rows in enumerate(bag.attrs["rows"], 1):
        vectorizer = TfidfVectorizer(
            analyzer=lambda words, size=size: list(
                zip(*(words[i:] for i in range(size)), strict=False)
            ),
            sublinear_tf=True,
            min_df=1 if size == 1 else longer_documents,
        )
        try:
            theirs = vectorizer.fit_transform(texts), vectorizer.transform(others)
        except ValueError:  # no n-gram is left
            assert rows == 0
            continue
        for mine, expected in zip(ours, theirs, strict=True):
            mine = mine[:, first : first + rows]
            expected = expected.toarray() * (1 if size == 1 else 0.5)
            # Their columns are ordered by word, ours by hash.
            assert numpy.allclose(numpy.sort(mine), numpy.sort(expected), atol=1e-6)
            assert numpy.allclose(mine @ mine.T, expected @ expected.T, atol=1e-5)
        first += rows


def test_counting_in_parts_and_from_either_kind_of_corpus(
    nlp: Language, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = random_docs(nlp, (20, 1, 35, 7, 14))
    spacy_path = save_docs(tmp_path / "train.spacy", docs)
    packed_path = tmp_path / "train.safetensors"
    store.pack(spacy_path, packed_path)
    expected = make_bag()
    choose_ngrams(expected, iter([tokens_of(docs, "NORM")]))
    for path, at_once in ((spacy_path, 10**9), (spacy_path, 10), (packed_path, 10)):
        monkeypatch.setattr(wide_mlp, "WORDS_AT_ONCE", at_once)
        bag = make_bag()
        pipe = nlp.add_pipe("textcat", name=f"{path.suffix}{at_once}"[1:])
        pipe.model = bag  # type: ignore[attr-defined]
        count_documents(nlp, path=path)
        for name in ("ngrams", "idf"):
            assert numpy.array_equal(bag.attrs[name], expected.attrs[name])


def test_the_most_frequent_are_kept(nlp: Language) -> None:
    docs = [Doc(nlp.vocab, words) for words in (["a", "b"], ["a", "c", "b"], ["a"])]
    bag = make_bag(ngram_size=1, length=2)
    choose_ngrams(bag, iter([tokens_of(docs, "NORM")]))
    table = table_of(bag, [Doc(nlp.vocab, [word]) for word in "abc"])
    assert table.any(axis=1).tolist() == [True, True, False]


def test_documents_without_a_known_word(nlp):
    bag = make_bag()
    choose_ngrams(bag, iter([Tokens(numpy.array([5, 6], "uint64"), numpy.array([2]))]))
    bag.initialize([nlp.make_doc("x")], numpy.zeros((1, 3), "f"))
    bag.set_param("b", numpy.array([1, 2, 3], "f"))
    assert (
        bag.predict([nlp.make_doc("unknown words"), nlp.make_doc("")]).tolist() == [[1, 2, 3]] * 2
    )


def test_gradient_is_that_of_the_squared_hinge():
    model = wide_mlp.margins(exclusive_classes=True)
    scores = numpy.array([[1.5, -0.5, 0.25], [0.5, 2.0, -1.0]], "f")
    truths = numpy.array([[1, 0, 0], [1, 0, 0]], "f")
    output, backprop = model(scores, is_train=True)
    gradient = backprop(output - truths)
    # Of half the square of what is missing to 1, and of what is above 0.
    expected = numpy.where(truths == 1, -numpy.maximum(1 - scores, 0), numpy.maximum(scores, 0))
    assert numpy.allclose(gradient, numpy.clip(expected, -1, 1))
    in_use = model.predict(scores)
    assert numpy.allclose(in_use.sum(axis=1), 1)
    assert (in_use.argsort() == scores.argsort()).all()


def test_unknown_weighting() -> None:
    with pytest.raises(ValueError, match="bm25"):
        wide_mlp.create_wide_mlp(True, weighting="bm25")


def test_pipeline_needs_this_file_alone(nlp: Language, tmp_path: Path) -> None:
    docs = random_docs(nlp, (20, 1, 35, 7, 14))
    model = {"@architectures": "zero_copy.TfidfBOW.v1", "exclusive_classes": True}
    pipe = nlp.add_pipe("textcat", config={"model": model})
    for label in LABELS:
        pipe.add_label(label)  # type: ignore[attr-defined]
    count_documents(nlp, path=save_docs(tmp_path / "train.spacy", docs))
    nlp.initialize()
    bag = pipe.model.get_ref("output_layer")  # type: ignore[attr-defined]
    order = numpy.random.default_rng(0)
    bag.set_param("W", order.normal(size=bag.get_param("W").shape).astype("f"))
    nlp.to_disk(tmp_path / "model")
    (tmp_path / "alone").mkdir()
    alone = Path(wide_mlp.__file__).read_text(encoding="utf8")
    (tmp_path / "alone/wide_mlp.py").write_text(alone, encoding="utf8")
    code = (
        "import wide_mlp, spacy; nlp = spacy.load('../model'); import sys;"
        "assert 'zero_copy' not in sys.modules; print(nlp('wheat of the port').cats)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "alone", capture_output=True, text=True
    )
    assert found.stdout.strip() == str(nlp("wheat of the port").cats), found.stderr
