"""Pack .spacy files into packed corpora, the form in which a corpus is placed on the device."""

from functools import partial
from pathlib import Path

import srsly
import typer
from rich.progress import Progress
from wasabi import msg

import functions  # noqa: F401  registers span getters
from zero_copy.configs import transformer_pipeline
from zero_copy.errors import UserError, exit_on_error
from zero_copy.store import ATTRS, pack, read
from zero_copy.wordpieces import STRIDED_SPANS, add_wordpieces, layout_of

HELP_SPANS = "Its span getter, a block of a config as JSON"


def main(
    sources: list[Path] = typer.Argument(..., help=".spacy files, or folders of them"),
    lang: str = typer.Option("en", help="Language code of the tokenizer"),
    attr: list[str] = typer.Option([], help=f"Token attributes beside {', '.join(ATTRS)}"),
    config: Path | None = typer.Option(None, help="Config; its transformer's wordpieces are added"),
    transformer: str = typer.Option("", help="Name or folder of a transformer to do so for"),
    spans: str = typer.Option(srsly.json_dumps(STRIDED_SPANS), help=HELP_SPANS),
) -> None:
    """Write one .safetensors file beside each source: train.spacy becomes train.safetensors."""
    with exit_on_error():
        try:
            block = srsly.json_loads(spans)
        except ValueError as error:
            raise UserError(f"--spans is no JSON: {spans}", str(error)) from error
        nlp = transformer_pipeline(config, lang, transformer, block)
        layout = layout_of(nlp) if nlp is not None else None
        for source in sources:
            target = source.with_suffix(".safetensors")
            with Progress(transient=True) as progress:
                wordpieces = None
                if nlp is not None and layout is not None:
                    task = progress.add_task(f"Wordpieces of {source.name}", total=None)
                    wordpieces = add_wordpieces(nlp, layout, partial(progress.advance, task))
                pack(source, target, lang=lang, attrs=(*ATTRS, *attr), wordpieces=wordpieces)
            _report(target)


def _report(target: Path) -> None:
    corpus = read(target)
    words = len(corpus.columns["token_types"])
    msg.good(
        f"{target}: {len(corpus.lengths):,} documents, {words:,} words, "
        f"{len(corpus.columns['type_attrs']):,} types, "
        f"{len(corpus.info.labels)} labels, {target.stat().st_size / 2**20:,.1f} MB"
    )
    if corpus.info.wordpieces is not None:
        wordpieces = len(corpus.columns["wordpieces"])
        msg.info(
            f"{wordpieces:,} wordpieces of {corpus.info.wordpieces.transformer} in "
            f"{len(corpus.columns['span_offsets']) - 1:,} spans"
        )
        if corpus.info.wordpieces.cut:
            msg.warn(
                f"{corpus.info.wordpieces.cut:,} more were left out, at the ends of spans longer "
                "than the model takes, as spacy-transformers does; take a smaller window"
            )


if __name__ == "__main__":
    typer.run(main)
