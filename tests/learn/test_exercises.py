"""The names of the exercises that pages, tools and tests use."""

import numpy as np
import pytest

from numllama.learn import exercises
from numllama.learn.exercises import EXERCISES, cotangent, example, exercise_text, find_exercise


def test_every_name_that_is_offered_is_there():
    assert all(hasattr(exercises, name) for name in exercises.__all__)
    assert exercise_text("rope", "forward") == exercise_text("rope_forward")


@pytest.mark.parametrize("op", EXERCISES)
def test_an_example_is_the_same_each_time_and_in_float64(op):
    first, second = example(op), example(op)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(first[i].dtype == np.float64 for i in find_exercise(op).wrt)
    assert not np.array_equal(cotangent(first[0]), np.ones(np.shape(first[0])))
