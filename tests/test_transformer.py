"""The transformer component: parity with spacy-transformers, frozen ones, what is saved."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import spacy
import torch
from hypothesis import HealthCheck, given, settings
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Adam, fix_random_seed

from conftest import LABELS, random_docs, save_docs, with_empty_documents, write_transformer
from forking import run_script
from test_wordpieces import GETTERS, documents, make_docs
from zero_copy import store
from zero_copy.corpus import Corpus, PackedBatch, PackedExample, ResidentCorpus
from zero_copy.errors import UserError
from zero_copy.export import stock_config, to_stock
from zero_copy.lowering import Run, predict
from zero_copy.transformer import TAKE_SQUARE_MASKS, square
from zero_copy.transformer_layers import OUR_LISTENER
from zero_copy.wordpieces import add_wordpieces, layout_of

ROOT = Path(__file__).parent.parent


def listener(pooling: str = "reduce_mean", grad_factor=1.0, name=None) -> dict:
    return {
        "@architectures": name or "spacy-transformers.TransformerListener.v1",
        "grad_factor": grad_factor,
        "pooling": {"@layers": f"{pooling}.v1"},
    }


def reduce(tok2vec: dict, exclusive: bool = True) -> dict:
    return {
        "@architectures": "spacy.TextCatReduce.v1",
        "exclusive_classes": exclusive,
        "tok2vec": tok2vec,
        **{f"use_reduce_{name}": name == "mean" for name in ("first", "last", "max", "mean")},
    }


def pipeline(
    folder: Path, getter: dict, heads: dict[str, dict], prefix: str = "zero_copy_", **transformer
) -> Language:
    """A pipeline of a transformer and some classifiers, ours or, with no prefix, the stock one."""
    fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": [".", "of"]})
    nlp.config["training"]["annotating_components"] = ["sentencizer"]
    model = {"name": str(folder), "get_spans": getter}
    nlp.add_pipe(f"{prefix}transformer", name="transformer", config={"model": model, **transformer})
    for name, head in heads.items():
        nlp.add_pipe(f"{prefix}{name}", name=name, config={"model": head})
    return nlp


def packed_batch(nlp: Language, docs: list[Doc], folder: Path) -> PackedBatch:
    """Docs as one packed batch, the empty ones among them."""
    layout = layout_of(nlp)
    assert layout is not None
    source, target = folder / "docs.spacy", folder / "docs.safetensors"
    store.pack(save_docs(source, docs), target, wordpieces=add_wordpieces(nlp, layout))
    packed = with_empty_documents(store.read(target), docs)
    offsets = packed.columns["doc_offsets"]
    for name in ("doc_spans", "doc_aligned"):
        # Documents without tokens have neither spans nor wordpieces.
        kept = (offsets.diff() > 0).cumsum(0)
        packed.columns[name] = packed.columns[name][torch.cat([torch.zeros(1).long(), kept])]
    return PackedBatch(ResidentCorpus(packed, torch.device("cpu")), numpy.arange(len(docs)))


def initialize(ours: Language, stock: Language, docs: list[Doc]) -> None:
    """Initialize both, to the same parameters, the classifiers' not zeros."""
    examples = [Example(doc, doc) for doc in docs if len(doc)]
    order = numpy.random.default_rng(0)
    for nlp in (ours, stock):
        nlp.initialize(lambda: examples)
    for name in ours.pipe_names[2:]:
        layers = zip(
            ours.get_pipe(name).model.walk(), stock.get_pipe(name).model.walk(), strict=True
        )
        for layer, twin in layers:
            for param in layer.param_names:
                shape = layer.get_param(param).shape
                values = order.normal(size=shape).astype("float32")
                layer.set_param(param, values)
                twin.set_param(param, values.copy())


def copies(vocab, docs: list[Doc]) -> list[Example]:
    """Examples as spaCy's reader makes them."""
    spaces = [[bool(token.whitespace_) for token in doc] for doc in docs]
    words = [[token.text for token in doc] for doc in docs]
    predicted = [Doc(vocab, words=w, spaces=s) for w, s in zip(words, spaces, strict=True)]
    return [Example(*pair) for pair in zip(predicted, docs, strict=True)]


