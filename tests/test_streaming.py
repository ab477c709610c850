"""A streamed corpus: every batch is what a resident one gives, in bounded memory and mixed well."""

import gc
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy
import pytest
import spacy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.util import registry
from thinc.api import Adam, fix_random_seed

from conftest import save_corpus
from test_character_embed import characters
from test_components import PIPELINES, make, parameters
from test_layers import bow, ensemble, reduce, wide_mlp
from test_static_vectors import add_vectors, with_vectors
from zero_copy import store, workers
from zero_copy.batcher import (
    create_batch_by_padded,
    create_batch_by_sequence,
    create_batch_by_words,
)
from zero_copy.corpus import Corpus, PackedBatch, PackedExample, kept_corpus
from zero_copy.errors import UserError
from zero_copy.resident import ResidentCorpus, stripe
from zero_copy.streaming import (
    SHARDS_PER_WINDOW,
    Stage,
    StreamedCorpus,
    Window,
    bytes_of,
    describe_bytes,
    place,
)

CPU = torch.device("cpu")
LENGTHS = [9, 30, 4, 1, 50, 17, 8] * 30
# The words of LENGTHS take 14 KB, so that these are some eight windows.
MEMORY = 4000
MODELS = {
    **PIPELINES,
    "bigrams": [("zero_copy_textcat", bow(ngram_size=2))],
    "characters": [("zero_copy_textcat", reduce(embedding=characters(), mean=True))],
    "vectors": [("zero_copy_textcat", ensemble(with_vectors()))],
    "wide_mlp": [("zero_copy_textcat", wide_mlp())],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = save_corpus(tmp_path_factory.mktemp("corpus"), {"train": LENGTHS})
    return folder / "train.safetensors"


def numbered(lengths: Sequence[int], labels: int = 2) -> store.PackedCorpus:
    """A corpus whose tokens are all of different types, so that each tells where it is from."""
    tokens = sum(lengths)
    cats = torch.arange(len(lengths)).remainder(2)[:, None].to(torch.uint8).repeat(1, labels)
    columns = {
        "token_types": torch.arange(tokens, dtype=torch.int32),
        "doc_offsets": torch.from_numpy(store.offsets_of(numpy.array(lengths, "int64"))),
        "cats": cats,
    }
    source = store.Source(name="", size=0, md5="")
    names = [str(number) for number in range(labels)]
    info = store.PackedInfo(lang="en", attrs=[], labels=names, source=source)
    return store.PackedCorpus(Path("numbered"), info, columns)


def least_memory(packed: store.PackedCorpus) -> int:
    """What the message says that a corpus needs."""
    with pytest.raises(UserError, match="can't be streamed in 1B") as raised:
        StreamedCorpus(packed, CPU, 1)
    found = re.search(r'memory = "(\w+)"', raised.value.desc)
    size = bytes_of(found[1]) if found else None
    assert size is not None
    return size


def check_batch(batch: PackedBatch, packed: store.PackedCorpus) -> None:
    """Make sure that a batch of a numbered corpus has what belongs to its documents."""
    whole = PackedBatch(ResidentCorpus(packed, CPU), batch.numbers_in_whole)
    assert batch.words == whole.words == len(batch.tokens)
    assert torch.equal(batch.token_types, whole.token_types)
    assert torch.equal(batch.lengths, whole.lengths)
    labels = (packed.info.labels[-1], "unknown")
    assert torch.equal(batch.truths(labels), whole.truths(labels))


def epoch(corpus: StreamedCorpus, order: numpy.random.Generator) -> list[tuple[Window, list[int]]]:
    docs = numpy.arange(len(corpus.lengths))
    return [
        (part, part.numbers_of(numbers).tolist()) for part, numbers in corpus.shuffled(docs, order)
    ]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=120),
    labels=st.integers(0, 5),
    extra=st.integers(0, 4000),
    longest=st.integers(1, 61),
    seed=st.integers(0, 3),
)
def test_each_epoch_has_each_document_once_whatever_the_sizes(
    lengths, labels, extra, longest, seed
):
    packed = numbered(lengths, labels=labels + 1)
    memory = least_memory(packed) + extra
    corpus = StreamedCorpus(packed, CPU, memory)
    # Of a limit or a largest length some documents are left, of some shards perhaps none.
    docs = numpy.flatnonzero(corpus.lengths < longest)
    order = numpy.random.default_rng(seed)
    for parts in (corpus.in_order(docs), *(corpus.shuffled(docs, order) for _ in range(2))):
        seen: list[int] = []
        for part, numbers in parts:
            check_batch(PackedBatch(part, numbers), packed)
            assert sum(column.nbytes for column in part.placed) <= memory // 2
            seen += part.numbers_of(numbers).tolist()
        assert sorted(seen) == docs.tolist()
        assert sum(place.nbytes for place in corpus.stage.places) <= memory
    in_order = [part.numbers_of(numbers) for part, numbers in corpus.in_order(docs)]
    assert [number for part in in_order for number in part] == docs.tolist()


