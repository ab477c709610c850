"""Annotated texts have the scores of `nlp(text).cats`, whatever happens on the way."""

import csv
import gzip
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from thinc.api import fix_random_seed

from conftest import LABELS, random_docs
from test_layers import bow, ensemble, reduce, tok2vec
from zero_copy import annotating, annotation_writers, tokenizing
from zero_copy.annotating import annotate, make_plan
from zero_copy.errors import UserError
from zero_copy.lowered_pipeline import LoweredPipeline
from zero_copy.text_work import Tokenize

SCRIPT = Path(__file__).parent.parent / "scripts" / "annotate.py"
LISTENER = {"@architectures": "spacy.Tok2VecListener.v1", "width": 8}
PIPELINES: dict[str, list[tuple[str, dict]]] = {
    "bow": [("textcat", bow())],
    "cnn": [("textcat", reduce(max=True, mean=True))],
    "listeners": [
        ("tok2vec", tok2vec()),
        ("textcat", ensemble(LISTENER, ngram_size=2)),
        ("textcat_multilabel", reduce(embedding=LISTENER, exclusive=False, mean=True)),
    ],
}
TEXTS = [
    *(doc.text for doc in random_docs(spacy.blank("en"), (9, 1, 30, 4, 12, 7, 22) * 4)),
    *(
        "",
        "  two  spaces\n",
        "naïve 😀 (it's $5.50!) http://a.b/c?d",
        "unseen words, can't",
        '"a",b',
    ),
]


def make(parts: Sequence[tuple[str, dict]], path: Path) -> Language:
    """Save a stock pipeline with random parameters: those of a fresh one are zeros at the end."""
    fix_random_seed(0)
    nlp = spacy.blank("en")
    docs = random_docs(nlp, (9, 30, 4))
    for factory, model in parts:
        component = nlp.add_pipe(factory, config={"model": model})
        if factory == "textcat":
            for label in LABELS:
                component.add_label(label)
        elif factory == "textcat_multilabel":
            for label in ("new%", "old"):
                component.add_label(label)
    nlp.initialize(lambda: [Example(doc.copy(), doc) for doc in docs])
    order = numpy.random.default_rng(0)
    for _, component in nlp.pipeline:
        for layer in component.model.walk():
            for name in layer.param_names:
                shape = layer.get_param(name).shape
                layer.set_param(name, order.normal(0, 0.3, shape).astype("float32"))
    nlp.to_disk(path)
    return spacy.load(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, parts in PIPELINES.items():
        make(parts, folder / name)
    return {name: folder / name for name in PIPELINES}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotating, "CHUNK_TEXTS", 4)
    monkeypatch.setattr(annotating, "CHUNK_CHARACTERS", 200)


def write_json_lines(path: Path, texts: Sequence[str]) -> Path:
    lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(texts)]
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def run(source: Path, output: Path, model: Path, **settings) -> tuple[list, annotating.Summary]:
    """Annotate, and return what was warned of, and the summary."""
    failures: list[tuple[int, int, str]] = []
    summary = annotate(
        source,
        output,
        make_plan(str(model)),
        warn=lambda number, document, failure: failures.append((number, document.line, failure)),
        **settings,
    )
    return failures, summary


def assert_scores(found: dict[str, float], nlp: Language, text: str) -> None:
    expected = nlp(text).cats
    assert list(found) == list(expected)
    numpy.testing.assert_allclose(
        list(found.values()), list(expected.values()), rtol=1e-4, atol=1e-7, err_msg=text
    )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", PIPELINES)
def test_scores_are_those_of_the_stock_pipeline(models, tmp_path, name, processes):
    source = write_json_lines(tmp_path / "texts.jsonl.gz", TEXTS * 3)
    failures, summary = run(source, tmp_path / "out.jsonl", models[name], processes=processes)
    assert not failures
    nlp = spacy.load(models[name])
    rows = read_json_lines(tmp_path / "out.jsonl")
    assert [(row["id"], row["text"]) for row in rows] == list(enumerate(TEXTS * 3))
    for row in rows[: len(TEXTS)]:
        assert_scores(row["cats"], nlp, row["text"])
    words = sum(len(nlp.make_doc(text)) for text in TEXTS * 3)
    assert summary[:4] == (len(rows), words, 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "texts.jsonl.gz"]