def module_of(nlp: Language) -> torch.nn.Module:
    return nlp.get_pipe("transformer").model.layers[0].shims[0]._model


def gradients(nlp: Language) -> dict[str, torch.Tensor]:
    """Gradients of the transformer's own parameters."""
    transformer = nlp.get_pipe("transformer")
    if hasattr(transformer, "trains_packed"):
        flat = transformer._parameters.by_module[module_of(nlp)]
        return {name: parameter.tensor.grad for name, parameter in flat.items()}
    named = module_of(nlp).named_parameters()
    return {name: tensor.grad for name, tensor in named if tensor.grad is not None}


def check_close(ours: dict[str, torch.Tensor], stock: dict[str, torch.Tensor]) -> None:
    assert set(ours) == set(stock)
    # Some gradients are zero but for rounding, those of the keys' biases: measure all by one rule.
    largest = max(float(tensor.abs().max()) for tensor in stock.values())
    for name, tensor in stock.items():
        torch.testing.assert_close(
            ours[name].detach(), tensor.detach(), rtol=1e-3, atol=1e-5 * max(largest, 1.0)
        )


@pytest.mark.parametrize("most", [4096, 50])
@pytest.mark.parametrize("getter", ["sent", "strided", "overlapping", "too long", "own"])
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=documents)
def test_parity_with_spacy_transformers(tiny_transformer, tmp_path, getter, most, rows):
    """Token vectors, scores, losses and gradients, on empty documents and odd tokens too; with
    `most` = 50 what is not kept is computed again."""
    heads = {"textcat": reduce(listener(grad_factor=0.7))}
    ours = pipeline(tiny_transformer, GETTERS[getter], heads, max_batch_items=most)
    stock = pipeline(tiny_transformer, GETTERS[getter], heads, prefix="")
    docs = make_docs(ours.vocab, [*rows, [("wheat", True), ("ships", True)]])
    for number, doc in enumerate(docs):
        doc.cats = {label: float(label == LABELS[number % 3]) for label in LABELS}
    # The whole set of labels must be there.
    docs += random_docs(ours, [3, 12, 4])
    initialize(ours, stock, docs)
    batch = packed_batch(ours, docs, tmp_path)
    example = PackedExample(batch, ours.vocab)
    ours.get_pipe("transformer").predict([example.predicted])
    component = ours.get_pipe("textcat")
    scores = predict(
        component.model, batch, component.parameters_for(batch.corpus), ours.vocab
    ).numpy()
    vectors = predict(
        component.model.get_ref("tok2vec"), batch, component.parameters_for(batch.corpus), None
    ).data.numpy()
    read = list(stock.pipe([eg.predicted for eg in copies(stock.vocab, docs)]))
    expected = [[doc.cats[label] for label in component.labels] for doc in read if len(doc)]
    lengths = numpy.array([len(doc) for doc in docs])
    numpy.testing.assert_allclose(scores[lengths > 0], expected, rtol=1e-4, atol=1e-5)
    tokens = stock.get_pipe("textcat").model.get_ref("tok2vec").predict([d for d in read if len(d)])
    numpy.testing.assert_allclose(vectors, numpy.concatenate(tokens), rtol=1e-4, atol=1e-4)
    losses: dict = {}
    stock_losses: dict = {}
    ours.update([example], sgd=False, losses=losses)
    stock.update(
        copies(stock.vocab, docs), sgd=False, losses=stock_losses, annotates=["sentencizer"]
    )
    for name, loss in stock_losses.items():
        assert float(losses[name]) == pytest.approx(loss, rel=1e-3, abs=1e-6), name
    check_close(gradients(ours), gradients(stock))


