"""Between two evaluations nothing waits for a GPU, and only documents' numbers go there."""

from collections.abc import Iterator

import numpy
import pytest
import torch
from spacy.language import Language
from spacy.schemas import ConfigSchemaTraining
from spacy.training import Example
from spacy.training.loop import create_train_batches, train_while_improving
from spacy.util import registry, resolve_dot_names

from test_variants import CONFIGS, NAMES, corpora, make
from waits import Wait, Watch
from zero_copy import corpus, lowering, optimizer, packed_pipe, textcat
from zero_copy.corpus import PackedExample

__all__ = ["corpora"]  # a fixture
# The first makes what is kept: columns on the device, parameters, the optimizer's state.
WARM_UP, STEPS = 2, 3
DROPOUT = 0.3
# The documents' numbers, with which all of a batch is gathered.
NUMBERS = Wait("to", "copying.py upload")
MASK = torch.tensor([True, False, True])
CANARIES = {
    "item": lambda X: X[0].item(),
    "float": lambda X: float(X.sum()),
    "bool": lambda X: bool((X > 0).all()),
    "if": lambda X: 1 if X.sum() > 0 else 0,
    "equal": lambda X: torch.equal(X, X),
    "unique": lambda X: torch.unique(X, return_inverse=True),
    "unique_dim": lambda X: torch.unique(X[:, None], dim=0),
    "unique_consecutive": lambda X: torch.unique_consecutive(X),
    "nonzero": lambda X: X.nonzero(),
    "where": lambda X: torch.where(X > 0),
    "masked_select": lambda X: X.masked_select(MASK),
    "index": lambda X: X[MASK],
    "index_uint8": lambda X: X[MASK.to(torch.uint8)],
    "index_put": lambda X: X.__setitem__(MASK, torch.zeros(2)),
    "repeat_interleave": lambda X: X.repeat_interleave(torch.arange(3)),
    "bincount": lambda X: torch.bincount(X.long()),
    "cpu": lambda X: X.cpu(),
    "numpy": lambda X: X.numpy(),
    "array": lambda X: numpy.asarray(X),
    "tolist": lambda X: X.tolist(),
    "tensor": lambda X: torch.tensor([1.0, 2.0]),
    "as_tensor": lambda X: torch.as_tensor([1.0, 2.0]),
    "to": lambda X: X.to("cpu"),
    "to_keyword": lambda X: X.to(device=torch.device("cpu")),
    "to_copy": lambda X: X.to("meta"),
    "copy": lambda X: torch.empty(3, device="meta").copy_(X),
}
HARMLESS = {
    "arithmetic": lambda X: (X * 2 + 1).sum().sqrt(),
    "dtype": lambda X: X.to(torch.float64),
    "index": lambda X: X[torch.arange(2)],
    "masked_fill": lambda X: X.masked_fill_(X > 0, 0.0),
    "where": lambda X: torch.where(X > 0, X, 0.0),
    "repeat_interleave": lambda X: X.repeat_interleave(torch.arange(3), output_size=3),
    "optimizer": lambda X: torch._foreach_norm([X, X]),
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("name", CANARIES)
def test_what_waits_is_found(name):
    with Watch() as found:
        CANARIES[name](torch.arange(3.0))
    assert found


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_wait_is_not(name):
    with Watch() as found:
        HARMLESS[name](torch.arange(3.0))
    assert not found


def test_it_is_found_on_the_way_back():
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, X):
            return X.clone()

        @staticmethod
        def backward(ctx, d_output):
            return d_output * float(d_output.sum())

    value = Waits.apply(torch.ones(3, requires_grad=True))
    with Watch() as found:
        value.sum().backward()
    assert found


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Rows for tokens, as on a GPU."""
    monkeypatch.setattr(lowering, "rows_per_type", lambda device: False)


def prepare(nlp: Language) -> tuple[dict, Iterator]:
    """The training settings of a pipeline, and the batches of its training corpus, for ever."""
    resolved = nlp.config.interpolate()
    settings = registry.resolve(resolved["training"], schema=ConfigSchemaTraining)
    (reader,) = resolve_dot_names(resolved, [settings["train_corpus"]])
    return settings, create_train_batches(nlp, reader, settings["batcher"], 0)


def steps(nlp: Language) -> Iterator[list[Example]]:
    """The batches of spaCy's own loop, which takes a step with each, without evaluations."""
    settings, batches = prepare(nlp)
    loop = train_while_improving(
        nlp,
        settings["optimizer"],
        batches,
        lambda: (0.0, {}),
        dropout=DROPOUT,
        eval_frequency=10**9,
        accumulate_gradient=1,
        patience=0,
        max_steps=0,
        exclude=[],
        annotating_components=[],
        before_update=None,
    )
    for batch, _, _ in loop:
        yield batch


