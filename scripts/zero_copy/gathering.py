"""Puts the texts of requests that arrive together into batches, for lanes that work through them.

A lane is a thread with a pipeline of its own. While one reads a long text, the others go on; and no
request, however many texts it brings, gets more than its turn.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter

from zero_copy.classifying import Answer, Classifier, explain


class QueueFullError(Exception):
    """More texts are waiting than may."""


class Lane:
    """A thread, and the classifier that only it uses.

    load (Callable[[], Classifier]): Loads the classifier, in the thread: a GPU belongs to one.
    """

    def __init__(self, load: Callable[[], Classifier]) -> None:
        self.thread = ThreadPoolExecutor(1, "lane")
        self._loading = self.thread.submit(load)
        self.busy_since: float | None = None

    @property
    def classifier(self) -> Classifier:
        """The classifier, once it is loaded.

        RETURNS (Classifier): The classifier.
        RAISES (UserError): If it can't be loaded.
        """
        return self._loading.result()


@dataclass(eq=False)
class Waiting:
    """A request whose texts are not all classified yet.

    texts (List[str]): The texts.
    arrived (float): When, on the event loop's clock.
    done (Future[List[Answer]]): Receives the answers.
    """

    texts: list[str]
    arrived: float
    done: asyncio.Future[list[Answer]]
    taken: int = 0
    answers: dict[int, Answer] = field(default_factory=dict)

    def answer(self, number: int, answer: Answer) -> None:
        """Take the answer to one text, and pass all of them on with the last."""
        self.answers[number] = answer
        if len(self.answers) == len(self.texts) and not self.done.done():
            self.done.set_result([self.answers[it] for it in range(len(self.texts))])


class Gatherer:
    """Gathers texts and hands them to lanes.

    lanes (Sequence[Lane]): The lanes.
    window (float): Seconds that a text waits for others to come, if a lane is free.
    batch_texts (int): The most texts in a batch.
    batch_chars (int): The most characters in a batch; a longer text goes by itself.
    capacity (int): The most texts that may wait.
    observe (Callable[[int, float, int], None]): Told the texts of each batch, its seconds, and how
        many texts are waiting.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        window: float,
        batch_texts: int,
        batch_chars: int,
        capacity: int,
        observe: Callable[[int, float, int], None] = lambda *_: None,
    ) -> None:
        self.lanes = lanes
        self.window = window
        self.batch_texts = batch_texts
        self.batch_chars = batch_chars
        self.capacity = capacity
        self.observe = observe
        self.requests: deque[Waiting] = deque()
        self.waiting = 0  # texts that no lane has taken yet
        self._arrival = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Gatherer":
        self._tasks = [asyncio.create_task(self._work(lane)) for lane in self.lanes]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for lane in self.lanes:
            lane.thread.shutdown(wait=False, cancel_futures=True)

    async def classify(self, texts: list[str]) -> list[Answer]:
        """Classify texts, with whatever else has arrived.

        texts (List[str]): The texts. When this is cancelled, those still waiting are dropped.
        RETURNS (List[Answer]): An answer for each, in the same order.
        RAISES (QueueFullError): If too many are waiting already.
        """
        if self.waiting + len(texts) > self.capacity:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        request = Waiting(texts, loop.time(), loop.create_future())
        self.requests.append(request)
        self.waiting += len(texts)
        self._arrival.set()
        try:
            return await request.done
        finally:
            if request.taken < len(texts):
                self.requests.remove(request)
                self.waiting -= len(texts) - request.taken

    async def _work(self, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self.requests:
                self._arrival.clear()
                await self._arrival.wait()
            rest = self.requests[0].arrived + self.window - loop.time() if self.requests else 0.0
            if rest > 0 and self.waiting < self.batch_texts:
                await asyncio.sleep(rest)
            batch = self.take()
            if not batch:
                continue
            texts = [request.texts[number] for request, number in batch]
            start = lane.busy_since = perf_counter()
            try:
                answers = await loop.run_in_executor(lane.thread, lane.classifier.classify, texts)
            except Exception as error:  # Nobody would ever take from the queue again.
                answers = [explain(error)] * len(batch)
            lane.busy_since = None
            self.observe(len(batch), perf_counter() - start, self.waiting)
            for (request, number), answer in zip(batch, answers, strict=True):
                request.answer(number, answer)
            if lane.classifier.is_worn:
                await loop.run_in_executor(lane.thread, lane.classifier.renew)

    def take(self) -> list[tuple[Waiting, int]]:
        """Take the next batch off the queue: from each request a text, in turns.

        RETURNS (List[Tuple[Waiting, int]]): Requests, and the number of a text in each.
        """
        batch: list[tuple[Waiting, int]] = []
        too_long: deque[Waiting] = deque()
        chars = 0
        while self.requests and len(batch) < self.batch_texts and chars < self.batch_chars:
            request = self.requests.popleft()
            length = len(request.texts[request.taken])
            if batch and chars + length > self.batch_chars:
                too_long.append(request)
                continue
            batch.append((request, request.taken))
            chars += length
            request.taken += 1
            if request.taken < len(request.texts):
                self.requests.append(request)
        self.requests.extendleft(reversed(too_long))  # The first next time, so that none starves.
        self.waiting -= len(batch)
        return batch
