"""A corpus comes out as spaCy itself would make it, whoever does it and whatever goes wrong."""

import csv
import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy
import psutil
import pytest
import spacy
import srsly
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc, DocBin
from spacy.training import Corpus
from typer.testing import CliRunner

import convert as command
import zero_copy.convert
from zero_copy import processes, tokenizing
from zero_copy.convert import SPLITS, convert, encode_categories
from zero_copy.docbins import SplitWriter, finish_docbin, start_docbin
from zero_copy.errors import UserError
from zero_copy.readers import Columns
from zero_copy.splitting import BlockSampler, Splitter
from zero_copy.tokenizing import Encoder

SCRIPT = Path(command.__file__)
Texts = list[tuple[str, str]]


def make_texts(number: int, seed: int = 0, words: int = 12, vocabulary: int = 500) -> Texts:
    generator = random.Random(seed)
    known = [f"word{i}" for i in range(vocabulary)] + ["don't", "U.S.A.", "e-mail", "Tuesday,"]
    labels = ["common"] * 6 + ["usual"] * 3 + ["rare"]
    return [
        (" ".join(generator.choices(known, k=words)) + f" {i}", generator.choice(labels))
        for i in range(number)
    ]


def write_csv(path: Path, texts: Texts) -> Path:
    with path.open("w", newline="", encoding="utf8") as file:
        csv.writer(file).writerows([("text", "label"), *texts])
    return path


def read_docs(path: Path) -> list[Doc]:
    nlp = spacy.blank("en")
    return [example.reference for example in Corpus(path)(nlp)]


