"""The tables of the README, written from the figures in results/."""

from pathlib import Path
from typing import Any

import srsly
import typer
from wasabi import msg

from machine import RESULTS, ROOT

README = ROOT / "README.md"
MARKS = "<!-- figures: {} -->\n", "<!-- end of figures -->"
SHORT = ["bow", "cnn", "ensemble"]
Rows = list[list[str]]


def main(
    machine: str = typer.Option("amd-epyc-2-cores", help="Machine, as results/ names it"),
    check: bool = typer.Option(False, help="Only say whether the README has these figures"),
) -> None:
    """Replace what stands between the marks of each table."""
    text = README.read_text(encoding="utf8")
    written = text
    for name, table in tables(machine).items():
        written = replace(written, name, table)
    if check and written != text:
        msg.fail("README.md has other figures than results/", "Run it without --check", exits=1)
    README.write_text(written, encoding="utf8")
    msg.good("README.md has the figures of results/")


def tables(machine: str) -> dict[str, str]:
    """All tables by their names.

    machine (str): The machine that the figures are from.
    RETURNS (Dict[str, str]): Markdown.
    """
    speeds = read("train_speed", machine)
    accuracies = read("accuracy-r8", machine)["figures"]["summary"]
    speeds = {name: one for name, one in speeds.items() if Path(one["corpus"]).name == "r8"}
    names = dict.fromkeys([*SHORT, *speeds])
    return {
        "speed": markdown(
            "config|training, words/s|stock|times|evaluation of dev, s|stock|times",
            [speed_row(speeds[name]) for name in SHORT],
        ),
        "variants": markdown(
            "config|accuracy|macro F|stock twin|words/s|times stock|evaluation, times stock",
            [variant_row(name, accuracies, speeds[name]) for name in names],
        ),
    }


def speed_row(figures: dict[str, Any]) -> list[str]:
    """Training and evaluation of a config and its twin."""
    ours, stock = figures["zero_copy"], figures["stock"]
    return [
        f"`{figures['config']}`",
        *(f"{side['words_per_second']:,.0f}" for side in (ours, stock)),
        f"{figures['speedup']:.1f}",
        *(f"{side['evaluation_seconds']:.2g}" for side in (ours, stock)),
        f"{figures['evaluation_speedup']:.0f}",
    ]


def variant_row(name: str, accuracies: list[dict], figures: dict[str, Any]) -> list[str]:
    """Accuracy and speed of a config, beside its twin."""
    found = {row["side"]: row for row in accuracies if row["config"] == name}
    ours = found.get("zero_copy")
    return [
        f"`{name}`",
        spread(ours),
        f"{ours['macro_f']:.1%}" if ours else "",
        spread(found.get("stock")),
        f"{figures['zero_copy']['words_per_second']:,.0f}",
        f"{figures['speedup']:.1f}",
        f"{figures['evaluation_speedup']:.0f}",
    ]


def spread(summary: dict[str, Any] | None) -> str:
    """Mean and standard deviation of an accuracy, or that it is of one seed."""
    if summary is None:
        return "not measured"
    if summary["seeds"] == 1:
        return f"{summary['accuracy']:.2%} (1 seed)"
    return f"{summary['accuracy']:.2%} ± {summary['accuracy_sd']:.2%}"


def markdown(header: str, rows: Rows) -> str:
    """A table whose first column is text, and whose others are figures."""
    names = header.split("|")
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def replace(text: str, name: str, table: str) -> str:
    """The text with another table between the marks of that name."""
    start, end = MARKS[0].format(name), MARKS[1]
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        msg.fail(f"README.md has no table {start.strip()} ... {end}", exits=1)
    return f"{before}{start}\n{table}\n{end}{after}"


def read(name: str, machine: str) -> Any:
    """What one benchmark has measured on a machine."""
    path = RESULTS / f"{name}-{machine}.json"
    if not Path(path).exists():
        msg.fail(f"There is no {path.relative_to(ROOT)}", exits=1)
    return srsly.read_json(path)


if __name__ == "__main__":
    typer.run(main)
