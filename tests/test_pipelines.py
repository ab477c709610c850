"""Loading pipelines: what can't be loaded is one message."""

import pytest

from zero_copy.errors import UserError
from zero_copy.pipelines import load_pipeline


def test_components_can_be_left_out(pipeline):
    assert load_pipeline(str(pipeline)).pipe_names == ["textcat"]
    assert not load_pipeline(str(pipeline), ["textcat"]).pipe_names


@pytest.mark.parametrize("broken", ["missing", "empty", "unknown function"])
def test_what_can_not_be_loaded_is_told(pipeline, tmp_path, broken):
    folder = tmp_path / "model"
    if broken != "missing":
        folder.mkdir()
    if broken == "unknown function":
        for name in ("meta.json", "config.cfg"):
            text = (pipeline / name).read_text(encoding="utf8")
            text = text.replace("spacy.TextCatBOW.v3", "mine.TextCat.v1")
            (folder / name).write_text(text, encoding="utf8")
    with pytest.raises(UserError, match=r"Can't load a pipeline from .*model: ") as error:
        load_pipeline(str(folder))
    assert "\n" not in error.value.title
    assert "project run train" in error.value.desc
