"""The page, run by Streamlit without a browser."""

import re
import sys
from pathlib import Path

import pytest
import spacy

from conftest import random_docs, save_docs

pytest.importorskip("streamlit", reason="pip install -r requirements-visualize.txt")
pytest.importorskip("spacy_streamlit", reason="pip install -r requirements-visualize.txt")
from streamlit.testing.v1 import AppTest

pytestmark = pytest.mark.extra
PAGE = Path(__file__).parent.parent / "scripts" / "visualize.py"


def open_page(monkeypatch, *arguments: object) -> AppTest:
    monkeypatch.setattr(sys, "argv", [str(PAGE), *map(str, arguments)])
    page = AppTest.from_file(str(PAGE), default_timeout=60).run()
    assert not page.exception
    return page


def plain(page: AppTest) -> str:
    return " ".join(element.value for element in [*page.markdown, *page.info, *page.error])


def test_text_gets_scores_and_coloured_words(pipeline, monkeypatch):
    nlp = spacy.load(pipeline)
    page = open_page(monkeypatch, pipeline)
    page.text_area[0].set_value("wheat & <b>corn</b>").run()
    assert not page.exception
    cats = nlp("wheat & <b>corn</b>").cats
    best = max(cats, key=cats.__getitem__)
    assert page.subheader[0].value == best
    assert page.selectbox[0].value == best
    assert page.selectbox[0].options == sorted(cats, key=lambda label: -cats[label])
    shown = page.get("html")[0].proto.body
    assert "<b>" not in shown
    assert len(re.findall("<span", shown)) == len(nlp("wheat & <b>corn</b>"))
    page.selectbox[0].set_value(min(cats, key=cats.__getitem__)).run()
    assert not page.exception
    assert page.get("html")[0].proto.body != shown
    page.text_area[0].set_value("  ").run()
    assert "Type a text" in plain(page)


def test_mistakes_can_be_filtered(pipeline, tmp_path, monkeypatch):
    nlp = spacy.load(pipeline)
    save_docs(tmp_path / "test.spacy", random_docs(nlp, [6] * 50, seed=3))
    page = open_page(monkeypatch, pipeline, "--corpus", tmp_path)
    table = page.dataframe[0].value
    assert f"{len(table)} of 50 texts are wrong" in plain(page)
    label = table["right"].iloc[0]
    page.multiselect[0].set_value([label]).run()
    assert set(page.dataframe[0].value["right"]) == {label}
    assert len(page.dataframe[0].value) == (table["right"] == label).sum()


def test_what_is_not_there_is_said(pipeline, tmp_path, monkeypatch):
    assert "Can't show" in plain(open_page(monkeypatch, tmp_path / "nothing"))
    page = open_page(monkeypatch, pipeline, "--corpus", tmp_path)
    assert "project run convert" in plain(page)
    assert "--corpus" in plain(open_page(monkeypatch, pipeline))