def test_updates_end_in_the_same_parameters(tiny_transformer, tmp_path):
    """Ten of them, with clipping and weight decay; the pooler, which gets no gradient, stays."""
    heads = {
        "textcat": reduce(listener()),
        "textcat_multilabel": reduce(listener("reduce_first", 0.3), exclusive=False),
    }
    ours = pipeline(tiny_transformer, GETTERS["overlapping"], heads)
    stock = pipeline(tiny_transformer, GETTERS["overlapping"], heads, prefix="")
    docs = random_docs(ours, [9, 1, 30, 4, 17])
    initialize(ours, stock, docs)
    before = {name: tensor.clone() for name, tensor in module_of(ours).state_dict().items()}
    batch = packed_batch(ours, docs, tmp_path)
    optimizers = [Adam(0.003, L2=0.1, grad_clip=1.0) for _ in range(2)]
    for _ in range(10):
        ours.update([PackedExample(batch, ours.vocab)], sgd=optimizers[0])
        stock.update(copies(stock.vocab, docs), sgd=False, annotates=["sentencizer"])
        for _, component in stock.pipeline[1:]:
            component.finish_update(optimizers[1])
    ours.get_pipe("transformer").flush()
    after, expected = module_of(ours).state_dict(), module_of(stock).state_dict()
    for name, tensor in expected.items():
        # Adam's steps have the size of the rate wherever a gradient's sign is; where it is zero but
        # for rounding the sign is anyone's.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(after[name], tensor, rtol=1e-2, atol=2e-3)
    assert torch.equal(after["pooler.dense.weight"], before["pooler.dense.weight"])
    assert not torch.equal(
        after["embeddings.word_embeddings.weight"], before["embeddings.word_embeddings.weight"]
    )


@pytest.mark.parametrize("pooling", ["reduce_mean", "reduce_first", "reduce_last", "reduce_sum"])
def test_every_pooling(tiny_transformer, tmp_path, pooling):
    heads = {"textcat": reduce(listener(pooling))}
    ours = pipeline(tiny_transformer, GETTERS["overlapping"], heads)
    stock = pipeline(tiny_transformer, GETTERS["overlapping"], heads, prefix="")
    docs = random_docs(ours, [9, 1, 30, 4])
    initialize(ours, stock, docs)
    batch = packed_batch(ours, docs, tmp_path)
    ours.update([PackedExample(batch, ours.vocab)], sgd=False)
    stock.update(copies(stock.vocab, docs), sgd=False)
    check_close(gradients(ours), gradients(stock))


def test_gradient_factor_may_be_a_schedule(tiny_transformer, tmp_path):
    """A value an update; what is saved has the stock listener."""
    schedule = {"@schedules": "warmup_linear.v1", "warmup_steps": 2, "total_steps": 4}
    factor = schedule | {"initial_rate": 1.0}
    ours = pipeline(
        tiny_transformer,
        GETTERS["strided"],
        {"textcat": reduce(listener(grad_factor=factor, name=OUR_LISTENER))},
    )
    docs = random_docs(ours, [9, 1, 30, 4])
    ours.initialize(lambda: [Example(doc, doc) for doc in docs])
    component = ours.get_pipe("textcat")
    for layer in component.model.walk():
        for param in layer.param_names:
            layer.set_param(param, numpy.ones_like(layer.get_param(param)) * 0.1)
    example = PackedExample(packed_batch(ours, docs, tmp_path), ours.vocab)
    sizes = []
    for _ in range(4):
        ours.update([example], sgd=False)
        found = gradients(ours)
        sizes.append(float(found["embeddings.word_embeddings.weight"].norm()))
        ours.get_pipe("transformer")._parameters.gradients.zero_()
    assert sizes == pytest.approx([0.0, sizes[2] / 2, sizes[2], sizes[2] / 2], rel=1e-4)
    assert sizes[2] > 0
    ours.update(copies(ours.vocab, docs), sgd=False)  # ordinary examples go on with the schedule
    stock = stock_config(ours.config)["components"]["textcat"]["model"]["tok2vec"]
    assert stock == ours.config["components"]["textcat"]["model"]["tok2vec"] | {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "grad_factor": 1.0,
    }


