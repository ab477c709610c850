"""The service in a process of its own, and a client that takes little time for itself."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from urllib.error import URLError
from urllib.request import urlopen

import srsly

from machine import ROOT

START_SECONDS = 120.0


@contextmanager
def running(model: str, *options: str) -> Iterator[tuple[int, int]]:
    """Start the service, wait until it answers, and end it.

    model (str): The pipeline.
    options (str): Of scripts/serve.py.
    YIELDS (Tuple[int, int]): Number of the process, and the port.
    """
    port = free_port()
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), model, "--port", str(port)]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port, process)
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen) -> None:
    """Wait until the service answers."""
    end = monotonic() + START_SECONDS
    while monotonic() < end and process.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health"):
                return
        except (URLError, ConnectionError):
            sleep(0.1)
    raise RuntimeError(f"The service did not start: exit code {process.poll()}")


def resident_mb(process: int) -> float:
    """Resident memory of a process, in MB (2^20 bytes)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_seconds(process: int) -> float:
    """Time that a process has had on all cores, which says more than a clock on a busy machine."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def request_bytes(texts: list[str]) -> bytes:
    """A request to classify texts, as it goes over the wire."""
    body = srsly.json_dumps({"texts": texts}).encode()
    head = "POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Client:
    """A connection that stays open.

    port (int): The port of the service.
    """

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    async def send(self, request: bytes) -> bytes:
        """Send a request and wait for its answer.

        RETURNS (bytes): The body.
        RAISES (RuntimeError): If its status is not 200.
        """
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(body.decode())
        return body
