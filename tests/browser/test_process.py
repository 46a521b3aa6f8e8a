"""The demo as a process: it starts, answers, and shuts down cleanly even while texts are generated."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser.visitor import Tab
from generation.models import random_model
from serve.served import LETTERS, client

import numllama as nl

APP = Path(__file__).resolve().parents[2] / "examples" / "app.py"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="a console's Ctrl-C is not a signal to one process there")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "a model ä"
    random_model("float32", vocab_size=len(LETTERS), max_seq_len=64).save(folder, nl.CharTokenizer(LETTERS))
    return folder


@contextmanager
def running(folder):
    """The process and its address."""
    command = [sys.executable, str(APP), "--model", str(folder), "--port", "0", "--new-tokens", "1000000"]
    environment = os.environ | {"PYTHONPATH": str(APP.parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            yield server, re.search(r"http://localhost:\d+", server.stdout.readline())[0]
        finally:
            server.kill()


def test_the_example_starts_answers_and_ends_with_ctrl_c(folder):
    with running(folder) as (server, url), client(url) as http:
        answer = http.post("/v1/completions", json=dict(prompt="abc", max_tokens=9, seed=1)).json()
        assert http.get("/").status_code == 200
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=30)
    assert answer["choices"][0]["text"] == nl.complete(nl.load(folder), nl.CharTokenizer(LETTERS), "abc", 9, seed=1)
    assert (server.returncode, out, err) == (0, "the server has stopped\n", "")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_it_ends_within_seconds_while_a_page_is_open_and_texts_are_written(browser, folder, number):
    with running(folder) as (server, url), client(url) as http:
        tab = Tab(browser, url)
        tab.set("max-new-tokens", 1000000)
        tab.page.fill("#prompt textarea", "abc")
        tab.page.click("#go")
        tab.page.wait_for_function("document.querySelector('#text textarea').value.length > 50")
        with http.stream("POST", "/v1/completions", json=dict(prompt="abc", max_tokens=10**6, stream=True)) as stream:
            lines = (line for line in stream.iter_lines() if line)
            assert "choices" in json.loads(next(lines)[6:])
            begin = time.monotonic()
            server.send_signal(getattr(signal, number))
            last = list(lines)[-1]
        out, err = server.communicate(timeout=30)
        seconds = time.monotonic() - begin
        tab.context.close()
    assert "shutting down" in last
    assert (server.returncode, out, err) == (0, "the server has stopped\n", "")
    assert seconds < 10
