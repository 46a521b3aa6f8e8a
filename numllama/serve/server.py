"""`numllama serve`: the page and the routes on one port, from the first request to a clean end."""

import asyncio
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numllama.errors import NumllamaError
from numllama.generation.run import open_model
from numllama.serve.engine import Engine, Limits
from numllama.system.signals import handling, ignore

NOT_INSTALLED = 'the server needs its extra: pip install "numllama[app]"'
try:
    import uvicorn
    from starlette.applications import Starlette

    from numllama.serve import api
    from numllama.serve.connection import Connection
    from numllama.serve.guard import Guard, PageGuard
except ImportError as error:
    raise NumllamaError(NOT_INSTALLED) from error

FAILED = 1  # the exit code for what only we can mend
LAST_WORDS, LAST_SECONDS = 0.3, 2  # when the server ends: a page holds a connection for as long as it is open


def serve_run(
    model: Path,
    tokenizer: Path | None,
    device: str,
    dtype: str | None,
    host: str,
    port: int,
    runs: Path,
    page: bool,
    limits: Limits,
) -> int:
    """Serve a model until Ctrl-C; returns the exit code.

    Parameters
    ----------
    model, tokenizer, device, dtype
        See :func:`numllama.generation.run.generate_run`.
    host, port
        Where to listen.
    runs : path
        Folder whose training runs are shown.
    page : bool
        Serve the page too, not only the routes.
    limits : Limits
    """
    listener = _listen(host, port)  # before the model is read: a port that is taken is said at once
    with listener:
        port = listener.getsockname()[1]
        engine = Engine(*open_model(model, tokenizer, device, dtype), limits)
        try:
            app = application(engine, model_name(model), runs if page else None, _local_names(host))
            shown = f"[{host}]" if ":" in host else host.replace("127.0.0.1", "localhost")
            print(
                f"{model_name(model)}: http://{shown}:{port}  (OpenAI's routes: http://{shown}:{port}/v1; Ctrl-C ends)",
                flush=True,
            )
            Server(app, engine).serve_on(listener)
        finally:
            engine.close()
    if engine.failure is not None:
        traceback.print_exception(engine.failure)
        print("error: the server has ended, because its engine has stopped by this error", file=sys.stderr, flush=True)
        return FAILED
    print("the server has ended", flush=True)
    return 0


def application(engine: Engine, name: str, runs: Path | None = None, hosts: frozenset[str] | None = None) -> Any:
    """Page and routes as one ASGI application.

    Parameters
    ----------
    engine : Engine
    name : str
        What the model is called.
    runs : path, optional
        Folder of training runs for the page to show. Without one there is no page.
    hosts : set of str, optional
        The names that the server may be asked for by; default any.
    """
    app = Starlette(routes=api.routes(engine, name)) if runs is None else _with_page(engine, name, runs)
    return Guard(app, hosts)


def _with_page(engine: Engine, name: str, runs: Path) -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported: nothing is sent anywhere
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"  # else each click is counted in a table that nobody reads
    try:
        from fastapi import FastAPI
        from gradio import mount_gradio_app

        from numllama.serve import pages
    except ImportError as error:
        raise NumllamaError(NOT_INSTALLED) from error
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.router.routes.extend(api.routes(engine, name))
    page = pages.build(engine, name, runs)
    options = dict(path="/", ssr_mode=False, run_history=False, pwa=False, mcp_server=False, **pages.MOUNTED)
    return PageGuard(mount_gradio_app(app, page, **options), {i: len(event.inputs) for i, event in page.fns.items()})


def model_name(path: Path) -> str:
    """The last part of a path, without the ending of a file."""
    path = path.resolve()
    return path.stem if path.is_file() else path.name


class Server(uvicorn.Server):
    """uvicorn's, which ends cleanly with exit code 0: first the texts, then the connections."""

    def __init__(self, app: Any, engine: Engine) -> None:
        settings = dict(log_level="warning", access_log=False, timeout_graceful_shutdown=LAST_SECONDS, server_header=False)
        super().__init__(uvicorn.Config(app, http=Connection, **settings))
        self.engine = engine

    def serve_on(self, listener: socket.socket) -> None:
        """Until it is told to end."""
        self.run(sockets=[listener])

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: also when the engine has ended, for then nothing can be answered any more."""
        return await super().on_tick(counter) or self.engine.failure is not None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that has been obeyed is not raised again."""
        signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
        with handling(self.handle_exit, *signals):
            yield
            ignore(*signals)  # those that come while it ends

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Ending takes LAST_SECONDS at most, so a second Ctrl-C changes nothing: uvicorn would cancel it with a traceback."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Texts end first, so that no stream holds its connection; once that has been said, pages are left."""
        await asyncio.to_thread(self.engine.close)
        asyncio.get_running_loop().call_later(LAST_WORDS, self.config.app.closing.set)
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that two servers never share a port."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}, but must lie in 0..65535")
    listener = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        if sys.platform != "win32":  # there it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a machine
        if listener is not None:
            listener.close()
        why = getattr(error, "strerror", None) or error
        raise NumllamaError(f"{host}:{port} cannot be listened on: {why}; choose another with --port") from error
    return listener


def _local_names(host: str) -> frozenset[str] | None:
    """The names of this machine for itself, where only it is to be heard."""
    local = frozenset({"localhost", "127.0.0.1", "::1"})
    return local if host in local else None
