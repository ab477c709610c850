"""Turn a stock training config into its zero-copy form, or back."""

from itertools import groupby
from pathlib import Path

import srsly
import typer
from spacy.cli._util import import_code
from wasabi import msg

import functions  # noqa: F401  registers what the configs name
from zero_copy.adopt import Adoption, reason, to_stock, to_zero_copy
from zero_copy.configs import named_config, read_config, write_config
from zero_copy.diff import Difference
from zero_copy.errors import UserError, exit_on_error


def main(
    config: Path = typer.Argument(..., help="Training config, or the name of one in configs/"),
    output: Path | None = typer.Option(
        None, "--output", "-o", help="Where the result goes; without it, nothing is written"
    ),
    stock: bool = typer.Option(False, "--to-stock", help="From zero-copy to stock"),
    code: Path | None = typer.Option(None, "--code", "-c", help="File of your own functions"),
    force: bool = typer.Option(False, "--force", "-F", help="Replace what is at the output"),
) -> None:
    """Change what must change and nothing else, and say what and why.

    If there is a folder stock/ beside the output, the config as it was goes there under the same
    name: it is the stock twin that `debug` and comparisons use.
    """
    with exit_on_error():
        import_code(code)
        path = named_config(config)
        adoption = (to_stock if stock else to_zero_copy)(read_config(path))
        targets = {} if output is None else {output: adoption.config}
        if output is not None and not stock:
            twin = output.parent / "stock" / output.name
            if twin.parent.is_dir() and twin.resolve() != path.resolve():
                targets[twin] = adoption.complete
        for target in targets:
            refuse_existing(target, force)
        show(adoption, with_reasons=not stock)
        for target, content in targets.items():
            write_config(content, target)
            msg.good(f"Saved {target}")
        if output is None:
            msg.info("Nothing was written", "Say where with --output configs/mine.cfg")


def refuse_existing(path: Path, force: bool) -> None:
    """Refuse to write over a file, unless told to, or over a folder.

    path (Path): Where a config is to go.
    force (bool): Whether it may replace another.
    RAISES (UserError): If it is taken.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder", "Give the name of a file.")
    if path.exists() and not force:
        raise UserError(f"{path} exists", "Give another name, or --force to replace it.")


def show(adoption: Adoption, *, with_reasons: bool) -> None:
    """Print what was changed, those changes together that have one reason.

    adoption (Adoption): The result.
    with_reasons (bool): Whether to say why.
    """
    if adoption.filled:
        msg.info(f"Filled in {len(adoption.filled)} settings with spaCy's defaults:")
        show_changes(adoption.filled)
    if not adoption.changes:
        msg.info("Nothing to change: the config has that form already")
    elif not with_reasons:
        msg.info("Changed:")
        show_changes(adoption.changes)
    else:
        order = {reason(change): None for change in adoption.changes}
        by_reason = sorted(adoption.changes, key=lambda change: list(order).index(reason(change)))
        for why, changes in groupby(by_reason, key=reason):
            msg.info(f"{why}:")
            show_changes(list(changes))
    for remark in adoption.remarks:
        msg.warn(remark)


def show_changes(changes: list[Difference]) -> None:
    """Print settings, a line each, with their values before and after.

    changes (List[Difference]): The settings.
    """
    for setting, before, after in changes:
        sign = "+" if before is None else "-" if after is None else " "
        values = [srsly.json_dumps(value) for value in (before, after) if value is not None]
        print(f"  {sign} {setting} = {' -> '.join(values)}")


if __name__ == "__main__":
    typer.run(main)
