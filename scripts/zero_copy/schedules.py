"""Schedules that thinc lacks."""

from collections.abc import Iterator
from math import cos, pi

import spacy

from zero_copy.errors import UserError

WARMUP_COSINE = "zero_copy.warmup_cosine.v1"


@spacy.registry.schedules(WARMUP_COSINE)
def create_warmup_cosine(
    warmup_steps: int, total_steps: int, initial_rate: float, final_rate: float = 0.0
) -> Iterator[float]:
    """Rise to a rate in a straight line, and fall from it along half a cosine (Loshchilov and
    Hutter 2017). It takes the settings of thinc's `warmup_linear.v1`, and stays higher for longer.

    warmup_steps (int): Updates until the rate is reached.
    total_steps (int): Updates until the fall has ended.
    initial_rate (float): The rate to rise to.
    final_rate (float): The rate to fall to, and to stay at.
    RETURNS (Iterator[float]): The rate of each update.
    RAISES (UserError): If there are no steps to fall in.
    """
    if not 0 <= warmup_steps < total_steps:
        raise UserError(
            f"{WARMUP_COSINE} has warmup_steps = {warmup_steps} and total_steps = {total_steps}",
            "total_steps, those of the warm-up included, must be more than warmup_steps.",
        )
    return warmup_cosine(warmup_steps, total_steps, initial_rate, final_rate)


def warmup_cosine(
    warmup_steps: int, total_steps: int, initial_rate: float, final_rate: float
) -> Iterator[float]:
    """The rates of `zero_copy.warmup_cosine.v1`.

    warmup_steps (int): Updates until the rate is reached.
    total_steps (int): Updates until the fall has ended.
    initial_rate (float): The rate to rise to.
    final_rate (float): The rate to fall to, and to stay at.
    YIELDS (float): The rate of each update, the first of them 0.0 where there is a warm-up.
    """
    for step in range(warmup_steps):
        yield initial_rate * step / warmup_steps
    for step in range(total_steps - warmup_steps):
        share = (1 + cos(pi * step / (total_steps - warmup_steps))) / 2
        yield final_rate + (initial_rate - final_rate) * share
    while True:
        yield final_rate
