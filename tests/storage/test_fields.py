"""A value is of its kind or one short sentence says what it was and what it may be."""

import math

import numpy as np
import pytest

from numllama.storage.fields import FLAG, OBJECT, POSITIVE, TEXT, as_json, check, number, one_of, only, optional, whole

HUGE = 10**400
KINDS = {
    "whole": (whole(1), [1, 2**62, np.int64(3)], [0, -1, True, 1.0, "1", None, [], {}, HUGE, -HUGE, math.nan, 2**63]),
    "bounded": (whole(0, 9), [0, 9], [10, -1, 2**63, None]),
    "number": (number(), [0, -1.5, 1e308, np.float32(2), 10**300], [True, "1", None, [1], {}, HUGE, -HUGE, math.nan, math.inf]),
    "positive": (POSITIVE, [1, 1e-300], [0, -1, False, HUGE, math.inf, "1", None]),
    "flag": (FLAG, [True, False], [0, 1, None, "true", [], 1.0]),
    "text": (TEXT, ["", "a"], [1, None, ["a"], {}, True, b"a"]),
    "object": (OBJECT, [{}, {"a": 1}], [[], None, "{}", 3]),
    "one_of": (one_of("a", None), ["a", None], ["b", 1, ["a"], {"a": 1}, True]),
    "only": (only(1, None), [1, 1.0, None], [True, 2, "1", [1], 0.5]),
    "only_empty": (only({}, None), [{}, None], [{"a": 1}, [], False, 0]),
    "only_false": (only(False), [False], [0, None, True, "", 0.0]),
    "optional": (optional(whole(1)), [None, 1], [0, "", False]),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_value_is_of_its_kind_or_refused_by_name(name):
    kind, right, wrong = KINDS[name]
    for value in right:
        check({"field": value}, {"field": kind})
    for value in wrong:
        with pytest.raises(ValueError, match=r"^of me, field is .*, but (must|only|no)") as caught:
            check({"field": value}, {"field": kind}, prefix="of me, ")
        assert len(str(caught.value)) < 200


def test_a_field_that_is_absent_is_not_checked():
    check({}, {"field": whole(1)})
    check({"other": None}, {"field": whole(1)})


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "null"), (True, "true"), ("a", '"a"'), ([1, {"b": 2.5}], '[1, {"b": 2.5}]'), ("x" * 99, f'"{"x" * 56}...')],
)
def test_a_value_of_a_file_is_written_as_in_the_file(value, expected):
    assert as_json(value) == expected


@pytest.mark.parametrize("value", [10**5000, {1, 2}, [[[object()]]]], ids=["digits", "set", "object"])
def test_a_value_that_json_cannot_hold_is_written_nevertheless(value):
    assert 0 < len(as_json(value)) <= 60
