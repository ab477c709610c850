"""Whether a training fits on the GPU: said before it starts where that can be known, and in one
message where its memory runs out later."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from spacy.language import Language
from spacy.util import registry, resolve_dot_names
from thinc.api import Config, Model, Optimizer, get_current_ops

from zero_copy import workers
from zero_copy.corpus import Corpus, kept_corpus, ops_device
from zero_copy.errors import UserError
from zero_copy.packed_pipe import PackedPipe
from zero_copy.parameters import modules_of
from zero_copy.resident import Placed, ResidentCorpus
from zero_copy.streaming import StreamedCorpus, describe_bytes, free_bytes

FLOAT_BYTES = 4
# Gradients and the two moments of Adam; averages come on top where they are used.
STATES = 3


class Need(NamedTuple):
    """What is sure to lie on the GPU while training, in bytes.

    parameters (int): Those of all components.
    state (int): Gradients, moments and averages of those that train.
    corpora (int): Words and categories.
    """

    parameters: int
    state: int
    corpora: int


def check(nlp: Language) -> None:
    """Make sure that a training has room on its GPU.

    nlp (Language): The initialized pipeline with its whole config, frozen components disabled.
    RAISES (UserError): If it has not.
    """
    device = ops_device(get_current_ops())
    if device.type == "cuda":
        # What torch holds already is for this training, too, and CuPy has its memory from it.
        room = free_bytes(device) + torch.cuda.memory_reserved(device)
        # One worker that stopped alone would be waited for.
        every = workers.gather((need_of(nlp, device), room))
        refuse_too_large(*max(every, key=lambda each: sum(each[0]) - each[1]))


def need_of(nlp: Language, device: torch.device) -> Need:
    """What a training is sure to need.

    nlp (Language): The initialized pipeline with its whole config, frozen components disabled.
    device (torch.device): Where it trains.
    RETURNS (Need): Bytes.
    """
    config = nlp.config.interpolate()
    training = config["training"]
    optimizer: Optimizer = registry.resolve({"optimizer": training["optimizer"]})["optimizer"]
    resolved = Config({"corpora": registry.resolve(config["corpora"])})
    readers = resolve_dot_names(resolved, [training["train_corpus"], training["dev_corpus"]])
    # One for both splits is placed once.
    corpora = {
        id(corpus): corpus
        for corpus in (
            kept_corpus(reader.path, device, reader.memory)
            for reader in readers
            if isinstance(reader, Corpus)
        )
    }
    states = STATES + (optimizer.averages is not None)
    everything: list[tuple[str, Any]] = nlp.components
    trained = dict(nlp.pipeline)
    sizes = {
        name: model_bytes(each.model) for name, each in everything if isinstance(each, PackedPipe)
    }
    return Need(
        parameters=sum(sizes.values()),
        state=states * sum(size for name, size in sizes.items() if name in trained),
        corpora=sum(map(corpus_bytes, corpora.values())),
    )


def model_bytes(model: Model) -> int:
    """What the parameters of a model take.

    model (Model): An initialized model.
    RETURNS (int): Bytes, without the weights of a bag of words: those are compact.
    """
    size = 0
    for node in model.walk():
        is_bag = node._func.__module__ == "thinc.layers.sparselinear"
        names = [name for name in node.param_names if node.has_param(name)]
        size += sum(node.get_param(name).size for name in names if not is_bag)
        size += sum(each.numel() for _, module in modules_of(node) for each in module.parameters())
    return size * FLOAT_BYTES


def corpus_bytes(corpus: ResidentCorpus) -> int:
    """What a corpus takes.

    corpus (ResidentCorpus): The corpus, or one that is streamed.
    RETURNS (int): Bytes.
    """
    if isinstance(corpus, StreamedCorpus):
        return 2 * corpus.window_bytes
    return sum(corpus.packed.columns[name].nbytes for name in Placed._fields)


def refuse_too_large(need: Need, room: int) -> None:
    """Refuse a training that has no room.

    need (Need): What it needs.
    room (int): Bytes that it may have.
    RAISES (UserError): If it needs more, with the sizes and what to change.
    """
    if sum(need) <= room:
        return
    left = room - need.parameters - need.state
    if need.corpora > left > 0:
        advice = f'Set memory = "{describe_bytes(max(left // 2, 1))}" in [corpora.train], and in '
        advice += "[corpora.dev] if dev is large, too: what does not fit is streamed."
    else:
        advice = (
            "Lower width, depth or the rows of embeddings in [components.*.model]; use_averages = "
            "false in [training.optimizer] saves as much as the parameters take."
        )
    raise UserError(
        f"The training needs {describe_bytes(sum(need))} on the GPU and more for each batch, and "
        f"{describe_bytes(room)} are free",
        f"Parameters take {describe_bytes(need.parameters)}, their gradients, moments and averages "
        f"{describe_bytes(need.state)}, words and categories {describe_bytes(need.corpora)}. "
        f"{advice}",
    )


@contextmanager
def out_of_memory_told(config: Config, output: Path) -> Iterator[None]:
    """Tell in one message that the GPU's memory has run out while training.

    config (Config): The training config.
    output (Path): Folder for the checkpoints.
    RAISES (UserError): In place of torch's or CuPy's error, with the setting to lower.
    """
    start = time.time()
    try:
        yield
    except Exception as error:
        cause = out_of_memory_in(error)
        if cause is None:
            raise
        best = output / "model-best"
        is_new = best.exists() and (best / "meta.json").stat().st_mtime >= start
        kept = f"{best} is the best pipeline so far." if is_new else "No pipeline was saved before."
        advice = f"{advice_for(cause, config)} {kept}"
        raise UserError("The GPU has no memory left", advice) from error


def out_of_memory_in(error: BaseException | None) -> BaseException | None:
    """The error of a GPU whose memory has run out.

    error (Optional[BaseException]): What was raised: that error, or one that followed from it, as
        spaCy saves what it has before it passes an error on.
    RETURNS (Optional[BaseException]): torch's error or CuPy's, which is not installed everywhere
        and goes by its name.
    """
    while error is not None and type(error).__name__ != "OutOfMemoryError":
        error = error.__context__
    return error


def advice_for(error: BaseException, config: Config) -> str:
    """Which setting to lower.

    error (BaseException): What was raised; where, tells what took the memory.
    config (Config): The training config.
    RETURNS (str): A sentence.
    """
    frames = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    model = "width, depth or the rows of embeddings in [components.*.model]"
    if frames & {"init_nlp", "evaluate"}:
        where = "before the first step" if "init_nlp" in frames else "in an evaluation"
        return f"It ran out {where}: lower {model}, or memory in [corpora.train]."
    size = config["training"].get("batcher", {}).get("size")
    if isinstance(size, int):
        return (
            f"Lower [training.batcher] size, which is {size}: --training.batcher.size {size // 2}. "
            f"If that is not enough, lower {model}."
        )
    return f"Lower the sizes in [training.batcher.size]. If that is not enough, lower {model}."