def read_texts(path: Path) -> Texts:
    return [(doc.text, max(doc.cats, key=doc.cats.__getitem__)) for doc in read_docs(path)]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make even small data enough for several processes."""
    monkeypatch.setattr(zero_copy.convert, "CHUNK_CHARACTERS", 2000)


# What is written


@pytest.mark.parametrize(
    ("remembered", "forgotten"), [(0, 0), (1000, 200), (0, 10**6), (10**6, 10**6)]
)
def test_documents_are_what_spacy_makes(
    remembered: int, forgotten: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "REMEMBERED_WORDS", remembered)
    monkeypatch.setattr(tokenizing, "FORGOTTEN_WORDS", forgotten)
    extra = ["  two  spaces\n", "naïve 😀 (it's $5.50!) http://a.b/c?d", "NOUN ORTH", "a\tb "]
    texts = [text for text, _ in make_texts(60)] + extra
    labels = [("a",), ("b",), ("a", "b"), ()] * (len(texts) // 4)
    encoder = Encoder("en")
    path = tmp_path / "train.spacy"
    docbin = start_docbin(path, [encoder(texts[i : i + 10]) for i in range(0, 64, 10)])
    finish_docbin(docbin, [encode_categories(chosen, ("a", "b")) for chosen in labels])

    nlp = spacy.blank("en")
    expected = DocBin(attrs=["ORTH", "NORM"], store_user_data=False)
    for text, chosen in zip(texts, labels, strict=True):
        doc = nlp.make_doc(text)
        doc.cats = {label: float(label in chosen) for label in ("a", "b")}
        expected.add(doc)
    expected = DocBin().from_bytes(expected.to_bytes())
    written = DocBin().from_disk(path)
    assert written.attrs == expected.attrs
    assert written.strings | {""} == expected.strings
    for name in ("tokens", "spaces"):
        for ours, theirs in zip(getattr(written, name), getattr(expected, name), strict=True):
            assert numpy.array_equal(ours, theirs)
    for name in ("cats", "flags", "span_groups", "user_data"):
        assert getattr(written, name) == getattr(expected, name)
    docs = list(written.get_docs(spacy.blank("en").vocab))
    assert [doc.text for doc in docs] == texts
    assert [token.norm_ for doc in docs for token in doc] == [
        token.norm_ for text in texts for token in nlp.make_doc(text)
    ]


@pytest.mark.parametrize("documents", [1, 2, 4, 7])
def test_large_splits_are_folders_that_spacy_reads(documents: int, tmp_path: Path) -> None:
    encoder = Encoder("en")
    texts = [f"text {number}" for number in range(documents)]
    writer = SplitWriter(tmp_path / "train.spacy", most_documents=2, most_words=1000)
    for number, text in enumerate(texts):
        writer.add(encoder([text]), [number % 2])
    writer.close([encode_categories((label,), ("a", "b")) for label in ("b", "a")])
    assert (tmp_path / "train.spacy").is_dir() == (documents > 2)
    docs = read_docs(tmp_path / "train.spacy")
    assert [doc.text for doc in docs] == texts
    assert [doc.cats["a"] for doc in docs] == [number % 2 for number in range(documents)]


def test_files_are_bounded_by_words_too(tmp_path: Path) -> None:
    encoder = Encoder("en")
    writer = SplitWriter(tmp_path / "train.spacy", most_documents=100, most_words=5)
    for _ in range(3):
        writer.add(encoder(["four words in here"]), [0])
    writer.close([encode_categories(("a",), ("a", "b"))])
    assert len(list((tmp_path / "train.spacy").iterdir())) == 3


def test_splits_and_statistics(tmp_path: Path) -> None:
    texts = make_texts(300)
    texts[5] = texts[4]
    texts[7:7] = [(" \n", "rare"), ("", "never seen")]
    source = write_csv(tmp_path / "train.csv", texts)
    test = write_csv(tmp_path / "held.csv", [*make_texts(20, seed=1), texts[0], texts[1]])
    seen: list[tuple[float, int, int]] = []
    found = convert(
        source, tmp_path / "out", test=test, processes=1, report=lambda *new: seen.append(new)
    )
    texts = [(text, label) for text, label in texts if text.strip()]
    train, dev, held = (read_texts(tmp_path / f"out/{split}.spacy") for split in SPLITS)
    assert [pair for pair in texts if pair in train] == train
    assert [pair for pair in texts if pair in dev] == dev or texts[4] in dev
    assert Counter(train + dev) == Counter(texts)
    assert len(held) == 22
    assert found.labels == ("common", "rare", "usual")
    assert found.split_off == ("dev",)
    assert found.empty == 2
    assert found.splits["test"].in_train + (texts[0] in dev) + (texts[1] in dev) == 2
    assert found.splits["train"].repeated == train.count(texts[4]) - 1 or texts[4] in dev
    for split, docs in zip(SPLITS, (train, dev, held), strict=True):
        assert found.splits[split].documents == len(docs)
        assert found.splits[split].labels == Counter(label for _, label in docs)
        written = read_docs(tmp_path / f"out/{split}.spacy")
        assert found.splits[split].words == sum(map(len, written))
        assert all(list(doc.cats) == ["common", "rare", "usual"] for doc in written)
    assert seen == sorted(seen)
    assert seen[-1] == (1, 322, sum(split.words for split in found.splits.values()))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dev.spacy",
        "test.spacy",
        "train.spacy",
    ]


@pytest.mark.usefixtures("small_chunks")
def test_the_number_of_processes_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "REMEMBERED_WORDS", 700)
    source = write_csv(tmp_path / "train.csv", make_texts(600))
    results = []
    for count in (1, 2, 3):
        output = tmp_path / str(count)
        convert(source, output, processes=count)
        results.append(contents(output))
    assert results[0] == results[1] == results[2]


@pytest.mark.usefixtures("small_chunks")
def test_workers_need_not_be_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_csv(tmp_path / "train.csv", make_texts(100))
    convert(source, tmp_path / "one", processes=1)
    monkeypatch.setattr(processes, "START_METHOD", "spawn")
    convert(source, tmp_path / "two", processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_gzip_and_folders(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, seed in (("train", 0), ("dev", 1), ("test", 2)):
        path = write_csv(tmp_path / f"{split}.csv", make_texts(50, seed))
        (data / f"{split}.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    found = convert(data, tmp_path / "out", processes=1)
    assert found.split_off == ()
    for split, seed in (("train", 0), ("dev", 1), ("test", 2)):
        assert read_texts(tmp_path / f"out/{split}.spacy") == make_texts(50, seed)


def test_files_given_take_precedence_over_the_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in SPLITS:
        write_csv(data / f"{split}.csv", make_texts(20))
    other = write_csv(tmp_path / "other.csv", make_texts(5, seed=9))
    convert(data, tmp_path / "out", test=other, processes=1)
    assert read_texts(tmp_path / "out/test.spacy") == make_texts(5, seed=9)


def test_several_labels_a_text(tmp_path: Path) -> None:
    rows = [("x y", "a;b"), ("z", ""), ("w", "b")] * 20
    source = write_csv(
        tmp_path / "train.csv", [(f"{text} {i}", la) for i, (text, la) in enumerate(rows)]
    )
    convert(source, tmp_path / "out", columns=Columns(separator=";"), processes=1)
    for doc in read_docs(tmp_path / "out/train.spacy"):
        expected = {"x": {"a": 1.0, "b": 1.0}, "z": {"a": 0.0, "b": 0.0}, "w": {"a": 0.0, "b": 1.0}}
        assert doc.cats == expected[doc[0].text]


def test_converting_again_replaces_files_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write_csv(tmp_path / "small.csv", make_texts(60))
    convert(small, tmp_path / "expected", processes=1)
    output = tmp_path / "out"
    convert(small, output, processes=1)
    (output / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(zero_copy.convert, "CHUNK_TEXTS", 5)
        patch.setattr(
            zero_copy.convert, "SplitWriter", lambda path: SplitWriter(path, most_documents=5)
        )
        convert(small, output, processes=1)
        assert (output / "train.spacy/00001.spacy").is_file()
        convert(small, output, processes=1)
    convert(small, output, processes=1)
    assert (output / "notes.txt").read_text() == "mine"
    (output / "notes.txt").unlink()
    assert contents(output) == contents(tmp_path / "expected")


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\"',;\t\r\n \u2028")),
        min_size=2,
        max_size=8,
    ),
    ending=st.sampled_from([".csv", ".tsv", ".jsonl"]),
)
def test_texts_come_back_exactly(
    texts: list[str], ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("round")
    rows = [(text, str(number % 2)) for number, text in enumerate([*texts, "a", "b"])]
    for split in SPLITS:
        with (folder / f"{split}{ending}").open("w", newline="", encoding="utf8") as file:
            if ending == ".jsonl":
                file.writelines(json.dumps({"text": t, "label": la}) + "\n" for t, la in rows)
            else:
                writer = csv.writer(file, delimiter="," if ending == ".csv" else "\t")
                writer.writerows([("text", "label"), *rows])
    convert(folder, folder / "out", processes=1)
    kept = [row for row in rows if row[0].strip()]
    for split in SPLITS:
        assert read_texts(folder / f"out/{split}.spacy") == kept


# Splitting


@given(
    fraction=st.fractions(Fraction(1, 50), Fraction(1)).filter(bool),
    number=st.integers(0, 200),
    keep_first=st.booleans(),
)
def test_sampler_is_never_further_off_than_one(
    fraction: Fraction, number: int, keep_first: bool
) -> None:
    sampler = BlockSampler(fraction, "key", keep_first and fraction < 1)
    taken = [sampler.take() for _ in range(number)]
    assert abs(sum(taken) - fraction * number) <= 1
    assert not (keep_first and fraction < 1 and taken and taken[0])


@pytest.mark.parametrize("sizes", [{"dev": 0.1, "test": 0.1}, {"dev": 0.25}, {"test": 0.3}])
def test_every_label_keeps_its_share(sizes: dict[str, float]) -> None:
    splitter = Splitter(sizes, seed=0)
    labels = [(label,) for _, label in make_texts(997)]
    counted = Counter((splitter.assign(label), label) for label in labels)
    for label, total in Counter(labels).items():
        for split, size in sizes.items():
            assert abs(counted[split, label] - size * total) <= 1


def test_a_single_text_of_a_label_stays_in_training() -> None:
    splitter = Splitter({"dev": 0.4, "test": 0.4}, seed=0)
    assert {splitter.assign((str(number),)) for number in range(100)} == {"train"}


def test_seeds_decide_the_split() -> None:
    def split(seed: int) -> list[str]:
        splitter = Splitter({"dev": 0.1, "test": 0.1}, seed)
        return [splitter.assign((label,)) for _, label in make_texts(300)]

    assert split(0) == split(0)
    assert split(0) != split(1)


# What goes wrong


def run_command(*arguments: str | Path) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command.main)
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def test_command_tells_what_it_found(tmp_path: Path) -> None:
    texts = make_texts(100)
    source = write_csv(tmp_path / "reviews.csv", [*texts, texts[0], ("", "rare")])
    content = source.read_text().replace("text,label", "review,stars")
    source.write_text(content)
    dev = tmp_path / "dev.csv"
    dev.write_text("\n".join(content.splitlines()[:5]))
    code, said = run_command(
        *(source, tmp_path / "out", "--text-column", "review", "--label-column", "stars"),
        *("--dev", dev, "--n-process", "1"),
    )
    assert code == 0, said
    for part in ("train", "common", "No test set was given", "1 empty text", "repeat an earlier"):
        assert part in said
    assert "dev text(s) also stand in the training set" in said


def good(folder: Path) -> Path:
    return write_csv(folder / "good.csv", make_texts(40))


FAULTS: dict[str, tuple[str | bytes, list[str], list[str]]] = {
    "train.csv": ("", [], ["train.csv is empty"]),
    "header.csv": ("text,label\n", [], ["holds no texts", "no row follows"]),
    "empty.csv": ("text,label\n ,a\n,b\n", [], ["holds no texts", "Every text is empty"]),
    "single.csv": ("text,label\nx,a\ny,a\n", [], ["same label, 'a'"]),
    "few.csv": ("text,label\nx,a\ny,b\n", [], ["too few texts to split a dev set off", "--dev"]),
    "a.doc": ("x", [], ["format of", ".jsonl"]),
    "column.csv": ("words,label\nx,y\n", [], ["words, label", "--text-column"]),
    "byte.csv": (b"text,label\nx,y\nz\xff,y\n", [], ["line 3", "0xff"]),
    "fields.csv": ("text,label\nx,y\nz\n", [], ["line 3", "1 field"]),
    "json.jsonl": ("{\n", [], ["line 1", "not JSON"]),
    "type.jsonl": ('{"text": [], "label": "x"}', [], ["line 1", "'text' is []"]),
    "size.csv": ("", ["--dev-size", "0.7"], ["--dev-size is 0.7", "0.5"]),
    "process.csv": ("", ["--n-process", "0"], ["--n-process is 0"]),
    "none.csv": (
        "text,label\nx,\ny,\n",
        ["--label-separator", ";"],
        ["No text in", "has a label"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_and_change_nothing(name: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    convert(good(tmp_path), output, processes=1)
    before = contents(output)
    content, options, parts = FAULTS[name]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    code, said = run_command(tmp_path / name, output, *options)
    assert code == 1, said
    assert all(part in said for part in parts), said
    assert contents(output) == before
    assert len(list(output.iterdir())) == 3


@pytest.mark.parametrize(
    ("source", "options", "parts"),
    [
        ("missing.csv", [], ["There is no file", "missing.csv"]),
        (".", [], ["holds no training texts", "train"]),
        ("good.csv", ["--test", "missing.csv"], ["There is no file missing.csv"]),
        ("good.csv", ["--lang", "qq"], ["no tokenizer for the language 'qq'"]),
    ],
)
def test_faulty_arguments(
    source: str, options: list[str], parts: list[str], tmp_path: Path
) -> None:
    good(tmp_path)
    code, said = run_command(tmp_path / source, tmp_path / "new/out", *options)
    assert code == 1, said
    assert all(part in said for part in parts), said
    assert not (tmp_path / "new").exists()


def test_label_that_training_never_saw(tmp_path: Path) -> None:
    test = write_csv(tmp_path / "test.csv", [*make_texts(5), ("x", "odd")])
    code, said = run_command(good(tmp_path), tmp_path / "out", "--test", test)
    assert code == 1
    assert "test.csv, line 7: no training text has the label 'odd'" in said
    assert "add training texts" in said


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    code, said = run_command(good(tmp_path), tmp_path / "out")
    assert code == 1
    assert "out" in said
    assert (tmp_path / "out").read_text() == "mine"


# What goes wrong while it runs, in processes of their own


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write what takes several seconds to convert."""
    folder = tmp_path_factory.mktemp("large")
    return write_csv(folder / "large.csv", make_texts(20_000, words=60) * 8)


