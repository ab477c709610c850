"""Turning labelled texts into the tokenized train, dev and test sets that spaCy reads."""

from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy
import srsly

from zero_copy.docbins import EncodedDocs, SplitWriter
from zero_copy.errors import UserError
from zero_copy.files import publish, staging
from zero_copy.processes import choose_processes
from zero_copy.readers import (
    DEFAULT_COLUMNS,
    ENDINGS,
    Columns,
    count_lines,
    find_split,
    read_rows,
)
from zero_copy.splitting import Splitter
from zero_copy.tokenizing import Chunk, tokenize

SPLITS = ("train", "dev", "test")
# Small enough that all processes have work in a small corpus, large enough to hide its costs.
CHUNK_TEXTS = 2_000
CHUNK_CHARACTERS = 1_000_000

Report = Callable[[float, int, int], None]
Tokenize = Callable[[Iterable[Chunk], str, int], Generator[tuple[Chunk, EncodedDocs], None, None]]


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


class Text(NamedTuple):
    """A labelled text on its way to a split.

    split (str): The split.
    text (str): The text, not empty.
    labels (Tuple[str, ...]): Its labels, sorted.
    lines (int): How many lines of all files had been read before it.
    """

    split: str
    text: str
    labels: tuple[str, ...]
    lines: int


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
    group_separator: str = "",
    tokenize: Tokenize = tokenize,
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
    group_separator (str): Where it is not empty, each label also gives its group, the part before
        the separator, for a second task: both stand in `doc.cats`, and the labels of the tasks in
        labels/textcat.json and labels/groups.json.
    tokenize (Callable): What tokenizes, on this machine or on others, with so many processes.
    report (Optional[Callable]): Called now and then with the share of the files that is done,
        from 0 to 1, the number of texts and the number of words.
    RETURNS (Statistics): What was found.
    RAISES (UserError): If something is wrong with a file or a setting.
    RAISES (OSError): If the output cannot be written.
    """
    start = perf_counter()
    sources = find_sources(source, dev, test)
    sizes = check_sizes({"dev": dev_size, "test": test_size}, sources)
    processes = check_processes(processes, sources)
    all_lines = sum(map(count_lines, sources.values())) if report is not None else 0
    statistics = Statistics(
        labels=(),
        splits={split: SplitStatistics() for split in SPLITS},
        split_off=tuple(sizes),
        empty=0,
    )
    hashes = {split: array("q") for split in SPLITS}
    combinations: dict[tuple[str, ...], int] = {}
    texts = read_texts(sources, columns, Splitter(sizes, seed), statistics)
    chunks = make_chunks(count_texts(texts, statistics, hashes), combinations)
    with staging(output) as folder:
        writers = {split: SplitWriter(folder / f"{split}.spacy") for split in SPLITS}
        documents = words = 0
        with closing(tokenize(chunks, lang, processes)) as encoded:
            for chunk, docs in encoded:
                with _telling_where(output):
                    writers[chunk.split].add(docs, chunk.combinations)
                statistics.splits[chunk.split].words += docs.words
                documents, words = documents + docs.documents, words + docs.words
                if report is not None:
                    report(chunk.lines / all_lines, documents, words)
        check_splits(statistics, sources)
        groups = find_groups(statistics.labels, group_separator)
        both = tuple(sorted({*statistics.labels, *groups.values()}))
        categories = [
            encode_categories((*labels, *(groups[label] for label in labels if groups)), both)
            for labels in combinations
        ]
        with _telling_where(output):
            for writer in writers.values():
                writer.close(categories)
            if groups:
                write_tasks(folder / "labels", statistics.labels, groups)
            publish(folder, output)
    if report is not None:
        report(1.0, documents, words)
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
    characters = sum(path.stat().st_size for path in sources.values() if path.is_file())
    return max(1, min(choose_processes(processes), characters // CHUNK_CHARACTERS))


def read_texts(
    sources: dict[str, Path], columns: Columns, splitter: Splitter, statistics: Statistics
) -> Iterator[Text]:
    """Read all texts, each with the split it goes to, and check their labels.

    sources (Dict[str, Path]): The files, that of "train" first.
    columns (Columns): Where the texts and labels stand.
    splitter (Splitter): Splits the missing splits off the training texts.
    statistics (Statistics): Where to note the labels, once all training texts have been read, and
        how many texts are empty.
    YIELDS (Text): The texts; empty ones are left out.
    RAISES (UserError): If something is wrong with a file, if there is nothing to tell apart, or
        if another split has a label that the training texts have not.
    """
    lines_before = 0
    for source, path in sources.items():
        texts = empty = unlabelled = line = 0
        for line, text, labels in read_rows(path, columns):
            if is_empty(text):
                empty += 1
                continue
            texts += 1
            unlabelled += not labels
            if source == "train":
                split = splitter.assign(labels)
            else:
                split = source
                check_known(path, line, labels, statistics.labels)
            yield Text(split, text, labels, lines_before + line)
        lines_before += line
        statistics.empty += empty
        if not texts:
            what = "Every text is empty" if empty else "It has a header, but no row follows"
            raise UserError(f"{path} holds no texts", f"{what}. Check that it is the right file.")
        if source == "train":
            found = set[str]().union(*(split.labels for split in statistics.splits.values()))
            statistics.labels = tuple(sorted(found))
            check_labels(path, statistics.labels, unlabelled)


def check_labels(path: Path, labels: tuple[str, ...], unlabelled: int) -> None:
    """Make sure that there is something to tell apart.

    path (Path): The file of the training texts.
    labels (Tuple[str, ...]): Their labels.
    unlabelled (int): How many of them have none.
    RAISES (UserError): If all texts are alike.
    """
    if not labels:
        raise UserError(f"No text in {path} has a label", "Choose another column.")
    if len(labels) == 1 and not unlabelled:
        raise UserError(
            f"Every text in {path} has the same label, '{labels[0]}'",
            "A classifier needs at least two. Choose another column with --label-column, or add "
            "texts with other labels.",
        )


def check_known(path: Path, line: int, labels: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Make sure that a text has no label which a classifier cannot learn.

    path (Path): The file of the text.
    line (int): Where it stands.
    labels (Tuple[str, ...]): Its labels.
    known (Tuple[str, ...]): The labels of the training texts.
    RAISES (UserError): If it has another one.
    """
    for label in labels:
        if label not in known:
            raise UserError(
                f"{path}, line {line}: no training text has the label '{label}'",
                "Correct its spelling, add training texts that have it, or remove the rows that "
                "have it.",
            )


