"""Turning labelled texts into the tokenized train, dev and test sets that spaCy reads."""

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy

from zero_copy.docbins import SplitWriter
from zero_copy.errors import UserError
from zero_copy.files import publish, staging
from zero_copy.readers import DEFAULT_COLUMNS, ENDINGS, Columns, Row, find_split, read_rows
from zero_copy.splitting import Splitter
from zero_copy.tokenizing import Chunk, tokenize

SPLITS = ("train", "dev", "test")
# Small enough that all processes have work in a small corpus, large enough to hide its costs.
CHUNK_TEXTS = 1_000
CHUNK_CHARACTERS = 500_000

Report = Callable[[int, int, int], None]


@dataclass
class SplitStatistics:
    """What is in a split.

    documents (int): How many documents.
    words (int): How many words, as spaCy tokenizes.
    labels (Counter): How many documents have each label.
    repeated (int): How many documents repeat the text of an earlier one in the split.
    in_train (int): How many documents have a text that also stands in the training set.
    """

    documents: int = 0
    words: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    in_train: int = 0


@dataclass
class Statistics:
    """What a conversion found.

    labels (Tuple[str, ...]): All labels, in the order of `doc.cats`.
    splits (Dict[str, SplitStatistics]): The contents of "train", "dev" and "test".
    split_off (Tuple[str, ...]): The splits that were taken from the training texts.
    empty (int): How many texts held nothing but white space and were dropped.
    seconds (float): How long it took.
    """

    labels: tuple[str, ...]
    splits: dict[str, SplitStatistics]
    split_off: tuple[str, ...]
    empty: int
    seconds: float = 0.0


@dataclass
class Survey:
    """What a first look at a file finds, which is all that must be known beforehand.

    labels (Counter): How many texts have each label.
    first_lines (Dict[str, int]): The line of the first text that has the label.
    texts (int): How many texts there are.
    unlabelled (int): How many of them have no label.
    empty (int): How many more texts hold nothing but white space.
    """

    labels: Counter[str] = field(default_factory=Counter)
    first_lines: dict[str, int] = field(default_factory=dict)
    texts: int = 0
    unlabelled: int = 0
    empty: int = 0


def convert(
    source: Path,
    output: Path,
    *,
    dev: Path | None = None,
    test: Path | None = None,
    columns: Columns = DEFAULT_COLUMNS,
    lang: str = "en",
    dev_size: float = 0.1,
    test_size: float = 0.1,
    seed: int = 0,
    processes: int = -1,
    report: Report | None = None,
) -> Statistics:
    """Write train.spacy, dev.spacy and test.spacy from labelled texts.

    A split is a file, or a folder of files once it is large. What stood there is replaced at the
    very end, all at once; until then nothing is touched.

    source (Path): The training texts, or a folder with train.* and perhaps dev.* and test.*.
    output (Path): The folder to write to; it is made if it is missing.
    dev (Optional[Path]): The development texts; without them they are split off.
    test (Optional[Path]): The test texts; without them they are split off.
    columns (Columns): Where the texts and labels stand in the files.
    lang (str): The language whose tokenizer to use, as in `spacy.blank`.
    dev_size (float): The share to split off for development, between 0 and 0.5.
    test_size (float): The share to split off for testing, between 0 and 0.5.
    seed (int): What the splits depend on.
    processes (int): How many processes tokenize; -1 is one for every core.
    report (Optional[Callable]): Called now and then with the number of texts done, the number of
        all texts and the number of words done.
    RETURNS (Statistics): What was found.
    RAISES (UserError): If something is wrong with a file or a setting.
    RAISES (OSError): If the output cannot be written.
    """
    start = perf_counter()
    sources = find_sources(source, dev, test)
    sizes = check_sizes({"dev": dev_size, "test": test_size}, sources)
    processes = check_processes(processes, sources)
    surveys = {split: survey(path, columns) for split, path in sources.items()}
    labels = check_labels(sources, surveys)
    statistics = Statistics(
        labels=labels,
        splits={split: SplitStatistics() for split in SPLITS},
        split_off=tuple(sizes),
        empty=sum(found.empty for found in surveys.values()),
    )
    total = sum(found.texts for found in surveys.values())
    hashes = {split: array("q") for split in SPLITS}
    rows = split_rows(sources, columns, Splitter(sizes, seed))
    chunks = make_chunks(count_rows(rows, statistics, hashes))
    with staging(output) as folder:
        writers = {split: SplitWriter(folder / f"{split}.spacy") for split in SPLITS}
        done = words = 0
        with closing(tokenize(chunks, lang, labels, processes)) as encoded:
            for split, docs in encoded:
                with _telling_where(output):
                    writers[split].add(docs)
                statistics.splits[split].words += docs.words
                done, words = done + docs.documents, words + docs.words
                if report is not None:
                    report(done, total, words)
        check_splits(statistics, sources)
        with _telling_where(output):
            for writer in writers.values():
                writer.close()
            publish(folder, output)
    count_repeated(statistics, hashes)
    statistics.seconds = perf_counter() - start
    return statistics