@pytest.mark.parametrize(
    "batcher",
    [
        lambda: create_batch_by_words(100, discard_oversize=False),
        lambda: create_batch_by_sequence(9),
        lambda: create_batch_by_padded(200, buffer=20),
    ],
    ids=["words", "sequence", "padded"],
)
def test_batches_have_each_document_once_an_epoch_in_a_fresh_order(nlp, path, batcher):
    def epochs() -> list[list[int]]:
        cut = batcher()
        return [
            [int(doc) for batch in cut(reader(nlp)) for doc in batch[0].batch.numbers_in_whole]
            for _ in range(2)
        ]

    reader = Corpus(path, memory=MEMORY)
    first, second = epochs()
    assert first != second
    assert sorted(first) == sorted(second) == list(range(len(LENGTHS)))
    assert epochs() == [first, second]


def test_batches_keep_to_the_size(nlp, path):
    batcher = create_batch_by_words(100, tolerance=0.0)
    batches = [batch[0].batch for batch in batcher(Corpus(path, memory=MEMORY)(nlp))]
    assert max(batch.words for batch in batches) <= 100
    windows = len({id(batch.corpus) for batch in batches})
    assert windows > 5
    # Beside the last of each window, no batch has room for another document.
    assert sum(batch.words <= 50 for batch in batches) <= windows


@pytest.mark.parametrize(("max_length", "limit"), [(50, 0), (0, 5), (17, 100), (60, 12)])
def test_max_length_and_limit_are_those_of_a_resident_corpus(nlp, path, max_length, limit):
    def documents(**memory) -> list[int]:
        examples = Corpus(path, max_length=max_length, limit=limit, **memory)(nlp)
        return [int(doc) for example in examples for doc in example.batch.numbers_in_whole]

    assert documents(memory=MEMORY) == documents()


def test_what_is_left_out_is_not_brought(nlp, path, monkeypatch):
    brought = count_windows(monkeypatch)
    for example in Corpus(path, memory=MEMORY, limit=3)(nlp):
        assert example.batch.token_types is not None
    assert len(brought) == 1
    assert len(brought[0].lengths) < len(LENGTHS) / 4


def test_documents_are_mixed_with_those_of_other_shards():
    corpus = StreamedCorpus(numbered([10] * 4000), CPU, 50_000)
    order = numpy.random.default_rng(0)
    epochs = [epoch(corpus, order) for _ in range(2)]
    shard = numpy.repeat(numpy.arange(len(corpus.shards) - 1), numpy.diff(corpus.shards))
    for windows in epochs:
        assert len(windows) > 5
        for window, docs in windows:
            # Only the end of an epoch may have fewer.
            assert len(window.starts) >= SHARDS_PER_WINDOW / 2
            same = (numpy.diff(shard[docs]) == 0).mean()
            assert same < 3 / len(window.starts)
    together = [[set(shard[docs]) for _, docs in windows] for windows in epochs]
    # Which shards meet differs from epoch to epoch.
    assert not any(window in together[1] for window in together[0])
    assert epochs[0][0][1] != sorted(epochs[0][0][1])


def test_windows_are_of_like_size():
    corpus = StreamedCorpus(numbered([10] * 4000), CPU, 50_000)
    sizes = [len(docs) for _, docs in epoch(corpus, numpy.random.default_rng(0))]
    assert min(sizes) > 0.8 * max(sizes)


