"""Pages made from the files in templates/: the report and the model card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from zero_copy.formats import count, megabytes, percent, short_time

FILTERS: dict[str, Callable] = {
    "percent": percent,
    "count": count,
    "seconds": lambda value: "" if value is None else short_time(value),
    "megabytes": megabytes,
    "cell": lambda text: str(text).replace("|", "\\|"),
    "zip": zip,
}


def render(template: str, facts: dict[str, Any], filters: dict[str, Callable] | None = None) -> str:
    """Fill in a template.

    template (str): Its name. In one that ends in .html what is filled in is escaped.
    facts (Dict[str, Any]): What it may name.
    filters (Optional[Dict[str, Callable]]): Filters of its own.
    RETURNS (str): The page.
    RAISES (UndefinedError): If it names anything else.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS | (filters or {})
    return environment.get_template(template).render(**facts)
