"""`numllama serve`: the page and OpenAI's routes on one port, with a clean shutdown."""

import asyncio
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
    from numllama.serve.access import Access, host_names, is_loopback, resolve_token
    from numllama.serve.connection import Connection
    from numllama.serve.guard import Guard, Kind, PageGuard
except ImportError as error:
    raise NumllamaError(NOT_INSTALLED) from error

FAILED = 1  # exit code after a bug
PAGE_SECONDS, SHUTDOWN_SECONDS = 0.3, 2  # seconds of a shutdown: until open pages are disconnected, and until everything is


def serve_run(
    model: Path,
    tokenizer: Path | None,
    device: str,
    dtype: str | None,
    store_as: str | None,
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
    model, tokenizer, device, dtype, store_as
        See :func:`numllama.interop.load.open_model`.
    host, port
        Where to listen.
    runs : path
        Folder whose training runs are shown.
    page : bool
        Serve the page too, not only the routes.
    limits : Limits
    allow_host : sequence of str, optional
        Further names of this server.
    token : str or bool, optional
        Token that every request must show; True for a new one.
    """
    access = Access(host_names(host, allow_host), resolve_token(token))
    listener = _listen(host, port)  # before the model is loaded, so that a busy port is reported immediately
    with listener:
        engine = Engine(*open_model(model, tokenizer, device=device, dtype=dtype, store_as=store_as), limits)
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
        print("error: the server has stopped because of the error above", file=sys.stderr, flush=True)
        return FAILED
    print("the server has stopped", flush=True)
    return 0


def _announce(name: str, host: str, listener: socket.socket, access: Access) -> None:
    """Print the server's address, and the token, which is never printed again."""
    address, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host.replace("127.0.0.1", "localhost")
    url = f"http://{shown}:{port}"
    print(f"{name}: {url}  (OpenAI's routes: {url}/v1; Ctrl-C to stop)", flush=True)
    if access.token is not None:
        print(f"token: {access.token}  (for programs, the API key; for the page, open {url}/?token={access.token})", flush=True)
    elif not is_loopback(address):
        warning = f"WARNING: NO TOKEN: anyone who can reach port {port} of this machine can use this server; --token requires one"
        print(warning, file=sys.stderr, flush=True)


def application(engine: Engine, name: str, runs: Path | None = None, access: Access | None = None) -> Guard:
    """Page and routes as one ASGI application.

    Parameters
    ----------
    engine : Engine
    name : str
        Name of the model.
    runs : path, optional
        Folder of training runs for the page to show. Without one there is no page.
    access : Access, optional
        Who may use it; default: requests to localhost, without a token.
    """
    routes = api.routes(engine, name)
    if runs is None:
        return Guard(Starlette(routes=routes), access)
    page, inputs = _page(engine, name, runs)
    mounted = Mount("/", PageGuard(page, inputs))
    return Guard(Starlette(routes=[*routes, mounted], lifespan=page.router.lifespan_context), access)


class GradioPage(NamedTuple):
    """Gradio's application, and for each of its events the kinds of its values."""

    app: Any
    inputs: dict[int, list[Kind]]


def _page(engine: Engine, name: str, runs: Path) -> GradioPage:
    """Gradio's application for the page."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported; nothing is sent anywhere
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"  # else Gradio counts each click in a table that nothing reads
    try:
        from fastapi import FastAPI
        from gradio import mount_gradio_app

        from numllama.serve import layout
    except ImportError as error:
        raise NumllamaError(NOT_INSTALLED) from error
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = layout.build(engine, name, runs)
    page.has_launched = True  # else Gradio does not check the paths of a page that is mounted, not launched
    mounted = mount_gradio_app(
        app,
        page,
        path="/",
        allowed_paths=[],
        blocked_paths=[Path.cwd().anchor],
        css_paths=layout.STYLE,
        footer_links=[],
        max_file_size=1,
        mcp_server=False,
        pwa=False,
        run_history=False,
        show_error=False,
        ssr_mode=False,
        theme=layout.theme(),
    )
    return GradioPage(mounted, layout.inputs(page))


def model_name(path: Path) -> str:
    """The last part of a path, without a file's extension."""
    path = path.resolve()
    return path.stem if path.is_file() else path.name


class Server(uvicorn.Server):
    """uvicorn's server with a clean shutdown: texts end first, then connections, and the exit code is 0."""

    def __init__(self, app: Guard, engine: Engine) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
                server_header=False,
            )
        )
        self.guard, self.engine = app, engine

    def serve_on(self, listener: socket.socket) -> None:
        """Serve until a signal arrives or the engine fails."""
        self.run(sockets=[listener])

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop: also when the engine has failed, because then no request can be answered."""
        return await super().on_tick(counter) or self.engine.failure is not None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As in uvicorn, but a handled signal is not raised again."""
        signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
        with handling(self.handle_exit, *signals):
            yield
            ignore(*signals)  # further ones during the shutdown

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Start the shutdown. A second Ctrl-C changes nothing, because the shutdown takes at most SHUTDOWN_SECONDS."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End texts first, so that streams finish; then disconnect the pages."""
        await asyncio.to_thread(self.engine.close)
        asyncio.get_running_loop().call_later(PAGE_SECONDS, self.guard.closing.set)
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, whose port no second server can take."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}, but must lie in 0..65535")
    listener = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # The protocol is given because only then does asyncio disable Nagle's algorithm, which delays small packets by 44 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if sys.platform != "win32":  # on Windows it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        if listener is not None:
            listener.close()
        why = getattr(error, "strerror", None) or error
        raise NumllamaError(f"cannot listen on {host}:{port}: {why}; choose another port with --port") from error
    return listener
