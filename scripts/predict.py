"""Apply a pipeline to labelled texts, and keep the scores of every text, with spaCy alone.

Nothing of this project is imported: what comes out is what anybody gets who loads the pipeline.
"""

from pathlib import Path

import numpy
import spacy
import srsly
import typer
from safetensors.numpy import save_file
from spacy.cli._util import import_code, setup_gpu
from spacy.pipeline import TextCategorizer
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from spacy.tokens import Doc
from spacy.training import Corpus

MISSING = 255


def main(
    model: Path = typer.Argument(..., help="The pipeline"),
    corpora: list[Path] = typer.Argument(..., help=".spacy files, or folders of them"),
    output: Path = typer.Option(..., help="The .safetensors file to write"),
    code: list[Path] = typer.Option([], help="Files with functions that the pipeline needs"),
    gpu_id: int = typer.Option(-1, help="GPU, or -1 for the CPU"),
) -> None:
    """Write for each corpus and text classifier two columns, a row a text: <corpus>.<name>.scores,
    float32, and .truths, uint8: 0, 1 or 255 for a label that is not annotated."""
    for path in code:
        import_code(path)
    setup_gpu(gpu_id, silent=True)
    nlp = spacy.load(model)
    classifiers = {name: pipe for name, pipe in nlp.pipeline if isinstance(pipe, TextCategorizer)}
    columns: dict[str, numpy.ndarray] = {}
    for corpus in corpora:
        examples = list(Corpus(corpus)(nlp))
        # The predictions of a Doc are read as it comes: all Docs together would fill the memory.
        scores: dict[str, list] = {name: [] for name in classifiers}
        for doc in nlp.pipe(example.predicted for example in examples):
            for name, pipe in classifiers.items():
                scores[name].append([doc.cats[label] for label in pipe.labels])
        for name, pipe in classifiers.items():
            truths = [truth(example.reference, pipe.labels) for example in examples]
            key = f"{corpus.stem}.{name}"
            columns[f"{key}.scores"] = numpy.asarray(scores[name], "float32")
            columns[f"{key}.truths"] = numpy.asarray(truths, "uint8")
    save_file(columns, output, {"classifiers": srsly.json_dumps(describe(classifiers))})


def truth(doc: Doc, labels: tuple[str, ...]) -> list[int]:
    """What is right for a text: 0, 1 or 255 for each label."""
    return [int(doc.cats[label] == 1.0) if label in doc.cats else MISSING for label in labels]


def describe(classifiers: dict[str, TextCategorizer]) -> dict[str, dict]:
    """What is needed to score a classifier's predictions as it would itself."""
    return {
        name: {
            "labels": pipe.labels,
            "multi_label": isinstance(pipe, MultiLabel_TextCategorizer),
            "threshold": pipe.cfg["threshold"],
            "positive_label": pipe.cfg.get("positive_label"),
        }
        for name, pipe in classifiers.items()
    }


if __name__ == "__main__":
    typer.run(main)
