"""A folder, served to Chromium, and what goes wrong in a page."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BOOK = Path(os.environ.get("NUMLLAMA_BOOK", "book")).resolve()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_):
        pass


@contextmanager
def folder_served(folder: Path, handler: Callable[..., Quiet] = Quiet) -> Iterator[str]:
    """The address of a folder, with a slash at the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def at_home(url: str, address: str) -> bool:
    """Whether an address is on this server, or in the page itself."""
    return url.startswith((address, "data:", "blob:", "about:"))


def watched(tab: Any, address: str, found: list[str] | None = None) -> list[str]:
    """What goes wrong in a tab from now on: errors in its console, exceptions, missing files, requests to other hosts."""
    found = [] if found is None else found
    tab.on("console", lambda message: found.append(f"console: {message.text}") if message.type == "error" else None)
    tab.on("pageerror", lambda error: found.append(f"script: {error}"))
    tab.on("response", lambda answer: found.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
    tab.on("request", lambda request: None if at_home(request.url, address) else found.append(f"another host: {request.url}"))
    return found