def find_sources(source: Path, dev: Path | None, test: Path | None) -> dict[str, Path]:
    """Find the file of each split.

    source (Path): The training texts, or a folder with train.* and perhaps dev.* and test.*.
    dev (Optional[Path]): The development texts, which take precedence over a folder's.
    test (Optional[Path]): The test texts, which take precedence over a folder's.
    RETURNS (Dict[str, Path]): The files of those splits that have one, "train" first.
    RAISES (UserError): If there are no training texts.
    """
    found = {"train": source, "dev": dev, "test": test}
    if source.is_dir():
        found = {split: found[split] or find_split(source, split) for split in ("dev", "test")}
        found = {"train": find_split(source, "train"), **found}
        if found["train"] is None:
            raise UserError(
                f"{source} holds no training texts",
                f"Put them there as train with one of the endings {', '.join(ENDINGS)}, each also "
                "followed by .gz.",
            )
    return {split: path for split, path in found.items() if path is not None}


def check_sizes(sizes: dict[str, float], sources: dict[str, Path]) -> dict[str, float]:
    """Choose the splits that must be split off.

    sizes (Dict[str, float]): The share of each split that may be split off.
    sources (Dict[str, Path]): The files of those splits that have one.
    RETURNS (Dict[str, float]): The shares of those that have none.
    RAISES (UserError): If a share is not between 0 and 0.5.
    """
    for split, size in sizes.items():
        if not 0 < size < 0.5:
            raise UserError(
                f"--{split}-size is {size}", "Choose a share between 0 and 0.5, such as 0.1."
            )
    return {split: size for split, size in sizes.items() if split not in sources}


