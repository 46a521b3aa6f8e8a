"""The exercises that are a plain function: their solutions are the package's, and each result is checked in all cases."""

from collections import Counter

import numpy as np
import pytest
from learn.classroom import no_process, run, solved, with_function  # noqa: F401 - a fixture

import numllama as nl
from numllama import ops
from numllama.generation.config import SamplingConfig
from numllama.generation.sampling import filtered
from numllama.learn.course.cases import CASES, cases_of
from numllama.learn.course.comparison import compare
from numllama.learn.course.files import BLANK, exercise_text
from numllama.learn.course.function_hints import FUNCTION_HINTS
from numllama.learn.course.functions import bpe, kv_cache, sampling
from numllama.learn.course.table import FUNCTIONS
from numllama.learn.exercises import check_file, check_text
from numllama.optim import adamw_update
from numllama.tokenizer.merging import merge
from numllama.tokenizer.train_bpe import find_merges

# ------------------------------------------------------------------------------------------------ the solutions


def adamw_of_the_package(w, g, m, v, *rest):
    w, m, v = w.copy(), m.copy(), v.copy()
    adamw_update(w, g, m, v, *rest)
    return w, m, v


def sampling_of_the_package(logits, temperature, top_k, top_p, min_p):
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    return ops.softmax_forward(filtered(logits[None], config))[0]


def kv_cache_of_the_package(q, k, v, keys, values, length, cos, sin):
    end = length + q.shape[2]
    angles = cos[length:end], sin[length:end]
    keys, values = keys.copy(), values.copy()
    keys[:, :, length:end], values[:, :, length:end] = ops.rope_forward(k, *angles)[0], v
    out, _ = ops.attention_forward(ops.rope_forward(q, *angles)[0], keys[:, :, :end], values[:, :, :end])
    return out, keys, values


def merges_of_the_package(text, n_merges):
    numbers = {bytes([byte]): byte for byte in range(256)}
    merges = find_merges(Counter(text.split()), n_merges)
    for left, right in merges:
        numbers[left + right] = len(numbers)
    return (np.array([(numbers[left], numbers[right]) for left, right in merges]),)


def ids_of_the_package(word, merges):
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    return (np.array(merge(list(word.encode()), ranks, range(256, 256 + len(merges)))),)


PACKAGE = {
    "adamw_step": adamw_of_the_package, "next_distribution": sampling_of_the_package, "cached_attention": kv_cache_of_the_package,
    "learn_merges": merges_of_the_package, "encode_word": ids_of_the_package,
}  # fmt: skip
ALL_CASES = [case for name in CASES for case in cases_of(name)]


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: f"{case.function}-{case.when}")
def test_what_is_right_is_what_the_package_computes(case):
    for name, ours, theirs in zip(case.results, case.right, PACKAGE[case.function](*case.arguments.values()), strict=True):
        assert compare(np.asarray(theirs), np.asarray(ours))[0] == "right", name
        assert np.asarray(ours).any()  # what is compared by its norm


def test_the_solutions_agree_with_the_package_on_many_random_inputs():
    rng = np.random.default_rng(3)
    for _ in range(200):
        logits = 3 * rng.standard_normal(rng.integers(1, 60))
        rules = [rng.choice(each) for each in ([0.5, 1.0, 2.5], [None, 1, 5, 90], [None, 0.2, 0.9], [None, 0.1, 0.6])]
        np.testing.assert_allclose(sampling.next_distribution(logits, *rules), sampling_of_the_package(logits, *rules)[0])
        text = "".join(rng.choice(list("aabé  "), 80))
        merges, word = bpe.learn_merges(text, 12), "".join(rng.choice(list("abé"), 90))
        assert np.array_equal(merges, merges_of_the_package(text, 12)[0])
        assert np.array_equal(bpe.encode_word(word, merges), ids_of_the_package(word, merges)[0])


def test_a_models_cache_gives_the_rows_that_the_exercise_asks_for():
    """The exercise's attention, in the place of the model's own, on a text in pieces."""
    config = nl.ModelConfig(vocab_size=11, dim=12, n_layers=1, n_heads=3, n_kv_heads=3, max_seq_len=8)
    model, tokens = nl.Transformer(config, seed=0, dtype="float64"), np.arange(8)[None]
    cache = nl.KVCache(model)
    for start, end in ((0, 3), (3, 4), (4, 8)):
        model.forward(tokens[:, start:end], kv_cache=cache)
    p, D = model.params, 4
    x, _ = ops.rmsnorm_forward(p["embed"][tokens], p["blocks.0.attn_norm"], config.norm_eps)
    q, k, v = ((x @ p[f"blocks.0.{name}"].T).reshape(1, 8, 3, D).swapaxes(1, 2) for name in ("wq", "wk", "wv"))
    cos, sin = ops.rope_table(np.arange(8), D, config.rope_theta, dtype="float64")
    keys, values = np.zeros((2, 1, 3, 8, D))
    for start, end in ((0, 3), (3, 4), (4, 8)):
        new = np.s_[:, :, start:end]
        _, keys, values = kv_cache.cached_attention(q[new], k[new], v[new], keys, values, start, cos, sin)
    np.testing.assert_allclose(keys, cache.keys[0][:, :, :8])
    np.testing.assert_allclose(values, cache.values[0][:, :, :8])


