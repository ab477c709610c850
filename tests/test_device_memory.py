"""A training that is too large for its GPU ends in one message, before it starts or later."""

from pathlib import Path

import pytest
import spacy
import torch
from spacy import registry
from spacy.util import load_config, resolve_dot_names

from conftest import random_docs, save_corpus, save_docs
from forking import run_script
from test_variants import CONFIGS, corpora, make
from zero_copy import corpus as corpus_module
from zero_copy import device_memory, store, streaming
from zero_copy.device_memory import (
    Need,
    advice_for,
    corpus_bytes,
    need_of,
    out_of_memory_told,
    refuse_too_large,
)
from zero_copy.errors import UserError
from zero_copy.resident import Placed
from zero_copy.streaming import StreamedCorpus, place

__all__ = ["corpora"]  # a fixture
ROOT = Path(__file__).parent.parent
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
QUICK = ("--training.max_steps", "40", "--training.eval_frequency", "10")
SIZE = ("--training.batcher.size", "60")
# CuPy's error has this name and is no kind of torch's.
CupyError = type("OutOfMemoryError", (MemoryError,), {})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    lengths = [9, 30, 4, 1, 50, 17, 8] * 6
    return save_corpus(tmp_path_factory.mktemp("corpus"), {"train": lengths, "dev": lengths})


# Before it starts


@pytest.mark.parametrize("name", ["cnn", "shared"])
def test_parameters_and_state_are_what_training_makes(corpora, name):
    nlp = make(CONFIGS / f"{name}.cfg", corpora, ".safetensors")
    need = need_of(nlp, CPU)
    resolved = nlp.config.interpolate()
    (reader,) = resolve_dot_names(resolved, ["corpora.train"])
    nlp.update(list(reader(nlp)), sgd=registry.resolve(resolved["training"])["optimizer"])
    made = [component for _, component in nlp.pipeline]
    assert need.parameters == sum(each._parameters.weights.nbytes for each in made)
    state = [
        tensor
        for each in made
        for tensor in (
            *(each._parameters.gradients, each._updater.moment1, each._updater.moment2),
            each._updater.averages,
        )
    ]
    assert need.state == sum(tensor.nbytes for tensor in state)
    packed = store.read(corpora[False] / "train.safetensors")
    # Train and dev are the same file here, which is placed once.
    assert need.corpora == sum(packed.columns[column].nbytes for column in Placed._fields)


def test_frozen_components_have_no_state(corpora):
    nlp = make(CONFIGS / "shared.cfg", corpora, ".safetensors")
    whole = need_of(nlp, CPU)
    with nlp.select_pipes(disable=["tok2vec"]):
        part = need_of(nlp, CPU)
    assert part.parameters == whole.parameters
    assert 0 < part.state < whole.state


def test_a_streamed_corpus_takes_its_windows(nlp, tmp_path):
    source = save_docs(tmp_path / "a.spacy", random_docs(nlp, [10] * 200))
    store.pack(source, tmp_path / "a.safetensors")
    streamed = StreamedCorpus(store.read(tmp_path / "a.safetensors"), CPU, 4000)
    assert corpus_bytes(streamed) == 4000


def test_what_fits_is_not_refused():
    refuse_too_large(Need(10, 40, 50), 100)


def test_a_corpus_that_is_too_large_is_to_be_streamed():
    with pytest.raises(UserError) as raised:
        refuse_too_large(Need(2**20, 4 * 2**20, 90 * 2**30), 80 * 2**30)
    assert "80GB are free" in str(raised.value)
    # Half of what the model leaves.
    assert 'Set memory = "40GB" in [corpora.train]' in str(raised.value)


@pytest.mark.parametrize("corpora_bytes", [0, 2**30])
def test_a_model_that_is_too_large_is_to_be_smaller(corpora_bytes):
    with pytest.raises(UserError) as raised:
        refuse_too_large(Need(20 * 2**30, 80 * 2**30, corpora_bytes), 80 * 2**30)
    message = str(raised.value)
    assert "Parameters take 20GB, their gradients, moments and averages 80GB" in message
    assert "Lower width" in message
    assert "use_averages" in message


def on_a_gpu(monkeypatch, free: int) -> None:
    """Let it be said that there is a GPU with so much free memory."""
    monkeypatch.setattr(device_memory, "ops_device", lambda ops: GPU)
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: free)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(
        device_memory,
        "kept_corpus",
        lambda path, device, memory: corpus_module.kept_corpus(path, CPU, memory),
    )


