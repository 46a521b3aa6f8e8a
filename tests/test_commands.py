"""The commands that look at a model, or change what it is stored as: what they say is true, for people and for programs."""

import ast
import io
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from http.client import HTTPConnection
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from generation.models import random_model

import numllama as nl
from numllama.cli import app, main
from numllama.commands.serve import serve
from numllama.cpu import doctor as cpu_doctor
from numllama.cuda import doctor
from numllama.generation.bench import bench
from numllama.interop.convert import convert
from numllama.training import write_tokens

COMMANDS = (
    "train", "plan", "prepare", "finetune", "generate", "chat", "serve", "eval", "inspect", "convert", "bench", "doctor",
    "exercises", "trace", "vectors", "compare", "diagnose", "grade",
)  # fmt: skip
LETTERS = "abcdefghijklmnop \n"


def run(*arguments):
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random model with a tokenizer of letters; its name has a space and letters that are not ASCII."""
    folder = tmp_path_factory.mktemp("models") / "ein Modell für später 模型"
    random_model("float32", vocab_size=len(LETTERS), norm_eps=1e-5, max_seq_len=16).save(folder, nl.CharTokenizer(LETTERS))
    return folder


# ------------------------------------------------------------------------------------------------ every command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_the_command_takes(command):
    code, out, _ = run(command, "--help")
    example = re.search(r"Example: (numllama .+)", out)[1]
    assert code == 0
    assert example.split()[1] == command
    flags = re.findall(r"--[a-z-]+", example)
    assert all(out.count(flag) >= 2 for flag in flags)


def test_help_is_there_without_numpys_heavier_friends():
    code = "import sys, numllama.cli as c\ntry: c.main(['--help'])\nfinally: print(sorted(sys.modules), file=sys.stderr)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {command} " in child.stdout.replace("│ ", "  ") for command in COMMANDS)
    loaded = set(re.findall(r"'([\w.]+)'", child.stderr))
    assert not loaded & {"numllama.model.transformer", "numllama.training.trainer", "gradio", "tqdm", "matplotlib", "asyncio"}


@pytest.mark.parametrize("command", ["train", "plan", "generate", "bench", "trace"])
def test_the_help_of_a_command_imports_its_own_file_and_nothing_heavy(command):
    program = f"import sys, numllama.cli as c\ntry: c.main([{command!r}, '--help'])\nfinally: "
    code = f"{program}print(sorted(sys.modules), file=sys.stderr)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'([\w.]+)'", child.stderr))
    assert loaded & {f"numllama.commands.{name}" for name in COMMANDS} == {f"numllama.commands.{command}"}
    assert not loaded & {"numpy", "numllama.model.transformer", "numllama.training.trainer", "tqdm", "matplotlib", "asyncio"}


def test_what_a_command_does_not_know_is_exit_code_2():
    for wrong in (["train", "--nonsense"], ["nonsense"], ["eval"], ["bench", "model", "--rounds", "many"]):
        code, _, err = run(*wrong)
        assert code == 2, wrong
        assert "Traceback" not in err


def test_a_mistake_of_ours_is_exit_code_1_with_a_traceback():
    broken = "def broken(*_, **__): raise RuntimeError('ours')\nsys.modules['numllama.interop.load'].load = broken"
    code = f"import sys, numllama.interop, numllama.cli as c\n{broken}\nc.main(['inspect', 'x'])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 1
    assert child.stderr.endswith("RuntimeError: ours\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_flags(shell):
    script = app.generate_completion(shell=shell)
    assert all(command in script for command in COMMANDS)
    assert "max-new-tokens" in script


# ------------------------------------------------------------------------------------------------ eval


def test_eval_is_the_mean_over_every_token_but_the_first(folder, tmp_path):
    text = "abc dad\nmama pap\n" * 5
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    code, out, _ = run("eval", folder, tmp_path / "text.txt", "--json")
    found, model = json.loads(out), nl.load(folder)
    ids = nl.Tokenizer.load(folder).encode(text)
    losses = []
    for begin in range(0, len(ids) - 1, 16):
        window = ids[begin : begin + 17]
        losses += [float(model.loss([window[:-1]], [window[1:]]))] * (len(window) - 1)
    assert code == 0
    assert found["tokens"] == len(losses) == len(text) - 1
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))  # a character is a byte here
    assert f"{found['loss']:.4f}" in run("eval", folder, tmp_path / "text.txt")[1]


def test_eval_reads_token_files_and_other_windows(folder, tmp_path):
    ids = np.arange(60) % 18
    write_tokens(tmp_path / "some.bin", ids, 18)
    whole, short = (json.loads(run("eval", folder, tmp_path / "some.bin", "--json", *more)[1]) for more in ([], ["--seq-len", 4]))
    assert whole["tokens"] == short["tokens"] == 59
    assert whole["loss"] != short["loss"]


@pytest.mark.parametrize("arguments, sentence", [
    (["--seq-len", 17], "seq_len is 17, but must lie in 1..16"), ([], "has 1 token(s), but at least 2"),
])  # fmt: skip
def test_what_eval_cannot_do_is_one_sentence(folder, tmp_path, arguments, sentence):
    (tmp_path / "text.txt").write_text("a", encoding="utf-8")
    code, _, err = run("eval", folder, tmp_path / "text.txt", *arguments)
    assert code == 2
    assert sentence in err


# ------------------------------------------------------------------------------------------------ inspect, convert, bench, doctor


def test_inspect_counts_every_parameter_once(folder):
    code, out, _ = run("inspect", folder, "--json")
    found, model = json.loads(out), nl.load(folder)
    parts = dict(found["parameters"])
    assert code == 0
    assert parts.pop("total") == sum(parts.values()) == nl.count_parameters(model.config) == model.params.flat.size
    assert parts["attention"] == 2 * (2 * 12 * 16 + 2 * 12 * 8)
    assert found["bytes"] == model.params.flat.nbytes
    assert found["kv_cache_bytes_per_token"] == 2 * 2 * 2 * 4 * 4
    assert nl.ModelConfig.from_dict(found["config"]) == model.config
    assert found["tensors"]["blocks.1.wk"] == [8, 12]
    assert f"{parts['feed-forward']:,}" in run("inspect", folder)[1]


def test_convert_goes_to_llama2c_and_back_without_a_change(folder, tmp_path):
    source, there, back = tmp_path / "model", tmp_path / "hin.bin", tmp_path / "zurück ä"
    random_model("float32", vocab_size=len(LETTERS), norm_eps=1e-5, dim=16).save(source)
    assert run("convert", source, there)[0] == 0
    assert run("convert", there, back, "--tokenizer", folder)[0] == 0
    one, other = nl.load(source), nl.load(back)
    tokens = np.array([[1, 2, 3, 4]])
    assert np.abs(one.forward(tokens) - other.forward(tokens)).max() < 1e-5
    assert nl.Tokenizer.load(back).encode("abc") == nl.Tokenizer.load(folder).encode("abc")
    code, _, err = run("convert", source, there)
    assert (code, "not overwritten" in err) == (2, True)


def test_bench_counts_what_it_did(folder):
    code, out, _ = run("bench", folder, "--prompt-tokens", 4, "--new-tokens", 8, "--batch-size", 2, "--rounds", 1, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["decode_tokens_per_second"] == pytest.approx(2 * 1e3 / found["ms_per_token"])
    assert found["prefill_tokens_per_second"] > 0
    code, _, err = run("bench", folder, "--prompt-tokens", 12, "--new-tokens", 5)
    assert (code, "12 + 5 tokens are more than the model's max_seq_len, 16" in err) == (2, True)


@pytest.mark.parametrize("given, prompt, new", [({}, 8, 8), ({"prompt_tokens": 13}, 13, 3), ({"new_tokens": 14}, 2, 14)])
def test_bench_measures_as_many_tokens_as_fit(folder, given, prompt, new):
    found = bench(nl.load(folder), rounds=1, **given)
    assert (found["prompt_tokens"], found["new_tokens"]) == (prompt, new)


@pytest.mark.parametrize("shape", [
    dict(max_seq_len=64), dict(max_seq_len=300), dict(max_seq_len=2), dict(positions="learned", norm="layernorm", ffn="gelu"),
    dict(n_heads=1, n_kv_heads=1, vocab_size=1), dict(n_layers=1, positions="none", qk_norm="l2"),
])  # fmt: skip
def test_bench_needs_no_flags_for_any_model(shape):
    model = nl.Transformer(nl.ModelConfig(**{**dict(vocab_size=7, dim=8, n_layers=2, n_heads=2, max_seq_len=16), **shape}))
    found = bench(model, rounds=1)
    most = model.config.max_seq_len
    assert (found["prompt_tokens"], found["new_tokens"]) == (min(64, most // 2), min(64, most - most // 2))
    assert found["decode_tokens_per_second"] > 0


def test_bench_says_that_a_model_of_one_position_has_no_room():
    model = nl.Transformer(nl.ModelConfig(vocab_size=7, dim=8, n_layers=1, n_heads=1, max_seq_len=1))
    with pytest.raises(ValueError, match="max_seq_len, 1"):
        bench(model)


def test_doctor_tells_programs_the_same_as_people(monkeypatch):
    findings = [doctor.Finding("Python", "3.11"), doctor.Finding("driver", None, "install it")]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    monkeypatch.setattr(cpu_doctor, "advice", lambda: "buy another")
    code, out, _ = run("doctor", "--json")
    assert code == 2
    assert json.loads(out) == {"cuda": False, "findings": [each._asdict() for each in findings], "faster": "buy another"}
    assert "driver    MISSING: install it" in run("doctor")[1]
    assert run("doctor")[1].endswith("\nbuy another\ndevice 'cuda' is not available yet; fix first: driver\n")


# ------------------------------------------------------------------------------------------------ serve


@pytest.mark.skipif(os.name == "nt", reason="a console's Ctrl-C is not a signal to one process there")
@pytest.mark.parametrize("numbers", [["SIGINT"], ["SIGTERM", "SIGTERM", "SIGINT"], ["SIGHUP", "SIGTERM"]], ids=" ".join)
def test_serve_says_where_it_is_answers_and_ends_cleanly_with_a_signal(folder, numbers):
    command = [sys.executable, "-m", "numllama.cli", "serve", str(folder), "--port", "0", "--no-page"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            url = re.search(r"http://localhost:\d+", line)[0].replace("localhost", "127.0.0.1")
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            models = json.load(opener.open(f"{url}/v1/models", timeout=20))
            for number in numbers:
                server.send_signal(getattr(signal, number))
                time.sleep(0.05)
            out, err = server.communicate(timeout=20)
        finally:
            server.kill()
    assert models["data"][0]["id"] == folder.name
    assert server.returncode == 0
    assert out == "the server has stopped\n"
    assert err == ""


def test_a_port_that_is_taken_is_one_sentence(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run("serve", folder, "--port", taken.getsockname()[1])
    assert code == 2
    assert "choose another port with --port" in err


def test_serve_binds_to_this_machine_alone_unless_told_otherwise():
    assert signature(serve).parameters["host"].default == "127.0.0.1"


@contextmanager
def serving(folder, *flags):
    """The process, the first line that it has written, and its port."""
    command = [sys.executable, "-m", "numllama.cli", "serve", str(folder), "--port", "0", "--no-page", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            yield server, int(re.search(r"http://[^/]*:(\d+)", server.stdout.readline())[1])
        finally:
            server.kill()


def status(port, **headers):
    """How the server on a port answers, asked for by 127.0.0.1."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/v1/models", headers=headers)
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_serve_for_other_machines_is_asked_for_by_its_own_names_and_says_loudly_that_it_has_no_token(folder):
    with serving(folder, "--host", "0.0.0.0", "--allow-host", "box.example") as (server, port):
        statuses = {host: status(port, Host=host) for host in ("evil.com", "localhost", "127.0.0.1", "box.example", "10.1.2.3")}
        foreign = status(port, Host="evil.com", Origin="http://evil.com")
        server.terminate()
        _, err = server.communicate(timeout=20)
    assert statuses == {"evil.com": 403, "localhost": 200, "127.0.0.1": 200, "box.example": 200, "10.1.2.3": 403}
    assert foreign == 403
    assert err.startswith("WARNING: NO TOKEN")
    assert err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--token"], ["--token", "open-sesame"]])
