"""A trained pipeline as a package: the files with architectures of one's own that it needs."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catalogue import RegistryError
from spacy.util import load_config, registry
from thinc.api import Config

from zero_copy.errors import UserError

SCRIPTS = Path(__file__).parent.parent


def load_pipeline_config(pipeline: Path) -> Config:
    """The config of a saved pipeline.

    pipeline (Path): Its folder.
    RETURNS (Config): The config, its variables not interpolated.
    RAISES (UserError): If there is no pipeline.
    """
    path = pipeline / "config.cfg"
    if not path.is_file():
        raise UserError(
            f"There is no pipeline at {pipeline}", "Run `python -m spacy project run train` first."
        )
    return load_config(path)


def code_files(config: Config) -> list[Path]:
    """The files of this project's users whose functions a pipeline needs when it is loaded.

    They are taken to be those beside the library, which `scripts/functions.py` has imported.

    config (Config): The config of the pipeline.
    RETURNS (List[Path]): The files, in the order in which they are needed.
    RAISES (UserError): If nothing registers a function that the config names.
    """
    named = [*_functions(config["nlp"]), *_functions(config["components"])]
    files = [_source_file(kind, name) for kind, name in named]
    return list(dict.fromkeys(file for file in files if file.parent == SCRIPTS))


def package_folder(output: Path, meta: dict[str, Any]) -> Path:
    """Where `spacy package` puts a package.

    output (Path): Its output folder.
    meta (Dict[str, Any]): The meta.json of the package.
    RETURNS (Path): The folder.
    """
    return output / f"{meta['lang']}_{meta['name']}-{meta['version']}"


def clear_package(output: Path, meta: dict[str, Any]) -> None:
    """Remove an earlier build of the same package, of which `spacy package` would keep the README,
    and the build every file.

    output (Path): Folder of packages.
    meta (Dict[str, Any]): The meta.json of the package.
    """
    shutil.rmtree(package_folder(output, meta), ignore_errors=True)


def find_wheel(output: Path, meta: dict[str, Any]) -> Path:
    """The wheel that was built.

    output (Path): Folder of packages.
    meta (Dict[str, Any]): The meta.json of the package.
    RETURNS (Path): The wheel.
    RAISES (UserError): If there is none.
    """
    folder = package_folder(output, meta)
    wheels = sorted(folder.glob("dist/*.whl"))
    if not wheels:
        raise UserError(f"No wheel was built in {folder}", "What went wrong is said above.")
    return wheels[0]


def _functions(section: Any) -> Iterator[tuple[str, str]]:
    """Registry and name of every function that a section names."""
    if isinstance(section, dict):
        for key, value in section.items():
            if key.startswith("@"):
                yield key.removeprefix("@"), value
            else:
                yield from _functions(value)


def _source_file(kind: str, name: str) -> Path:
    try:
        function = registry.get(kind, name)
    except RegistryError as error:
        raise UserError(
            f"The pipeline needs {name}, which nothing registers",
            "Import the file that does in scripts/functions.py.",
        ) from error
    module = sys.modules.get(function.__module__)
    return Path(getattr(module, "__file__", None) or "")
