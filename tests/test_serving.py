"""The service as its users meet it: a process of its own, and sockets."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import spacy

from zero_copy import metrics
from zero_copy.errors import UserError
from zero_copy.serving import Settings, check_limits

ROOT = Path(__file__).parent.parent
TEXTS = ["wheat and corn", "", "ships at the port", "wheat"]
# spaCy reads some ten of these a second.
LONG = "wheat U.S.-ships, (3,000 tonnes) " * 3000


@contextmanager
def serve(pipeline: Path, *options: object) -> Iterator[tuple[httpx.Client, subprocess.Popen]]:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "serve.py"), str(pipeline), "--port", str(port)]
        + [str(option) for option in options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_for(client, process)
            yield client, process
    finally:
        process.kill()
        process.communicate()


def wait_for(client: httpx.Client, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            client.get("/health")
            return
        except httpx.TransportError:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.1)


def counts(client: httpx.Client) -> dict[str, float]:
    """What /metrics says."""
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


@pytest.fixture(scope="module")
def client(pipeline) -> Iterator[httpx.Client]:
    """The service with limits that a test can reach."""
    limits = ("--max-texts", 20, "--max-waiting", 20, "--max-body", 4_000_000)
    with serve(pipeline, *limits, "--max-chars", 2_000_000, "--timeout", 15) as (client, _):
        yield client


def test_answers_are_the_pipeline_s_in_order(client, pipeline):
    nlp = spacy.load(pipeline)
    answer = client.post("/classify", json={"texts": TEXTS})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert len(results) == len(TEXTS)
    for text, result in zip(TEXTS, results, strict=True):
        assert set(result) == {"categories", "scores"}
        assert result["scores"] == pytest.approx(nlp(text).cats, rel=1e-5)


def test_requests_at_the_same_time_share_batches(client):
    before = counts(client)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, [client] * 200, [[text] for text in TEXTS] * 50))
    alone = [client.post("/classify", json={"texts": [text]}).json() for text in TEXTS]
    for number, answer in enumerate(answers):
        (result,), (expected,) = answer.json()["results"], alone[number % len(TEXTS)]["results"]
        assert result["scores"] == pytest.approx(expected["scores"], rel=1e-4)
    after = counts(client)
    assert after["zero_copy_texts_total"] - before["zero_copy_texts_total"] == 204
    batches = after["zero_copy_batch_texts_count"] - before["zero_copy_batch_texts_count"]
    assert 4 <= batches < 150


def ask(client: httpx.Client, texts: list[str]) -> httpx.Response:
    return client.post("/classify", json={"texts": texts})


def test_labels_health_and_openapi(client, pipeline):
    labels = client.get("/labels").json()["textcat"]
    assert labels["labels"] == list(spacy.load(pipeline).get_pipe("textcat").labels)
    assert labels["exclusive"] is True
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    texts = schema["components"]["schemas"]["Texts"]["properties"]["texts"]
    assert texts["maxItems"] == 20
    assert texts["items"]["maxLength"] == 2_000_000
    answers = schema["paths"]["/classify"]["post"]["responses"]
    assert set(answers) == {"200", "413", "422", "503", "504"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"texts": "wheat"}, ["texts"]),
        ({"texts": []}, ["texts"]),
        ({"texts": ["a"] * 21}, ["texts"]),
        ({"texts": ["a", 5]}, ["texts", 1]),
        ({"texts": ["a", "b", None]}, ["texts", 2]),
        ({"texts": ["x" * 2_000_001]}, ["texts", 0]),
        ({"text": ["a"], "texts": ["a"]}, ["text"]),
        ({}, ["texts"]),
        ([], []),
    ],
)
def test_invalid_input_names_the_field(client, body, field):
    answer = client.post("/classify", json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert error["loc"] == ["body", *field]
    assert len(answer.content) < 300


def test_what_is_no_json_or_no_text(client):
    for content in (b'{"texts": ["a"', b"", b"wheat", b'{"texts": ["\\ud800"]}'):
        headers = {"content-type": "application/json"}
        answer = client.post("/classify", content=content, headers=headers)
        assert answer.status_code == 422
        assert answer.json()["detail"]
    answer = client.post("/classify", content=b'{"texts": ["\xff"]}', headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize("length", ["Content-Length: 9000000", "Transfer-Encoding: chunked"])
def test_large_body_is_refused_before_all_of_it_has_come(client, length):
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=10) as opened:
        head = f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{length}"
        opened.sendall(f"{head}\r\n\r\n".encode())
        if "chunked" in length:
            for _ in range(5):
                opened.sendall(b"%x\r\n" % 1_000_000 + b" " * 1_000_000 + b"\r\n")
        assert opened.recv(1000).startswith(b"HTTP/1.1 413")


def test_text_that_fails_names_its_index(client):
    # spaCy itself refuses more than a million characters.
    answer = client.post("/classify", json={"texts": ["wheat", "x" * 1_000_001, "corn"]})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [set(result) for result in results[::2]] == [{"categories", "scores"}] * 2
    assert results[1]["index"] == 1
    assert "E088" in results[1]["error"]
    assert counts(client)["zero_copy_failed_texts_total"] >= 1


def test_full_queue_says_when_to_come_again(client):
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(ask, client, [LONG] * 20)
        while client.get("/health").json()["waiting_texts"] == 0:
            time.sleep(0.01)
        refused = ask(client, ["wheat"] * 20)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert ask(client, ["wheat"]).status_code == 200
        assert first.result().status_code == 200
    assert ask(client, ["wheat"] * 20).status_code == 200


def test_metrics_count_requests(client):
    client.get("/nothing/at/all")
    found = counts(client)
    assert found['zero_copy_requests_total{path="/classify",status="200"}'] >= 1
    assert found['zero_copy_requests_total{path="/classify",status="422"}'] >= 1
    assert found['zero_copy_requests_total{path="other",status="404"}'] >= 1
    assert not any("nothing" in name for name in found)
    assert found["zero_copy_waiting_texts"] == 0


def test_too_slow_is_given_up_and_shutdown_answers_what_is_under_way(pipeline):
    options = ("--timeout", 1.5, "--lanes", 1, "--batch-chars", 1000)
    with serve(pipeline, *options) as (client, process), ThreadPoolExecutor(1) as threads:
        answer = ask(client, [LONG] * 80)
        assert answer.status_code == 504
        assert "1.5 seconds" in answer.json()["detail"]
        assert client.get("/health").json()["waiting_texts"] == 0
        under_way = threads.submit(ask, client, [LONG] * 3)
        while counts(client)["zero_copy_waiting_texts"] == 0:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert under_way.result().status_code == 200
        assert process.wait(timeout=10) == 0
        assert "Traceback" not in process.stdout.read()
        with pytest.raises(httpx.TransportError):
            client.get("/health")


def test_several_workers_share_the_load_and_their_metrics(pipeline):
    with serve(pipeline, "--workers", 2) as (client, process):

        def ask_anew(number: int) -> int:
            """On a connection of its own, which either worker may take."""
            body = {"texts": ["wheat", f"number {number}"]}
            return httpx.post(f"{client.base_url}/classify", json=body, timeout=30).status_code

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(ask_anew, range(60))) == {200}
        found = counts(client)
        assert found["zero_copy_texts_total"] == 120
        assert found["zero_copy_waiting_texts"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_metrics_forget_the_queue_of_a_worker_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setenv(metrics.FOLDER, str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in (dead.pid, os.getpid(), os.getppid()):
        (tmp_path / f"gauge_livesum_{number}.db").touch()
    (tmp_path / f"counter_{dead.pid}.db").touch()
    metrics.forget_dead_workers()
    left = {path.stem for path in tmp_path.iterdir()}
    alive = {f"gauge_livesum_{number}" for number in (os.getpid(), os.getppid())}
    assert left == alive | {f"counter_{dead.pid}"}


def test_what_can_not_be_served_is_one_message():
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "nothing", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    plain = " ".join(re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr).split())
    assert "Can't load a pipeline from nothing" in plain
    assert "Traceback" not in plain


def test_limits_leave_room_for_each_other():
    with pytest.raises(UserError, match="the queue only 20"):
        check_limits(Settings(model="any", max_texts=50, max_waiting=20))
