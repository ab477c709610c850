"""What keeps torch and CuPy from using a GPU together is named, with what to do."""

from types import SimpleNamespace

import pytest
import torch
from thinc import compat

from zero_copy import cuda_builds
from zero_copy.cuda_builds import Build, cupy_build, torch_build, why_unusable
from zero_copy.errors import UserError
from zero_copy.training import choose_gpu

MISSING = Build(False, None, False)
ON_CPU = Build(True, None, False)
BLIND = Build(True, 12, False)
GOOD = Build(True, 12, True)
NEWER = Build(True, 13, True)


@pytest.mark.parametrize(
    ("torch_is", "cupy_is", "words"),
    [
        (ON_CPU, GOOD, "torch is built for CPUs: install one for CUDA 12"),
        (ON_CPU, MISSING, "torch is built for CPUs"),
        (GOOD, MISSING, "CuPy is not installed: pip install cupy-cuda12x"),
        (NEWER, MISSING, "CuPy is not installed: pip install cupy-cuda13x"),
        (NEWER, GOOD, "torch is built for CUDA 13, CuPy for CUDA 12: pip uninstall cupy-cuda12x"),
        (GOOD, NEWER, "torch is built for CUDA 12, CuPy for CUDA 13: pip uninstall cupy-cuda13x"),
        (GOOD, BLIND, "CuPy, built for CUDA 12, can't use it"),
        (BLIND, GOOD, "torch, built for CUDA 12, can't use it"),
        (BLIND, BLIND, "torch and CuPy, built for CUDA 12, can't use it"),
    ],
)
def test_the_reason_is_named(monkeypatch, torch_is, cupy_is, words):
    monkeypatch.setattr(cuda_builds, "find_spec", lambda name: None)
    assert words in why_unusable(torch_is, cupy_is, has_driver=True)


def test_a_cupy_that_is_broken_is_told_from_none(monkeypatch):
    monkeypatch.setattr(cuda_builds, "find_spec", lambda name: "there")
    assert "CuPy can't be imported" in why_unusable(GOOD, MISSING, has_driver=True)


def test_two_of_one_version_can_be_used():
    assert why_unusable(GOOD, GOOD, has_driver=True) is None


@pytest.mark.parametrize("torch_is", [ON_CPU, BLIND])
def test_a_machine_without_a_gpu_is_not_told_what_to_install(torch_is):
    reason = why_unusable(torch_is, MISSING, has_driver=False)
    assert reason == "neither torch nor CuPy finds a GPU"


def test_builds_are_read_from_the_packages(monkeypatch):
    runtime = SimpleNamespace(getDeviceCount=lambda: 2, runtimeGetVersion=lambda: 12090)
    monkeypatch.setattr(compat, "has_cupy", True)
    monkeypatch.setattr(compat, "has_cupy_gpu", True)
    monkeypatch.setattr(compat, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert cupy_build(1) == GOOD
    assert cupy_build(2) == BLIND
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert torch_build(0) == NEWER
    assert not torch_build(1).sees_gpu
    with pytest.raises(UserError, match="GPU 0 can't be used: torch is built for CUDA 13, CuPy"):
        choose_gpu("0")
    device, reason = choose_gpu("auto")
    assert device == -1
    assert reason.startswith("CPU (torch is built for CUDA 13, CuPy for CUDA 12")


def test_a_missing_cupy_is_found(monkeypatch):
    monkeypatch.setattr(compat, "has_cupy", False)
    assert cupy_build(0) == MISSING