def find_groups(labels: tuple[str, ...], separator: str) -> dict[str, str]:
    """The group of each label.

    labels (Tuple[str, ...]): The labels.
    separator (str): What stands behind the group in a label; empty for no groups.
    RETURNS (Dict[str, str]): The group by label, or nothing without a separator.
    RAISES (UserError): If a label has no group, or is one.
    """
    if not separator:
        return {}
    groups = {label: label.partition(separator)[0] for label in labels}
    for label, group in groups.items():
        if separator not in label or not group or group in groups:
            raise UserError(
                f"The label '{label}' has no group before a '{separator}' that is no label itself",
                "Rename it, or leave --group-separator out.",
            )
    return groups


def write_tasks(folder: Path, labels: tuple[str, ...], groups: dict[str, str]) -> None:
    """Write the labels of both tasks, for `spacy.read_labels.v1`.

    folder (Path): Where to; it is made.
    labels (Tuple[str, ...]): The labels of the first task.
    groups (Dict[str, str]): Their groups, which are the labels of the second.
    RAISES (OSError): If a file cannot be written.
    """
    folder.mkdir()
    srsly.write_json(folder / "textcat.json", list(labels))
    srsly.write_json(folder / "groups.json", sorted(set(groups.values())))


def encode_categories(labels: tuple[str, ...], all_labels: tuple[str, ...]) -> bytes:
    """Encode the `cats` of documents as a DocBin does.

    labels (Tuple[str, ...]): The labels that they have.
    all_labels (Tuple[str, ...]): All labels, in the order of `doc.cats`.
    RETURNS (bytes): The categories as msgpack.
    """
    return bytes(srsly.msgpack_dumps({label: float(label in labels) for label in all_labels}))


def is_empty(text: str) -> bool:
    """Tell whether a text has no words.

    text (str): The text.
    RETURNS (bool): Whether it is empty or nothing but white space.
    """
    return not text or text.isspace()


def count_texts(
    texts: Iterator[Text], statistics: Statistics, hashes: dict[str, "array[int]"]
) -> Iterator[Text]:
    """Count texts while they pass by.

    texts (Iterator[Text]): The texts.
    statistics (Statistics): Where to count them.
    hashes (Dict[str, array]): Where to note a hash of each text, eight bytes.
    YIELDS (Text): The same.
    """
    for text in texts:
        counted = statistics.splits[text.split]
        counted.documents += 1
        counted.labels.update(text.labels)
        hashes[text.split].append(hash(text.text))
        yield text


def make_chunks(texts: Iterator[Text], combinations: dict[tuple[str, ...], int]) -> Iterator[Chunk]:
    """Gather texts of the same split into units of work.

    texts (Iterator[Text]): The texts.
    combinations (Dict[Tuple[str, ...], int]): Where to number the combinations of labels.
    YIELDS (Chunk): The chunks; those of one split are in the order of the texts.
    """
    gathered: dict[str, list[str]] = {split: [] for split in SPLITS}
    numbers = {split: array("I") for split in SPLITS}
    characters = Counter[str]()
    lines = 0
    for split, text, labels, lines in texts:
        gathered[split].append(text)
        numbers[split].append(combinations.setdefault(labels, len(combinations)))
        characters[split] += len(text)
        if len(gathered[split]) == CHUNK_TEXTS or characters[split] >= CHUNK_CHARACTERS:
            yield Chunk(split, gathered[split], numbers[split], lines)
            gathered[split], numbers[split], characters[split] = [], array("I"), 0
    for split in SPLITS:
        if gathered[split]:
            yield Chunk(split, gathered[split], numbers[split], lines)


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
