"""Chat templates, rendered in separate processes, with limits on time, memory and length.

A process is reused, with its compiled templates. Several render at a time, so a slow template delays only its own caller.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any
from weakref import finalize

from numllama.errors import CheckpointError, NumllamaError, shown
from numllama.install import install_command

SECONDS = 2.0       # for a conversation
MEGABYTES = 512     # on top of the process's memory at its start
CHARACTERS = 2**24  # of a text
PROCESSES = 4       # at a time
_PROGRAM = Path(__file__).with_name("template_process.py")
# Ctrl-C and a scheduler's signals are for the parent: a child ends when its input does.
_OWN_GROUP: dict[str, Any] = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
)

Failure = NumllamaError | ValueError
Result = str | int | Failure | None


@dataclass(frozen=True)
class Render:
    """One rendering of a conversation.

    Attributes
    ----------
    conversation : int
        Index of the conversation.
    messages : int, optional
        Render only the first n messages; default all.
    prompt : bool
        End with the opening of the assistant's answer.
    answer_marks : (str, str), optional
        Marks to put around each ``{% generation %}`` block.
    begins : bool
        Return the text's length if it is a prefix of the conversation's first text, else None.
    marks : str
        Characters that are invisible to the template's ``strip`` and ``startswith``.
    """

    conversation: int = 0
    messages: int | None = None
    prompt: bool = False
    begins: bool = False
    answer_marks: tuple[str, str] | None = None
    marks: str = ""


def render(template: str, conversations: Sequence[Mapping[str, Any]], renders: Sequence[Render]) -> list[Result]:
    """Render texts, in order; returns an exception in place of a text that cannot be rendered.

    Parameters
    ----------
    template : str
        A Jinja template.
    conversations : sequence of dict
        The template's variables, including ``messages``; serialisable as JSON.
    renders : sequence of Render
        Grouped by conversation.
    """
    request = {"template": template, "conversations": list(conversations), "renders": [asdict(render) for render in renders]}
    line, texts = json.dumps(request).encode() + b"\n", []
    with _process() as process:
        texts += map(_result, process.ask(line, len(renders)))
    return texts


def _result(answer: Mapping[str, Any]) -> Result:
    if "error" not in answer:
        return answer["text"] if "text" in answer else answer["begins"]
    what, sentence = answer["error"], shown(answer.get("sentence", ""), quote=False, most=300)
    if what == "syntax":
        return CheckpointError(f"the chat template cannot be read: {sentence}")
    if what == "security":
        return CheckpointError(f"the chat template violates the sandbox: {sentence}")
    return ValueError(
        {
            "time": f"the chat template takes longer than {SECONDS:g} s for these messages",
            "memory": f"the chat template needs more than {MEGABYTES} MB of memory for these messages",
            "length": f"the chat template makes more than {CHARACTERS:,} characters of these messages",
            "ended": f"the chat template ended the process that renders it ({sentence})",
        }.get(what, f"the chat template cannot render these messages: {sentence}")
    )


class _Process:
    """A process that renders chat templates."""

    def __init__(self) -> None:
        limits = str(SECONDS), str(MEGABYTES * 2**20), str(CHARACTERS)
        command = [sys.executable, "-S", "-P", str(_PROGRAM), json.dumps(sys.path), *limits]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, **_OWN_GROUP)
        except OSError as error:
            raise NumllamaError(f"the process that renders chat templates cannot be started: {error.strerror}") from error
        self.end = finalize(self, _end, self._process)
        ready = self._answer()
        if ready is None or "needs" in ready:
            code = self.close()
            ended = f"the process that renders chat templates ended at once, with code {code}"
            raise NumllamaError(f"chat templates need {ready['needs']}: {install_command('chat')}" if ready else ended)

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def ask(self, request: bytes, n: int) -> Iterator[Mapping[str, str]]:
        """The n answers to a request; if the process ends, the remaining ones are the error."""
        stdin = self._process.stdin
        assert stdin is not None  # it is a pipe
        with suppress(BrokenPipeError):
            stdin.write(request)
            stdin.flush()
        for i in range(n):
            answer = self._answer()
            if answer is None:
                code = self.close()
                answer = {"error": "time"} if code == 1 else {"error": "ended", "sentence": f"code {code}"}
            elif answer.get("error") == "memory":
                self.close()  # which frees the template's memory
            else:
                yield answer
                continue
            yield from [answer] * (n - i)
            return

    def _answer(self) -> dict[str, str] | None:
        """Read the next answer; None at the end, or if the line is incomplete."""
        stdout = self._process.stdout
        assert stdout is not None  # it is a pipe
        line = stdout.readline()
        if not line.endswith(b"\n"):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(SECONDS)
            return None
        return json.loads(line)

    def close(self) -> int:
        """End the process if it is still running; returns its exit code."""
        self.end()
        return self._process.returncode


def _end(process: subprocess.Popen) -> None:
    assert process.stdin is not None and process.stdout is not None  # they are pipes
    process.kill()
    with suppress(BrokenPipeError):  # unsent requests are dropped
        process.stdin.close()
    process.stdout.close()
    process.wait()


# ------------------------------------------------------------------------------------------------ idle processes

_idle: list[_Process] = []
_places = BoundedSemaphore(PROCESSES)


@contextmanager
def _process() -> Iterator[_Process]:
    """A process for one request. It is reused only if it answers the whole request."""
    with _places:
        process = _from_idle() or _Process()
        try:
            yield process
        except BaseException:
            process.close()
            raise
        if process.alive:
            _idle.append(process)


def _from_idle() -> _Process | None:
    """An idle process that is still running, if any."""
    with suppress(IndexError):
        while not (process := _idle.pop()).alive:
            process.close()
        return process
    return None


def _close_all() -> None:
    while _idle:
        _idle.pop().close()


def _forget() -> None:
    """Forget the idle processes after a fork: they belong to the parent."""
    global _places
    for process in _idle:
        process.end.detach()
        process._process.returncode = 0
    _idle.clear()
    _places = BoundedSemaphore(PROCESSES)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