def test_lowered_pipeline_looks_at_no_more_than_it_needs(models):
    assert LoweredPipeline(spacy.load(models["bow"])).attrs == ("ORTH", "NORM", "SPACY")
    assert set(LoweredPipeline(spacy.load(models["listeners"])).attrs) == {
        *("ORTH", "NORM", "SPACY", "PREFIX", "SUFFIX", "SHAPE", "LOWER")
    }


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".tab", ".txt", ".jsonl"])
def test_every_format_is_read(models, tmp_path, ending, end):
    texts = ["wheat, and ships", "", "U.S. Corn"]
    path = tmp_path / f"texts{ending}"
    if ending == ".jsonl":
        write_json_lines(path, texts)
    elif ending == ".txt":
        path.write_text("".join(f"{text}\r\n" for text in texts))
    else:
        with path.open("w", newline="") as file:
            rows = csv.writer(file, delimiter="," if ending == ".csv" else "\t")
            rows.writerow(["id", "text"])
            if ending == ".tab":
                rows.writerows([["d", "string"], ["", ""]])
            rows.writerows(enumerate(texts))
    if end:
        packed = tmp_path / f"{path.name}{end}"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    run(path, tmp_path / "out.jsonl", models["bow"])
    found = read_json_lines(tmp_path / "out.jsonl")
    assert [row["text"] for row in found] == texts
    nlp = spacy.load(models["bow"])
    for row in found:
        assert_scores(row["cats"], nlp, row["text"])
        assert str(row.get("id", "0")) in "012"


