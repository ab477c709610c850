"""What differs between two training configs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import srsly
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from thinc.api import Config
from wasabi import msg

from zero_copy.configs import fill_config, interpolate, named_config, read_config, settings
from zero_copy.errors import UserError

# Where output goes to a file or a pipe, no terminal says how wide a line may be.
WIDTH_OF_FILES = 200
# Characters of a value on the left; longer ones go on in the next line.
WIDEST_VALUE = 40


class Difference(NamedTuple):
    """A setting that two configs do not share.

    setting (str): Its dotted name, `training.max_steps` say.
    left (Any): Its value in the first config; None if it is null or not there.
    right (Any): Its value in the second.
    """

    setting: str
    left: Any
    right: Any

    @property
    def section(self) -> str:
        """The section that the setting stands in."""
        return _parent(self.setting)


def differences(left: Config, right: Config) -> list[Difference]:
    """The settings that two configs do not share.

    What counts is the value, not how it is written: `${system.seed}` is 0 where the seed is 0, and
    null is the same as nothing. A value that other settings refer to is one difference, not many.

    left (Config): A config, its variables not interpolated.
    right (Config): Another.
    RETURNS (List[Difference]): Section after section, in the order of the first config.
    RAISES (UserError): If one names a variable that is not there.
    """
    written = [settings(left), settings(right)]
    return [
        Difference(setting, *values)
        for setting, *values in _pairs(interpolate(left), interpolate(right))
        if values[0] != values[1] and not _is_one_variable(*(text.get(setting) for text in written))
    ]


def _pairs(left: Mapping, right: Mapping, parent: str = "") -> Iterator[tuple[str, Any, Any]]:
    sections = []
    for key in dict.fromkeys([*left, *right]):
        values = left.get(key), right.get(key)
        if any(isinstance(value, Mapping) for value in values):
            sections.append(key)
        else:
            yield f"{parent}{key}", *values
    for key in sections:
        yield from _pairs(_section(left, key), _section(right, key), f"{parent}{key}.")


def _section(config: Mapping, key: str) -> Mapping:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def _is_one_variable(left: Any, right: Any) -> bool:
    return left == right and isinstance(left, str) and "${" in left


def show_diff(left: Path, right: Path) -> None:
    """Print what differs between two configs, whatever they leave out filled in.

    left (Path): Path of a config, or the name of one in configs/.
    right (Path): Another.
    RAISES (UserError): If one is not there or can't be read.
    """
    paths = [named_config(left), named_config(right)]
    configs = [read_config(path) for path in paths]
    try:
        configs = [fill_config(config) for config in configs]
    except UserError as error:
        msg.warn("Compared as they are written, without defaults", str(error))
    found = differences(*configs)
    if not found:
        msg.good("Both have the same settings")
        return
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH_OF_FILES
    console.print(difference_lines(found, configs, _titles(paths)))


def difference_lines(
    found: Sequence[Difference], configs: Sequence[Config], titles: Sequence[str]
) -> Group:
    """Differences as lines, under the headers of their sections.

    found (Sequence[Difference]): The differences.
    configs (Sequence[Config]): The two configs.
    titles (Sequence[str]): What to call them.
    RETURNS (Group): For rich to print. The header of a section that only one has says which.
    """
    keys = [difference.setting.rpartition(".")[2] for difference in found]
    texts = [_text(difference.left) for difference in found]
    widths = max(map(len, keys)) + 2, min(max(map(len, [*texts, titles[0]])), WIDEST_VALUE)
    lines: list[Table | Text] = [_columns(widths, [("", *(Text(t, "bold") for t in titles))])]
    for section, group in groupby(found, key=lambda difference: difference.section):
        lines.append(Text(f"[{section}]{_only_in(section, configs, titles)}", "bold"))
        rows = [
            ("  " + setting.rpartition(".")[2], _value(left, "red"), _value(right, "green"))
            for setting, left, right in group
        ]
        lines.append(_columns(widths, rows))
    return Group(*lines)


def _columns(widths: Sequence[int], rows: Sequence[Sequence[str | Text]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for width in (*widths, None):
        table.add_column(width=width, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _only_in(section: str, configs: Sequence[Config], titles: Sequence[str]) -> str:
    has = [_has_section(config, section) for config in configs]
    # Of a component that only one has, its first section says so for those within.
    if all(has) or not all(_has_section(config, _parent(section)) for config in configs):
        return ""
    return f" only in {titles[has.index(True)]}"


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _has_section(config: Mapping, section: str) -> bool:
    node: Any = config
    for key in section.split(".") if section else ():
        node = node.get(key) if isinstance(node, Mapping) else None
    return isinstance(node, Mapping)


def _text(value: Any) -> str:
    return "-" if value is None else srsly.json_dumps(value)


def _value(value: Any, style: str) -> Text:
    return Text(_text(value), "dim" if value is None else style)


def _titles(paths: Sequence[Path]) -> list[str]:
    """The names of the files, or their whole paths where two have one name."""
    stems = [path.stem for path in paths]
    return [os.path.relpath(path) for path in paths] if stems[0] == stems[1] else stems
