"""What the exercises that are a plain function are checked with: random arguments, and hard ones."""

import inspect
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """A call of one of an exercise's functions.

    Attributes
    ----------
    when : str
        What is special about it, as the beginning of a sentence: "in the first step".
    function : str
    arguments : dict of str to any
        By the names of the function's parameters.
    results : tuple of str
        Names of what the function returns, each a result of the exercise.
    right : tuple of array
    """

    when: str
    function: str
    arguments: dict[str, Any]
    results: tuple[str, ...]
    right: tuple[Any, ...]

    @property
    def returns(self) -> str:
        """The kind of result, as :mod:`numllama.learn.child` reads it."""
        return "array" if len(self.results) == 1 else "arrays"


@cache
def cases_of(name: str) -> tuple[Case, ...]:
    """The cases of an exercise, from simple to hard, with what its solution returns."""
    solution, found = import_module(f"numllama.learn.course.functions.{name}"), []
    for when, function, arguments, results in CASES[name]():
        solved = getattr(solution, function)
        returned = solved(*arguments)
        right = (np.asarray(returned),) if len(results) == 1 else returned
        named = dict(zip(inspect.signature(solved).parameters, arguments, strict=True))
        found.append(Case(when, function, named, results, right))
    return tuple(found)


def _adamw():
    def case(when, t, *, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, size=1.0, none=False):
        rng = np.random.default_rng(t)
        w, g = rng.standard_normal((2, 3, 4))
        m, v = (t > 1) * rng.standard_normal((3, 4)) / 3, (t > 1) * rng.random((3, 4))
        if none:
            g[1], m[1], v[1] = 0, 0, 0
        arguments = (w, size * g, size * m, size**2 * v, t, lr, betas, eps, weight_decay)
        return when, "adamw_step", arguments, ("w", "m", "v")

    return [
        case("in the first step", 1),
        case("in step 7", 7, betas=(0.8, 0.99), weight_decay=0.3),
        case("in step 100000", 100_000, weight_decay=0.0),
        case("with a large eps", 3, eps=0.5, lr=1.0),
        case("for tiny gradients", 2, size=1e-8),
        case("where some gradients are zero", 2, none=True),
    ]


def _sampling():
    rng = np.random.default_rng(0)
    some, many = 2 * rng.standard_normal(8), 2 * rng.standard_normal(40)
    tied = np.array([1.0, 3.0, -1.0, 1.0, 0.0, 1.0])
    sure = np.array([0.0, 9.0, 1.0, -2.0])
    hidden = np.array([0.5, -np.inf, 2.0, 1.0, -np.inf, 0.0])

    def case(result, when, logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
        return when, "next_distribution", (logits, temperature, top_k, top_p, min_p), (result,)

    return [
        case("temperature", "at temperature 1", some), case("temperature", "at temperature 0.5", some, 0.5),
        case("temperature", "at temperature 3", many, 3.0), case("temperature", "for logits near 1000", 1000 + some, 0.7),
        case("temperature", "with tokens that are hidden", hidden, 2.0),
        case("top_k", "for k = 3", some, 1.0, 3), case("top_k", "for k = 1", many, 1.0, 1),
        case("top_k", "with equal logits at place k", tied, 1.0, 2), case("top_k", "for k beyond the vocabulary", some, 1.0, 9),
        case("top_p", "for P = 0.8", some, 1.0, None, 0.8), case("top_p", "for P = 0.3", some, 1.0, None, 0.3),
        case("top_p", "for P = 0.95", many, 1.0, None, 0.95),
        case("top_p", "if one token has more than P", sure, 1.0, None, 0.5),
        case("top_p", "with equal logits", tied, 1.0, None, 0.95), case("top_p", "for P = 1", many, 1.0, None, 1.0),
        case("min_p", "for 0.1", 5 + some, 1.0, None, None, 0.1), case("min_p", "for 0.02", many, 1.0, None, None, 0.02),
        case("min_p", "for 1, with two likeliest tokens", np.array([2.0, 0.0, 2.0, 1.0]), 1.0, None, None, 1.0),
        case("min_p", "with tokens that are hidden", hidden, 1.0, None, None, 0.3),
        case("all", "with all rules", many, 1.5, 8, 0.7, 0.4), case("all", "with top-k and top-p", many, 1.5, 8, 0.8),
        case("all", "at a low temperature, with top-k and top-p", many, 0.8, 12, 0.9),
        case("all", "with top-p and min-p", many, 0.8, None, 0.7, 0.25),
    ]  # fmt: skip


def _kv_cache():
    rng = np.random.default_rng(0)
    S, D = 9, 6
    angles = np.arange(S)[:, None] * np.array([1.0, 0.3, 0.05])

    def case(when, length, T, left=0.0):
        q, k, v = rng.standard_normal((3, 2, 3, T, D))
        keys, values = rng.standard_normal((2, 2, 3, S, D))
        keys[:, :, length:] *= left
        values[:, :, length:] *= left
        arguments = (q, k, v, keys, values, length, np.cos(angles), np.sin(angles))
        return when, "cached_attention", arguments, ("out", "keys", "values")

    return [
        case("with an empty cache", 0, 5), case("for one token after five", 5, 1), case("for three tokens after four", 4, 3),
        case("for the last slots", 6, 3), case("with another text's keys in the free slots", 3, 2, left=2.0),
    ]  # fmt: skip


def _bpe():
    rng = np.random.default_rng(0)
    words = 5 * "low " + 2 * "lower " + 6 * "newest " + 3 * "widest "
    letters = "".join(rng.choice(list("aabc  "), 300))
    texts = [
        ("for the words of the page", words, 6), ("with equal counts", "ba ab cab bac cab abba", 6),
        ("with a letter many times", "aaaa aaaaa aaa baaab " * 2 + "aaaaaaa", 5),
        ("for letters of several bytes", "über Übung übrig für Tür " * 2, 8), ("when no pair is left", "ab\nab  cd", 10),
        ("for random letters", letters, 25),
    ]  # fmt: skip
    learn = import_module("numllama.learn.course.functions.bpe").learn_merges
    merges = {when: tuple(learn(text, n)) for when, text, n in texts}
    encoded = [
        ("for a word of the text", "newest", "for the words of the page"),
        ("for a new word", "lowest", "for the words of the page"),
        ("for letters that were not there", "slowestxyz", "for the words of the page"),
        ("with a letter many times", "aaaaaaaaaaa", "with a letter many times"),
        ("for letters of several bytes", "fürübers", "for letters of several bytes"),
        ("for random letters", "".join(rng.choice(list("abc"), 60)), "for random letters"),
    ]  # fmt: skip
    return [
        *((when, "learn_merges", (text, n), ("merges",)) for when, text, n in texts),
        *((when, "encode_word", (word, merges[of]), ("ids",)) for when, word, of in encoded),
    ]


CASES = {"adamw": _adamw, "sampling": _sampling, "kv_cache": _kv_cache, "bpe": _bpe}
