"""Files of the first version, commit 1734a78, open today and their runs resume: see `first_version/write.py`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from storage.first_version.places import move
from system.commands import run as numllama

import numllama as nl
from numllama.data.token_files import read_tokens
from numllama.training.checkpoint import find_step, versions

FILES = Path(__file__).with_name("first_version")
EXPECTED = json.loads((FILES / "expected.json").read_text())
STOPPED = 5  # steps before the Ctrl-C
FLOAT32 = 1e-5  # relative: ten steps of float32, in which another BLAS adds up in another order


@pytest.fixture
def folder(tmp_path):
    """The files, in a place of their own."""
    path = tmp_path / "first"
    shutil.copytree(FILES, path)
    move(path, "FOLDER", str(path))
    return path


def tolerance(run):
    """0, unless this machine's NumPy, BLAS or system differs from the one that computed the expected numbers."""
    theirs = json.loads((find_step(run) / "state.json").read_text())["versions"]
    return 0 if all(theirs[name] == versions()[name] for name in ("numpy", "blas", "system")) else FLOAT32


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("command", "name"), [("train", "run"), ("train", "play"), ("finetune", "tuned")]
)
def test_a_run_of_the_first_version_resumes_with_the_losses_that_it_would_have_had(folder, command, name):
    run = folder / name
    allowed = tolerance(run)
    assert losses(run) == EXPECTED[name][:STOPPED]
    code, _, err = numllama(command, "--resume", "--out", run)
    assert code == 0, err
    np.testing.assert_allclose(losses(run), EXPECTED[name], rtol=allowed)


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_a_model_and_an_adapter_of_the_first_version_have_the_same_logits(folder, name):
    prompt = np.array([EXPECTED["prompt"]])
    logits = nl.load(folder / name).forward(prompt)[0, -1]
    allowed = tolerance(folder / "run")
    np.testing.assert_allclose(logits, EXPECTED["logits"][name], rtol=allowed, atol=allowed)


@pytest.mark.parametrize("name", ["model", "adapter", "run", "tuned", "tokenizer"])
def test_a_tokenizer_of_the_first_version_encodes_the_same(folder, name):
    tokenizer = nl.Tokenizer.load(folder / name)
    assert tokenizer.encode("The quick fox jumps over") == EXPECTED["prompt"]


@pytest.mark.parametrize("name", ["run", "play", "tuned"])
def test_a_checkpoint_of_the_first_version_opens_as_a_model(folder, name):
    assert nl.load(folder / name).config.dim == 8


def test_token_files_of_the_first_version_hold_the_same_text(folder):
    tokenizer, data = nl.Tokenizer.load(folder / "tokenizer"), nl.load_dataset(folder / "tokens")
    text = (folder / "book.txt").read_text()
    assert tokenizer.decode([*data.train[:], *data.val[:]]) == text
    ids, about = read_tokens(folder / "tokens" / "ids.npy")
    assert text.startswith(tokenizer.decode(ids.tolist())) and about["vocab_size"] <= tokenizer.vocab_size
