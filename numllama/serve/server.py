"""`numllama serve`: the page and the routes on one port, from the first request to a clean end."""

import asyncio
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numllama.errors import NumllamaError
from numllama.generation.config import checkpoint_settings, settings_line
from numllama.install import install_command
from numllama.interop.load import open_model
from numllama.serve.engine import Engine, Limits
from numllama.system.signals import handling, ignore

NOT_INSTALLED = f"the server needs its extra: {install_command('app')}"
try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from numllama.serve import api
    from numllama.serve.access import Access, is_loopback, names_of, token_of
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
    allow_host: Sequence[str] = (),
    token: str | bool = False,
) -> int:
    """Serve a model until Ctrl-C; returns the exit code.

    Parameters
    ----------
    model, tokenizer, device, dtype
        See :func:`numllama.interop.load.open_model`.
    host, port
        Where to listen.
    runs : path
        Folder whose training runs are shown.
    page : bool
        Serve the page too, not only the routes.
    limits : Limits
    allow_host : sequence of str, optional
        Other names that the server may be asked for by.
    token : str or bool, optional
        What everybody has to show; True for a new one.
    """
    access = Access(names_of(host, allow_host), token_of(token))
    listener = _listen(host, port)  # before the model is read: a port that is taken is said at once
    with listener:
        engine = Engine(*open_model(model, tokenizer, device, dtype), limits)
        try:
            app = application(engine, model_name(model), runs if page else None, access)
            _announce(model_name(model), host, listener, access)
            if settings := checkpoint_settings(engine.model.generation_config):
                print(settings_line(settings), flush=True)
            Server(app, engine).serve_on(listener)
        finally:
            engine.close()
    if engine.failure is not None:
        traceback.print_exception(engine.failure)
        print("error: the server has ended, because its engine has stopped by this error", file=sys.stderr, flush=True)
        return FAILED
    print("the server has ended", flush=True)
    return 0


def _announce(name: str, host: str, listener: socket.socket, access: Access) -> None:
    """Say where the server is, and show the token: this once."""
    address, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host.replace("127.0.0.1", "localhost")
    url = f"http://{shown}:{port}"
    print(f"{name}: {url}  (OpenAI's routes: {url}/v1; Ctrl-C ends)", flush=True)
    if access.token is not None:
        print(
            f"token: {access.token}  (programs send it as API key; the page opens with {url}/?token={access.token})", flush=True
        )
    elif not is_loopback(address):
        sentence = f"WARNING: NO TOKEN: whoever reaches port {port} of this machine can use this server; --token asks for one"
        print(sentence, file=sys.stderr, flush=True)


def application(engine: Engine, name: str, runs: Path | None = None, access: Access | None = None) -> Any:
    """Page and routes as one ASGI application.

    Parameters
    ----------
    engine : Engine
    name : str
        What the model is called.
    runs : path, optional
        Folder of training runs for the page to show. Without one there is no page.
    access : Access, optional
        Who may ask; default whoever asks for localhost.
    """
    routes = api.routes(engine, name)
    if runs is None:
        return Guard(Starlette(routes=routes), access)
    page, inputs = _page(engine, name, runs)
    mounted = Mount("/", PageGuard(page, inputs))
    return Guard(Starlette(routes=[*routes, mounted], lifespan=page.router.lifespan_context), access)


def _page(engine: Engine, name: str, runs: Path) -> tuple[Any, dict]:
    """Gradio's application, and what each of its events takes."""
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
    page = pages.build(engine, name, runs)
    page.has_launched = True  # else Gradio does not look at the paths of a page that is mounted rather than launched
    closed = dict(allowed_paths=[], blocked_paths=[Path.cwd().anchor], run_history=False, pwa=False, mcp_server=False)
    return mount_gradio_app(app, page, path="/", ssr_mode=False, **closed, **pages.MOUNTED), pages.inputs(page)


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
        # With its protocol named: asyncio turns off the delay of small packets (44 ms each) for such sockets alone.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