def test_ordinary_examples_train_exactly_the_parent(tiny_transformer):
    results = []
    heads = {"textcat": reduce(listener())}
    for prefix in ("zero_copy_", ""):
        nlp = pipeline(tiny_transformer, GETTERS["strided"], heads, prefix=prefix)
        docs = random_docs(nlp, [9, 1, 30, 4])
        nlp.initialize(lambda docs=docs: [Example(doc, doc) for doc in docs])
        sgd = Adam(0.01)
        for _ in range(3):
            nlp.update(copies(nlp.vocab, docs), sgd=sgd)
        results.append([doc.cats for doc in nlp.pipe(doc.text for doc in docs)])
    assert results[0] == results[1]


@pytest.fixture
def trained(tiny_transformer, tmp_path) -> tuple[Language, Path, list[Doc]]:
    """A pipeline after some packed updates, its corpus and the documents."""
    nlp = pipeline(tiny_transformer, GETTERS["overlapping"], {"textcat": reduce(listener())})
    docs = random_docs(nlp, [9, 1, 30, 4, 17, 25])
    path = packed_batch(nlp, docs, tmp_path).corpus.packed.path
    reader = Corpus(path)
    nlp.initialize(lambda: reader(nlp))
    sgd = Adam(0.01)
    for _ in range(5):
        nlp.update(list(reader(nlp)), sgd=sgd)
    return nlp, path, docs


def test_packed_evaluation_equals_that_of_docs_and_of_the_export(trained):
    nlp, path, docs = trained
    packed = nlp.evaluate(list(Corpus(path)(nlp)))
    ordinary = nlp.evaluate(copies(nlp.vocab, docs))
    exported = to_stock(nlp)
    assert exported.get_pipe_meta("transformer").factory == "transformer"
    after = exported.evaluate(copies(nlp.vocab, docs))
    for key in ("cats_micro_f", "cats_macro_f", "cats_macro_auc", "cats_score"):
        assert packed[key] == pytest.approx(ordinary[key]), key
        assert packed[key] == pytest.approx(after[key]), key


def test_accumulated_gradients_take_the_same_step(trained):
    """spaCy divides a batch of one example into itself."""
    from spacy.training.loop import subdivide_batch

    nlp, path, _ = trained
    nlp.config["training"]["accumulate_gradient"] = 3
    examples = list(Corpus(path)(nlp))
    assert [len(part) for part in subdivide_batch(examples, 3)] == [1]


@pytest.mark.parametrize("kind", ["none", "spans", "tokenizer"])
def test_corpus_of_another_transformer_is_refused(trained, tmp_path, tiny_transformer, kind):
    nlp, path, docs = trained
    messages = {
        "none": "holds no wordpieces",
        "spans": "with other spans",
        "tokenizer": "with another tokenizer",
    }
    if kind == "none":
        store.pack(path.with_suffix(".spacy"), path)
    else:
        folder = tiny_transformer
        if kind == "tokenizer":
            folder = write_transformer(tmp_path / "other", longest=32)
        getter = GETTERS["strided" if kind == "spans" else "overlapping"]
        other = pipeline(folder, getter, {})
        packed_batch(other, docs, tmp_path)
    with pytest.raises(UserError, match=messages[kind]):
        list(Corpus(path)(nlp))


def test_name_that_is_no_model_is_refused(tmp_path):
    nlp = pipeline(tmp_path / "nothing", GETTERS["strided"], {"textcat": reduce(listener())})
    with pytest.raises(UserError, match="is no Hugging Face model"):
        nlp.initialize(lambda: [Example(doc, doc) for doc in random_docs(nlp, [3, 4])])


