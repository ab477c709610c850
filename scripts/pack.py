"""Pack .spacy files into packed corpora, the form in which a corpus is placed on the device."""

from pathlib import Path

import typer
from wasabi import msg

from zero_copy.errors import exit_on_error
from zero_copy.store import ATTRS, pack, read


def main(
    sources: list[Path] = typer.Argument(..., help=".spacy files, or folders of them"),
    lang: str = typer.Option("en", help="Language code of the tokenizer"),
    attr: list[str] = typer.Option([], help=f"Token attributes beside {', '.join(ATTRS)}"),
) -> None:
    """Write one .safetensors file beside each source: train.spacy becomes train.safetensors."""
    with exit_on_error():
        for source in sources:
            target = source.with_suffix(".safetensors")
            pack(source, target, lang=lang, attrs=(*ATTRS, *attr))
            corpus = read(target)
            msg.good(
                f"{target}: {len(corpus.lengths):,} documents, "
                f"{len(corpus.columns['token_types']):,} words, "
                f"{len(corpus.columns['type_attrs']):,} types, "
                f"{len(corpus.info.labels)} labels, {target.stat().st_size / 2**20:,.1f} MB"
            )


if __name__ == "__main__":
    typer.run(main)
