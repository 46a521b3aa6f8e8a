"""A folder with something wrong in it, opened: it works, or one sentence says what is wrong, soon and in little memory."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import pytest
from interop import mutations

MUTATIONS = int(os.environ.get("NUMLLAMA_FUZZ", 60))  # CI asks for 2000
HANG = 60  # seconds without a word

pytest.importorskip("resource", reason="no limits on this system")


def lines(command: list[str]) -> "Queue[str | None]":
    """What a process prints, line by line; None at its end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    queue: Queue = Queue()

    def read() -> None:
        with process:
            for line in process.stdout:
                queue.put(line)
        queue.put(None)

    Thread(target=read, daemon=True).start()
    queue.kill = process.kill
    return queue


def opened(source: Path, first: int, last: int, script: str = mutations.__file__) -> list[dict]:
    """All that was wrong with mutations `first` to `last`: in another process, or more where one hangs or dies."""
    found, reached = [], first
    while reached < last:
        queue = lines([sys.executable, script, str(source), str(reached), str(last)])
        number, what, ended = reached - 1, "", False
        while True:
            try:
                line = queue.get(timeout=HANG)
            except Empty:
                queue.kill()
                found.append({"number": number, "what": what, "wrong": f"hung for {HANG} s"})
                break
            if line is None:
                if not ended:
                    found.append({"number": number, "what": what, "wrong": "the process died"})
                break
            values = json.loads(line)
            if "began" in values:
                number, what = values["began"], values["what"]
            ended = "ended" in values
            if "wrong" in values:
                found.append(values)
            elif ended and values["peak"] > mutations.BYTES:
                found.append({"number": f"{reached}..{last}", "wrong": f"took {values['peak']:,} bytes"})
        reached = last if ended else number + 1
    return found


def test_mutated_folders_are_opened_or_refused_in_one_sentence(tmp_path):
    mutations.originals(tmp_path)
    for kind in ("llama", "other", "sharded", "binary", "adapter", "run", "data"):
        for action in mutations.actions(kind, tmp_path / kind):
            action()
    bounds = [MUTATIONS * i // 2 for i in range(3)]
    with ThreadPoolExecutor(2) as pool:
        found = [wrong for half in pool.map(lambda i: opened(tmp_path, *bounds[i : i + 2]), range(2)) for wrong in half]
    assert not found, f"{len(found)} of {MUTATIONS}\n" + "\n".join(map(str, found[:20]))