def test_csv_output(models, tmp_path):
    lines = [
        '{"text": "wheat, \\"quoted\\"\\nand ships", "id": 7, "tags": ["a", "é"], "old": null}',
        '{"text": "U.S. Corn", "more": 1}',
        '{"text": 5}',
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf8")
    failures, _ = run(tmp_path / "texts.jsonl", tmp_path / "out.csv", models["listeners"])
    with (tmp_path / "out.csv").open(newline="", encoding="utf8") as file:
        rows = list(csv.DictReader(file))
    scores = ["cats.grain", "cats.ship", "cats.trade", "cats.new%", "cats.old"]
    assert list(rows[0]) == ["text", "id", "tags", "old", *scores, "error"]
    assert list(rows[0].values())[:4] == ['wheat, "quoted"\nand ships', "7", '["a", "é"]', ""]
    assert list(rows[1].values())[:4] == ["U.S. Corn", "", "", ""]
    for row in rows[:2]:
        cats = {name.removeprefix("cats."): float(row[name]) for name in scores}
        assert_scores(cats, spacy.load(models["listeners"]), row["text"])
    assert [rows[2][name] for name in scores] == [""] * 5
    assert failures == [(3, 3, rows[2]["error"])]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("part", [10, 1000])
def test_docbin_output_is_a_file_or_a_folder_of_them(models, tmp_path, monkeypatch, part):
    monkeypatch.setattr(annotation_writers, "PART_DOCUMENTS", part)
    output = tmp_path / "out.spacy"
    output.mkdir()
    (output / "old.spacy").write_text("of another run")
    source = write_json_lines(tmp_path / "texts.jsonl", TEXTS)
    run(source, output, models["cnn"], processes=2)
    assert output.is_dir() == (part == 10)
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    assert len(files) == (3 if part == 10 else 1)
    nlp = spacy.load(models["cnn"])
    docs = [doc for file in files for doc in DocBin().from_disk(file).get_docs(nlp.vocab)]
    assert [doc.text for doc in docs] == TEXTS
    for doc in docs:
        assert_scores(doc.cats, nlp, doc.text)
        assert [token.norm_ for token in doc] == [token.norm_ for token in nlp.make_doc(doc.text)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.spacy", "texts.jsonl"]


# What fails


BROKEN = {
    3: (b"{not JSON}", "is not JSON"),
    6: (b'["a list"]', "where an object should stand"),
    7: (b'{"id": 1}', "has no 'text'"),
    11: (b'{"text": "caf\xe9"}', "not UTF-8"),
    12: (b'{"text": "' + b"a" * 1_000_001 + b'"}', "[E088]"),
    20: (b'{"text": "half a \\ud83d pair"}', "is not JSON"),
}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".spacy"])
@pytest.mark.parametrize("processes", [1, 2])
def test_what_fails_is_reported_and_the_rest_goes_on(models, tmp_path, ending, processes):
    good = write_json_lines(tmp_path / "good.jsonl", TEXTS).read_bytes().splitlines()
    lines = [BROKEN[n][0] if n in BROKEN else line for n, line in enumerate(good, 1)]
    source, output = tmp_path / "texts.jsonl", tmp_path / f"out{ending}"
    source.write_bytes(b"\n".join([b"", *lines]))
    failures, summary = run(source, output, models["cnn"], processes=processes)
    assert [(number, line) for number, line, _ in failures] == [(n, n + 1) for n in BROKEN]
    for (_, _, said), (_, reason) in zip(failures, BROKEN.values(), strict=True):
        assert reason in said
    assert (summary.documents, summary.failed) == (len(TEXTS), len(BROKEN))
    nlp = spacy.load(models["cnn"])
    if ending == ".spacy":
        docs = list(DocBin().from_disk(output).get_docs(nlp.vocab))
        found = [doc.cats for doc in docs]
        assert [len(doc) for n, doc in enumerate(docs, 1) if n in BROKEN] == [0] * len(BROKEN)
    elif ending == ".jsonl":
        rows = read_json_lines(output)
        found = [row["cats"] for row in rows]
        assert [row["error"] for row in rows if "error" in row] == [said for *_, said in failures]
    else:
        with output.open(newline="", encoding="utf8") as file:
            rows = list(csv.DictReader(file))
        found = [
            {label: float(row[f"cats.{label}"]) for label in LABELS} if not row["error"] else None
            for row in rows
        ]
    assert len(found) == len(TEXTS)
    for number, (cats, text) in enumerate(zip(found, TEXTS, strict=True), 1):
        if number in BROKEN:
            assert not cats
        else:
            assert_scores(cats, nlp, text)


def test_rows_of_tables_may_be_broken_too(models, tmp_path):
    (tmp_path / "texts.csv").write_text("id,text\n1,wheat\n2,a,b\n3\n4,ships\n")
    failures, _ = run(tmp_path / "texts.csv", tmp_path / "out.jsonl", models["bow"])
    assert [failure[:2] for failure in failures] == [(2, 3), (3, 4)]
    rows = read_json_lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["cats"] is None for row in rows] == [False, True, True, False]


def test_model_that_fails_on_one_text_annotates_the_others(models, monkeypatch):
    nlp = spacy.load(models["cnn"])
    lowered = LoweredPipeline(nlp)
    right = lowered._score

    def fail_on_long_documents(corpus, docs):
        if (corpus.lengths[docs] > 25).any():
            raise RuntimeError("out of memory")
        return right(corpus, docs)

    monkeypatch.setattr(lowered, "_score", fail_on_long_documents)
    result = Tokenize(lambda: spacy.load(models["cnn"]), lowered.attrs)(TEXTS)
    scores, failures = lowered.score(result.columns)
    assert failures == {
        n: "RuntimeError: out of memory" for n, text in enumerate(TEXTS) if len(nlp(text)) > 25
    }
    assert len(failures) == 4
    assert_scores(dict(zip(LABELS, scores[0].tolist(), strict=True)), nlp, TEXTS[0])


