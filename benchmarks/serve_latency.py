"""Latency and requests a second of the service under several loads, with batches and without."""

import asyncio
from itertools import cycle
from pathlib import Path
from time import perf_counter

import numpy
import typer
from wasabi import msg

from machine import save
from service import Client, processor_seconds, request_bytes, running
from zero_copy.classifying import Classifier
from zero_copy.predictions import read_docs

SIDES = {
    "batches": [],
    "one by one": ["--batch-texts", "1", "--window-ms", "0"],
}
LANES = {"two lanes": ["--lanes", "2"], "one lane": ["--lanes", "1"]}
PERCENTILES = (50, 95, 99)


def main(
    models: list[str] = typer.Argument(..., help="Pipelines"),
    corpus: Path = typer.Option(Path("corpus/r8"), help="Folder with train and test"),
    clients: list[int] = typer.Option([1, 4, 16, 64], help="Connections that ask at a time"),
    texts: int = typer.Option(1, help="Texts in a request"),
    seconds: float = typer.Option(5.0, help="How long each load is kept up"),
    long_chars: int = typer.Option(100_000, help="Length of the text beside which others come"),
) -> None:
    """Each connection sends a request when the last one is answered. Before that, the pipeline
    alone reads the texts, with its tokenizer warmed and not."""
    everything = [doc.text for doc in read_docs(corpus / "test.spacy")]
    requests = [
        request_bytes(everything[start : start + texts])
        for start in range(0, len(everything) - texts, texts)
    ]
    long_text = request_bytes([" ".join(everything)[:long_chars]])
    warm_up = ["--warm-up", str(corpus / "train.spacy")]
    rows = []
    speeds = {}
    for model in models:
        speeds[model] = {
            "cold": words_per_second(model, None, everything),
            "warm": words_per_second(model, corpus / "train.spacy", everything),
        }
        cold, warm = speeds[model].values()
        msg.text(f"{Path(model).parent.name}: {cold:,.0f} words/s, warmed {warm:,.0f}")
        for side, options in SIDES.items():
            with running(model, *warm_up, *options) as (process, port):
                for number in clients:
                    figures = asyncio.run(load(process, port, requests, number, seconds))
                    rows.append({"model": model, "side": side, "clients": number, **figures})
                    show(rows[-1])
        for side, options in LANES.items():
            with running(model, *warm_up, *options) as (process, port):
                figures = asyncio.run(load(process, port, requests, 4, seconds, long_text))
                rows.append({"model": model, "side": f"{side}, a long text beside", "clients": 4})
                rows[-1] |= figures
                show(rows[-1])
    save(
        "serve_latency",
        {"corpus": str(corpus), "texts_in_a_request": texts, "words_per_second": speeds}
        | {"loads": rows},
    )


async def load(
    process: int,
    port: int,
    requests: list[bytes],
    clients: int,
    seconds: float,
    beside: bytes | None = None,
) -> dict[str, float]:
    """Keep up a load, and measure it after a first second.

    beside (Optional[bytes]): A request that one more connection sends all the time.
    RETURNS (Dict[str, float]): Requests a second, percentiles of the latency in ms, and the ms of
        a core that the service took for a request.
    """
    rest = cycle(requests)
    latencies: list[float] = []
    answered = 0
    spent = processor_seconds(process)
    start = perf_counter() + 1.0
    end = start + seconds

    async def ask(request: bytes | None) -> None:
        nonlocal answered
        async with Client(port) as client:
            while (sent := perf_counter()) < end:
                await client.send(request or next(rest))
                answered += 1
                if sent >= start and request is None:
                    latencies.append(perf_counter() - sent)

    others = [ask(beside)] if beside else []
    await asyncio.gather(*(ask(None) for _ in range(clients)), *others)
    percentiles = numpy.percentile(latencies, PERCENTILES) * 1000
    return {
        "requests_per_second": len(latencies) / seconds,
        "core_ms": 1000 * (processor_seconds(process) - spent) / answered,
        **{f"p{it}_ms": float(ms) for it, ms in zip(PERCENTILES, percentiles, strict=True)},
    }


def words_per_second(model: str, warm_up: Path | None, texts: list[str]) -> float:
    """Words that the pipeline reads in a second, without a service around it."""
    classifier = Classifier.load(model, warm_up=warm_up)
    words = sum(len(text.split()) for text in texts)
    start = perf_counter()
    for first in range(0, len(texts), 64):
        classifier.classify(texts[first : first + 64])
    return words / (perf_counter() - start)


def show(row: dict) -> None:
    """Print a row."""
    times = ", ".join(f"p{it} {row[f'p{it}_ms']:.1f}" for it in PERCENTILES)
    msg.text(
        f"{Path(row['model']).parent.name}, {row['side']}, {row['clients']} clients: "
        f"{row['requests_per_second']:,.0f} requests/s, {times} ms, "
        f"{row['core_ms']:.1f} ms of a core"
    )


if __name__ == "__main__":
    typer.run(main)
