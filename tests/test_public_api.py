"""The public API: what a function works on is positional, its options are by keyword, and options come in one order."""

import inspect
from collections.abc import Callable, Iterator
from inspect import Parameter
from itertools import combinations

import pytest

import numllama as nl

METHODS = {  # those that open, make or run something
    "Transformer": ("forward", "loss", "loss_and_grads", "add_adapter", "save", "save_adapter"),
    "ModelConfig": ("preset", "from_dict"),
    "Tokenizer": ("load", "train"),
    "CharTokenizer": ("load",),
}
POSITIONAL = {  # not options, though they may be left out
    "max_new_tokens": "the length of a text, as in generate, where it has no default",
    "tokenizer": "what a text or a model goes with",
    "special_tokens": "part of a vocabulary",
    "out": "where a run is written",
    "lr": "as in PyTorch",
    "candidate": "what is judged, unless its forward or backward is given",
    "name": "what a data set is called",
}


def members(api) -> Iterator[tuple[str, Callable]]:
    """Every function and constructor, and some methods, by name."""
    for name in api.__all__:
        thing = getattr(api, name)
        if not callable(thing) or (inspect.isclass(thing) and issubclass(thing, BaseException)):
            continue
        yield name, thing
        for method in METHODS.get(name, ()):
            yield f"{name}.{method}", getattr(thing, method)


MEMBERS = dict(members(nl))


def parameters(function: Callable) -> list[Parameter]:
    return [each for each in inspect.signature(function).parameters.values() if each.name != "self"]


def positional_options(function: Callable) -> list[str]:
    """Options that can be given without their name."""
    return [
        each.name
        for each in parameters(function)
        if each.default is not Parameter.empty and each.kind is not Parameter.KEYWORD_ONLY and each.name not in POSITIONAL
    ]


def disagreements(functions: dict[str, Callable]) -> list[str]:
    """Pairs of options that two functions have in different orders."""
    first: dict[tuple[str, str], str] = {}
    found = []
    for name, function in functions.items():
        options = [each.name for each in parameters(function) if each.default is not Parameter.empty]
        for a, b in combinations(options, 2):
            first.setdefault((a, b), name)
            if (b, a) in first:
                found.append(f"{name} has {a} before {b}, but {first[b, a]} has {b} before {a}")
    return found


@pytest.mark.parametrize("name", [name for name in MEMBERS if not name.startswith("StepReport")])
def test_options_are_keyword_only(name):
    assert positional_options(MEMBERS[name]) == []


def test_options_have_one_order():
    assert disagreements(MEMBERS) == []


def test_the_rules_find_what_they_are_for():
    def load(path, dtype=None, *, device="cpu"): ...

    def save(path, tokenizer=None, *, device="cpu", dtype=None): ...

    assert positional_options(load) == ["dtype"]
    assert positional_options(save) == []
    assert disagreements({"load": load, "save": save}) == [
        "save has device before dtype, but load has dtype before device"
    ]


@pytest.mark.parametrize("function", [nl.load, nl.load_run, nl.Transformer], ids=lambda each: each.__name__)
def test_a_model_is_placed_by_the_same_options_everywhere(function):
    names = [each.name for each in parameters(function)]
    assert [name for name in names if name in ("device", "dtype", "compute_dtype")] == ["device", "dtype", "compute_dtype"]


def test_a_call_is_the_forward_pass():
    model = nl.Transformer(nl.ModelConfig(vocab_size=11, dim=8, n_layers=1, n_heads=2))
    assert (model([[1, 2, 3]]) == model.forward([[1, 2, 3]])).all()
    assert model([[1, 2, 3]], n_last=1).shape == (1, 1, 11)
