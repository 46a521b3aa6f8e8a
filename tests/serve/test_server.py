"""`numllama serve` as a process: its settings, and its exit code after a failure."""

import re
import subprocess
import sys

import pytest
from generation.models import random_model
from serve.served import LETTERS, client

import numllama as nl


def test_the_checkpoints_settings_are_told(tmp_path):
    model = random_model("float32", vocab_size=len(LETTERS), max_seq_len=64)
    model.generation_config = {"do_sample": True, "temperature": 0.3, "top_k": 7}
    model.save(tmp_path, nl.CharTokenizer(LETTERS))
    command = [sys.executable, "-m", "numllama.cli", "serve", str(tmp_path), "--port", "0", "--no-page"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = re.search(r"http://localhost:\d+", server.stdout.readline())[0]
            assert server.stdout.readline() == "from generation_config.json: temperature 0.3, top_k 7\n"
            with client(url) as http:
                answer = http.post("/v1/completions", json=dict(prompt="abc", max_tokens=9, seed=1)).json()
        finally:
            server.kill()
    expected = nl.complete(nl.load(tmp_path), nl.CharTokenizer(LETTERS), "abc", 9, seed=1, temperature=0.3, top_k=7)
    assert answer["choices"][0]["text"] == expected


BREAKS = """
import sys
from numllama.cli import main
from numllama.serve.engine import Engine

def fail(self, text):
    raise {error}

Engine._advance = fail
main(["serve", sys.argv[1], "--port", "0", "--no-page"])
"""


@pytest.mark.parametrize("error", ["SystemExit(0)", "KeyboardInterrupt"])
def test_an_engine_that_ends_ends_the_server_with_an_exit_code(tmp_path, error):
    random_model("float32", vocab_size=len(LETTERS), max_seq_len=64).save(tmp_path, nl.CharTokenizer(LETTERS))
    command = [sys.executable, "-c", BREAKS.format(error=error), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = re.search(r"http://localhost:\d+", server.stdout.readline())[0]
            with client(url) as http:
                answer = http.post("/v1/completions", json=dict(prompt="abc", max_tokens=9))
            out, err = server.communicate(timeout=30)
        finally:
            server.kill()
    assert answer.status_code == 503
    assert "the engine has stopped after an error" in answer.json()["error"]["message"]
    assert server.returncode == 1
    assert out == ""
    assert error.partition("(")[0] in err
    assert err.splitlines()[-1] == "error: the server has stopped because of the error above"