@pytest.mark.parametrize("name", MODELS)
def test_training_is_that_of_a_resident_corpus_exactly(path, name):
    """Gradients too, as all updates end in the same parameters, bit for bit."""

    def pipeline() -> spacy.Language:
        nlp = make(MODELS[name])
        if name == "vectors":
            add_vectors(nlp, "default")
        return nlp

    def train(
        reader: Corpus, batches: Iterable[PackedBatch], evaluated: list[PackedBatch]
    ) -> tuple:
        nlp, sgd = pipeline(), Adam(0.01, L2=0.01)
        losses: dict = {}
        nlp.initialize(lambda: reader(nlp))
        fix_random_seed(0)
        for batch in batches:
            nlp.update([PackedExample(batch, nlp.vocab)], drop=0.2, sgd=False, losses=losses)
            for _, component in nlp.pipeline:
                component.finish_update(sgd)
        scores = nlp.evaluate([PackedExample(batch, nlp.vocab) for batch in evaluated])
        scores.pop("speed")
        return parameters(nlp), scores, {name: float(loss) for name, loss in losses.items()}

    streamed, nlp = Corpus(path, memory=MEMORY), make(MODELS["bow"])
    batches = [batch.batch for (batch,) in create_batch_by_words(300)(streamed(nlp))]
    evaluated = [example.batch for example in streamed(nlp)]
    assert len({id(batch.corpus) for batch in batches}) > 5
    ours, scores, losses = train(streamed, batches, evaluated)
    # The same documents, of a resident corpus.
    same, same_evaluated = (
        [PackedBatch(kept_corpus(path, CPU), batch.numbers_in_whole) for batch in part]
        for part in (batches, evaluated)
    )
    theirs, expected, expected_losses = train(Corpus(path), same, same_evaluated)
    for one, other in zip(ours, theirs, strict=True):
        numpy.testing.assert_array_equal(one, other)
    assert scores == expected
    assert losses == expected_losses


def test_what_follows_from_types_is_computed_once_for_all_windows(path, monkeypatch):
    monkeypatch.setattr("zero_copy.corpus._kept", {})
    for name in ("ensemble", "characters", "vectors"):
        nlp = make(MODELS[name])
        if name == "vectors":
            add_vectors(nlp, "default")
        reader = Corpus(path, memory=MEMORY)
        nlp.initialize(lambda nlp=nlp, reader=reader: reader(nlp))
        nlp.update(next(create_batch_by_words(100)(reader(nlp))), sgd=False)
    corpus = kept_corpus(path, CPU, MEMORY)
    assert isinstance(corpus, StreamedCorpus)
    assert {"hashembed", "ngrams", "characters", "vector_rows"} <= {
        key[0] for key in corpus._derived
    }
    assert corpus.stage.window is not None
    assert {key[0] for key in corpus.stage.window._derived} == {"truths"}


def count_windows(monkeypatch) -> list[Window]:
    """The windows that are copied from now on."""
    brought: list[Window] = []
    fill = Stage.fill

    def counting(stage: Stage, window: Window, place: torch.Tensor):
        brought.append(window)
        return fill(stage, window, place)

    monkeypatch.setattr(Stage, "fill", counting)
    return brought


def test_an_evaluation_brings_each_window_once(path, monkeypatch):
    nlp = make(MODELS["cnn"])
    reader = Corpus(path, memory=MEMORY)
    nlp.initialize(lambda: reader(nlp))
    brought = count_windows(monkeypatch)
    nlp.evaluate(reader(nlp))
    docs = [
        doc for window in brought for doc in window.numbers_of(numpy.arange(len(window.lengths)))
    ]
    assert docs == list(range(len(LENGTHS)))


