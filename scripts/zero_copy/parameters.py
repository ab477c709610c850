"""The parameters of a thinc model as one flat tensor that thinc itself works on.

thinc keeps an array a parameter. Here they are laid end to end in one tensor, and thinc is handed
views of it, so that an update is one fused pass and `to_bytes`, `use_params` and averages see it
without a copy. One kind of parameter is too wasteful for that: a bag of words has 2^18 rows a
label, of which a corpus touches a few. Only those are kept (a compact parameter), and `flush`
writes them back whenever thinc looks. So it does with the parameters of PyTorch modules: saving a
view saves all of the tensor behind it, so that a module keeps its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from thinc.api import Model, PyTorchShim, Shim, torch2xp

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

    def share(self, view: torch.Tensor) -> None:
        """Hand thinc our values, where it can hold them.

        view (torch.Tensor): The parameter's part of the flat tensor.
        """
        # A bag of words stays on the CPU in thinc, so on a GPU its bias can't be shared either.
        on_same_device = (self.node.ops.device_type == "cpu") == (view.device.type == "cpu")
        if self.rows is None and on_same_device:
            self.array = torch2xp(view, ops=self.node.ops)
            self.node.set_param(self.name, self.array)

    def write_back(self) -> None:
        """Write our values to thinc, where it does not share them."""
        if self.rows is not None:
            self.expand(self.tensor.detach(), out=self.array)
        elif self.tensor.data_ptr() != torch_view(self.array).data_ptr():
            self.array[...] = self.tensor.detach().cpu().numpy()


class ModuleParameter(Parameter):
    """A parameter of a PyTorch module that thinc wraps.

    node (Model): The layer.
    shim (Shim): Its wrapper of the module.
    name (str): Name of the parameter in the module.
    source (torch.nn.Parameter): The module's own values.
    """

    def __init__(self, node: Model, shim: Shim, name: str, source: torch.nn.Parameter) -> None:
        self.node = node
        self.name = name
        self.key = (shim.id, name)
        self.rows = self.rows_hash = None
        self.array = torch2xp(source.detach(), ops=node.ops)
        self.start = 0
        self.source = source
        self._version = source._version

    @property
    def is_current(self) -> bool:
        """Whether the module still holds the values that were last read or written."""
        return self.source._version == self._version

    def share(self, view: torch.Tensor) -> None:
        """Leave the module its own values."""

    def write_back(self) -> None:
        """Write our values to the module, unless it has got others meanwhile."""
        if self.is_current:
            with torch.no_grad():
                self.source.copy_(self.tensor)
            self._version = self.source._version


def modules_of(node: Model) -> list[tuple[Shim, torch.nn.Module]]:
    """The PyTorch modules that a layer wraps.

    node (Model): The layer.
    RETURNS (List[Tuple[Shim, torch.nn.Module]]): thinc's wrapper and the module, of most layers
        none, of others one.
    """
    return [(shim, shim._model) for shim in node.shims if isinstance(shim, PyTorchShim)]


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
        # thinc counts its layers and its shims apart, so keys of the two may be equal.
        self.by_key = {parameter.key: parameter for parameter in self.all}
        self.by_module: dict[torch.nn.Module, dict[str, ModuleParameter]] = {}
        for node in model.walk():
            for shim, module in modules_of(node):
                self.by_module[module] = {
                    name: ModuleParameter(node, shim, name, source)
                    for name, source in module.named_parameters()
                    if source.requires_grad
                }
        self.all += [each for found in self.by_module.values() for each in found.values()]
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
            parameter.share(view)
            parameter.tensor = view.requires_grad_()
            parameter.tensor.grad = self.view(self.gradients, parameter)
            start += size

    @property
    def are_current(self) -> bool:
        """Whether thinc still holds every array that we share, and modules what we know."""
        return all(parameter.is_current for parameter in self.all)

    def of_module(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The tensors of a wrapped module's parameters.

        module (torch.nn.Module): The module.
        RETURNS (Dict[str, torch.Tensor]): By name, for `torch.func.functional_call`.
        """
        return {name: parameter.tensor for name, parameter in self.by_module[module].items()}

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
            parameter.write_back()
        self.is_dirty = False

    @contextmanager
    def using(self, params: dict[Key, Array]) -> Iterator[dict[Key, Array]]:
        """Compute with other values than the trained ones, averages say.

        Those of PyTorch modules stay as they are, as in thinc, whose shims look for other keys
        than its optimizer makes.

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
