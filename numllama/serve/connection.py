"""A connection with a time limit for the headers of a request.

uvicorn bounds the pause between two requests, and :func:`numllama.serve.api.read_body` the time for a body. Without a limit for
headers, a client that sends one byte a minute would hold a connection forever.
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_SECONDS = 15


class Connection(AutoHTTPProtocol):
    """uvicorn's connection, closed when the headers of a request do not arrive in time."""

    cycle: Any  # both of uvicorn's implementations have these two
    transport: asyncio.Transport
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start waiting for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Receive part of a request. Once its headers are complete, it is being answered."""
        self._wait()
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self._deadline is None and not self._is_answering():
            self._deadline = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._time_out)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        """Send status 408 and close the connection."""
        if self.transport.is_closing():
            return
        message = f"the request did not arrive within {HEADER_SECONDS} s"
        body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})
        head = "HTTP/1.1 408 Request Timeout", "connection: close", "content-type: application/json"
        self.transport.write("\r\n".join([*head, f"content-length: {len(body)}", "", body]).encode("ascii"))
        self.transport.close()
