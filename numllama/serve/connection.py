"""A connection to a client that may be slow: what it sends first, a request's headers, has to come within some seconds.

uvicorn bounds the pause between two requests, and :func:`numllama.serve.api.body_of` the time for a body. Without a bound for
headers, a client that sends one byte a minute would hold a connection for ever.
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_SECONDS = 15


class Connection(AutoHTTPProtocol):
    """uvicorn's connection, which ends when the headers of a request do not arrive in time."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """From here on a request is waited for."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """A part of a request. Once its headers are there, it is being answered."""
        self._wait()
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self._deadline is None and not self._is_answering():
            self._deadline = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._end)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self) -> None:
        """Say so, and hang up."""
        if self.transport.is_closing():
            return
        sentence = f"the request did not arrive within {HEADER_SECONDS} s"
        body = json.dumps({"error": {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}})
        head = "HTTP/1.1 408 Request Timeout", "connection: close", "content-type: application/json"
        self.transport.write("\r\n".join([*head, f"content-length: {len(body)}", "", body]).encode("ascii"))
        self.transport.close()
