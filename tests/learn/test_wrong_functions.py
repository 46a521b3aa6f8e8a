"""Wrong answers to the exercises that are no op, a plain function or the block, are explained by the mistake that was made."""

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from learn.classroom import no_process, with_function  # noqa: F401 - a fixture
from learn.wrong_code.functions import STUDENTS

from numllama.learn.course.cases import cases_of
from numllama.learn.course.naming import block_values
from numllama.learn.course.table import BLOCK, FUNCTIONS
from numllama.learn.exercises import check_text
from numllama.learn.wrong_answers import PLAIN_ROWS, block, explain_calls, is_alike
from numllama.learn.wrong_answers.explain import CLOSE, is_same
from numllama.learn.wrong_answers.table import parameters

EXERCISES = FUNCTIONS | {"block": BLOCK}
NAMES = [f"{code.op}-{i}" for i, code in enumerate(STUDENTS)]
RESULTS = [(name, result) for name in EXERCISES for result in PLAIN_ROWS[name]]


def calls_of(name, result):
    """What the rows of a result compute with, and the right results."""
    if name == "block":
        (_, w, *_), a, d, _ = block_values()
        return [({"d": d, "a": a, "w": w}, a[result] if result in block.VALUES else d[result.removeprefix("d_")])]
    return [(case.arguments, np.asarray(case.right[case.results.index(result)]))
            for case in cases_of(name) if result in case.results]  # fmt: skip


@pytest.mark.parametrize("code", STUDENTS, ids=NAMES)
def test_a_students_mistake_is_named(no_process, code):  # noqa: F811
    found = check_text(code.op, with_function(code.op, code.blank, code.body))
    wrong = {each["name"]: each for each in found["results"] if each["verdict"] != "right"}
    assert set(wrong) == set(code.says) and found["outcome"] == "wrong"
    for name, says in code.says.items():
        assert wrong[name]["hint"]["text"] == EXERCISES[code.op].hints[name][0]
        if says is not None:  # None: wrong because of another result, or of two mistakes at once
            assert says in wrong[name]["mistake"], (name, wrong[name])


def test_each_exercise_has_wrong_answers_in_these_tests():
    count = Counter(code.op for code in STUDENTS)
    assert set(count) == set(EXERCISES) == set(PLAIN_ROWS) and min(count.values()) >= 8


def test_every_result_has_rows():
    results = {(name, result) for name, exercise in EXERCISES.items() for result in exercise.hints}
    assert set(RESULTS) == results | {("block", value) for value in block.VALUES}


def near(base, right):
    """Zeros, or the right numbers, with the infinities in their places."""
    return np.asarray(np.multiply(right, base, out=np.array(right, float), where=np.isfinite(right)))


@pytest.mark.parametrize("name, result", RESULTS)
def test_noise_is_not_explained(name, result):
    rng = np.random.default_rng(7)
    for base, size in ((0, 1.0), (1, 0.01)):
        noise = [(values, near(base, right) + size * rng.standard_normal(np.shape(right)))
                 for values, right in calls_of(name, result)]  # fmt: skip
        assert explain_calls(name, result, noise) == ""


@pytest.mark.parametrize("name, result", RESULTS)
def test_each_row_is_one_sentence_with_numbers_of_its_own(name, result):
    calls, found = calls_of(name, result), []
    with np.errstate(all="ignore"):
        for sentence, function in PLAIN_ROWS[name][result]:
            assert re.match(rf"{result}[ ,]", sentence) and sentence.endswith(".") and len(sentence) <= 160, sentence
            assert not re.search(r"\. [A-Z]|;", sentence), sentence
            found.append((sentence, [np.asarray(function(**{each: values[each] for each in parameters(function)}))
                                     for values, _ in calls]))  # fmt: skip
    right = [array for _, array in calls]
    for (sentence, arrays), (other, its) in combinations([("right", right), *found], 2):
        assert not all(is_alike(one, two) for one, two in zip(arrays, its, strict=True)), (sentence, other)
    for sentence, arrays in found:
        assert explain_calls(name, result, sorted(
            ((values, array) for (values, _), array in zip(calls, arrays, strict=True)),
            key=lambda call: any(is_alike(call[1], right) for values, right in calls if values is call[0]),
        )) == sentence  # fmt: skip


def test_a_mistake_beside_another_one_is_named_if_it_gives_most_of_the_numbers():
    (first, second), rows = calls_of("bpe", "ids")[:2], dict(PLAIN_ROWS["bpe"]["ids"])
    bytes_of = rows["ids are the bytes: no merge is applied."]
    calls = [(values, np.asarray(bytes_of(values["word"]))) for values, _ in (first, second)]
    other = [(values, np.zeros(1)) for values, _ in calls_of("bpe", "ids")[2:]]
    assert explain_calls("bpe", "ids", [*calls, *other[:2]]) == "ids are the bytes: no merge is applied."
    assert explain_calls("bpe", "ids", [*calls, *other[:3]]) == ""


def test_numbers_that_are_infinite_equal_no_others():
    infinite = np.array([1.0, np.inf])
    assert is_alike(infinite, infinite.copy()) and not is_alike(infinite, np.array([1.0, -np.inf]))
    assert not is_alike(np.array([1.0, 2.0]), infinite) and not is_alike(np.array([2.0, np.inf]), infinite)
    assert not is_same(np.array([1.0, 2.0]), infinite, CLOSE)
