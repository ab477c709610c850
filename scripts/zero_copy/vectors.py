"""Word vectors for a corpus: trained on its own texts, or brought along, as spaCy loads them.

Trained ones are floret's: a word is made up of hashed subwords, so that words which the training
texts lack have vectors too, and the table is small.
"""

import sys
from itertools import pairwise
from pathlib import Path

import floret
from spacy.training.initialize import convert_vectors, load_vectors_into_model, open_file
from spacy.util import get_lang_class, is_package
from spacy.vectors import Mode

from zero_copy.errors import UserError
from zero_copy.files import publish, staging
from zero_copy.store import PackedCorpus, read

# Small corpora need a higher rate than floret's 0.05, and hardly any word to be left out. Chosen on
# R8's dev set by a linear classifier of the mean vector.
SETTINGS = {
    **{"model": "skipgram", "mode": "floret", "hashCount": 2, "bucket": 50_000},
    **{"minn": 5, "maxn": 5, "minCount": 2, "lr": 0.2},
}


def make_vectors(
    corpus: Path,
    target: Path,
    *,
    lang: str = "en",
    source: str = "",
    dim: int = 100,
    epochs: int = 5,
    threads: int = 2,
) -> None:
    """Make a spaCy pipeline of nothing but vectors, for `[initialize] vectors`.

    corpus (Path): The packed training corpus, on whose texts vectors are trained.
    target (Path): Folder of the pipeline; what is there is replaced once all is well.
    lang (str): Language code.
    source (str): Vectors to take instead: a text file as word2vec, fastText or floret write it
        (.gz and .zip too), or a spaCy pipeline's folder or package.
    dim (int): Width of trained vectors.
    epochs (int): How often training reads the texts.
    threads (int): Threads of training; with more than one no two trainings are alike.
    RAISES (UserError): If the corpus or the source can't be read.
    """
    with staging(target.parent) as folder:
        output = folder / target.name
        if not source:
            table = folder / "vectors.floret"
            train_floret(read(corpus), table, dim=dim, epochs=epochs, threads=threads)
            # Trained on words in lower case, so looked up by them.
            _convert(lang, table, output, Mode.floret, attr="LOWER")
            table.unlink()
        elif Path(source).is_file():
            _convert(lang, Path(source), output, mode_of(Path(source)))
        elif Path(source).is_dir() or is_package(source):
            _take_from_pipeline(lang, source, output)
        else:
            raise UserError(
                f"There are no vectors at {source}",
                "Give a text file of vectors, or the folder or name of a spaCy pipeline.",
            )
        publish(folder, target.parent)


def train_floret(corpus: PackedCorpus, table: Path, *, dim: int, epochs: int, threads: int) -> None:
    """Train vectors on a corpus.

    corpus (PackedCorpus): The corpus.
    table (Path): Where the table goes, in floret's format.
    dim (int): Width of the vectors.
    epochs (int): How often to read the corpus.
    threads (int): Threads.
    RAISES (UserError): If the corpus is too small.
    """
    text = table.with_suffix(".txt")
    write_text(corpus, text)
    verbose = 2 if sys.stderr.isatty() else 0  # whether to draw a line of progress
    settings = SETTINGS | {"dim": dim, "epoch": epochs, "thread": threads, "verbose": verbose}
    try:
        floret.train_unsupervised(str(text), **settings).save_floret_vectors(str(table))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"No vectors can be trained on {corpus.path}: {error}",
            "A word must occur twice. Take vectors from elsewhere with --source.",
        ) from error
    finally:
        text.unlink()


def write_text(corpus: PackedCorpus, path: Path) -> None:
    """Write the tokens of a corpus in lower case, a document a line, blanks between them.

    corpus (PackedCorpus): The corpus.
    path (Path): The file.
    """
    texts = corpus.texts(range(len(corpus.columns["type_attrs"])))
    # A token may be white space itself, a line break say.
    words = ["".join(text.lower().split()) for text in texts]
    types, offsets = (corpus.columns[name].numpy() for name in ("token_types", "doc_offsets"))
    with path.open("w", encoding="utf8") as file:
        for start, end in pairwise(offsets):
            file.write(" ".join([words[number] for number in types[start:end]]) + "\n")


def mode_of(path: Path) -> Mode:
    """Which kind of vectors a file holds.

    path (Path): A text file of vectors.
    RETURNS (Mode): By its first line: floret's has eight values, others two or a vector.
    RAISES (UserError): If it is no text file.
    """
    try:
        header = next(iter(open_file(path))).split()
    except (StopIteration, ValueError, EOFError) as error:
        raise UserError(f"{path} is empty, or no text file") from error
    return Mode.floret if len(header) == 8 and header[0].isdigit() else Mode.default


def _convert(lang: str, table: Path, output: Path, mode: Mode, attr: str = "ORTH") -> None:
    """As `spacy init vectors` does."""
    nlp = get_lang_class(lang)()
    try:
        convert_vectors(nlp, table, truncate=0, prune=-1, mode=mode.value, attr=attr)
        if not nlp.vocab.vectors_length:
            raise ValueError("it has words, but no values")
    except (ValueError, AssertionError, IndexError, StopIteration, EOFError) as error:
        raise UserError(
            f"{table} can't be read as vectors: {str(error) or type(error).__name__}",
            "Each line is a word and its values, with blanks between; a first line may say how "
            "many there are, and how wide.",
        ) from error
    nlp.to_disk(output)


def _take_from_pipeline(lang: str, source: str, output: Path) -> None:
    nlp = get_lang_class(lang)()
    try:
        load_vectors_into_model(nlp, source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source} can't be loaded as a pipeline: {error}") from error
    if not nlp.vocab.vectors_length:
        raise UserError(f"The pipeline {source} has no vectors")
    nlp.to_disk(output)