def test_serve_shows_its_token_once_and_asks_for_it(folder, flags):
    with serving(folder, "--host", "0.0.0.0", *flags) as (server, port):
        token = re.match(r"token: (\S+)", server.stdout.readline())[1]
        statuses = [
            status(port, **headers) for headers in ({}, {"Authorization": f"Bearer {token}"}, {"Authorization": "Bearer x"})
        ]
        server.terminate()
        out, err = server.communicate(timeout=20)
    assert statuses == [401, 200, 401]
    assert token == flags[-1] if len(flags) > 1 else len(token) >= 32
    assert (out, err) == ("the server has stopped\n", "")


@pytest.mark.parametrize("flags, words", [
    (["--token", ""], "token must be"), (["--token", "a b"], "token must be"), (["--allow-host", "http://a.b"], "allow_host is"),
    (["--allow-host", "*"], "allow_host is"), (["--host", "no such host"], "cannot listen on"),
])  # fmt: skip
def test_what_nobody_can_be_let_in_by_is_one_sentence(folder, flags, words):
    code, _, err = run("serve", folder, "--no-page", *flags)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------------------------------------ other systems


def test_a_spawned_process_opens_and_writes_the_same_model(folder, tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(convert, (folder, tmp_path / "dort ä"))
    assert nl.load(tmp_path / "dort ä").params.flat.tobytes() == nl.load(folder).params.flat.tobytes()


def test_nothing_forks():
    sources = [path.read_text(encoding="utf-8") for path in Path(nl.__file__).parent.rglob("*.py")]
    assert len(sources) > 50
    assert not [source for source in sources if re.search(r"os\.fork|get_context\(.fork|import multiprocessing", source)]


def test_the_public_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(nl.__file__).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checked.body for alias in node.names}
    assert set(seen) == set(nl.__all__) == set(nl._homes)
    for name, module in seen.items():
        there = __import__(module, fromlist=[name])
        assert getattr(nl, name) is getattr(there, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nl.nothing  # noqa: B018


def test_a_function_with_the_name_of_its_file_is_the_function():
    imports = "import numllama.gradcheck, numllama as nl, numllama.generation.generate; from numllama.generation import generate"
    code = f"{imports}; print(callable(nl.gradcheck), callable(generate))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True True\n"
