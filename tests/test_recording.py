"""Recordings: what they note, and that they leave no trace in the config."""

from copy import deepcopy
from pathlib import Path

import pytest
from spacy.util import load_config

from zero_copy.recording import (
    Recording,
    summarize_recording,
    with_recording,
    without_recording,
)

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("name", ["bow.cfg", "stock/bow.cfg"])
def test_config_is_recorded_and_put_back(name):
    config = load_config(CONFIGS / name)
    before = deepcopy(dict(config))
    recorded = with_recording(config, Path("recording.jsonl"))
    assert dict(config) == before
    assert recorded["training"]["logger"]["@loggers"] == "zero_copy.RecordingLogger.v1"
    without_recording(recorded)
    assert recorded["training"].pop("before_to_disk") == before["training"].pop(
        "before_to_disk", None
    )
    assert dict(recorded) == before


def test_evaluation_is_told_from_steps_and_saving(monkeypatch):
    now = iter([10.0, 11.0, 17.0, 17.5])
    monkeypatch.setattr("zero_copy.recording.perf_counter", now.__next__)
    recording = Recording(last=9.0)
    recording.end_step()  # 9 to 10
    recording.end_step()  # 10 to 11
    recording.evaluated = 16.0  # a step of 1 and an evaluation of 4 seconds
    row = recording.end_evaluation()
    assert row == {
        "steps": 2,
        "step_seconds": 2.0,
        "evaluation_seconds": 4.0,
        "saving_seconds": 1.0,
    }
    assert (recording.steps, recording.seconds, recording.last) == (0, 0.0, 17.5)


def test_first_evaluation_has_no_step_to_take_off(monkeypatch):
    monkeypatch.setattr("zero_copy.recording.perf_counter", iter([5.0, 5.5]).__next__)
    row = Recording(last=1.0, evaluated=4.0).end_evaluation()
    assert row["evaluation_seconds"] is None


def evaluation(step: int, score: float, time: float, words: int, seconds: float) -> dict:
    row = {"step": step, "score": score, "time": time, "words": words}
    timed = {"steps": 9 if step else 0, "step_seconds": seconds}
    return {**row, **timed, "evaluation_seconds": 0.5, "saving_seconds": 0.1}


def test_summary_leaves_the_beginning_out_and_finds_the_first_best():
    rows = [
        evaluation(0, 0.1, 101.0, 100, 0.0),
        evaluation(10, 0.8, 110.0, 1100, 9.0),  # 100 words a second, to warm up
        evaluation(20, 0.9, 112.0, 2100, 1.0),
        evaluation(30, 0.9, 114.0, 3100, 3.0),
        evaluation(40, 0.7, 116.0, 4100, 2.0),
        {"peak_host_bytes": 7},
    ]
    summary = summarize_recording(rows, start=100.0)
    assert (summary["best_step"], summary["best_seconds"]) == (20, 12.0)
    assert summary["words_per_second"] == pytest.approx(1000 * 0.9 / 2.0)
    assert summary["curve"][1] == {"seconds": 10.0, "step": 10, "score": 0.8}
    assert summary["peak_host_bytes"] == 7


def test_summary_of_a_single_evaluation():
    summary = summarize_recording([evaluation(0, 0.1, 101.0, 100, 0.0), {}], start=100.0)
    assert summary["words_per_second"] is None
