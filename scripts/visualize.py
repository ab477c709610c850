"""A page to try a trained pipeline, and to see what it gets wrong: `streamlit run` this file."""

from contextlib import suppress
from html import escape
from math import exp
from pathlib import Path

import altair
import pandas
import streamlit as st
import typer
from spacy.language import Language
from spacy_streamlit.util import get_html, load_model

import functions  # noqa: F401  registers what a pipeline's config may name
from zero_copy.classifying import categories, find_classifiers
from zero_copy.errors import UserError
from zero_copy.explaining import Effect, Mistake, explain, find_mistakes
from zero_copy.training import find_corpus

FOR, AGAINST, OTHER = "#2f6fb0", "#d9822b", "#b8c4d0"
EXAMPLE = "the bank of england raised its prime rate to curb the fall of sterling"


def main(
    model: str = typer.Argument(..., help="Folder or package of the pipeline"),
    corpus: Path | None = typer.Option(None, help="Folder with test.spacy, to see mistakes"),
) -> None:
    """Show the page."""
    st.set_page_config("Text classifier", layout="wide")
    try:
        nlp = load_model(model)
        components = find_classifiers(nlp)
    except (UserError, OSError, ValueError) as error:
        st.error(f"Can't show {model}: {error}")
        return
    with st.sidebar:
        name = show_pipeline(nlp, model, list(components))
    trying, mistakes = st.tabs(["Try a text", "Mistakes on the test set"])
    with trying:
        text = st.text_area("Text", EXAMPLE, height=120)
        if text.strip():
            show_text(model, text, name, "try")
        else:
            st.info("Type a text, and press Ctrl+Enter.")
    with mistakes:
        show_mistakes(model, corpus, name)


def show_pipeline(nlp: Language, model: str, names: list[str]) -> str:
    """Show what the pipeline is, and let one of its classifiers be chosen.

    RETURNS (str): Name of the classifier.
    """
    st.title(f"{nlp.meta['lang']}_{nlp.meta['name']}")
    st.caption(f"`{model}`  \nversion {nlp.meta['version']}, spaCy {nlp.meta['spacy_version']}")
    name = st.selectbox("Classifier", names) if len(names) > 1 else names[0]
    labels = nlp.pipe_labels[name]
    st.markdown(f"**{len(labels)} labels**  \n" + ", ".join(f"`{label}`" for label in labels))
    with st.expander("Config"):
        st.code(nlp.config.to_str(), "ini")
    return name


def show_text(model: str, text: str, name: str, key: str) -> None:
    """Show the scores of a text, and which words moved them."""
    nlp = load_model(model)
    component = find_classifiers(nlp)[name]
    cats = nlp(text).cats
    scores = {label: cats[label] for label in component.labels}
    chosen = categories(component, scores)
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.subheader(", ".join(chosen) or "no category")
        show_scores(scores, chosen)
    with right:
        ranked = sorted(scores, key=lambda label: -scores[label])
        label = st.selectbox("Which words moved the score of", ranked, key=f"{key}-label")
        show_effects(cached_effects(model, text, label), scores[label])


def show_scores(scores: dict[str, float], chosen: list[str]) -> None:
    """Draw scores as bars, the highest first."""
    table = pandas.DataFrame(
        {
            "label": list(scores),
            "score": list(scores.values()),
            "category": [label in chosen for label in scores],
        }
    )
    bars = altair.Chart(table).encode(
        y=altair.Y("label:N", sort="-x", title=None, axis=altair.Axis(labelLimit=200)),
        x=altair.X("score:Q", title=None, scale=altair.Scale(domain=[0, 1])),
        tooltip=["label", altair.Tooltip("score", format=".4f")],
    )
    color = altair.condition("datum.category", altair.value(FOR), altair.value(OTHER))
    words = bars.mark_text(align="left", dx=4).encode(text=altair.Text("score", format=".3f"))
    chart = bars.mark_bar(cornerRadiusEnd=2).encode(color=color) + words
    st.altair_chart(chart.properties(height=altair.Step(24)), width="stretch")


