"""Make the word vectors that a config needs."""

from pathlib import Path

import spacy
import typer
from spacy.vectors import Mode
from wasabi import msg

import functions  # noqa: F401  registers what the configs name
from zero_copy.errors import exit_on_error
from zero_copy.training import VECTORS, embeds_vectors, find_config, find_corpus
from zero_copy.vectors import make_vectors


def main(
    config: Path = typer.Argument(..., help="Training config"),
    corpus: Path = typer.Argument(..., help="Folder with train.safetensors"),
    source: str = typer.Option(
        "", help="Vectors to take: a text file, or a spaCy pipeline's folder or package"
    ),
    lang: str = typer.Option("en", help="Language code"),
    dim: int = typer.Option(100, help="Width of trained vectors"),
    epochs: int = typer.Option(5, help="How often training reads the texts"),
    threads: int = typer.Option(2, help="Threads; with more than one no two results are alike"),
) -> None:
    """Train vectors on the training texts, or convert some; a config without them needs none."""
    with exit_on_error():
        if not embeds_vectors(find_config(config)):
            msg.info(f"{config.stem} embeds no word vectors: nothing to make")
            return
        path = find_corpus(corpus, "train", ".safetensors")
        make_vectors(
            *(path, corpus / VECTORS),
            lang=lang,
            source=source,
            dim=dim,
            epochs=epochs,
            threads=threads,
        )
        vectors = spacy.load(corpus / VECTORS).vocab.vectors
        msg.good(
            f"{corpus / 'vectors'}: {vectors.shape[0]:,} rows, {vectors.shape[1]} wide, "
            + ("of subwords" if vectors.mode == Mode.floret else f"of {vectors.n_keys:,} words")
        )


if __name__ == "__main__":
    typer.run(main)
