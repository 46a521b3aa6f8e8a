"""Help says which values a command takes where none is given, and an empty path is none."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from cyclopts import Token
from system.commands import run

from numllama.cli import ORDER, app
from numllama.commands.flags import Defaults, as_flags, flowing, given, not_empty
from numllama.model import PRESETS, ModelConfig
from numllama.training import TrainConfig
from numllama.training.config import recipe
from numllama.training.plan import Plan


def shown(*command):
    """The defaults in a command's help, by flag."""
    code, out, err = run(*command, "--help")
    assert code == 0, err
    entries = [" ".join(line.strip("│ ") for line in entry.splitlines()) for entry in re.split(r"(?m)^│ (?=--)", out)[1:]]
    found = [(re.match(r"--([a-z0-9-]+)", entry), re.search(r"\[default: ([^]]*)\]", entry)) for entry in entries]
    return {name[1].replace("-", "_"): default[1] for name, default in found if default}


def as_text(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("beside, preset", [
    ([], "shakespeare-cpu"), (["--device", "cuda"], "shakespeare"), (["--preset", "117m"], "117m"),
    (["--preset=llama-3-8b"], "llama-3-8b"), (["--preset", "nonsense"], "shakespeare-cpu"),
])  # fmt: skip
def test_train_shows_the_settings_of_its_preset(beside, preset):
    found = shown("train", *beside)
    model = ModelConfig.preset(preset, vocab_size=100).to_dict()
    expected = {**recipe(preset).to_dict(), **{name: model[name] for name in model if name not in ("vocab_size", "rope_scaling")}}
    for name, value in expected.items():
        assert found.get(name) == (None if value is None else as_text(value)), name
    assert {"dim", "steps", "lr", "dropout", "eval_every", "tie_embeddings"} <= set(found)


@pytest.mark.parametrize("beside, lr", [([], "0.0005"), (["--full"], "5e-05")])
def test_finetune_shows_its_own(beside, lr):
    found = shown("finetune", *beside)
    assert found["lr"] == f"{lr} for a dim of 2000, more for less"
    assert (found["weight_decay"], found["beta2"], found["keep"]) == ("0", "0.999", str(TrainConfig.keep))
    assert found["eval_every"] == "once an epoch"
    assert found["steps"] == "as --epochs says"


@pytest.mark.parametrize("preset", ["llama-3-8b", "shakespeare-cpu"])
def test_plan_shows_what_it_plans(preset):
    found = shown("plan", "--preset", preset)
    assert found["dim"] == str(PRESETS[preset].dim)
    assert found["seq_len"] == str(min(Plan.seq_len, PRESETS[preset].max_seq_len))
    settings = recipe(preset)
    tokens = settings.steps * settings.batch_size * PRESETS[preset].max_seq_len
    expected = (Plan.tokens, Plan.batch_size, Plan.gpu) if preset == "llama-3-8b" else (float(tokens), settings.batch_size, "cpu")
    assert (found["tokens"], found["batch_size"], found["gpu"]) == tuple(map(as_text, expected))


def test_fields_are_flags_that_may_be_left_out():
    flags = as_flags(TrainConfig, leave_out=("seed",))
    assert [field.name for field in fields(flags)] == [field.name for field in fields(TrainConfig) if field.name != "seed"]
    assert given(flags()) == {}
    assert given(flags(steps=3, graph=False)) == {"steps": 3, "graph": False}


def test_defaults_are_asked_for_with_what_stands_beside_help(monkeypatch):
    asked = []
    defaults = Defaults(lambda arguments: asked.append(arguments) or {"a": 0.5, "b": None, "c": 3})
    monkeypatch.setattr(Defaults, "arguments", ["train", "--preset=x=y", "--full", "--device", "cuda", "--help"])
    assert [defaults.shown(name) for name in "abcd"] == ["0.5", None, "3", None]
    assert asked[0] == {"preset": "x=y", "full": "--device", "device": "cuda", "help": ""}


def test_a_docstring_flows_and_may_be_missing():
    doc = "What.\n\n    Attributes\n    ----------\n    a\n        One ``b``\n        and two.\n"
    assert flowing(doc).endswith("One b and two.\n")
    longer = doc.replace("What.", "What.\n\n    It does\n    that.\n\n    Example: x")
    assert flowing(longer).startswith("What.\n\nIt does that.\n\nExample: x\n\nAttributes\n---")
    assert flowing(None) == "\n"


@pytest.mark.parametrize("command", ORDER)
def test_every_path_of_a_command_refuses_an_empty_name_and_nothing_else_does(command):
    for argument in app[command].assemble_argument_collection():
        is_path = Path in (argument.hint, *get_args(argument.hint))
        assert is_path == (argument.parameter.converter is not_empty), argument.name


def test_a_path_is_refused_where_it_is_empty():
    assert not_empty(Path, [Token(value="a b")]) == Path("a b")
    with pytest.raises(ValueError, match="it is empty"):
        not_empty(Path, [Token(value="")])
