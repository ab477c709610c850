"""The parameters of a thinc model as one flat tensor that thinc itself works on.

thinc keeps an array a parameter. Here they are laid end to end in one tensor, and thinc is handed
views of it, so that an update is one fused pass and `to_bytes`, `use_params` and averages see it
without a copy. One kind of parameter is too wasteful for that: a bag of words has 2^18 rows a
label, of which a corpus touches a few. Only those are kept (a compact parameter), and `flush`
writes them back whenever thinc looks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from thinc.api import Model, torch2xp

Key = tuple[int, str]
# A NumPy or CuPy array. thinc's own types have a class a dimension, which says less than `shape`.
Array = Any


def torch_view(array: Array) -> torch.Tensor:
    """A torch tensor over an array of thinc's, on the array's own device, without a copy.

    array (Array): A NumPy or CuPy array.
    RETURNS (torch.Tensor): A tensor that shares its memory.
    """
    if isinstance(array, numpy.ndarray):
        return torch.from_numpy(array)
    return torch.from_dlpack(array)


class Parameter:
    """One parameter of a layer, and where it lies in the flat tensors.

    node (Model): The layer.
    name (str): Name of the parameter.
    rows (Optional[numpy.ndarray]): For a compact parameter the buckets that are kept, int64.
    """

    def __init__(self, node: Model, name: str, rows: numpy.ndarray | None = None) -> None:
        self.node = node
        self.name = name
        self.key: Key = (node.id, name)
        self.rows = rows
        self.rows_hash = None if rows is None else hash(rows.tobytes())
        # The array that thinc holds: a view of ours, or for a compact parameter its own.
        self.array: Array = node.get_param(name)
        # What a forward pass uses, set by Parameters.
        self.tensor: torch.Tensor
        self.start = 0

    @property
    def is_current(self) -> bool:
        """Whether thinc still holds the array that we share."""
        return self.node.get_param(self.name) is self.array

    def compact(self, array: Array) -> torch.Tensor:
        """Our form of an array of thinc's: itself, or the kept rows and a last one of zeros.

        array (Array): Of the layer's own shape or flat, on the CPU for a compact parameter.
        RETURNS (torch.Tensor): For a compact parameter `(rows + 1, nO)`, else of thinc's shape.
        """
        tensor = torch_view(array).reshape(self.array.shape)
        if self.rows is None:
            return tensor
        kept = tensor.view(self.node.get_dim("nO"), -1)[:, torch.from_numpy(self.rows)].t()
        return torch.cat([kept, kept.new_zeros(1, kept.shape[1])])

    def expand(self, compact: torch.Tensor, out: Array | None = None) -> Array:
        """thinc's form of one of ours; the buckets that are not kept are zero.

        compact (torch.Tensor): As `compact` returns it, or flat.
        out (Optional[Array]): An array of thinc's to write into.
        RETURNS (Array): An array of thinc's shape.
        """
        if self.rows is None:
            return torch2xp(compact.reshape(self.array.shape), ops=self.node.ops)
        full = numpy.zeros_like(self.array) if out is None else out
        nO = self.node.get_dim("nO")
        table = compact.reshape(len(self.rows) + 1, nO)[:-1].cpu().numpy()
        full.reshape(nO, -1)[:, self.rows] = table.T
        return full


class Parameters:
    """All parameters of a model, flat.

    model (Model): The model; its parameters become views of `weights`.
    device (torch.device): Where they lie.
    compact (Dict[Key, numpy.ndarray]): For compact parameters the buckets to keep.
    """

    def __init__(
        self, model: Model, device: torch.device, compact: dict[Key, numpy.ndarray]
    ) -> None:
        self.all = [
            Parameter(node, name, compact.get((node.id, name)))
            for node in model.walk()
            for name in node.param_names
            if node.has_param(name)
        ]
        self.by_key = {parameter.key: parameter for parameter in self.all}
        values = [parameter.compact(parameter.array) for parameter in self.all]
        sizes = [value.numel() for value in values]
        self.weights = torch.zeros(sum(sizes), device=device)
        self.gradients = torch.zeros_like(self.weights)
        # Values of other parameters than the trained ones, while `using` is on.
        self.replaced: dict[Key, torch.Tensor] | None = None
        self.is_dirty = False
        start = 0
        for parameter, value, size in zip(self.all, values, sizes, strict=True):
            parameter.start = start
            view = self.weights[start : start + size].view(value.shape)
            view.copy_(value)
            self._share(parameter, view)
            parameter.tensor = view.requires_grad_()
            parameter.tensor.grad = self.view(self.gradients, parameter)
            start += size

    def _share(self, parameter: Parameter, view: torch.Tensor) -> None:
        # A bag of words stays on the CPU in thinc, so on a GPU its bias can't be shared either.
        on_same_device = (parameter.node.ops.device_type == "cpu") == (view.device.type == "cpu")
        if parameter.rows is None and on_same_device:
            parameter.array = torch2xp(view, ops=parameter.node.ops)
            parameter.node.set_param(parameter.name, parameter.array)

    @property
    def are_current(self) -> bool:
        """Whether thinc still holds every array that we share."""
        return all(parameter.is_current for parameter in self.all)

    def lacks(self, compact: dict[Key, numpy.ndarray]) -> bool:
        """Whether buckets are wanted that are not kept.

        compact (Dict[Key, numpy.ndarray]): For compact parameters the buckets wanted.
        RETURNS (bool): True where the parameters must be made anew.
        """
        return any(
            len(numpy.setdiff1d(rows, _rows(self.by_key[key]), assume_unique=True)) > 0
            for key, rows in compact.items()
        )

    def view(self, flat: torch.Tensor, parameter: Parameter) -> torch.Tensor:
        """A parameter's part of a flat tensor, in its shape.

        flat (torch.Tensor): Of the size of `weights`.
        parameter (Parameter): The parameter.
        RETURNS (torch.Tensor): The view.
        """
        end = parameter.start + parameter.tensor.numel()
        return flat[parameter.start : end].view(parameter.tensor.shape)

    def gradient(self, parameter: Parameter) -> torch.Tensor:
        """The gradient of a parameter, collected since the last update.

        parameter (Parameter): The parameter.
        RETURNS (torch.Tensor): In its shape; a view of `gradients`.
        """
        assert parameter.tensor.grad is not None
        return parameter.tensor.grad

    def __getitem__(self, key: Key) -> torch.Tensor:
        """The tensor of a parameter: what is trained, or what `using` puts in its place.

        key (Tuple[int, str]): ID of the layer and name of the parameter, as thinc has it.
        RETURNS (torch.Tensor): In thinc's shape; for a compact one `(rows + 1, nO)`.
        """
        if self.replaced is not None and key in self.replaced:
            return self.replaced[key]
        return self.by_key[key].tensor

    def flush(self) -> None:
        """Write to thinc what it does not share, after updates. Cheap where there was none."""
        if not self.is_dirty:
            return
        for parameter in self.all:
            if parameter.rows is not None:
                parameter.expand(parameter.tensor.detach(), out=parameter.array)
            elif parameter.tensor.data_ptr() != torch_view(parameter.array).data_ptr():
                parameter.array[...] = parameter.tensor.detach().cpu().numpy()
        self.is_dirty = False

    @contextmanager
    def using(self, params: dict[Key, Array]) -> Iterator[dict[Key, Array]]:
        """Compute with other values than the trained ones, averages say.

        params (Dict[Key, Array]): Values in our form, by key.
        YIELDS (Dict[Key, Array]): The same in thinc's form.
        """
        ours = {key: value for key, value in params.items() if key in self.by_key}
        self.replaced = {
            key: torch_view(value).view(self.by_key[key].tensor.shape)
            for key, value in ours.items()
        }
        try:
            yield params | {
                key: self.by_key[key].expand(value) for key, value in self.replaced.items()
            }
        finally:
            self.replaced = None


def _rows(parameter: Parameter) -> numpy.ndarray:
    assert parameter.rows is not None
    return parameter.rows
