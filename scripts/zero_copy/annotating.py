"""Annotating any number of texts with a trained pipeline: in order, in flat memory, and going on
where an interruption has stopped it.

Processes tokenize and hand the words over as columns in shared memory; this one reads, runs the
lowered models on their device, and writes. Where a chunk of texts ends depends on the texts alone,
so a run that goes on after an interruption computes the same chunks, and writes the same bytes, as
one that was never interrupted.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import pydantic
import spacy
from spacy.language import Language
from spacy.util import load_config
from thinc.api import CupyOps, get_current_ops

from zero_copy.annotation_writers import (
    Annotated,
    Writer,
    is_there,
    open_writer,
    output_ending,
)
from zero_copy.documents import Document, read_documents
from zero_copy.errors import UserError
from zero_copy.files import locked
from zero_copy.lowered_pipeline import PROBE, LoweredPipeline
from zero_copy.pipelines import load_pipeline
from zero_copy.processes import choose_processes, work_in_order
from zero_copy.readers import DEFAULT_COLUMNS, Columns, count_lines
from zero_copy.text_work import Annotate, Result, Tokenize, load_tokenizer

# Small enough to be back soon after an interruption, large enough to hide a chunk's own costs.
CHUNK_TEXTS = 500
CHUNK_CHARACTERS = 250_000
# Where an interrupted run has stopped is noted so often.
SECONDS_BETWEEN_NOTES = 2.0

Report = Callable[[float, int, int], None]
Warn = Callable[[int, Document, str], None]
Tell = Callable[[str], None]


class Plan(NamedTuple):
    """How a pipeline annotates.

    model (str): Its folder, or the name of its package.
    nlp (Language): The pipeline.
    exclude (Tuple[str, ...]): Components that were left out.
    labels (List[str]): Names of the categories.
    lowered (Optional[LoweredPipeline]): The pipeline lowered, if it can be.
    reason (str): Why it can't be.
    """

    model: str
    nlp: Language
    exclude: tuple[str, ...]
    labels: list[str]
    lowered: LoweredPipeline | None
    reason: str


class Progress(pydantic.BaseModel):
    """How far a run has come: what is noted beside its unfinished output.

    settings (Dict[str, str]): What the output depends on beside the texts.
    documents (int): How many documents are done.
    words (int): How many words they have.
    failed (int): How many of them have failed.
    digest (str): Of all that has been read of them.
    position (int): Where in the output the next one begins.
    """

    settings: dict[str, str]
    documents: int = 0
    words: int = 0
    failed: int = 0
    digest: str = ""
    position: int = 0


class Summary(NamedTuple):
    """What a run has done.

    documents (int): How many documents there are.
    words (int): How many words they have.
    failed (int): How many documents have failed.
    kept (int): How many documents an interrupted run had done before.
    words_per_second (float): The speed of this run.
    """

    documents: int
    words: int
    failed: int
    kept: int
    words_per_second: float


class Chunk(NamedTuple):
    """Consecutive documents, the unit of work.

    documents (List[Document]): The documents, at least one.
    digest (str): Of these and all before them.
    """

    documents: list[Document]
    digest: str


def make_plan(model: str, exclude: tuple[str, ...] = ()) -> Plan:
    """Load a pipeline, and see whether it can be lowered.

    model (str): Its folder, or the name of its package.
    exclude (Tuple[str, ...]): Components to leave out.
    RETURNS (Plan): How it annotates.
    RAISES (UserError): If it can't be loaded, has no such component, or has no categories.
    """
    nlp = load_pipeline(model, exclude)
    there = list(load_config(nlp.path / "config.cfg")["components"])
    for name in exclude:
        if name not in there:
            raise UserError(
                f"{model} has no component {name!r} to exclude", f"It has {', '.join(there)}."
            )
    try:
        lowered = LoweredPipeline(nlp)
    except UserError as error:
        labels = list(nlp(PROBE).cats)
        if not labels:
            raise UserError(
                f"{model} gives texts no categories", "It must have a text classifier."
            ) from error
        return Plan(model, nlp, exclude, labels, None, str(error))
    return Plan(model, nlp, exclude, lowered.labels, lowered, "")


def annotate(
    source: Path,
    output: Path,
    plan: Plan,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    processes: int = -1,
    report: Report | None = None,
    warn: Warn = lambda number, document, failure: None,
    tell: Tell = lambda message: None,
) -> Summary:
    """Annotate the documents of a file.

    What stands at the output is replaced once all is done. Until then the work is in
    `<output>.partial`, and the next run goes on there if pipeline and documents are the same.

    source (Path): A .jsonl, .csv, .tsv, .tab or .txt file, optionally followed by .gz.
    output (Path): A .jsonl, .csv or .spacy file; the last is a folder if it is large.
    plan (Plan): The pipeline.
    columns (Columns): Where the texts stand.
    processes (int): How many processes tokenize; -1 is one for every core, with 1 this one does.
    report (Optional[Callable]): Called now and then with the share of the file that is done, from 0
        to 1, and how many documents and words this run has done.
    warn (Callable): Called with every document that fails: its number, from 1 on, the document, and
        what went wrong.
    tell (Callable): Called with a message if there is work of an interrupted run.
    RETURNS (Summary): What was done.
    RAISES (UserError): If something is wrong with the file, a setting or the output.
    """
    ending = output_ending(output)
    fields = first_fields(source, columns)
    processes, method = choose_workers(processes, plan, source)
    work = make_work(plan, encode=ending == ".spacy")
    all_lines = count_lines(source) if report is not None else 0
    start = perf_counter()
    with unfinished(output) as (path, notes):
        progress = notes.read(path, describe_settings(plan, columns), tell)
        chunks, progress = skip_done(source, columns, progress, tell)
        before = progress
        if not before.documents:
            notes.forget()
        writer = open_writer(ending, path, progress.position, plan.labels, fields)
        results = work_in_order(chunks, texts_of, work, processes, method=method)
        with notes.kept(writer), closing(results):
            for chunk, result in results:
                annotated = score(chunk, result, plan.lowered)
                for number, failure in sorted(annotated.failures.items()):
                    warn(progress.documents + number + 1, chunk.documents[number], failure)
                is_safe = writer.add(annotated)
                progress = advance(progress, chunk, annotated, result.words, writer.position)
                if is_safe:
                    notes.note(progress)
                if report is not None:
                    report(chunk.documents[-1].line / all_lines, *done_since(before, progress))
        writer.finish(output)
        notes.forget()
    seconds = perf_counter() - start
    if report is not None:
        report(1.0, *done_since(before, progress))
    return Summary(
        documents=progress.documents,
        words=progress.words,
        failed=progress.failed,
        kept=before.documents,
        words_per_second=done_since(before, progress)[1] / seconds,
    )


def done_since(before: Progress, progress: Progress) -> tuple[int, int]:
    """How many documents and words have been done meanwhile.

    before (Progress): How far the run was.
    progress (Progress): How far it is.
    RETURNS (Tuple[int, int]): Documents and words.
    """
    return progress.documents - before.documents, progress.words - before.words


def first_fields(source: Path, columns: Columns) -> list[str]:
    """The fields that become columns of a CSV file: those of the first document that has any.

    source (Path): The file of the documents.
    columns (Columns): Where the texts stand.
    RETURNS (List[str]): Their names.
    RAISES (UserError): If something is wrong with the file.
    """
    with closing(read_documents(source, columns)) as documents:
        first = next((document.fields for document in documents if document.fields), {})
    return list(first)


def choose_workers(processes: int, plan: Plan, source: Path) -> tuple[int, str]:
    """Choose how many processes tokenize, and how they start.

    processes (int): As asked for; -1 is one for every core.
    plan (Plan): The pipeline.
    source (Path): The file of the documents.
    RETURNS (Tuple[int, str]): No more than will have work; and "spawn" or "fork", or nothing where
        either will do.
    RAISES (UserError): If it is neither -1 nor at least 1.
    """
    chosen = max(1, min(choose_processes(processes), source.stat().st_size // CHUNK_CHARACTERS))
    uses_gpu = isinstance(get_current_ops(), CupyOps)
    if uses_gpu and plan.lowered is None:
        chosen = 1  # Each process would have the whole pipeline on the device.
    return chosen, "spawn" if uses_gpu else ""  # What is forked can't use the device's libraries.


def make_work(plan: Plan, encode: bool) -> Tokenize | Annotate:
    """What the processes do.

    plan (Plan): The pipeline.
    encode (bool): Whether to encode the documents for a DocBin file.
    RETURNS (Union[Tokenize, Annotate]): Tokenize where the pipeline is lowered, else all.
    """
    if plan.lowered is None:
        return Annotate(partial(spacy.load, plan.model, exclude=plan.exclude), plan.labels, encode)
    components = tuple(load_config(plan.nlp.path / "config.cfg")["components"])
    return Tokenize(partial(load_tokenizer, plan.model, components), plan.lowered.attrs, encode)


def texts_of(chunk: Chunk) -> list[str]:
    """The texts of a chunk.

    chunk (Chunk): The chunk.
    RETURNS (List[str]): Its texts; empty ones where a document could not be read.
    """
    return [document.text for document in chunk.documents]


def score(chunk: Chunk, result: Result, lowered: LoweredPipeline | None) -> Annotated:
    """Score the documents of a chunk.

    chunk (Chunk): The chunk.
    result (Result): What a process has made of its texts.
    lowered (Optional[LoweredPipeline]): What scores them, if the process has not.
    RETURNS (Annotated): The documents with their scores, and all that went wrong.
    """
    scores, failures = result.scores, result.failures
    if lowered is not None:
        assert result.columns is not None
        scores, others = lowered.score(result.columns)
        failures = others | failures
    assert scores is not None
    faults = {n: document.fault for n, document in enumerate(chunk.documents) if document.fault}
    return Annotated(chunk.documents, scores, failures | faults, result.encoded)


def advance(
    progress: Progress, chunk: Chunk, annotated: Annotated, words: int, position: int
) -> Progress:
    """How far the run has come with one more chunk.

    progress (Progress): How far it was.
    chunk (Chunk): The chunk.
    annotated (Annotated): What was found out about it.
    words (int): How many words it has.
    position (int): Where the output of the next one begins.
    RETURNS (Progress): How far it is.
    """
    return Progress(
        settings=progress.settings,
        documents=progress.documents + len(chunk.documents),
        words=progress.words + words,
        failed=progress.failed + len(annotated.failures),
        digest=chunk.digest,
        position=position,
    )


# Going on after an interruption


def describe_settings(plan: Plan, columns: Columns) -> dict[str, str]:
    """What the output depends on beside the texts.

    plan (Plan): The pipeline.
    columns (Columns): Where the texts stand.
    RETURNS (Dict[str, str]): In words and checksums.
    """
    digest = blake2b(digest_size=16)
    for path in sorted(path for path in plan.nlp.path.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(plan.nlp.path)).encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return {
        "pipeline": digest.hexdigest(),
        "excluded": ", ".join(plan.exclude),
        "columns": repr(columns),
        "chunks": f"{CHUNK_TEXTS} texts, {CHUNK_CHARACTERS} characters",
        "device": type(get_current_ops()).__name__,
    }


def skip_done(
    source: Path, columns: Columns, progress: Progress, tell: Tell
) -> tuple[Iterator[Chunk], Progress]:
    """The chunks that are still to be done.

    source (Path): The file of the documents.
    columns (Columns): Where the texts stand.
    progress (Progress): What an interrupted run has done.
    tell (Callable): Called with a message if there is something.
    RETURNS (Tuple[Iterator[Chunk], Progress]): The chunks, and what need not be done again: nothing
        if those documents are others now.
    """
    documents = read_documents(source, columns)
    if not progress.documents:
        return make_chunks(documents, blake2b()), progress
    digest = blake2b()
    for document in islice(documents, progress.documents):
        update_digest(digest, document)
    if digest.hexdigest() == progress.digest:
        tell(f"Going on after the {progress.documents:,} documents of an interrupted run")
        return make_chunks(documents, digest), progress
    tell("Starting over: the documents that an interrupted run has annotated have changed")
    fresh = Progress(settings=progress.settings)
    return make_chunks(read_documents(source, columns), blake2b()), fresh


def make_chunks(documents: Iterator[Document], digest: blake2b) -> Iterator[Chunk]:
    """Gather documents into units of work.

    documents (Iterator[Document]): The documents.
    digest (blake2b): Of all those before them.
    YIELDS (Chunk): The chunks.
    """
    gathered: list[Document] = []
    characters = 0
    for document in documents:
        gathered.append(document)
        update_digest(digest, document)
        characters += len(document.text)
        if len(gathered) == CHUNK_TEXTS or characters >= CHUNK_CHARACTERS:
            yield Chunk(gathered, digest.hexdigest())
            gathered, characters = [], 0
    if gathered:
        yield Chunk(gathered, digest.hexdigest())


def update_digest(digest: blake2b, document: Document) -> None:
    """Take a document into the digest of all that has been read.

    digest (blake2b): The digest.
    document (Document): The document.
    """
    digest.update(repr((document.fields, document.fault)).encode("utf8", "backslashreplace"))


class Notes:
    """The file that says how far an unfinished output has come.

    path (Path): The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._latest: Progress | None = None
        self._written = perf_counter()

    def read(self, unfinished: Path, settings: dict[str, str], tell: Tell) -> Progress:
        """How far an interrupted run has come.

        unfinished (Path): Its output.
        settings (Dict[str, str]): What the output is to depend on.
        tell (Callable): Called with a message if all must be done again.
        RETURNS (Progress): What need not be done again.
        """
        fresh = Progress(settings=settings)
        if not self._path.is_file():
            return fresh
        try:
            found = Progress.model_validate_json(self._path.read_bytes())
        except ValueError:
            found = fresh
        if not is_there(unfinished, found.position):
            return fresh
        if found.settings != settings:
            changed = next(key for key in settings if found.settings.get(key) != settings[key])
            tell(f"Starting over: an interrupted run had other settings ({changed})")
            return fresh
        return found

    def forget(self) -> None:
        """Remove the notes on an output that is finished, or begun anew."""
        self._path.unlink(missing_ok=True)

    def note(self, progress: Progress) -> None:
        """Note how far the run has come, every other second.

        progress (Progress): What of its output can be counted on.
        """
        self._latest = progress
        if perf_counter() - self._written > SECONDS_BETWEEN_NOTES:
            self._write()

    @contextmanager
    def kept(self, writer: Writer) -> Iterator[None]:
        """Keep the notes, also when the run ends too early.

        writer (Writer): What writes the output.
        RAISES (UserError): If the disk is full, say.
        """
        self._sync = writer.sync
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Stopped: {error.strerror or error}",
                "What is done is kept; the same command goes on from there.",
            ) from error
        finally:
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        if self._latest is None:
            return
        self._sync()
        unfinished = self._path.with_name(f"{self._path.name}.new")
        unfinished.write_text(self._latest.model_dump_json(), encoding="utf8")
        os.replace(unfinished, self._path)
        self._latest, self._written = None, perf_counter()


@contextmanager
def unfinished(output: Path) -> Iterator[tuple[Path, Notes]]:
    """Give the place where an output is written until it is finished.

    output (Path): The output.
    YIELDS (Tuple[Path, Notes]): Where to write it, and the notes on how far it has come.
    RAISES (UserError): If another run is writing there.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    path, notes, lock = (
        output.with_name(f"{output.name}.partial{ending}") for ending in ("", ".json", ".lock")
    )
    with locked(lock, f"Another run is writing {output}", "Wait for it, or end it."):
        yield path, Notes(notes)