# ------------------------------------------------------------------------------------------------ the check


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_blank_is_blank_and_the_solution_is_right(name, tmp_path):
    """In processes: what a file may import there is not what it may import here."""
    for text, verdict in ((exercise_text(name), "blank"), (solved(name), "right")):
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        found = check_file(path, name)
        assert (found["outcome"], found["kind"], found["of"]) == (verdict, "function", FUNCTIONS[name].points)
        assert found["points"] == (found["of"] if verdict == "right" else 0)
        assert {each["name"]: each["verdict"] for each in found["results"]} == dict.fromkeys(FUNCTIONS[name].hints, verdict)


@pytest.mark.parametrize("name, module", [
    ("adamw", "numllama.optim.adamw"), ("sampling", "numllama.generation.sampling"), ("bpe", "numllama.tokenizer"),
    ("kv_cache", "numllama.learn.course.functions.kv_cache"),
])  # fmt: skip
def test_the_solution_cannot_be_imported(name, module, tmp_path):
    path = tmp_path / f"{name}.py"
    path.write_text(f"import {module}\n{solved(name)}", encoding="utf-8")
    found = check_file(path, name)
    assert found["outcome"] == "crashed" and "is closed while a file is checked" in found["message"]


def test_a_verdict_says_in_which_case_and_a_result_counts_only_if_all_cases_are_right(no_process):  # noqa: F811
    body = "x = logits / temperature\nif top_k:\n    x[np.argsort(-x)[top_k:]] = -np.inf\nreturn softmax(x)"
    found = check_text("sampling", with_function("sampling", "next_distribution", body))
    by_name = {each["name"]: each for each in found["results"]}
    assert by_name["temperature"]["verdict"] == "right" and by_name["temperature"]["points"] == 1
    assert by_name["top_k"]["message"].startswith("with equal logits at place k: off by ")  # the cases before it are right
    assert by_name["top_p"]["message"].startswith("for P = 0.8: ") and found["points"] == 1


@pytest.mark.parametrize("body, verdict, message", [
    ("return w, m", "wrong", "in the first step: adamw_step returns 2 results, but must return w, m, v"),
    ("w -= lr * g; return w, m, v", "wrong", "in the first step: adamw_step writes into its input w: work on a copy"),
    ("return 1 / 0", "crashed", "in the first step: line "),
    ("return w, m, v.T", "wrong", "its shape is (4, 3), but must be (3, 4)"),
    ("return w, m, np.sqrt(v) / 0", "wrong", "12 of 12 elements are infinite or not a number"),
    ("if t > 6: raise NotImplementedError\nreturn w, m, v", "wrong", "in the first step: "),
    ("return None", "wrong", "in the first step: adamw_step returns nothing, but must return w, m, v: did you forget return?"),
])  # fmt: skip
def test_a_function_without_right_results_says_why(no_process, body, verdict, message):  # noqa: F811
    found = check_text("adamw", with_function("adamw", "adamw_step", body))
    last = found["results"][-1]
    assert (last["verdict"], found["points"]) == (verdict, 0) and message in last["message"]


def test_token_numbers_are_compared_one_by_one(no_process):  # noqa: F811
    merges, ids = check_text("bpe", solved("bpe").replace("return list(ids)", "return [*ids[:-1], 9]"))["results"]
    assert merges["verdict"] == "right" and ids["message"] == "for a word of the text: 1 of 2 numbers differ"
    assert ids["element"] == {"index": [1], "expected": 260.0, "got": 9.0}
    returned = check_text("bpe", with_function("bpe", "encode_word", "return [b'a']"))["results"][1]
    assert returned["message"] == "for a word of the text: it is a list, not an array of real numbers"


def test_one_function_may_be_right_while_the_other_is_blank(no_process):  # noqa: F811
    found = check_text("bpe", with_function("bpe", "encode_word", BLANK))
    assert [each["verdict"] for each in found["results"]] == ["right", "blank"]
    assert (found["outcome"], found["points"], found["of"]) == ("blank", 2, 4)


# ------------------------------------------------------------------------------------------------ the course


def test_every_result_has_three_hints_and_every_case_a_name():
    assert set(FUNCTION_HINTS) == set(FUNCTIONS) == set(CASES)
    for name, exercise in FUNCTIONS.items():
        cases = cases_of(name)
        assert {result for case in cases for result in case.results} == set(exercise.hints)
        assert {case.function for case in cases} == set(exercise.functions)
        assert len({(case.when, case.results) for case in cases}) == len(cases)
        for steps in exercise.hints.values():
            assert len(set(steps)) == 3 and all(step[-1] == "." and len(step) > 20 for step in steps)


def test_the_command_writes_hints_and_shows_the_solution(tmp_path):
    assert "write learn_merges and encode_word" in run("bpe", "--out", tmp_path)[1]
    assert "Two things move a weight" in (run("adamw", "--out", tmp_path), run("--hint", "adamw", "--out", tmp_path))[1][1]
    assert "w = w - lr * weight_decay * w" in run("--solution", "adamw")[1]
    assert "only the forwards of linear" in run("adamw", "--blank", "forward", "--out", tmp_path)[2]
