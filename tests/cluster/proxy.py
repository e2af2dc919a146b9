"""A TCP proxy in front of a service, which refuses connections, answers itself or loses answers if a test says so."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress

from ports import free_ports

SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 79\r\nConnection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
"""How S3 throttles."""


class Proxy:
    """Passes what comes to its `port` on to the port `target` of this machine."""

    def __init__(self, target):
        self.port, self._target = free_ports(1)[0], target
        self.refused = 0
        self._answers, self._left = b"", 0
        self._lost = None
        self._loop, self._server, self._open = asyncio.new_event_loop(), None, set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()

    def up(self):
        """Accept connections."""
        self._call(self._listen())

    def down(self):
        """Cut all connections, and refuse others until it is up again."""
        self._call(self._close())

    def answer(self, content, count):
        """Cut all connections, and answer the next `count` requests with this instead of asking the service."""
        self._answers, self._left = content, count
        self._call(self._cut())

    def lose_answer(self, to):
        """Pass on the next request that contains this, and cut its connection in place of the answer."""
        self._lost = to

    def end(self):
        """Go down for good."""
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine):
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _close(self):
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self):
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._open.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if self._left > 0:
                self._left -= 1
                self.refused += 1
                await self._refuse(reader, writer)
            else:
                await self._pass_on(reader, writer)
        writer.transport.abort()
        self._open.discard(task)

    async def _refuse(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self._answers)
        writer.write_eof()
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.read(), 1)  # what is left of the request: else it is reset

    async def _pass_on(self, reader, writer):
        from_service, to_service = await asyncio.open_connection("127.0.0.1", self._target)
        losing = asyncio.Event()

        def ask(content):
            if self._lost is not None and self._lost in content:
                self._lost = None
                losing.set()

        def answer(_):
            if losing.is_set():
                raise ConnectionResetError

        try:
            await asyncio.gather(_copy(reader, to_service, ask), _copy(from_service, writer, answer))
        finally:
            to_service.transport.abort()


async def _copy(reader, writer, before):
    while content := await reader.read(2**16):
        before(content)
        writer.write(content)
        await writer.drain()
    writer.write_eof()


@contextmanager
def in_front_of(port):
    """A proxy that is up."""
    proxy = Proxy(port)
    try:
        proxy.up()
        yield proxy
    finally:
        proxy.end()