@st.cache_data(show_spinner="Leaving out one word after the other", max_entries=1000)
def cached_effects(model: str, text: str, label: str) -> list[Effect]:
    """What the words of a text did, found once: the page runs anew at every click."""
    nlp = load_model(model)
    return explain(nlp, nlp(text), label)


def show_effects(effects: list[Effect], score: float) -> None:
    """Show a text with its words coloured by what they did to a score."""
    most = max((abs(effect.effect) for effect in effects), default=0.0) or 1.0
    words = "".join(mark(effect, most) for effect in effects)
    st.html(get_html(f'<div style="line-height: 2">{words}</div>'))
    if any(effect.end - effect.start > 1 for effect in effects):
        st.caption("The text is long, so several words were left out at a time.")
    st.caption(
        f"The score is {score:.3f}. Blue words speak for the label: without one of them it would "
        "be less likely. Orange words speak against it. Point at a word to see by what it "
        "multiplies the odds."
    )


def mark(effect: Effect, most: float) -> str:
    """A part of a text as HTML, coloured by its effect."""
    color = FOR if effect.effect > 0 else AGAINST
    share = round(80 * abs(effect.effect) / most)
    style = f"background: color-mix(in srgb, {color} {share}%, transparent); border-radius: 3px"
    text = escape(effect.text).replace("\n", "<br>")
    title = f"odds times {exp(effect.effect):.3g}"
    return f'<span style="{style}; padding: 2px 0" title="{title}">{text}</span>'


@st.cache_data(show_spinner="Classifying the test set")
def cached_mistakes(model: str, path: str, name: str) -> tuple[list[Mistake], int]:
    """The mistakes on a test set, found once."""
    return find_mistakes(load_model(model), Path(path), name)


def show_mistakes(model: str, corpus: Path | None, name: str) -> None:
    """Show what was classified wrongly, and why."""
    if corpus is None:
        st.info("Start the page with --corpus to see mistakes.")
        return
    try:
        path = find_corpus(corpus, "test", ".spacy")
    except UserError as error:
        st.info(str(error))
        return
    mistakes, texts = cached_mistakes(model, str(path), name)
    right, predicted = st.columns(2)
    kept = keep(mistakes, "right", right.multiselect("Right", names(mistakes, "right")))
    kept = keep(kept, "predicted", predicted.multiselect("Predicted", names(mistakes, "predicted")))
    share = len(mistakes) / max(texts, 1)
    st.markdown(
        f"**{len(mistakes):,} of {texts:,} texts are wrong** ({share:.1%}). {len(kept):,} are "
        "shown, first those that were predicted with most confidence. Choose one to see why."
    )
    table = pandas.DataFrame(
        {
            "right": [", ".join(it.right) for it in kept],
            "predicted": [", ".join(it.predicted) for it in kept],
            "off by": [it.confidence for it in kept],
            "text": [it.text for it in kept],
            "number": [it.number for it in kept],
        }
    )
    chosen = st.dataframe(
        table,
        hide_index=True,
        width="stretch",
        height=300,
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "off by": st.column_config.ProgressColumn(min_value=0.0, max_value=1.0, format="%.2f"),
            "text": st.column_config.TextColumn(width="large"),
        },
    )
    rows = chosen["selection"]["rows"]
    if rows and rows[0] < len(kept):
        mistake = kept[rows[0]]
        right_ones = ", ".join(mistake.right) or "in no category"
        st.markdown(f"Text {mistake.number:,} is **{right_ones}**, and was taken for:")
        show_text(model, mistake.text, name, f"mistake-{mistake.number}")


def names(mistakes: list[Mistake], side: str) -> list[str]:
    """The labels on one side of mistakes."""
    return sorted({label for it in mistakes for label in getattr(it, side)})


def keep(mistakes: list[Mistake], side: str, labels: list[str]) -> list[Mistake]:
    """The mistakes with one of some labels on a side; all if there are none."""
    return [it for it in mistakes if not labels or set(labels) & set(getattr(it, side))]


if __name__ == "__main__":
    with suppress(SystemExit):  # typer is done, the page is not
        typer.run(main)