def start(
    source: Path, output: Path, *options: str, before: Callable[[], None] | None = None
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, SCRIPT, source, output, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=before,
    )


def wait_for_workers(process: "subprocess.Popen[str]") -> list[int]:
    parent = psutil.Process(process.pid)
    for _ in range(600):
        found = [child.pid for child in parent.children()]
        if len(found) == 2:
            time.sleep(0.3)
            return found
        time.sleep(0.05)
    raise AssertionError("no workers have started")


def check_failure(
    process: "subprocess.Popen[str]", code: int, part: str, output: Path, before: dict[str, bytes]
) -> None:
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert part in " ".join(said.split())
    assert "Traceback" not in said
    assert contents(output) == before
    assert len(list(output.iterdir())) == 3


def hear_interrupts() -> None:
    # A shell's background jobs, these tests perhaps among them, are started deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("fault", "code", "part"), [("interrupt", 130, "Interrupted"), ("kill", 1, "has died")]
)
def test_interruption_and_dead_worker(
    fault: str, code: int, part: str, large: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    convert(good(tmp_path), output, processes=1)
    before = contents(output)
    process = start(large, output, "--n-process", "2", before=hear_interrupts)
    workers = wait_for_workers(process)
    if fault == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # As the terminal does: the workers get it too.
    else:
        os.kill(workers[0], signal.SIGKILL)
    check_failure(process, code, part, output, before)


def test_full_disk(tmp_path: Path) -> None:
    output = tmp_path / "out"
    convert(good(tmp_path), output, processes=1)
    before = contents(output)
    source = write_csv(tmp_path / "more.csv", make_texts(2000))

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(source, output, before=limit_file_size)
    check_failure(process, 1, "Cannot write to", output, before)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(large: Path, tmp_path: Path) -> None:
    lines = large.read_text().splitlines(keepends=True)
    small = tmp_path / "small.csv"
    small.write_text("".join(lines[: len(lines) // 5]))
    peaks = []
    for source in (small, large):
        process = start(source, tmp_path / source.stem, "--n-process", "1")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss * 1024)
    assert large.stat().st_size > 60_000_000
    assert peaks[1] - peaks[0] < 40_000_000


def test_groups_are_a_second_task(tmp_path: Path) -> None:
    texts = [(f"text {number}", "sci.med" if number % 3 else "rec.autos") for number in range(60)]
    source = write_csv(tmp_path / "train.csv", texts)
    convert(source, tmp_path / "out", processes=1, group_separator=".")
    for doc in read_docs(tmp_path / "out/train.spacy"):
        chosen = {label for label, value in doc.cats.items() if value}
        assert chosen in ({"sci.med", "sci"}, {"rec.autos", "rec"})
        assert list(doc.cats) == ["rec", "rec.autos", "sci", "sci.med"]
    labels = tmp_path / "out/labels"
    assert srsly.read_json(labels / "textcat.json") == ["rec.autos", "sci.med"]
    assert srsly.read_json(labels / "groups.json") == ["rec", "sci"]


@pytest.mark.parametrize("label", ["plain", ".med", "sci"])
def test_labels_without_a_group(label: str, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "train.csv", [("a text", "sci.med"), ("another", label)] * 30)
    with pytest.raises(UserError, match=f"label '{label}' has no group before a"):
        convert(source, tmp_path / "out", processes=1, group_separator=".")
    assert not (tmp_path / "out").exists()