def test_initializing_and_passing_over_steps_bring_nothing(path, monkeypatch):
    brought = count_windows(monkeypatch)
    nlp = make([("zero_copy_textcat", bow(ngram_size=2))])
    nlp.get_pipe("textcat").imbalance.class_weights = "balanced"
    reader, sgd = Corpus(path, memory=MEMORY), Adam(0.01)
    nlp.initialize(lambda: reader(nlp))
    nlp.get_pipe("textcat").pass_over([])
    batcher = create_batch_by_words(100)
    for batch in batcher(reader(nlp)):
        nlp.update(batch, sgd=sgd)
    assert not brought
    nlp.get_pipe("textcat").load_state(
        nlp.get_pipe("textcat").state() | {"updates": torch.zeros(1)}
    )
    nlp.update(next(batcher(reader(nlp))), sgd=sgd)
    assert brought


def test_a_window_that_has_gone_comes_back():
    packed = numbered([10] * 400)
    corpus = StreamedCorpus(packed, CPU, 8_000)
    parts = list(corpus.shuffled(numpy.arange(400), numpy.random.default_rng(0)))
    assert len(parts) > 3
    for part, numbers in [*parts, *parts[::-1], parts[0], parts[2], parts[1]]:
        check_batch(PackedBatch(part, numbers), packed)
        assert corpus.stage.window is part


def test_the_next_window_comes_while_one_is_used(monkeypatch):
    packed = numbered([10] * 400)
    corpus = StreamedCorpus(packed, CPU, 8_000)
    (first, numbers), (second, others), *_ = corpus.in_order(numpy.arange(400))
    may_come, is_coming = threading.Event(), threading.Event()
    fill = Stage.fill

    def waiting(stage: Stage, window: Window, place: torch.Tensor):
        if window is second:
            is_coming.set()
            assert may_come.wait(10)
        return fill(stage, window, place)

    monkeypatch.setattr(Stage, "fill", waiting)
    check_batch(PackedBatch(first, numbers), packed)
    assert is_coming.wait(10)
    check_batch(PackedBatch(first, numbers[::-1].copy()), packed)
    may_come.set()
    check_batch(PackedBatch(second, others), packed)


