"""Word vectors: looked up once for each type, with scores and gradients as spaCy has them."""

import numpy
import pytest
from spacy.vectors import Mode, Vectors

from conftest import LABELS, WORDS, random_docs
from test_character_embed import characters
from test_layers import (
    LENGTHS,
    assert_parity,
    both,
    encoder,
    ensemble,
    gradients,
    hash_embed_cnn,
    reduce,
    tok2vec,
)
from zero_copy.corpus import PackedExample
from zero_copy.errors import UserError
from zero_copy.static_vectors import type_vectors, uses_vectors, vector_table
from zero_copy.textcat import PackedTextCategorizer


def with_vectors():
    config = tok2vec()
    return config | {"embed": config["embed"] | {"include_static_vectors": True}}


def static_plus_learned():
    embedding = {"@architectures": "zero_copy.StaticPlusLearned.v1", "width": 8, "rows": 50}
    return encoder("MaxoutWindowEncoder.v2", embedding, window_size=1, maxout_pieces=3, depth=1)


CONFIGS = {
    "ensemble": ensemble(with_vectors()),
    "reduce": reduce(embedding=with_vectors(), mean=True),
    "hash-embed-cnn": reduce(embedding=hash_embed_cnn() | {"pretrained_vectors": True}, max=True),
    "custom": reduce(embedding=static_plus_learned(), mean=True),
}


def add_vectors(nlp, mode: str, attr: str = "ORTH") -> None:
    """Random vectors; in the default mode, words of odd positions have none."""
    order = numpy.random.default_rng(0)
    if mode == "default":
        keys = [nlp.vocab.strings.add(word) for word in WORDS[::2]]
        data = order.normal(size=(len(keys) + 1, 5)).astype("f")
        vectors = Vectors(strings=nlp.vocab.strings, data=data, keys=keys, attr=attr)
    else:
        data = order.normal(size=(30, 5)).astype("f")
        settings = {"minn": 2, "maxn": 3, "hash_count": 2, "hash_seed": 7}
        vectors = Vectors(
            strings=nlp.vocab.strings, data=data, mode=Mode.floret, attr=attr, **settings
        )
    nlp.vocab.vectors = vectors


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("mode", "attr"),
    [("default", "ORTH"), ("default", "LOWER"), ("floret", "ORTH"), ("floret", "LOWER")],
)
def test_parity(nlp, pack_docs, name, mode, attr):
    add_vectors(nlp, mode, attr)
    docs = random_docs(nlp, LENGTHS + ((0,) if name == "ensemble" else ()))
    assert_parity(nlp, docs, pack_docs(docs), CONFIGS[name])


def test_with_characters(nlp, pack_docs):
    add_vectors(nlp, "default")
    config = characters()
    config["embed"]["include_static_vectors"] = True
    docs = random_docs(nlp, LENGTHS)
    assert_parity(nlp, docs, pack_docs(docs), reduce(embedding=config, mean=True))


def test_full_dropout_drops_in_the_same_places(nlp, pack_docs):
    add_vectors(nlp, "default")
    docs = random_docs(nlp, LENGTHS)
    stock, packed, examples, packed_examples = both(nlp, CONFIGS["reduce"], docs, pack_docs(docs))
    stock.update(examples, drop=1.0)
    packed.update(packed_examples, drop=1.0)
    for label, ours, expected in gradients(stock, packed):
        numpy.testing.assert_allclose(ours, expected, 1e-4, 1e-5, err_msg=label)


def test_the_table_is_the_vocabs_own_and_its_strings_stay_as_they_are(nlp, pack_docs):
    docs = random_docs(nlp, LENGTHS)
    batch = pack_docs(docs)
    add_vectors(nlp, "default")
    table = vector_table(batch.corpus, nlp.vocab)
    assert table.data_ptr() == nlp.vocab.vectors.data.ctypes.data
    add_vectors(nlp, "floret")
    before = len(nlp.vocab.strings)
    found = type_vectors(batch.corpus, nlp.vocab)
    assert len(nlp.vocab.strings) == before
    text = batch.corpus.packed.texts(range(1))[0]
    numpy.testing.assert_allclose(found[0], nlp.vocab.vectors[text], rtol=1e-5)


def test_subwords_by_another_attribute_are_refused(nlp, pack_docs):
    add_vectors(nlp, "floret", "SHAPE")
    batch = pack_docs(random_docs(nlp, LENGTHS))
    with pytest.raises(UserError, match="go by the attribute SHAPE"):
        type_vectors(batch.corpus, nlp.vocab)


@pytest.mark.parametrize("name", CONFIGS)
def test_without_vectors_it_says_what_to_run(nlp, pack_docs, name):
    from spacy.util import registry

    model = registry.resolve({"model": CONFIGS[name]})["model"]
    assert uses_vectors(model)
    packed = PackedTextCategorizer(nlp.vocab, model, "textcat", threshold=0.0)
    examples = [PackedExample(pack_docs(random_docs(nlp, LENGTHS)), nlp.vocab)]
    with pytest.raises(UserError, match="project run vectors"):
        packed.initialize(lambda: examples, labels=LABELS)
