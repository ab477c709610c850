"""Export attributes of all tokens of a corpus as columns, for NumPy, Arrow or torch."""

from pathlib import Path

import typer
from wasabi import msg

from zero_copy.arrays import read_arrays, save_arrays, sizes
from zero_copy.errors import exit_on_error
from zero_copy.store import ATTRS


def main(
    corpus: Path = typer.Argument(..., help="Packed corpus, .spacy file or folder of them"),
    output: Path = typer.Argument(..., help=".npz, .safetensors, .arrow or .parquet file to write"),
    attr: list[str] = typer.Option(list(ATTRS), help="Token attributes"),
    lang: str = typer.Option("en", help="Language of a .spacy file"),
) -> None:
    """Write the attributes, the documents' boundaries and their categories, and say what each form
    of the corpus takes."""
    with exit_on_error():
        arrays = read_arrays(corpus, attr, lang)
        save_arrays(arrays, output)
        documents, tokens = len(arrays.doc_offsets) - 1, int(arrays.doc_offsets[-1])
        msg.good(f"{output}: {', '.join(arrays.tokens)} of {tokens:,} tokens, {documents:,} texts")
        rows = [
            (name, f"{size / 2**20:,.2f}", f"{size / tokens:,.2f}")
            for name, size in sizes(corpus, arrays, output).items()
        ]
        header = ("Form", "MB", "Bytes a token")
        msg.table(rows, header=header, divider=True, aligns=("l", "r", "r"))


if __name__ == "__main__":
    typer.run(main)
