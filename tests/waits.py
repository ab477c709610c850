"""Finds on a CPU what would make the host wait for a GPU: torch's operations pass by here.

What an operation does on a GPU is not to be seen on a CPU, but which operations there are is. Those
that wait are known: they bring a value or the size of their result to the host, or they copy.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

SCRIPTS = str(Path(__file__).parent.parent / "scripts")
# A value comes to the host, or how many there are.
ALWAYS = {
    "_local_scalar_dense",  # item(), and float(), int() and bool() of a tensor
    "equal",
    "nonzero",
    "masked_select",
    "bincount",
    "unique_dim",
    "unique_consecutive",
    "_unique",
    "_unique2",
}
MASKS = (torch.bool, torch.uint8)
# These do nothing on a CPU, so that they are no operations there.
TO_HOST = {"cpu", "numpy", "tolist", "__array__"}
TO_DEVICE = {"tensor", "as_tensor", "cuda", "to"}


class Wait(NamedTuple):
    """Something that waits.

    what (str): The operation.
    where (str): File and function of the project that ask for it.
    """

    what: str
    where: str


class Watch:
    """Notes what waits, while it is entered.

    found (List[Wait]): One after another.
    """

    def __init__(self) -> None:
        self.found: list[Wait] = []
        self._modes = (_Operations(self.note), _Calls(self.note))

    def note(self, what: str) -> None:
        """Note something that waits."""
        frame = sys._getframe()
        while frame.f_back and not frame.f_code.co_filename.startswith(SCRIPTS):
            frame = frame.f_back
        place = f"{Path(frame.f_code.co_filename).name} {frame.f_code.co_name}"
        self.found.append(Wait(what, place))

    def __enter__(self) -> list[Wait]:
        for mode in self._modes:
            mode.__enter__()
        return self.found

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Noting:
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note


class _Operations(_Noting, TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if waits(func, args, kwargs):
            self.note(str(func))
        return func(*args, **kwargs)


class _Calls(_Noting, TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in TO_HOST or (name in TO_DEVICE and goes_to_device(name, args, kwargs)):
            self.note(name)
        return func(*args, **kwargs)


def waits(func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether an operation would wait for a GPU.

    func (torch._ops.OpOverload): The operation.
    args (tuple): Its arguments.
    kwargs (Dict[str, Any]): Those with names.
    RETURNS (bool): True if it would.
    """
    name = func.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(index is not None and index.dtype in MASKS for index in args[1])
    if name == "repeat_interleave":
        return "output_size" not in kwargs
    if name == "_to_copy":
        device = kwargs.get("device")
        return device is not None and device != args[0].device
    if name == "copy_":
        return args[0].device != args[1].device
    return name in ALWAYS


def goes_to_device(name: str, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a call makes or copies a tensor from the host.

    name (str): Name of the function or method.
    args (tuple): Its arguments.
    kwargs (Dict[str, Any]): Those with names.
    RETURNS (bool): True of `X.to(device)`, not of `X.to(dtype)`.
    """
    if name != "to":
        return True
    others = (*args[1:], kwargs.get("device"))
    return any(isinstance(other, str | torch.device | torch.Tensor) for other in others)