def check_processes(processes: int, sources: dict[str, Path]) -> int:
    """Choose the number of processes.

    processes (int): As asked for; -1 is one for every core.
    sources (Dict[str, Path]): The files to convert.
    RETURNS (int): How many to use: no more than will have work.
    RAISES (UserError): If it is neither -1 nor at least 1.
    """
    if processes == 0 or processes < -1:
        raise UserError(
            f"--n-process is {processes}", "Choose at least 1, or -1 for one process a core."
        )
    if processes == -1:
        processes = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else (os.cpu_count() or 1)
        )
    characters = sum(path.stat().st_size for path in sources.values() if path.is_file())
    return max(1, min(processes, characters // CHUNK_CHARACTERS))


def survey(path: Path, columns: Columns) -> Survey:
    """Look through a file once, keeping nothing but what its labels are.

    path (Path): The file.
    columns (Columns): Where the texts and labels stand.
    RETURNS (Survey): What was found.
    RAISES (UserError): If something is wrong with the file, or it holds no text.
    """
    found = Survey()
    for row in read_rows(path, columns):
        if is_empty(row):
            found.empty += 1
            continue
        found.texts += 1
        found.unlabelled += not row.labels
        found.labels.update(row.labels)
        for label in row.labels:
            found.first_lines.setdefault(label, row.line)
    if not found.texts:
        what = "Every text is empty" if found.empty else "It has a header, but no row follows"
        raise UserError(f"{path} holds no texts", f"{what}. Check that it is the right file.")
    return found


def check_labels(sources: dict[str, Path], surveys: dict[str, Survey]) -> tuple[str, ...]:
    """Decide what the labels are.

    sources (Dict[str, Path]): The file of each split.
    surveys (Dict[str, Survey]): What was found in each.
    RETURNS (Tuple[str, ...]): The labels of the training texts, sorted.
    RAISES (UserError): If there is nothing to tell apart, or if another split has a label that
        the training texts have not.
    """
    train = surveys["train"]
    labels = tuple(sorted(train.labels))
    if not labels:
        raise UserError(f"No text in {sources['train']} has a label", "Choose another column.")
    if len(labels) == 1 and not train.unlabelled:
        raise UserError(
            f"Every text in {sources['train']} has the same label, '{labels[0]}'",
            "A classifier needs at least two. Choose another column with --label-column, or add "
            "texts with other labels.",
        )
    for split, found in surveys.items():
        for label, line in found.first_lines.items():
            if label not in train.labels:
                raise UserError(
                    f"{sources[split]}, line {line}: no training text has the label '{label}'",
                    "Correct its spelling, add training texts that have it, or remove the "
                    f"{found.labels[label]} row(s) that have it.",
                )
    return labels


def split_rows(
    sources: dict[str, Path], columns: Columns, splitter: Splitter
) -> Iterator[tuple[str, Row]]:
    """Read all texts, each with the split it goes to.

    sources (Dict[str, Path]): The files.
    columns (Columns): Where the texts and labels stand.
    splitter (Splitter): Splits the missing splits off the training texts.
    YIELDS (Tuple[str, Row]): The split and the text; empty ones are left out.
    RAISES (UserError): If something is wrong with a file.
    """
    for split, path in sources.items():
        for row in read_rows(path, columns):
            if not is_empty(row):
                yield splitter.assign(row.labels) if split == "train" else split, row


def is_empty(row: Row) -> bool:
    """Tell whether a text has no words.

    row (Row): The text.
    RETURNS (bool): Whether it is empty or nothing but white space.
    """
    return not row.text or row.text.isspace()


def count_rows(
    rows: Iterator[tuple[str, Row]], statistics: Statistics, hashes: dict[str, "array[int]"]
) -> Iterator[tuple[str, Row]]:
    """Count texts while they pass by.

    rows (Iterator[Tuple[str, Row]]): The texts and their splits.
    statistics (Statistics): Where to count them.
    hashes (Dict[str, array]): Where to note a hash of each text, eight bytes.
    YIELDS (Tuple[str, Row]): The same.
    """
    for split, row in rows:
        counted = statistics.splits[split]
        counted.documents += 1
        counted.labels.update(row.labels)
        hashes[split].append(hash(row.text))
        yield split, row


def make_chunks(rows: Iterator[tuple[str, Row]]) -> Iterator[Chunk]:
    """Gather texts of the same split into units of work.

    rows (Iterator[Tuple[str, Row]]): The texts and their splits.
    YIELDS (Chunk): The chunks; those of one split are in the order of the texts.
    """
    chunks = {split: Chunk(split, [], []) for split in SPLITS}
    characters = Counter[str]()
    for split, row in rows:
        chunk = chunks[split]
        chunk.texts.append(row.text)
        chunk.labels.append(row.labels)
        characters[split] += len(row.text)
        if len(chunk.texts) == CHUNK_TEXTS or characters[split] >= CHUNK_CHARACTERS:
            yield chunk
            chunks[split] = Chunk(split, [], [])
            characters[split] = 0
    yield from (chunk for chunk in chunks.values() if chunk.texts)


def check_splits(statistics: Statistics, sources: dict[str, Path]) -> None:
    """Make sure that every split has texts.

    statistics (Statistics): What was found.
    sources (Dict[str, Path]): The files.
    RAISES (UserError): If there were too few texts to split one off.
    """
    for split in statistics.split_off:
        if not statistics.splits[split].documents:
            raise UserError(
                f"{sources['train']} has too few texts to split a {split} set off",
                f"Give one with --{split}, choose a larger --{split}-size, or add texts: a label "
                "needs several before one of them is split off.",
            )


def count_repeated(statistics: Statistics, hashes: dict[str, "array[int]"]) -> None:
    """Count texts that stand in a split twice, or also in the training set.

    statistics (Statistics): Where to note the numbers.
    hashes (Dict[str, array]): A hash of each text.
    """
    distinct = {
        split: numpy.unique(numpy.frombuffer(values, dtype="int64"))
        for split, values in hashes.items()
    }
    for split, values in hashes.items():
        counted = statistics.splits[split]
        counted.repeated = counted.documents - len(distinct[split])
        if split != "train":
            both = numpy.isin(numpy.frombuffer(values, dtype="int64"), distinct["train"])
            counted.in_train = int(both.sum())


@contextmanager
def _telling_where(output: Path) -> Iterator[None]:
    """Say what could not be written, which errors of an open file do not."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write to {output}: {error.strerror}",
            "What was there before is unchanged. Make room, or choose another folder.",
        ) from error
