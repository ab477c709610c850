"""What those should know who use a packaged pipeline: its data, its scores, and how it was made.

`spacy package` writes a README from meta.json. This fills meta.json with what it has places for,
and adds the rest as its notes.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import srsly
from thinc.api import Config

from zero_copy.compare import corpus_digest, folder_size
from zero_copy.packaging import SCRIPTS, load_pipeline_config
from zero_copy.predictions import read_docs
from zero_copy.rendering import render
from zero_copy.results import SIDES
from zero_copy.store import read
from zero_copy.training import TRAINING_RECORD

PROJECT = SCRIPTS.parent / "project.yml"
SPLITS = ("train", "dev", "test")

Facts = dict[str, Any]


def gather_facts(pipeline: Path, corpus: Path, metrics: Path, config: str) -> Facts:
    """Collect what is known about a pipeline. What is not known, or is about another, is None.

    pipeline (Path): Its folder.
    corpus (Path): Folder of the corpus that it was trained on.
    metrics (Path): Folder of what `evaluate` and `compare` have written.
    config (str): Name of its config.
    RETURNS (Dict[str, Any]): `meta`, `components`, `training`, `splits`, `scores`, `comparison`,
        `corpus` and its `descriptions`, and `size_bytes`.
    """
    splits = {split: count_split(corpus, split) for split in SPLITS}
    return {
        "meta": srsly.read_json(pipeline / "meta.json"),
        "config": config,
        "components": describe_components(load_pipeline_config(pipeline)),
        "training": _read(pipeline.parent / TRAINING_RECORD),
        "corpus": corpus.name,
        "descriptions": describe_corpus(PROJECT, corpus.name),
        "splits": {split: counts for split, counts in splits.items() if counts},
        "scores": find_scores(pipeline, metrics / f"{config}.json"),
        "comparison": find_comparison(corpus, metrics / "report.json", config),
        "size_bytes": folder_size(pipeline),
    }


def missing_facts(facts: Facts) -> dict[str, str]:
    """What a card lacks, and the command of the workflow that finds it out.

    facts (Dict[str, Any]): Of `gather_facts`.
    RETURNS (Dict[str, str]): Commands by what is missing.
    """
    commands = {"training": "train", "scores": "evaluate", "comparison": "compare"}
    what = {
        "training": "how it was trained",
        "scores": "its scores on the test set",
        "comparison": "their spread over seeds, and the speed of training",
    }
    return {what[name]: command for name, command in commands.items() if not facts[name]}


def make_meta(facts: Facts) -> dict[str, Any]:
    """The meta.json of a package, with a card as its notes.

    facts (Dict[str, Any]): Of `gather_facts`.
    RETURNS (Dict[str, Any]): The pipeline's own, filled in.
    """
    meta = dict(facts["meta"])
    labels = [label for labels in meta["labels"].values() for label in labels]
    trained = f", trained on {facts['corpus']}" if facts["splits"] else ""
    meta["description"] = (
        meta.get("description") or f"Tells {len(labels)} categories of texts apart{trained}."
    )
    # spaCy shows them as percentages: losses and words per second are none.
    performance = facts["scores"] or meta.get("performance", {})
    meta["performance"] = {
        name: value for name, value in performance.items() if name.startswith("cats_")
    }
    meta["notes"] = write_card(facts)
    return meta


def write_card(facts: Facts) -> str:
    """Write what spaCy's README has no place for.

    facts (Dict[str, Any]): Of `gather_facts`.
    RETURNS (str): Markdown.
    """
    return render("model_card.md", facts).strip()


def count_split(corpus: Path, split: str) -> dict[str, Any] | None:
    """How large a split of a corpus is.

    corpus (Path): Folder of the corpus.
    split (str): `train`, `dev` or `test`.
    RETURNS (Optional[Dict[str, Any]]): Its `texts` and `words`, and the texts of every label as
        `labels`; None if it is not there.
    """
    packed = corpus / f"{split}.safetensors"
    if packed.exists():  # counted without making a Doc of every text
        columns = read(packed)
        labels = dict(zip(columns.info.labels, _positive(columns), strict=True))
        return {
            "texts": len(columns.lengths),
            "words": int(columns.lengths.sum()),
            "labels": labels,
        }
    source = corpus / f"{split}.spacy"
    if not source.exists():
        return None
    texts = words = 0
    found: Counter[str] = Counter()
    for doc in read_docs(source):
        texts += 1
        words += len(doc)
        found.update(label for label, value in doc.cats.items() if value == 1.0)
    return {"texts": texts, "words": words, "labels": dict(found)}


def _positive(packed: Any) -> list[int]:
    return (packed.columns["cats"] == 1).sum(0).tolist()


def find_scores(pipeline: Path, path: Path) -> dict[str, Any] | None:
    """The scores on the test set, as `spacy evaluate` wrote them.

    pipeline (Path): The pipeline.
    path (Path): The scores.
    RETURNS (Optional[Dict[str, Any]]): The scores; None if the pipeline is newer than they are.
    """
    scores = _read(path)
    if scores and path.stat().st_mtime < (pipeline / "meta.json").stat().st_mtime:
        return None
    return scores


def find_comparison(corpus: Path, path: Path, config: str) -> dict[str, Any] | None:
    """What a comparison found out about a config.

    corpus (Path): Folder of the corpus.
    path (Path): report.json.
    config (str): Name of the config.
    RETURNS (Optional[Dict[str, Any]]): Its row of the report, with the `machine`; None if the
        config was not compared, or on another corpus.
    """
    report = _read(path)
    if not report or not (corpus / "train.spacy").exists():
        return None
    digest = corpus_digest(corpus)
    if any(run["corpus"] != digest for run in report["runs"]):
        return None
    for task in report["tasks"]:
        for row in task["rows"]:
            if (row["variant"], row["side"]) == (config, SIDES[0]):
                return {**row, "machine": report["machine"]}
    return None


def describe_components(config: Config) -> str:
    """The part of a pipeline's config that says what its components are.

    config (Config): The config, its variables not interpolated.
    RETURNS (str): The sections of the components.
    """
    text = Config({"components": config["components"]}).to_str(interpolate=False)
    return text.removeprefix("[components]").strip()


def describe_corpus(project: Path, name: str) -> list[str]:
    """What project.yml says of a corpus.

    project (Path): The project.yml.
    name (str): Name of the corpus.
    RETURNS (List[str]): The descriptions of its assets; none if it is one of the user's own.
    """
    assets = srsly.read_yaml(project).get("assets", []) if project.exists() else []
    return [
        asset["description"]
        for asset in assets
        if asset["dest"].startswith(f"assets/{name}/") and "description" in asset
    ]


def _read(path: Path) -> Any:
    return srsly.read_json(path) if path.exists() else None
