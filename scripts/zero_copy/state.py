"""The state of a training in one file beside its checkpoints, so that it goes on after a kill.

spaCy's loop tells a logger of the end of each evaluation, when all is saved and nothing goes on.
There the state is written, and there a training that is resumed takes it up. Until then the loop
goes through the steps that were taken before, and the components pass over them: its counters,
schedules, batches and score table come to be what they were, and nothing is computed again.
"""

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy
import pydantic
import spacy
import thinc
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from spacy.language import Language
from spacy.util import dict_to_dot, registry, resolve_dot_names
from thinc.api import Config
from wasabi import msg

from zero_copy import device_memory, workers
from zero_copy.corpus import Corpus
from zero_copy.errors import UserError
from zero_copy.files import replace_folder, replacing
from zero_copy.packed_pipe import Evaluation, PackedPipe
from zero_copy.store import PackedInfo, read

FORMAT = "zero_copy.state"
FORMAT_VERSION = 1
FILE = "state.safetensors"
CHECKPOINTS = ("model-last", "model-best")
# Where the corpora lie may change; what is in them may not.
MAY_DIFFER = ("paths.train", "paths.dev")
ToDisk = Callable[[Language], Language]
LogStep = Callable[[dict[str, Any] | None], None]
Logger = Callable[[Language, IO, IO], tuple[LogStep, Callable[[], None]]]


class Header(pydantic.BaseModel):
    """What a state says of its training, beside the tensors.

    format (str): Always `zero_copy.state`.
    version (int): The version of the format.
    versions (Dict[str, str]): Those of the libraries that compute.
    settings (Dict[str, Any]): The config.
    corpora (Dict[str, PackedInfo]): What it trains on and is evaluated on.
    workers (int): How many processes train together.
    step (int): The last step that was taken.
    epoch (int): The epoch that it is in.
    evaluations (List[Evaluation]): What came out of each so far.
    random (List[Dict[str, Any]]): The random states of each worker.
    """

    format: str = FORMAT
    version: int = FORMAT_VERSION
    versions: dict[str, str]
    settings: dict[str, Any]
    corpora: dict[str, PackedInfo]
    workers: int = 1
    step: int = 0
    epoch: int = 0
    evaluations: list[Evaluation] = []
    random: list[dict[str, Any]] = []


def keeps_state(config: Config) -> bool:
    """Whether a training can be resumed: one from a packed corpus can.

    config (Config): A training config, its variables not interpolated.
    RETURNS (bool): True if it reads the training corpus packed.
    """
    split = config["training"]["train_corpus"].removeprefix("corpora.")
    reader = config.get("corpora", {}).get(split, {}).get("@readers", "")
    return reader.startswith("zero_copy.Corpus.")


def tell_state(path: Path, *, resume: bool) -> None:
    """Tell what becomes of a state that is there.

    path (Path): The file.
    resume (bool): Whether the training goes on from it.
    RAISES (UserError): If it is to, and is no state that can be read.
    """
    if resume and path.exists():
        header = read_header(path)
        msg.info(f"Resuming after step {header.step}, epoch {header.epoch}")
    elif resume:
        msg.info(f"There is no {path} to resume from: starting anew")
    elif path.exists():
        msg.info(f"Starting anew; --resume would go on from {path}")


def resumable(config: Config, path: Path, *, resume: bool) -> Config:
    """A training config whose training can be resumed.

    config (Config): A training config, its variables not interpolated.
    path (Path): Where the state is, or goes.
    resume (bool): Whether to go on from it, if it is there.
    RETURNS (Config): The same training.
    """
    wrapped = config.copy()
    training = wrapped["training"]
    logger: dict[str, Any] = {"@loggers": "zero_copy.ResumableLogger.v1"}
    settings = {"path": str(path), "resume": resume, "logger": training["logger"]}
    training["logger"] = logger | settings
    callback: dict[str, Any] = {"@callbacks": "zero_copy.save_new.v1"}
    training["before_to_disk"] = callback | {"callback": training.get("before_to_disk")}
    return wrapped


def _unwrap(config: Config) -> None:
    """Take out of a config what `resumable` put there, so that it is not saved."""
    training = config["training"]
    training["logger"] = training["logger"]["logger"]
    training["before_to_disk"] = training["before_to_disk"]["callback"]


@contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """A folder for spaCy to work in, which removes and rewrites its checkpoints piece by piece.

    What is finished is moved to the output folder whole, so that there is always a pipeline that
    loads.

    output (Path): The output folder.
    YIELDS (Path): A folder inside it, empty; what is `model-last` at the end is moved.
    RAISES (OSError): If a folder can't be made.
    """
    folder = output / ".unfinished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        publish_checkpoints(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_checkpoints(folder: Path, output: Path) -> None:
    """Move finished checkpoints to their place.

    folder (Path): Where spaCy has saved them.
    output (Path): Where they go, over those that stand there.
    """
    for name in CHECKPOINTS:
        if (folder / name).exists():
            replace_folder(folder / name, output / name)


def components_of(nlp: Language) -> dict[str, PackedPipe]:
    """The components that keep a state.

    nlp (Language): The pipeline that trains.
    RETURNS (Dict[str, PackedPipe]): Ours by their names, also those that are disabled.
    """
    components: list[tuple[str, Any]] = nlp.components
    return {name: each for name, each in components if isinstance(each, PackedPipe)}


@spacy.registry.callbacks("zero_copy.save_new.v1")
def create_save_new(callback: ToDisk | None = None) -> ToDisk:
    """Save pipelines, but for those of evaluations that are passed over.

    callback (Optional[Callable[[Language], Language]]): The callback to go on with.
    RETURNS (Callable[[Language], Language]): The callback for `before_to_disk`.
    """

    def save_new(nlp: Language) -> Language:
        if any(component.is_passing_over for component in components_of(nlp).values()):
            return Language()  # spaCy saves something in any case
        return nlp if callback is None else callback(nlp)

    return save_new


@spacy.registry.loggers("zero_copy.ResumableLogger.v1")
def create_resumable_logger(logger: Logger, path: str, resume: bool = False) -> Logger:
    """Log as another logger does, and write the state of the training after each evaluation.

    logger (Callable): The logger to go on with.
    path (str): The file of the state. The checkpoints of the evaluation are moved to its folder.
    resume (bool): Whether to go on from the state, if it is there.
    RETURNS (Callable): The logger.
    """

    def setup(
        nlp: Language, stdout: IO = sys.stdout, stderr: IO = sys.stderr
    ) -> tuple[LogStep, Callable[[], None]]:
        _unwrap(nlp.config)
        if workers.rank():
            # spaCy seeds all workers alike, and each is to draw masks of its own.
            torch.manual_seed(torch.initial_seed() + workers.rank())
        state = State(nlp, Path(path))
        device_memory.check(nlp)
        if resume:
            state.pass_over()
        # One logger is enough: others would write to the same files.
        log, finalize = logger(nlp, stdout, stderr) if not workers.rank() else (_say_nothing,) * 2

        def log_step(info: dict[str, Any] | None) -> None:
            if info is not None:
                state.end_evaluation(info)
            log(info)

        return log_step, finalize

    return setup


def _say_nothing(info: dict[str, Any] | None = None) -> None:
    pass


