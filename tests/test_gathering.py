"""Batches: who goes with whom, and who waits for whom."""

import asyncio
import threading
from collections import Counter

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc

from zero_copy.classifying import Classifier
from zero_copy.gathering import Gatherer, Lane, QueueFullError

released = threading.Event()


@Language.component("waits_at_slow")
def waits_at_slow(doc: Doc) -> Doc:
    if "slow" in doc.text:
        assert released.wait(20)
    return doc


@pytest.fixture
def make_gatherer(pipeline):
    """Makes gatherers whose lanes stand still at the word "slow" until they are released."""
    released.clear()

    def load() -> Classifier:
        nlp = spacy.load(pipeline)
        nlp.add_pipe("waits_at_slow")
        return Classifier(nlp)

    def make_gatherer(lanes: int = 1, **limits) -> Gatherer:
        limits = {
            "window": 0.01,
            "batch_texts": 8,
            "batch_chars": 100,
            "capacity": 50,
            "observe": lambda texts, *_: batches.append(texts),
        } | limits
        return Gatherer([Lane(load) for _ in range(lanes)], **limits)

    batches: list[int] = []
    make_gatherer.batches = batches
    yield make_gatherer
    released.set()


async def hold_up(gatherer: Gatherer, *texts: str) -> asyncio.Task:
    """A request that makes a lane stand still, once it does."""
    slow = asyncio.create_task(gatherer.classify(["slow", *texts]))
    while not any(lane.busy_since for lane in gatherer.lanes):
        await asyncio.sleep(0.01)
    return slow


def test_what_arrives_together_is_one_batch(make_gatherer):
    async def run():
        async with make_gatherer(window=0.2) as gatherer:
            return await asyncio.gather(
                *(gatherer.classify(texts) for texts in (["wheat"], ["corn", "ships"], ["port"]))
            )

    answers = asyncio.run(run())
    assert make_gatherer.batches == [4]
    assert [len(some) for some in answers] == [1, 2, 1]
    assert answers[1][0]["scores"] != answers[1][1]["scores"]


def test_slow_text_holds_up_only_its_batch(make_gatherer):
    async def run():
        async with make_gatherer(lanes=2) as gatherer:
            slow = await hold_up(gatherer, "wheat")
            for _ in range(5):
                (answer,) = await asyncio.wait_for(gatherer.classify(["corn"]), 10)
                assert "error" not in answer
            assert not slow.done()
            released.set()
            assert len(await slow) == 2

    asyncio.run(run())


def test_full_queue_refuses_and_recovers(make_gatherer):
    async def run():
        async with make_gatherer(capacity=4, batch_texts=1) as gatherer:
            slow = await hold_up(gatherer)
            waiting = asyncio.create_task(gatherer.classify(["corn"] * 3))
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                await gatherer.classify(["wheat"] * 2)
            assert gatherer.waiting == 3
            released.set()
            await asyncio.gather(slow, waiting)
            assert gatherer.waiting == 0
            assert len(await gatherer.classify(["wheat"] * 4)) == 4

    asyncio.run(run())


def test_what_is_given_up_leaves_the_queue(make_gatherer):
    async def run():
        async with make_gatherer(batch_texts=1) as gatherer:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(gatherer.classify(["slow", "corn", "corn"]), 0.2)
            assert gatherer.waiting == 0
            assert not gatherer.requests
            released.set()
            assert len(await gatherer.classify(["wheat"])) == 1

    asyncio.run(run())


def test_short_request_does_not_wait_for_a_long_list(make_gatherer):
    async def run():
        async with make_gatherer(batch_texts=2, window=0.0) as gatherer:
            slow = await hold_up(gatherer)
            long_list = asyncio.create_task(gatherer.classify(["corn"] * 40))
            await asyncio.sleep(0)
            short = asyncio.create_task(gatherer.classify(["wheat"]))
            await asyncio.sleep(0)
            released.set()
            await asyncio.gather(slow, short)
            assert not long_list.done()
            assert gatherer.waiting > 30
            await long_list

    asyncio.run(run())


def test_lane_renews_a_worn_pipeline_when_the_answers_are_out(make_gatherer):
    async def run():
        async with make_gatherer() as gatherer:
            classifier = gatherer.lanes[0].classifier
            first = classifier.nlp
            classifier._worn_at = 0
            await gatherer.classify(["wheat"])
            assert len(await gatherer.classify(["corn"])) == 1
            assert classifier.nlp is not first

    asyncio.run(run())


@settings(deadline=None, max_examples=60)
@given(
    requests=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), max_size=10),
    batch_texts=st.integers(1, 9),
    batch_chars=st.integers(1, 40),
)
def test_every_text_is_taken_once_within_the_limits(requests, batch_texts, batch_chars):
    async def run():
        gatherer = Gatherer(
            [], window=0, batch_texts=batch_texts, batch_chars=batch_chars, capacity=1000
        )
        tasks = [
            asyncio.create_task(gatherer.classify(["x" * length for length in lengths]))
            for lengths in requests
        ]
        await asyncio.sleep(0)
        seen: Counter = Counter()
        while gatherer.requests:
            batch = gatherer.take()
            sizes = [len(request.texts[number]) for request, number in batch]
            assert 1 <= len(batch) <= batch_texts
            assert len(batch) == 1 or sum(sizes) <= batch_chars
            seen.update((id(request), number) for request, number in batch)
            for request, number in batch:
                request.answer(number, {"length": len(request.texts[number])})
        assert gatherer.waiting == 0
        assert set(seen.values()) <= {1}
        for lengths, task in zip(requests, tasks, strict=True):
            assert [answer["length"] for answer in await task] == lengths

    asyncio.run(run())