@Language.component("fails_on_unseen")
def fails(doc: Doc) -> Doc:
    if doc.text.startswith("unseen"):
        raise ValueError("a word that I do not like")
    return doc


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("processes", [1, 2])
def test_pipeline_that_cannot_be_lowered_runs_whole(models, tmp_path, processes):
    nlp = spacy.load(models["listeners"])
    nlp.add_pipe("sentencizer", first=True)
    nlp.add_pipe("fails_on_unseen")
    nlp.to_disk(tmp_path / "model")
    plan = make_plan(str(tmp_path / "model"))
    assert plan.lowered is None
    assert "'sentencizer' (sentencizer) can't be lowered" in plan.reason
    source = write_json_lines(tmp_path / "texts.jsonl", TEXTS)
    failures, _ = run(source, tmp_path / "out.jsonl", tmp_path / "model", processes=processes)
    assert [(number, said) for number, _, said in failures] == [
        (TEXTS.index("unseen words, can't") + 1, "ValueError: a word that I do not like")
    ]
    for row in read_json_lines(tmp_path / "out.jsonl"):
        if row["cats"] is not None:
            assert_scores(row["cats"], nlp, row["text"])
    others = ("sentencizer", "fails_on_unseen")
    assert make_plan(str(tmp_path / "model"), others).lowered is not None


@pytest.mark.parametrize(
    ("name", "content", "output", "message"),
    [
        ("a.pdf", b"", "out.jsonl", "Cannot tell the format"),
        ("a.jsonl", b"", "out.jsonl", "is empty"),
        ("a.csv", b"number\n1\n", "out.jsonl", "which column"),
        ("a.csv", b'text\n"never closed\n', "out.jsonl", "malformed"),
        ("a.csv.gz", b"no gzip", "out.jsonl", "not a whole gzip file"),
        ("a.csv", b"text\na\n", "out.xml", "format to write"),
    ],
)
def test_what_is_wrong_is_told_in_one_message(models, tmp_path, name, content, output, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        run(tmp_path / name, tmp_path / output, models["bow"])
    assert message in str(error.value)
    assert not (tmp_path / output).exists()


def test_pipelines_that_say_nothing_are_refused(tmp_path):
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="gives texts no categories"):
        make_plan(str(tmp_path / "blank"))
    with pytest.raises(UserError, match="Can't load a pipeline"):
        make_plan(str(tmp_path / "nowhere"))


# Going on after an interruption


def annotate_until(
    number: int, source: Path, output: Path, model: Path, processes: int, end: Callable[[], None]
) -> int | None:
    """Annotate in a process of its own, and end it after so many chunks; returns its exit code."""
    calls = 0

    def report(*_: float) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            end()

    def target() -> None:
        annotating.SECONDS_BETWEEN_NOTES = 0.0
        annotate(source, output, make_plan(str(model)), processes=processes, report=report)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(60)
    return process.exitcode


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def contents(output: Path) -> dict[str, bytes]:
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return {file.name if output.is_dir() else "": file.read_bytes() for file in files}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".spacy"])
def test_killed_run_goes_on_and_writes_the_same_bytes(
    models, tmp_path, monkeypatch, ending, processes
):
    monkeypatch.setattr(annotation_writers, "PART_DOCUMENTS", 10)
    source = write_json_lines(tmp_path / "texts.jsonl.gz", [*TEXTS, "", "last"] * 2)
    run(source, tmp_path / f"whole{ending}", models["cnn"], processes=1)
    output = tmp_path / f"out{ending}"
    kept, told = [], []
    for number in (1, 5, 4):
        code = annotate_until(number, source, output, models["cnn"], processes, kill)
        assert code == -signal.SIGKILL
        assert not output.exists()
        with (tmp_path / f"out{ending}.partial{'' if ending != '.spacy' else '/unwhole'}").open(
            "ab"
        ) as file:
            file.write(b"half a row")
    _, summary = run(source, output, models["cnn"], processes=processes, tell=told.append)
    kept.append(summary.kept)
    assert 0 < kept[0] < summary.documents
    assert told == [f"Going on after the {kept[0]} documents of an interrupted run"]
    assert contents(output) == contents(tmp_path / f"whole{ending}")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"texts.jsonl.gz", f"whole{ending}", f"out{ending}"}


