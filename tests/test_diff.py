"""What is shown of two configs: the settings that differ, and no others."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spacy.util import load_config_from_str
from thinc.api import Config

from zero_copy.configs import CONFIGS, fill_config, named_config, read_config, settings
from zero_copy.diff import differences, show_diff
from zero_copy.errors import UserError

NAMES = sorted(path.stem for path in CONFIGS.glob("*.cfg"))
NAMES_SHOWN = ("cnn", "ensemble")
TEXT = """
[system]
seed = 0

[nlp]
lang = "en"
pipeline = ["textcat"]

[components]

[components.textcat]
factory = "textcat"

[training]
seed = ${system.seed}
dropout = 0.1
patience = null
"""


def edited(old: str = "", new: str = "") -> Config:
    assert old in TEXT
    return load_config_from_str(TEXT.replace(old, new) if old else TEXT)


def found(left: Config, right: Config) -> list[tuple]:
    return [tuple(difference) for difference in differences(left, right)]


def test_changed_value():
    changed = edited("dropout = 0.1", "dropout = 0.2")
    assert found(edited(), changed) == [("training.dropout", 0.1, 0.2)]


def test_value_that_another_refers_to_is_one_difference():
    assert found(edited(), edited("seed = 0", "seed = 1")) == [("system.seed", 0, 1)]


def test_variable_and_its_value_are_the_same():
    assert found(edited(), edited("${system.seed}", "0")) == []
    assert found(edited(), edited("${system.seed}", "2")) == [("training.seed", 0, 2)]


def test_null_and_nothing_are_the_same():
    assert found(edited(), edited("patience = null", "")) == []
    assert found(edited(), edited("patience = null", "patience = 5")) == [
        ("training.patience", None, 5)
    ]


def test_section_in_place_of_a_value():
    schedule = 'dropout = 0.1\n\n[training.patience]\n@schedules = "constant.v1"\n'
    changed = edited("dropout = 0.1\npatience = null", schedule)
    assert found(edited(), changed) == [("training.patience.@schedules", None, "constant.v1")]


def test_section_on_one_side_only():
    without = edited("[components.textcat]\nfactory", "[components.other]\nfactory")
    assert found(edited(), without) == [
        ("components.textcat.factory", "textcat", None),
        ("components.other.factory", None, "textcat"),
    ]


def test_missing_variable_is_one_message():
    with pytest.raises(UserError, match=r"system\.sed"):
        differences(edited(), edited("${system.seed}", "${system.sed}"))


configs = st.recursive(
    st.none() | st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2),
    lambda values: st.dictionaries(st.sampled_from("abc"), values, max_size=3),
)


@given(st.dictionaries(st.sampled_from("xyz"), st.dictionaries(st.sampled_from("abc"), configs)))
def test_differences_from_nothing_are_all_that_is_set(content):
    content = Config(content)
    assert differences(content, content) == []
    known = {name: value for name, value in settings(content).items() if value is not None}
    assert {name: left for name, left, _ in differences(content, Config())} == known
    assert {name: right for name, _, right in differences(Config(), content)} == known


@pytest.mark.parametrize("name", NAMES)
def test_twins_differ_in_the_lines_that_make_them_zero_copy(name):
    stock, ours = (
        fill_config(read_config(named_config(Path(path)))) for path in (f"stock/{name}", name)
    )
    changed = {difference.setting.rpartition(".")[2] for difference in differences(stock, ours)}
    assert changed == {"factory", "@readers", "gold_preproc", "@batchers", "seed", "@callbacks"}


def shown(text: str) -> dict[str, list[str]]:
    """The lines of a diff by their dotted names."""
    section, lines = "", {}
    for line in text.splitlines()[1:]:
        if line.startswith("["):
            section = line[1:].partition("]")[0]
        else:
            key, *values = line.split()
            lines[f"{section}.{key}"] = values
    return lines


def test_lines(capsys):
    show_diff(Path("cnn"), Path("ensemble"))
    output = capsys.readouterr().out
    assert output.splitlines()[0].split() == ["cnn", "ensemble"]
    assert output.count("only in") == 2
    assert "[components.tok2vec] only in ensemble\n" in output
    assert "[components.textcat.model.linear_model] only in ensemble\n" in output
    lines = shown(output)
    assert lines["components.textcat.model.use_reduce_max"] == ["true", "-"]
    assert lines["components.tok2vec.model.encode.depth"] == ["-", "4"]
    left, right = (fill_config(read_config(named_config(Path(name)))) for name in NAMES_SHOWN)
    assert set(lines) == {difference.setting for difference in differences(left, right)}
    # What both have in common, and what is only written in another way, is not shown.
    assert "training.max_steps" not in lines
    assert "training.batcher.seed" not in lines


def test_long_values_are_shown_in_full(tmp_path, capsys):
    for name in ("a", "b"):
        names = ", ".join(f'"{name}{number}"' for number in range(30))
        text = TEXT + f"annotating_components = [{names}]\n"
        (tmp_path / f"{name}.cfg").write_text(text, encoding="utf8")
    show_diff(tmp_path / "a.cfg", tmp_path / "b.cfg")
    output = "".join(capsys.readouterr().out.split())
    assert "a29" in output
    assert "b29" in output


def test_what_a_config_leaves_out_is_filled_in(tmp_path, capsys):
    path = tmp_path / "short.cfg"
    path.write_text(TEXT, encoding="utf8")
    show_diff(path, path)
    assert "Both have the same settings" in capsys.readouterr().out
    fill_config(read_config(path)).to_disk(tmp_path / "long.cfg", interpolate=False)
    show_diff(path, tmp_path / "long.cfg")
    assert "Both have the same settings" in capsys.readouterr().out


def test_configs_of_one_name_are_told_apart(capsys):
    show_diff(Path("stock/cnn"), Path("cnn"))
    titles = capsys.readouterr().out.splitlines()[0].split()
    assert [title.replace("\\", "/").endswith("stock/cnn.cfg") for title in titles] == [True, False]


def test_config_that_can_not_be_built_is_compared_as_written(tmp_path, capsys):
    path = tmp_path / "unknown.cfg"
    path.write_text(TEXT.replace('"textcat"\n\n[tr', '"nothing"\n\n[tr'), encoding="utf8")
    show_diff(path, Path("bow"))
    output = capsys.readouterr().out
    assert "Compared as they are written" in output
    assert "components.textcat.factory" in shown(output.partition("class components).")[2])


def test_unknown_name_lists_those_there_are():
    with pytest.raises(UserError, match=r"bow.*cnn.*ensemble"):
        show_diff(Path("cnn"), Path("nothing"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\xff\xfe", "no config that can be read"),
        (b"just a text", "no section headers"),
        (b"[a]\nb = 1\nb = 2", "already exists"),
        (b"[a]\nb = 1", "no training config"),
        (b"", "no training config"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path, content, message):
    path = tmp_path / "broken.cfg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        show_diff(path, Path("bow"))
