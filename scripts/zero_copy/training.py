"""What stands around `spacy train`: which device, which config, which corpora."""

import warnings
from pathlib import Path

import torch
from thinc.compat import has_cupy_gpu

from zero_copy.errors import UserError


def find_config(path: Path) -> Path:
    """A config that is there.

    path (Path): The config asked for.
    RETURNS (Path): The same.
    RAISES (UserError): If there is none, naming those that there are.
    """
    if path.is_file():
        return path
    there = sorted(config.stem for config in path.parent.glob("*.cfg"))
    raise UserError(
        f"There is no config {path}",
        f"In {path.parent} there are: {', '.join(there) or 'none'}.",
    )


def find_corpus(folder: Path, split: str, ending: str) -> Path:
    """The file of a split.

    folder (Path): Folder of the corpus.
    split (str): `train`, `dev` or `test`.
    ending (str): `.spacy` or `.safetensors`.
    RETURNS (Path): The file.
    RAISES (UserError): If it is not there, saying which command makes it.
    """
    path = folder / f"{split}{ending}"
    if not path.exists():
        command = "pack" if ending == ".safetensors" else "convert"
        raise UserError(
            f"There is no {path}", f"Run `python -m spacy project run {command}` first."
        )
    return path


def choose_gpu(gpu_id: str) -> tuple[int, str]:
    """The device to train on.

    gpu_id (str): Number of a GPU, -1 for the CPU, or `auto`.
    RETURNS (Tuple[int, str]): What `spacy train --gpu-id` takes, and why this one.
    RAISES (UserError): If it is neither a number nor `auto`, or the GPU can't be used.
    """
    if gpu_id == "auto":
        reason = why_no_gpu()
        if reason:
            return -1, f"CPU ({reason})"
        return 0, f"GPU 0 ({torch.cuda.get_device_name(0)})"
    if not gpu_id.lstrip("-").isdigit():
        raise UserError(f"gpu_id is {gpu_id!r}", "Use auto, -1 for the CPU or a GPU's number.")
    number = int(gpu_id)
    if number < 0:
        return -1, "CPU"
    reason = why_no_gpu(number)
    if reason:
        raise UserError(f"GPU {number} can't be used: {reason}", "Use auto, or -1 for the CPU.")
    return number, f"GPU {number} ({torch.cuda.get_device_name(number)})"


def why_no_gpu(number: int = 0) -> str | None:
    """Why torch and CuPy can't both use a GPU.

    number (int): The GPU.
    RETURNS (Optional[str]): The reason, or None if they can.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver, and then says no
        torch_sees = torch.cuda.is_available() and torch.cuda.device_count() > number
    if not torch_sees and not has_cupy_gpu:
        return "neither torch nor CuPy finds a GPU"
    if not torch_sees:
        return "CuPy finds one, torch does not: is it torch's CPU build, or for another CUDA?"
    if not has_cupy_gpu:
        return "torch finds one, CuPy does not: pip install -r requirements-gpu.txt"
    return None