@pytest.mark.usefixtures("small_chunks")
def test_workers_end_with_a_killed_run(models, tmp_path):
    source = write_json_lines(tmp_path / "texts.jsonl", TEXTS * 20)

    def tell_and_kill() -> None:
        children = [str(process.pid) for process in multiprocessing.active_children()]
        (tmp_path / "children").write_text(" ".join(children))
        kill()

    annotate_until(3, source, tmp_path / "out.jsonl", models["bow"], 2, tell_and_kill)
    children = (tmp_path / "children").read_text().split()
    assert len(children) == 2
    deadline = time.monotonic() + 10
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.usefixtures("small_chunks")
def test_changed_texts_or_pipelines_are_annotated_anew(models, tmp_path):
    source, output = tmp_path / "texts.jsonl", tmp_path / "out.jsonl"
    changes = {
        "more": lambda: write_json_lines(source, [*TEXTS, "one more"]),
        "other": lambda: write_json_lines(source, ["another", *TEXTS[1:]]),
        "model": lambda: None,
    }
    for name, change in changes.items():
        write_json_lines(source, TEXTS)
        annotate_until(4, source, output, models["bow"], 1, kill)
        change()
        model = models["cnn" if name == "model" else "bow"]
        told: list[str] = []
        _, summary = run(source, output, model, tell=told.append)
        assert (summary.kept > 0) == (name == "more")
        assert ("Starting over" in told[0]) == (name != "more")
        found = contents(output)
        run(source, tmp_path / "fresh.jsonl", model)
        assert found == contents(tmp_path / "fresh.jsonl")


@pytest.mark.usefixtures("small_chunks")
def test_full_disk_loses_nothing(models, tmp_path):
    source, output = write_json_lines(tmp_path / "texts.jsonl", TEXTS), tmp_path / "out.jsonl"
    output.write_text("before")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))

    assert annotate_until(2, source, output, models["bow"], 1, limit) == 1
    assert output.read_text() == "before"
    _, summary = run(source, output, models["bow"])
    assert summary.kept > 0
    assert len(read_json_lines(output)) == len(TEXTS)


def test_second_run_on_the_same_output_is_refused(models, tmp_path):
    source = write_json_lines(tmp_path / "texts.jsonl", TEXTS)
    plan, output = make_plan(str(models["bow"])), tmp_path / "out.jsonl"

    def again(share: float, *_: int) -> None:
        if share == 1:  # done
            return
        with pytest.raises(UserError, match="Another run is writing"):
            annotate(source, output, plan)

    annotate(source, output, plan, report=again)


# Memory


def resident_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_is_flat_for_texts_full_of_new_words(models, monkeypatch):
    monkeypatch.setattr(tokenizing, "REMEMBERED_WORDS", 5_000)
    monkeypatch.setattr(tokenizing, "FORGOTTEN_WORDS", 50_000)
    nlp = spacy.load(models["listeners"])
    lowered = LoweredPipeline(nlp)
    work = Tokenize(lambda: spacy.load(models["listeners"]), lowered.attrs)
    before = peak = 0
    for chunk in range(20):
        words = [f"new{chunk}x{number}" for number in range(10_000)]
        texts = [" ".join(words[start : start + 50]) for start in range(0, len(words), 50)]
        assert not lowered.score(work(texts).columns)[1]
        if chunk == 8:  # by then every table has been dropped once
            before = resident_memory()
        peak = max(peak, resident_memory() if chunk > 8 else 0)
    # Remembered, the 110,000 new words would take some 50 MB.
    assert peak - before < 20_000_000
    assert len(nlp.vocab) < 5_000


# The command


def test_command(models, tmp_path):
    write_json_lines(tmp_path / "texts.jsonl", [*TEXTS, "a" * 1_000_001])
    command = [sys.executable, str(SCRIPT), "texts.jsonl", "out.csv", "--model", models["cnn"]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    number = len(TEXTS) + 1
    assert "The pipeline runs lowered on CPU" in said
    assert f"Text {number} (line {number}): ValueError: [E088]" in said
    assert f"out.csv: {number} texts" in said
    assert f"1 of {number} texts have failed" in said
    assert "Traceback" not in said