def test_what_goes_wrong_on_the_way_is_told(monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    packed = numbered([10] * 400)
    corpus = StreamedCorpus(packed, CPU, 8_000)
    parts = list(corpus.in_order(numpy.arange(400)))
    check_batch(PackedBatch(*parts[0]), packed)
    with monkeypatch.context() as context:
        context.setattr(Stage, "fill", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            check_batch(PackedBatch(*parts[2]), packed)
    check_batch(PackedBatch(*parts[2]), packed)


def own_memory() -> int:
    """Bytes that are the process's own, which mapped files are not."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def windows_alive(corpus: StreamedCorpus) -> list[Window]:
    gc.collect()
    windows = [each for each in gc.get_objects() if type(each) is Window]
    return [window for window in windows if window.streamed is corpus]


def test_memory_is_flat_over_epochs():
    """Of a corpus of 4 MB, with a column of a model's own that takes twice as much as the words."""
    order = numpy.random.default_rng(0)
    packed, memory = numbered(order.integers(10, 90, 20_000).tolist()), 2**20
    corpus = StreamedCorpus(packed, CPU, memory)
    docs = numpy.arange(len(corpus.lengths))
    after: list[int] = []
    for _ in range(12):
        for part, numbers in corpus.shuffled(docs, order):
            batch = PackedBatch(part, numbers)
            tokens = int(part.lengths.sum())
            part.derived(("own",), lambda tokens=tokens: numpy.ones((tokens, 2), "int32"))
            assert len(batch.token_types) == tokens
            assert sum(place.nbytes for place in corpus.stage.places) <= memory
        del part, batch
        assert windows_alive(corpus) == [corpus.stage.window]
        after.append(own_memory())
    # What the system counts goes up and down by 4 MB; a window an epoch would be 13 MB by now.
    assert max(after[3:]) - after[2] < 8 * memory


def test_windows_that_batches_hold_on_to_leave_the_device():
    """An evaluation holds all its batches until the end."""
    corpus = StreamedCorpus(numbered([10] * 4000), CPU, 50_000)
    batches = [PackedBatch(part, docs) for part, docs in corpus.in_order(numpy.arange(4000))]
    for batch in batches:
        batch.corpus.derived(("own",), lambda: numpy.ones(1))
        assert batch.token_types is not None
        assert batch.corpus.packed.columns["token_types"] is not None
    held = [batch.corpus for batch in batches if batch.corpus._derived]
    assert held == [corpus.stage.window]
    held = [batch.corpus for batch in batches if "token_types" in batch.corpus.packed.columns]
    assert held == [corpus.stage.window]


def test_what_fits_is_resident():
    packed = numbered([10] * 100)
    size = sum(packed.columns[name].nbytes for name in ("token_types", "doc_offsets", "cats"))
    assert type(place(packed, CPU, size)) is ResidentCorpus
    assert type(place(packed, CPU, size - 1)) is StreamedCorpus
    assert type(place(packed, CPU, None)) is ResidentCorpus


def test_auto_leaves_a_share_of_a_gpu_to_the_model(monkeypatch):
    gpu, packed = torch.device("cuda", 0), numbered([10] * 1000)
    for free, expected in ((2**30, ResidentCorpus), (2**15, StreamedCorpus)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2**40))
        corpus = place(packed, gpu, None)
        assert type(corpus) is expected
    assert isinstance(corpus, StreamedCorpus)
    assert corpus.window_bytes == 2**13
    # The windows of a training that is resumed are those of before.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**15 + 2**14, 2**40))
    assert place(packed, gpu, None).window_bytes == 2**13


def test_workers_stream_their_stripes(nlp, path, monkeypatch):
    docs = []
    for rank in range(2):
        monkeypatch.setattr(workers, "count", lambda: 2)
        monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
        # Read anew, as another process would.
        monkeypatch.setattr("zero_copy.corpus._kept", {})
        packed = stripe(store.read(path), rank, 2)
        examples = list(Corpus(path, memory=MEMORY)(nlp))
        assert isinstance(examples[0].batch.corpus.whole, StreamedCorpus)
        for example in examples:
            whole = PackedBatch(ResidentCorpus(packed, CPU), example.batch.numbers_in_whole)
            assert torch.equal(example.batch.token_types, whole.token_types)
        docs.append(sum(len(example.batch) for example in examples))
    assert sum(docs) == len(LENGTHS)


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        ("auto", None),
        ("8GB", 8 * 2**30),
        ("1.5 kb", 1536),
        ("500MB", 500 * 2**20),
        (4096, 4096),
        ("4096", 4096),
        ("12B", 12),
        ("2tb", 2**41),
    ],
)
def test_sizes(memory, size):
    assert bytes_of(memory) == size


@pytest.mark.parametrize("memory", ["a lot", "", 0, -5, "8 GB of it", "GB", "1e9", True, "0.1B"])
def test_what_is_no_size_is_refused(memory):
    with pytest.raises(UserError, match="is no size"):
        bytes_of(memory)


@given(size=st.integers(1, 2**45))
def test_sizes_are_told_rounded_up(size):
    told = bytes_of(describe_bytes(size))
    assert told is not None
    assert size <= told <= 1.11 * size


@pytest.mark.parametrize("memory", [MEMORY, "4KB", "auto"])
def test_a_config_may_set_it(path, memory):
    block = {"@readers": "zero_copy.Corpus.v1", "path": str(path), "memory": memory}
    assert registry.resolve({"reader": block})["reader"].memory == bytes_of(memory)


def test_too_little_for_the_longest_document_is_refused(nlp, path):
    with pytest.raises(UserError, match="its longest document takes 211B") as raised:
        list(Corpus(path, memory=500)(nlp))
    assert 'memory = "1314B" or more in [corpora]' in raised.value.desc
    assert list(Corpus(path, memory="1314B")(nlp))


def test_a_transformer_is_refused_by_name(path):
    nlp = make(MODELS["cnn"])
    nlp.get_pipe("textcat").check_corpus = lambda corpus, nlp: None
    assert list(Corpus(path)(nlp))
    with pytest.raises(UserError, match="'textcat' needs all of it") as raised:
        list(Corpus(path, memory=MEMORY)(nlp))
    size = bytes_of(re.findall(r'"(\w+)"', raised.value.desc)[0])
    assert list(Corpus(path, memory=size)(nlp))
