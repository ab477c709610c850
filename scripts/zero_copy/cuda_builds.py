"""Which CUDA torch and CuPy are built for, and why the two can't use a GPU together.

thinc computes with CuPy, the lowered models with torch, on the same memory.
"""

import shutil
import warnings
from importlib.util import find_spec
from typing import NamedTuple

import torch
from thinc import compat


class Build(NamedTuple):
    """torch or CuPy, as it is installed.

    is_there (bool): Whether it can be imported.
    cuda (Optional[int]): The major version of the CUDA that it is built for; None for no CUDA.
    sees_gpu (bool): Whether it finds the GPU.
    """

    is_there: bool
    cuda: int | None
    sees_gpu: bool


def torch_build(number: int) -> Build:
    """torch, as it is installed.

    number (int): The GPU that it is to find.
    RETURNS (Build): The build.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver, and then says no
        sees_gpu = torch.cuda.is_available() and torch.cuda.device_count() > number
    version = torch.version.cuda
    return Build(True, int(version.split(".")[0]) if version else None, sees_gpu)


def cupy_build(number: int) -> Build:
    """CuPy, as it is installed.

    number (int): The GPU that it is to find.
    RETURNS (Build): The build.
    """
    if not compat.has_cupy:
        return Build(False, None, False)
    runtime = compat.cupy.cuda.runtime
    sees_gpu = compat.has_cupy_gpu and runtime.getDeviceCount() > number
    return Build(True, runtime.runtimeGetVersion() // 1000, sees_gpu)


def has_driver() -> bool:
    """Whether the machine seems to have a GPU.

    RETURNS (bool): True if NVIDIA's driver is installed.
    """
    return shutil.which("nvidia-smi") is not None


def why_unusable(torch_is: Build, cupy_is: Build, *, has_driver: bool) -> str | None:
    """Why torch and CuPy can't both use a GPU.

    torch_is (Build): torch.
    cupy_is (Build): CuPy.
    has_driver (bool): Whether the machine seems to have a GPU.
    RETURNS (Optional[str]): The reason and what to do, or None if they can.
    """
    if not (torch_is.sees_gpu or cupy_is.sees_gpu or has_driver):
        return "neither torch nor CuPy finds a GPU"
    if torch_is.cuda is None:
        wanted = f"CUDA {cupy_is.cuda}" if cupy_is.cuda else "CUDA"
        return f"torch is built for CPUs: install one for {wanted}, see pytorch.org"
    if not cupy_is.is_there:
        what = "can't be imported" if find_spec("cupy") else "is not installed"
        return f"CuPy {what}: pip install {_package(torch_is.cuda)}"
    if torch_is.cuda != cupy_is.cuda:
        return (
            f"torch is built for CUDA {torch_is.cuda}, CuPy for CUDA {cupy_is.cuda}: pip uninstall "
            f"{_package(cupy_is.cuda)} and pip install {_package(torch_is.cuda)}"
        )
    blind = [name for name, build in (("torch", torch_is), ("CuPy", cupy_is)) if not build.sees_gpu]
    if blind:
        return (
            f"{' and '.join(blind)}, built for CUDA {torch_is.cuda}, can't use it: does nvidia-smi "
            "show it, with that version of CUDA or a later one?"
        )
    return None


def _package(cuda: int | None) -> str:
    return f"cupy-cuda{cuda}x"
