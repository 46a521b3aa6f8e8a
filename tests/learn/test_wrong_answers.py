"""Wrong answers to the exercises are explained by the mistake that was made, and right ones are not."""

import inspect
import re
from collections import Counter
from functools import cache
from itertools import combinations
from textwrap import dedent, indent

import numpy as np
import pytest
from learn.wrong_code import attention, basics, gates, norms
from mistakes import MISTAKES

from numllama import ops
from numllama.learn.exercises import EXERCISES, cotangent, example, exercise_text
from numllama.learn.wrong_answers import TABLES, explain
from numllama.learn.wrong_answers.explain import CLOSE, explain_in, is_same
from numllama.learn.wrong_answers.table import Case, as_tuple

STUDENTS = [*basics.STUDENTS, *gates.STUDENTS, *norms.STUDENTS, *attention.STUDENTS]
NAMES = [f"{code.op}-{i}" for i, code in enumerate(STUDENTS)]
BLANK = 'raise NotImplementedError("your turn")'


@cache
def question(op):
    """The arguments, the cache and the gradient of the output."""
    args = example(op)
    out, kept = getattr(ops, f"{op}_forward")(*args)
    return args, kept, cotangent(out)


@cache
def case(op):
    args, _, dout = question(op)
    return Case(TABLES[op], args, dout)


def filled(op, blank, body):
    """The function that a student has written into the exercise."""
    text = exercise_text(op, blank)
    assert text.count(BLANK) == 1
    names = {"__name__": "exercise"}
    exec(text.replace(f"    {BLANK}", indent(dedent(body).strip(), "    ")), names)
    return names[f"{op}_{blank}"]


def answers(op, blank, function):
    """Results by name."""
    args, kept, dout = question(op)
    results = function(*args)[0] if blank == "forward" else function(dout, kept)
    names = TABLES[op].outputs if blank == "forward" else TABLES[op].gradients
    return dict(zip(names, as_tuple(results), strict=True))


def explained(op, name, actual):
    return explain_in(case(op), name, actual)


@pytest.mark.parametrize("code", STUDENTS, ids=NAMES)
def test_a_students_mistake_is_named(code):
    for name, actual in answers(code.op, code.blank, filled(code.op, code.blank, code.body)).items():
        sentence = explained(code.op, name, actual)
        if code.says.get(name) is None:
            assert (sentence is None) == is_same(actual, case(code.op).results[name], CLOSE), (name, sentence)
            continue
        assert sentence and code.says[name] in sentence, (name, sentence)
        assert sentence.startswith(name) and sentence.endswith(".") and sentence.count(". ") == 0


def test_each_exercise_has_wrong_answers_in_these_tests():
    assert set(Counter(code.op for code in STUDENTS)) == set(EXERCISES) == set(TABLES)
    assert min(Counter(code.op for code in STUDENTS).values()) >= 5


# ------------------------------------------------------------------------------------------------ mistakes of the library's tests


def body_of(op):
    """The lines of the library's backward."""
    source = dedent(inspect.getsource(getattr(ops, f"{op}_backward").reference).split('"""', 2)[2])
    return source.replace("linear_backward_input(dout, cache, dx)", "dout @ cache.weight")


def op_of(mistake):
    return mistake.file.removeprefix("ops/").removesuffix(".py")


UNSEEN = "capped attention scores whose gradient forgets the cap"  # an exercise has no soft cap
IN_BACKWARD = [
    mistake for mistake in MISTAKES
    if op_of(mistake) in EXERCISES and mistake.right in body_of(op_of(mistake)) and mistake.what != UNSEEN
]  # fmt: skip


@pytest.mark.parametrize("mistake", IN_BACKWARD, ids=lambda mistake: mistake.what.replace(" ", "_"))
def test_mistakes_that_are_planted_in_the_library_are_named(mistake):
    op = op_of(mistake)
    found = answers(op, "backward", filled(op, "backward", body_of(op).replace(mistake.right, mistake.wrong)))
    wrong = {name: actual for name, actual in found.items() if not is_same(actual, case(op).results[name], CLOSE)}
    assert wrong
    for name, actual in wrong.items():
        assert explained(op, name, actual), name


# ------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("op", TABLES)
def test_right_results_are_not_explained(op):
    for name, right in case(op).results.items():
        assert explained(op, name, right) is None
        assert explained(op, name, right.astype(np.float32)) is None
        assert explained(op, name, right * (1 + 1e-7)) is None


@pytest.mark.parametrize("op", TABLES)
def test_noise_is_not_explained(op):
    rng = np.random.default_rng(7)
    for name, right in case(op).results.items():
        for noise in (rng.standard_normal(right.shape), right + 0.01 * rng.standard_normal(right.shape)):
            assert explained(op, name, np.asarray(noise)) is None, name


@pytest.mark.parametrize("op", TABLES)
def test_each_result_has_rows_whose_numbers_differ_from_one_another_and_from_the_right_ones(op):
    assert TABLES[op].gradients == tuple(EXERCISES[op].hints)
    unlike = np.nan * np.zeros(1)
    for name, right in case(op).results.items():
        rows = [row for row in case(op).wrong(name, unlike) if not np.isnan(row[1]).all()]  # NaN: depends on the student's array
        assert len(rows) >= 5
        for (sentence, array), (other, its) in combinations([("right", right), *rows], 2):
            assert not is_same(array, its, 2 * CLOSE), (sentence, other)


