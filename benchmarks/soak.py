"""Resident memory of the service while it reads a million texts full of words it has never met."""

import asyncio
import random
from pathlib import Path
from string import ascii_lowercase
from time import perf_counter

import matplotlib
import srsly
import typer
from wasabi import msg

from machine import RESULTS, save
from service import Client, request_bytes, resident_mb, running

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KNOWN = ["the", "company", "said", "its", "profit", "rose", "to", "mln", "dlrs", "in", "year"]
CLIENTS = 4
WARM_UP = 0.05  # share of the texts


def main(
    model: str = typer.Argument("training/r8/bow/model-best", help="Pipeline"),
    texts: int = typer.Option(1_000_000, help="How many texts are sent"),
    words: int = typer.Option(10, help="Words in a text, every second of them new"),
    together: int = typer.Option(100, help="Texts in a request"),
    name: str = typer.Option("soak", help="Name of the results"),
) -> None:
    """Send the texts twice, with memory zones and without, and draw the memory of each."""
    figures = {}
    for side, option in (("zones", "--memory-zones"), ("no_zones", "--no-memory-zones")):
        with running(model, option) as (process, port):
            start = perf_counter()
            memory = asyncio.run(soak(process, port, texts, words, together))
            seconds = perf_counter() - start
        after = [mb for sent, mb in memory if sent >= WARM_UP * texts]
        growth = max(after) / after[0] - 1
        figures[side] = {
            "texts_per_second": texts / seconds,
            "after_warm_up_mb": after[0],
            "most_mb": max(after),
            "growth": growth,
            "memory_mb": memory,
        }
        msg.info(
            f"{side}: {after[0]:,.0f} MB after {WARM_UP:.0%} of the texts, at most "
            f"{max(after):,.0f} MB from then on ({growth:+.1%}), {texts / seconds:,.0f} texts/s"
        )
    save(name, {"texts": texts, "words": words, "new_words": texts * (words // 2)} | figures)
    draw(figures, RESULTS / f"{name}.png")


async def soak(
    process: int, port: int, texts: int, words: int, together: int
) -> list[tuple[int, float]]:
    """Send texts, and look at the memory of the service a hundred times.

    RETURNS (List[Tuple[int, float]]): Texts sent, and the resident memory in MB.
    """
    order = random.Random(0)
    sent = 0
    every = max(texts // 100, together)
    memory = [(0, resident_mb(process))]

    async def send() -> None:
        nonlocal sent
        async with Client(port) as client:
            while sent < texts:
                sent += together
                batch = [make_text(order, words) for _ in range(together)]
                answer = srsly.json_loads(await client.send(request_bytes(batch)))
                assert len(answer["results"]) == together
                if sent >= memory[-1][0] + every:
                    memory.append((sent, resident_mb(process)))

    await asyncio.gather(*(send() for _ in range(CLIENTS)))
    return memory


def make_text(order: random.Random, words: int) -> str:
    """A text whose every second word nobody has written before."""
    return " ".join(
        "".join(order.choices(ascii_lowercase, k=9)) if number % 2 else order.choice(KNOWN)
        for number in range(words)
    )


def draw(figures: dict, path: Path) -> None:
    """Draw resident memory over the texts sent."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for side, label, color in (
        ("no_zones", "without memory zones", "#c44e52"),
        ("zones", "with memory zones", "#4c72b0"),
    ):
        sent, memory = zip(*figures[side]["memory_mb"], strict=True)
        axes.plot([number / 1000 for number in sent], memory, color=color, linewidth=2)
        axes.annotate(
            f"{label}: {figures[side]['growth']:+.1%} after warm-up",
            (sent[-1] / 1000, memory[-1]),
            xytext=(-6, 8),
            textcoords="offset points",
            ha="right",
            color=color,
        )
    axes.set(
        title="Resident memory of the service; every second word is new",
        xlabel="texts sent, thousands",
        ylabel="MB",
    )
    axes.set_ylim(0, 1.12 * max(mb for side in figures.values() for _, mb in side["memory_mb"]))
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    msg.good(f"Drew {path.name}")


if __name__ == "__main__":
    typer.run(main)
