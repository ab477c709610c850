"""Limits that hold before a request has been understood: the size of its body, and its time."""

import asyncio

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Limits:
    """Refuses bodies that are too large, and gives up requests that take too long.

    app (ASGIApp): The application.
    max_body (int): The most bytes in a body.
    timeout (float): Seconds, with the time that the body takes to come.
    """

    def __init__(self, app: ASGIApp, max_body: int, timeout: float) -> None:
        self.app = app
        self.max_body = max_body
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0
        answering = False

        async def receive_some() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body:
                raise HTTPException(413, self._too_large())
            return message

        async def send_noting(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self.max_body:
            await JSONResponse({"detail": self._too_large()}, 413)(scope, receive, send)
            return
        try:
            await asyncio.wait_for(self.app(scope, receive_some, send_noting), self.timeout)
        except asyncio.TimeoutError:
            if not answering:
                words = {"detail": f"It took longer than {self.timeout:g} seconds"}
                await JSONResponse(words, 504)(scope, receive, send)

    def _too_large(self) -> str:
        return f"The body has more than {self.max_body:,} bytes"
