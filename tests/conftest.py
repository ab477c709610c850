"""Small corpora, packed and not, on which both sides of a comparison run."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# As many tests as there are cores run at a time, so each and what it starts gets one thread.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy
import pytest
import spacy
import torch
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from thinc.api import prefer_gpu, use_ops

import functions  # noqa: F401  registers what the configs name
from zero_copy import store
from zero_copy.corpus import PackedBatch, ResidentCorpus

LABELS = ("grain", "ship", "trade")
# One token each; the tokenizer gives "cos" the norm "because".
WORDS = ["wheat", "Corn", "ships", "cos", "U.S.", "3,000", "tonnes", "of", "the", "port", "%", "é"]
# Stock textcat refuses texts with a label of each of two tasks, so their twins use another factory.
TWO_TASKS = ("independent", "shared_groups", "transformer_shared")


@pytest.fixture
def nlp() -> Language:
    return spacy.blank("en")


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """The first GPU, on which thinc computes too."""
    prefer_gpu()
    with use_ops("cupy"):
        yield torch.device("cuda", 0)


def random_docs(nlp: Language, lengths: Sequence[int], seed: int = 0) -> list[Doc]:
    """Docs of some texts of so many words, each with one of LABELS."""
    order = numpy.random.default_rng(seed)
    docs = []
    for length in lengths:
        doc = nlp.make_doc(" ".join(order.choice(WORDS, length)))
        label = LABELS[order.integers(len(LABELS))]
        doc.cats = {name: float(name == label) for name in LABELS}
        docs.append(doc)
    return docs


def save_docs(path: Path, docs: Sequence[Doc]) -> Path:
    """Write Docs as `convert` does."""
    DocBin(attrs=["ORTH", "NORM"], docs=docs).to_disk(path)
    return path


def save_corpus(folder: Path, lengths: Mapping[str, Sequence[int]]) -> Path:
    """Write splits of random texts of so many words, tokenized and packed; returns the folder."""
    nlp = spacy.blank("en")
    for seed, (split, words) in enumerate(lengths.items()):
        source = save_docs(folder / f"{split}.spacy", random_docs(nlp, words, seed))
        store.pack(source, folder / f"{split}.safetensors")
    return folder


def random_lengths(longest: int, count: int, seed: int = 0) -> list[int]:
    """Lengths of so many texts, of one word up to so many."""
    return numpy.random.default_rng(seed).integers(1, longest + 1, count).tolist()


def train_a_little(nlp: Language, docs: Sequence[Doc], steps: int) -> None:
    """Initialize a pipeline from Docs, and take so many steps on all of them."""
    examples = [Example(nlp.make_doc(doc.text), doc) for doc in docs]
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(steps):
        nlp.update(examples, sgd=optimizer)


def with_empty_documents(packed: store.PackedCorpus, docs: Sequence[Doc]) -> store.PackedCorpus:
    """Put the empty documents back that packing leaves out."""
    lengths = torch.tensor([len(doc) for doc in docs])
    cats = [[int(doc.cats.get(label, 255)) for label in packed.info.labels] for doc in docs]
    columns = packed.columns | {
        "doc_offsets": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        "cats": torch.tensor(cats, dtype=torch.uint8),
    }
    return store.PackedCorpus(packed.path, packed.info, columns)


@pytest.fixture
def pack_docs(tmp_path: Path) -> Callable[..., PackedBatch]:
    """Packs Docs and returns all of them as one batch."""

    def pack_docs(docs: Sequence[Doc], attrs: Sequence[str] = ()) -> PackedBatch:
        source = save_docs(tmp_path / "docs.spacy", docs)
        store.pack(source, tmp_path / "docs.safetensors", attrs=(*store.ATTRS, *attrs))
        packed = with_empty_documents(store.read(tmp_path / "docs.safetensors"), docs)
        corpus = ResidentCorpus(packed, torch.device("cpu"))
        return PackedBatch(corpus, numpy.arange(len(docs)))

    return pack_docs


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Path:
    """A saved stock pipeline that has learned a little."""
    nlp = spacy.blank("en")
    model = {
        "@architectures": "spacy.TextCatBOW.v3",
        "exclusive_classes": True,
        "length": 4096,
        "ngram_size": 1,
        "no_output_layer": False,
    }
    nlp.add_pipe("textcat", config={"model": model})
    train_a_little(nlp, random_docs(nlp, [8] * 60), 5)
    path = tmp_path_factory.mktemp("pipeline") / "model-best"
    nlp.to_disk(path)
    return path


def write_transformer(folder: Path, seed: int = 0, longest: int = 64, **settings) -> Path:
    """A tiny BERT with random weights and a tokenizer that knows the beginnings of WORDS."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = sorted(set("".join(WORDS).lower()))
    pieces = ["wheat", "ship", "ton", "the", "of", "por", *letters, *(f"##{c}" for c in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = folder / "vocab.txt"
    vocab.write_text("\n".join([*special, *dict.fromkeys(pieces)]), encoding="utf8")
    tokenizer = BertTokenizerFast(str(vocab), model_max_length=longest)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=longest,
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | settings,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory) -> Path:
    """A tiny BERT that takes 64 wordpieces at once, without dropout."""
    return write_transformer(tmp_path_factory.mktemp("transformer") / "tiny")