@pytest.mark.parametrize("op", TABLES)
def test_each_row_is_one_sentence_on_its_result(op):
    for name, rows in TABLES[op].rows.items():
        for sentence, _ in rows:
            assert re.match(rf"{name}[ ,]", sentence) and sentence.endswith(".") and len(sentence) <= 160, sentence
            assert not re.search(r"\. [A-Z]|;", sentence), sentence
        assert len({sentence for sentence, _ in rows}) == len(rows)
    assert sum(map(len, TABLES[op].rows.values())) >= 20


# ------------------------------------------------------------------------------------------------ all results


def right(op, name):
    return case(op).results[name]


def value(op, name):
    return case(op).values[name]


@pytest.mark.parametrize("op, name, actual, part", [
    ("rmsnorm", "dx", lambda dx: -dx, "has the wrong sign"),
    ("rope", "dx", lambda dx: -dx, "dx has the wrong sign everywhere"),
    ("gelu", "dx", lambda dx: dx / 2, "half of what it should be: two equal terms are averaged"),
    ("rmsnorm", "dx", lambda dx: 2 * dx, "twice what it should be: a term is added twice"),
    ("swiglu", "dup", lambda dup: 3 * dup, "3 times too large (T, the number of tokens in a sequence)"),
    ("swiglu", "dgate", lambda dgate: dgate / 6, "divided by 6 (N, the number of rows): nothing divides here"),
    ("rmsnorm", "dweight", lambda dweight: dweight / 6, "by 6 (N, the number of rows or C, the width): it is a sum, not a mean"),
    ("softmax", "dx", lambda dx: dx / dx.size, "divided by 30 (the number of all elements)"),
    ("linear", "dweight", lambda dweight: dweight.T, "transposed"),
    ("linear", "dweight", lambda dweight: np.ones(dweight.T.shape), "the transpose of (5, 4), that of weight"),
    ("linear", "dx", lambda dx: dx.reshape(-1, 4), "right numbers in the shape (6, 4): reshape it to (2, 3, 4), that of x"),
    ("linear", "dx", lambda dx: np.ones((6, 4)), "shape (6, 4), but must have (2, 3, 4)"),
    ("linear", "dx", lambda dx: np.ones((5, 4)), "shape of weight: backward returns dx, dweight, dbias, in this order"),
    ("linear", "dbias", lambda dbias: np.ones((2, 3, 5)), "one gradient for each row, shape (2, 3, 5)"),
    ("layernorm", "dbias", lambda dbias: dbias.sum(), "summed over its own axes too"),
    ("layernorm", "dbias", lambda dbias: dbias[None], "right numbers in the shape (1, 6)"),
    ("layernorm", "dx", lambda dx: np.float64(3), "a single number"),
    ("layernorm", "dx", lambda dx: dx.sum(-1) + 1, "one number for each row, shape (2, 3)"),
    ("cross_entropy", "out", lambda loss: np.ones(4), "but is one number"),
    ("softcap", "dx", np.zeros_like, "all zeros"),
    ("softcap", "out", lambda out: example("softcap")[0], "out is x itself"),
    ("softcap", "dx", lambda dx: dx / cotangent(dx), "ignores dout"),
    ("linear", "dx", lambda dx: dx + example("linear")[0], "added to x: start from zeros"),
    ("linear", "dweight", lambda dweight: example("linear")[1] - dweight, "a step of gradient descent"),
    ("add_rmsnorm", "out", lambda out: case("add_rmsnorm").results["total"], "out is total: forward returns total, out"),
    ("rmsnorm", "dx", lambda dx: 3 * value("rmsnorm", "rstd") * value("rmsnorm", "dn"), "it is multiplied by 3, which is T."),
    ("lora", "dx", lambda dx: -2 * dx, "multiplies every gradient; besides, its sign is wrong."),
    ("attention", "dv", lambda dv: dv / 7, None),
    ("attention", "dq", lambda dq: value("attention", "a").p * value("attention", "a").dp @ value("attention", "a").keys,
     "besides, it is divided by 0.447214, which is scale."),
    ("rmsnorm", "dx", lambda dx: np.full_like(dx, np.nan), None),
    ("rmsnorm", "dweight", lambda dweight: np.ones((3, 6)), "sum over its first axis too"),
    ("attention", "dk", lambda dk: np.sqrt(5) * 2 * dk, None),
    ("embedding", "dweight", lambda dweight: np.ones((9, 9, 9)), None),
])  # fmt: skip
def test_what_any_result_may_have(op, name, actual, part):
    sentence = explained(op, name, actual(right(op, name)))
    assert sentence is None if part is None else part in sentence, sentence


def test_explain_needs_no_gradient_for_an_output():
    args, _, dout = question("rmsnorm")
    assert explain("rmsnorm", "out", args[0] * args[1], args) == "out is x times weight: the division by rms is missing."
    assert explain("rmsnorm", "dx", dout * args[1], args, dout).startswith("dx is dout * weight")
    args, _, douts = question("mixture_of_experts")
    assert explain("mixture_of_experts", "probs", args[0].reshape(-1, 3) @ args[1].T, args).startswith("probs has the logits")
    assert explain("mixture_of_experts", "dx", right("mixture_of_experts", "dx"), args, douts) is None