@pytest.mark.parametrize("name", NAMES)
def test_steps_and_evaluations(as_on_a_gpu, corpora, name):
    nlp = make(CONFIGS / f"{name}.cfg", corpora, ".safetensors")
    batches = steps(nlp)
    for _ in range(WARM_UP):
        next(batches)
    with Watch() as found:
        for _ in range(STEPS):
            next(batches)
    assert found == [NUMBERS] * STEPS

    resolved = nlp.config.interpolate()
    (dev,) = resolve_dot_names(resolved, [resolved["training"]["dev_corpus"]])
    nlp.evaluate(dev(nlp))
    examples = list(dev(nlp))
    with Watch() as found:
        nlp.evaluate(examples)
    # Scores and truths come to the host, and with the first evaluation the loss did.
    heads = sum("textcat" in nlp.get_pipe_meta(pipe).factory for pipe in nlp.pipe_names)
    to_host = [Wait(what, "textcat.py score") for what in ("cpu", "numpy")]
    assert [wait for wait in found if wait != NUMBERS] == to_host * 2 * heads
    assert found.count(NUMBERS) <= len(examples)


def test_a_step_that_waits_is_found(corpora):
    """On a CPU types are looked up, of which a GPU would have to be asked how many there are."""
    batches = steps(make(CONFIGS / "cnn.cfg", corpora, ".safetensors"))
    for _ in range(WARM_UP):
        next(batches)
    with Watch() as found:
        next(batches)
    assert [wait for wait in found if wait != NUMBERS] == [
        Wait("aten._unique2.default", "corpus.py types")
    ]


@pytest.fixture
def device_without_values(monkeypatch) -> torch.device:
    """torch's meta device, whose tensors have a shape and no values.

    None can come to the host, and what is on the host must be copied there, as to a GPU: a tensor
    that was made on the wrong one of the two is an error.
    """
    device = torch.device("meta")
    for module in (corpus, packed_pipe, textcat):
        monkeypatch.setattr(module, "ops_device", lambda ops: device)
    monkeypatch.setitem(corpus.WORDS_PER_EXAMPLE, "meta", 1000)
    monkeypatch.setattr(optimizer, "torch2xp", lambda tensor: tensor)  # for thinc, which looks on
    return device


def steps_alone(nlp: Language) -> Iterator[list[Example]]:
    """The same without spaCy's loop, which begins with an evaluation, of values that are not."""
    settings, batches = prepare(nlp)
    losses: dict = {}
    for _, batch in batches:
        nlp.update(batch, drop=DROPOUT, sgd=False, losses=losses)
        for _, component in nlp.pipeline:
            component.finish_update(settings["optimizer"])
        yield batch


@pytest.mark.parametrize("name", NAMES)
def test_all_of_a_step_is_on_the_device(corpora, request, name):
    nlp = make(CONFIGS / f"{name}.cfg", corpora, ".safetensors")
    device = request.getfixturevalue("device_without_values")  # when the model has its values
    batches = steps_alone(nlp)
    for _ in range(WARM_UP):
        (example,) = next(batches)
    assert example.batch.numbers.device == device
    with Watch() as found:
        for _ in range(STEPS):
            next(batches)
    copied = Wait("aten._to_copy.default", NUMBERS.where)
    assert found == [NUMBERS, copied] * STEPS

    packed = PackedExample(example.batch, nlp.vocab)
    with Watch() as found:
        list(nlp.pipe([packed.predicted]))
    assert not found  # the numbers are there
    assert example.batch.scores
    assert all(scores.device == device for scores in example.batch.scores.values())
