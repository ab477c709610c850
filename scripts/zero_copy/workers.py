"""What the processes of one training tell each other; nothing where there is only one.

torch.distributed knows the processes, whoever has started them. All of them go through the same
steps in the same order, so that each call here meets those of the others.
"""

from typing import Any

import numpy
import torch
from torch import distributed


def count() -> int:
    """How many processes train together.

    RETURNS (int): 1 where torch.distributed has not been set up.
    """
    is_set_up = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_set_up else 1


def rank() -> int:
    """The number of this process.

    RETURNS (int): From 0 on.
    """
    return distributed.get_rank() if count() > 1 else 0


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by the sum over all workers.

    tensor (torch.Tensor): Of the same shape everywhere; changed in place.
    RETURNS (torch.Tensor): The same tensor.
    """
    if count() > 1:
        distributed.all_reduce(tensor)
    return tensor


def copy_first(tensor: torch.Tensor) -> None:
    """Give all workers the values of the first.

    tensor (torch.Tensor): Of the same shape everywhere; changed in place.
    """
    if count() > 1:
        distributed.broadcast(tensor, src=0)


def gather(item: Any) -> list[Any]:
    """Collect an object of every worker.

    item (Any): What this worker has to tell.
    RETURNS (List[Any]): What all have told, by their numbers; the same everywhere.
    """
    if count() == 1:
        return [item]
    items: list[Any] = [None] * count()
    distributed.all_gather_object(items, item)
    return items


def concatenated(array: numpy.ndarray) -> numpy.ndarray:
    """The rows of all workers, one after another.

    array (numpy.ndarray): This worker's rows.
    RETURNS (numpy.ndarray): All rows; the same everywhere.
    """
    return array if count() == 1 else numpy.concatenate(gather(array))