def test_half_precision_is_close(trained, tmp_path):
    """bfloat16 keeps 8 bits of a number: 0.4 % each."""
    nlp, path, _ = trained
    transformer = nlp.get_pipe("transformer")
    (example,) = Corpus(path)(nlp)
    exact = transformer.compute(example.batch, is_train=False).detach()
    transformer.wrapper._mixed_precision = True
    half = transformer.compute(example.batch, is_train=True)
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    is_there = torch.zeros(len(exact), dtype=torch.bool)
    is_there[transformer._spans(example.batch).row_of_aligned] = True
    assert float((half - exact)[is_there].abs().max()) < 0.1
    nlp.update([example], sgd=Adam(0.01))


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_square_masks_mask_the_same(kind):
    """On a GPU a mask of every pair keeps the model from asking the device what is masked."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    assert config.model_type in TAKE_SQUARE_MASKS
    model = getattr(transformers, f"{kind}Model")(config).eval()
    ids = torch.randint(5, 30, (3, 7))
    mask = (torch.arange(7) < torch.tensor([[7], [3], [1]])).float()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask)[0]
        ours = model(input_ids=ids, attention_mask=square(mask))[0]
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()])


def test_same_seed_same_result_with_dropout(tmp_path):
    folder = write_transformer(tmp_path / "dropout", hidden_dropout_prob=0.2)
    results = []
    for seed in (0, 0, 1):
        nlp = pipeline(folder, GETTERS["strided"], {"textcat": reduce(listener())})
        docs = random_docs(nlp, [9, 1, 30, 4])
        batch = packed_batch(nlp, docs, tmp_path)
        nlp.initialize(lambda nlp=nlp, batch=batch: [PackedExample(batch, nlp.vocab)])
        fix_random_seed(seed)
        sgd = Adam(0.01)
        for _ in range(3):
            nlp.update([PackedExample(batch, nlp.vocab)], sgd=sgd)
        nlp.get_pipe("transformer").flush()
        results.append(torch.cat([t.flatten() for t in module_of(nlp).parameters()]).detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# Frozen


@pytest.fixture
def frozen(tiny_transformer, tmp_path) -> tuple[Language, Path]:
    """A pipeline whose transformer is frozen, and its corpus."""
    nlp = pipeline(tiny_transformer, GETTERS["overlapping"], {"textcat": reduce(listener())})
    docs = random_docs(nlp, [9, 1, 30, 4, 17, 25])
    path = packed_batch(nlp, docs, tmp_path).corpus.packed.path
    nlp.config["training"]["frozen_components"] = ["transformer"]
    nlp.config["training"]["annotating_components"] = ["sentencizer", "transformer"]
    nlp.config["initialize"]["before_init"] = {"@callbacks": "zero_copy.load_transformer.v1"}
    return nlp, path


def train_frozen(nlp: Language, path: Path, steps: int = 5) -> None:
    reader = Corpus(path)
    with nlp.select_pipes(disable=["transformer"]):  # as spaCy initializes
        nlp.initialize(lambda: reader(nlp))
    sgd = Adam(0.01)
    for _ in range(steps):
        nlp.update(list(reader(nlp)), sgd=sgd, exclude=["transformer"], annotates=["transformer"])


def test_frozen_transformer_computes_once(frozen, tmp_path):
    nlp, path = frozen
    calls = []
    transformer = nlp.get_pipe("transformer")
    train_frozen(nlp, path, 1)
    (kept,) = path.parent.glob("docs.vectors-*.npy")
    inode = kept.stat().st_ino
    module_of(nlp).register_forward_hook(lambda *_: calls.append(1))
    train_frozen(nlp, path)
    nlp.evaluate(list(Corpus(path)(nlp)))
    assert not calls
    assert [*path.parent.glob("docs.vectors-*.npy")] == [kept]
    assert kept.stat().st_ino == inode
    assert transformer._parameters is None


def test_frozen_vectors_are_those_of_the_transformer(frozen):
    nlp, path = frozen
    train_frozen(nlp, path)
    docs = next(iter(Corpus(path)(nlp))).batch.corpus.packed.docs(nlp.vocab, range(6))
    examples = copies(nlp.vocab, list(docs))
    packed = nlp.evaluate(list(Corpus(path)(nlp)))
    ordinary = nlp.evaluate(examples)
    assert packed["cats_macro_auc"] == pytest.approx(ordinary["cats_macro_auc"])
    batch = next(iter(Corpus(path)(nlp))).batch
    transformer, textcat = nlp.get_pipe("transformer"), nlp.get_pipe("textcat")
    tok2vec = textcat.model.get_ref("tok2vec")
    rows = {}
    for is_frozen in (True, False):
        transformer.is_frozen = is_frozen
        transformer.predict([PackedExample(batch, nlp.vocab).predicted])
        run = Run(batch, textcat.parameters_for(batch.corpus), nlp.vocab, is_train=False)
        rows[is_frozen] = run(tok2vec).data.detach()
    torch.testing.assert_close(rows[True], rows[False], rtol=1e-4, atol=1e-5)


def test_frozen_transformer_does_not_change(frozen):
    nlp, path = frozen
    train_frozen(nlp, path, 1)
    before = {name: tensor.clone() for name, tensor in module_of(nlp).state_dict().items()}
    train_frozen(nlp, path)
    for name, tensor in module_of(nlp).state_dict().items():
        assert torch.equal(tensor, before[name])


def test_frozen_transformer_that_nothing_loads_is_refused(frozen):
    nlp, path = frozen
    nlp.config["initialize"]["before_init"] = None
    with pytest.raises(UserError, match="spaCy initializes no frozen component") as error:
        train_frozen(nlp, path)
    assert "zero_copy.load_transformer.v1" in error.value.desc


def test_frozen_transformer_that_does_not_annotate_is_refused(frozen):
    nlp, path = frozen
    train_frozen(nlp, path, 1)
    with pytest.raises(UserError, match="annotating_components"):
        nlp.update(list(Corpus(path)(nlp)), sgd=Adam(0.01), exclude=["transformer"])


# At run time


def test_annotations_and_their_cleaner(tiny_transformer):
    setter = {"@annotation_setters": "zero_copy.span_vectors.v1"}
    heads = {"textcat": reduce(listener())}
    nlp = pipeline(tiny_transformer, GETTERS["own"], heads, set_extra_annotations=setter)
    nlp.add_pipe("doc_cleaner", config={"attrs": {"_.trf_data": None}})
    nlp.initialize(lambda: [Example(doc, doc) for doc in random_docs(nlp, [3, 4, 5])])
    text = "wheat ships the port of corn " * 3
    doc = nlp(text)
    assert doc._.trf_data is None
    assert doc.user_data["span_vectors"].shape == (2, 16)  # head and tail
    with nlp.select_pipes(disable="doc_cleaner"):
        data = nlp(text)._.trf_data
    numpy.testing.assert_array_equal(
        data.model_output.last_hidden_state[:, 0], doc.user_data["span_vectors"]
    )


def test_what_no_config_asks_for_is_not_imported():
    """spacy-transformers takes seconds, which other configs need not wait."""
    code = "import functions, sys; sys.exit('transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_spacy_train_leaves_a_stock_pipeline(tiny_transformer, nlp, tmp_path):
    """The workflow's commands on a small corpus; the pipeline loads without this project."""
    import pack

    config = ROOT / "configs" / "transformer_frozen.cfg"
    for seed, (split, count) in enumerate((("train", 40), ("dev", 12))):
        lengths = numpy.random.default_rng(seed).integers(1, 40, count)
        source = save_docs(tmp_path / f"{split}.spacy", random_docs(nlp, lengths, seed))
        pack.main([source], "en", [], config, str(tiny_transformer), "{}")
    output = tmp_path / "output"
    options = ["--paths.transformer", str(tiny_transformer)]
    options += ["--training.max_steps", "6", "--training.eval_frequency", "3"]
    script = ROOT / "scripts" / "train.py"
    done = run_script(script, config, tmp_path, output, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    code = (
        "import spacy, sys; nlp = spacy.load(sys.argv[1]); doc = nlp('wheat ships'); "
        "assert nlp.pipe_names == ['transformer', 'textcat', 'doc_cleaner']; "
        "assert set(doc.cats) == {'grain', 'ship', 'trade'} and doc._.trf_data is None; "
        "assert type(nlp.get_pipe('transformer')).__module__.startswith('spacy_transformers')"
    )
    command = [sys.executable, "-c", code, output / "model-best"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