class State:
    """The state of a training that goes on.

    nlp (Language): The pipeline that trains.
    path (Path): The file.
    RAISES (UserError): If the pipeline trains on ordinary examples.
    """

    def __init__(self, nlp: Language, path: Path) -> None:
        self.path = path
        self.components = components_of(nlp)
        self.header = describe(nlp)
        # The state to go on from, while the steps before it are passed over.
        self.past: Header | None = None

    def pass_over(self) -> None:
        """Pass over the steps that the state of before has taken, if there is one.

        RAISES (UserError): If it is of another training.
        """
        if self.path.exists():
            self.past = read_header(self.path)
            check(self.path, self.past, self.header)
            for component in self.components.values():
                component.pass_over(self.past.evaluations)
        steps = workers.gather(self.past.step if self.past else None)
        if len(set(steps)) > 1:  # a file server may show an old file for a while
            raise RuntimeError(f"The workers see states of different steps: {steps}")

    def end_evaluation(self, info: dict[str, Any]) -> None:
        """Write the state, or take that of before up where the steps passed over end.

        info (Dict[str, Any]): What spaCy tells its loggers.
        """
        losses = {name: float(loss) for name, loss in info["losses"].items()}
        self.header.evaluations.append(Evaluation(losses, info["other_scores"]))
        if self.past is None:
            self._write(info)
            return
        if "output_path" in info:  # what has been saved is empty: see `save_new`
            for name in CHECKPOINTS:
                shutil.rmtree(Path(info["output_path"]).with_name(name), ignore_errors=True)
        if self.past.step == info["step"]:
            self._take_up(self.past)
            self.past = None

    def _write(self, info: dict[str, Any]) -> None:
        self.header.step, self.header.epoch = info["step"], info["epoch"]
        self.header.random = workers.gather(random_state())
        if "output_path" not in info:
            return  # another worker writes
        # First the checkpoints: if this is where all ends, the evaluation is done again.
        publish_checkpoints(Path(info["output_path"]).parent, self.path.parent)
        tensors = {
            f"{name}.{key}": tensor.detach().cpu()
            for name, component in self.components.items()
            for key, tensor in component.state().items()
        }
        with replacing(self.path) as temporary:
            header = json.dumps(self.header.model_dump(), default=float)
            save_file(tensors, temporary, metadata={"state": header})

    def _take_up(self, past: Header) -> None:
        tensors = {}
        with safe_open(self.path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                tensors[key] = opened.get_tensor(key)
        for name, component in self.components.items():
            start = f"{name}."
            component.load_state(
                {key[len(start) :]: tensors[key] for key in tensors if key.startswith(start)}
            )
        set_random_state(past.random[workers.rank()])


def describe(nlp: Language) -> Header:
    """What a state must agree with.

    nlp (Language): The pipeline that trains.
    RETURNS (Header): The header of its state, before the first step.
    RAISES (UserError): If it trains on ordinary examples.
    """
    resolved = registry.resolve(nlp.config.interpolate()["corpora"])
    training = nlp.config["training"]
    names = {split: training[f"{split}_corpus"] for split in ("train", "dev")}
    readers = resolve_dot_names(Config({"corpora": resolved}), list(names.values()))
    packed = {
        split: reader.path
        for split, reader in zip(names, readers, strict=True)
        if isinstance(reader, Corpus)
    }
    if "train" not in packed:
        raise UserError(
            "A training from ordinary examples can't be resumed",
            "Read [corpora.train] with zero_copy.Corpus.v1.",
        )
    settings = dict_to_dot(nlp.config)
    return Header(
        versions={
            "spaCy": spacy.__version__,
            "thinc": thinc.__version__,
            "torch": torch.__version__,
            "NumPy": numpy.__version__,
        },
        # As they come back from the file, so that the two can be compared.
        settings=json.loads(json.dumps(settings, default=str)),
        corpora={split: read(path).info for split, path in packed.items()},
        workers=workers.count(),
    )


def read_header(path: Path) -> Header:
    """Read what a state says of its training.

    path (Path): The file.
    RETURNS (Header): Its header.
    RAISES (UserError): If it is no state, is damaged or has another version of the format.
    """
    advice = "Start anew, without --resume."
    try:
        with safe_open(path, framework="pt") as opened:
            content = json.loads((opened.metadata() or {}).get("state", "{}"))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is cut off, or no state of a training", advice) from error
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is a .safetensors file, but no state of a training", advice)
    if content.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has version {content.get('version')} of the format, and {FORMAT_VERSION} is "
            "read",
            advice,
        )
    return Header.model_validate(content)


def check(path: Path, state: Header, training: Header) -> None:
    """Refuse a state that is of another training.

    path (Path): Its file.
    state (Header): Its header.
    training (Header): The header that the training would write.
    RAISES (UserError): If anything differs, naming it.
    """
    differences = [
        *_differences("", state.versions, training.versions),
        *_differences("", {"workers": state.workers}, {"workers": training.workers}),
        *_differences("", state.settings, training.settings),
    ]
    for split in sorted(state.corpora.keys() | training.corpora.keys()):
        ours, theirs = (header.corpora.get(split) for header in (training, state))
        if ours != theirs:
            differences.append(f"the {split} corpus has other contents")
    if differences:
        raise UserError(
            f"{path} is the state of another training: {differences[0]}",
            "\n".join([*differences[1:], "Go on as it began, or start anew, without --resume."]),
        )


def _differences(where: str, state: dict[str, Any], training: dict[str, Any]) -> list[str]:
    return [
        f"{where}{name} was {state.get(name)}, and is {training.get(name)}"
        for name in state | training
        if state.get(name) != training.get(name) and name not in MAY_DIFFER
    ]


def random_state() -> dict[str, Any]:
    """The states of all generators of random numbers that training draws from.

    RETURNS (Dict[str, Any]): As JSON takes them.
    """
    kind, keys, *rest = numpy.random.get_state(legacy=True)
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "python": random.getstate(),
        "numpy": [kind, numpy.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if on_gpu else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set all generators of random numbers.

    state (Dict[str, Any]): As `random_state` returned it.
    """
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, "uint32"), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