def train(corpus: Path, output: Path, config: Path, *options: str):
    return run_script(
        *(ROOT / "scripts" / "train.py", config, corpus, output, "--gpu-id", "-1"),
        *(*QUICK, *SIZE, *options),
    )


def test_it_is_said_before_training_starts(monkeypatch, corpus, tmp_path):
    on_a_gpu(monkeypatch, free=1000)
    done = train(corpus, tmp_path, CONFIGS / "cnn.cfg")
    printed = done.stdout + done.stderr
    assert done.returncode == 1
    assert "The training needs" in printed
    assert "Traceback" not in printed
    assert "E    #" not in printed  # the table of steps
    assert not list(tmp_path.iterdir())


def test_with_room_it_trains(monkeypatch, corpus, tmp_path):
    on_a_gpu(monkeypatch, free=10**9)
    assert train(corpus, tmp_path, CONFIGS / "bow.cfg").returncode == 0


def test_memory_beyond_that_of_the_gpu_is_refused(monkeypatch, corpus):
    packed = store.read(corpus / "train.safetensors")
    monkeypatch.setattr(streaming, "free_bytes", lambda device: 1000)
    with pytest.raises(UserError, match="are free"):
        place(packed, GPU, 2**40)
    monkeypatch.setattr(streaming, "free_bytes", lambda device: 2**30)
    assert place(packed, GPU, 2**40).packed is packed


# Later


@registry.callbacks("test.out_of_memory.v1")
def create_out_of_memory(step: int, by: str):
    """Run out of memory at a step."""

    def before_update(nlp, args) -> None:
        if args["step"] == step:
            raise {"torch": torch.OutOfMemoryError, "cupy": CupyError}[by]("Out of memory")

    return before_update


def running_out(config: Path, folder: Path, step: int, by: str = "torch") -> Path:
    """A config whose training runs out of memory at a step."""
    loaded = load_config(config)
    callback = {"@callbacks": "test.out_of_memory.v1", "step": step, "by": by}
    loaded["training"]["before_update"] = callback
    path = folder / f"{config.stem}.cfg"
    loaded.to_disk(path)
    return path


@pytest.mark.parametrize(
    ("name", "by"), [("bow.cfg", "torch"), ("bow.cfg", "cupy"), ("stock/bow.cfg", "torch")]
)
def test_the_best_pipeline_is_kept(corpus, tmp_path, name, by):
    output = tmp_path / "out"
    done = train(corpus, output, running_out(CONFIGS / name, tmp_path, 25, by))
    printed = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    assert "Traceback" not in printed
    assert "The GPU has no memory left" in printed
    assert "size, which is 60: --training.batcher.size 30" in printed
    assert "model-best is the best pipeline so far" in printed
    assert spacy.load(output / "model-best")("wheat").cats


def test_a_pipeline_of_before_is_not_said_to_be_of_this_training(corpus, tmp_path):
    output = tmp_path / "out"
    assert train(corpus, output, CONFIGS / "bow.cfg").returncode == 0
    done = train(corpus, output, running_out(CONFIGS / "bow.cfg", tmp_path, 0))
    assert done.returncode == 1
    assert "No pipeline was saved before" in " ".join((done.stdout + done.stderr).split())
    assert (output / "model-best").exists()


def advice_of(function, config: dict) -> str:
    try:
        function()
    except torch.OutOfMemoryError as error:
        return advice_for(error, config)
    raise AssertionError


def test_advice_depends_on_where_it_ran_out():
    def run_out() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def init_nlp() -> None:
        run_out()

    def evaluate() -> None:
        run_out()

    batcher = {"training": {"batcher": {"size": 2000}}}
    assert "--training.batcher.size 1000" in advice_of(run_out, batcher)
    assert "in an evaluation: lower width" in advice_of(evaluate, batcher)
    assert "before the first step: lower width" in advice_of(init_nlp, batcher)
    schedule = {"training": {"batcher": {"size": {"@schedules": "compounding.v1"}}}}
    assert "[training.batcher.size]" in advice_of(run_out, schedule)


def test_an_error_of_saving_hides_nothing(tmp_path):
    def save() -> None:
        try:
            raise CupyError("Out of memory")
        finally:
            raise ValueError("can't save")

    config = {"training": {"batcher": {"size": 2000}}}
    with (
        pytest.raises(UserError, match="size, which is 2000"),
        out_of_memory_told(config, tmp_path),
    ):
        save()


@pytest.mark.parametrize("error", [UserError("title"), RuntimeError("another"), MemoryError()])
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as raised, out_of_memory_told({}, tmp_path):
        raise error
    assert raised.value is error
