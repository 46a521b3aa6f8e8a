"""Wrong repairs of the mistakes to find: the planted mistake is said to be there still, and a new one is named."""

from collections import Counter

import pytest
from learn.classroom import no_process  # noqa: F401 - a fixture
from learn.wrong_code.bugs import REPAIRS, STILL

from numllama.learn.course.bugs import BUGS
from numllama.learn.course.files import mistaken_text
from numllama.learn.course.table import find_exercise
from numllama.learn.exercises import check_text


def planted(number):
    """The code of a mistake to find."""
    return mistaken_text(find_exercise(f"bug_{number:02}"))


def wrong_results(number, text):
    found = check_text(f"bug_{number:02}", text)
    assert (found["outcome"], found["points"]) == ("wrong", 0)
    return {each["name"]: each["mistake"] for each in found["results"] if each["verdict"] == "wrong"}


@pytest.mark.parametrize("repair", REPAIRS, ids=[f"{repair.number}-{i}" for i, repair in enumerate(REPAIRS)])
def test_a_wrong_repair_is_named(no_process, repair):  # noqa: F811
    text, old = planted(repair.number), repair.old or BUGS[repair.number - 1].wrong
    assert text.count(old) == 1
    wrong = wrong_results(repair.number, text.replace(old, repair.new))
    assert set(wrong) == set(repair.says)
    for name, says in repair.says.items():
        assert says in wrong[name], (name, wrong[name])


@pytest.mark.parametrize("number", range(1, len(BUGS) + 1))
def test_the_planted_mistake_is_not_told_but_said_to_be_there(no_process, number):  # noqa: F811
    wrong = wrong_results(number, planted(number) + "\n\n# I have looked at everything, and found nothing.\n")
    assert wrong and all(STILL in mistake for mistake in wrong.values())


def test_each_mistake_has_three_wrong_repairs_in_these_tests():
    assert Counter(repair.number for repair in REPAIRS) == dict.fromkeys(range(1, len(BUGS) + 1), 3)
