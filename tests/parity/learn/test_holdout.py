"""Each mistake of the hold-out set makes wrong what its row says, and nothing before that; nl.diagnose names it."""

import pytest

import numllama as nl

torch = pytest.importorskip("torch")
from parity.learn.named_holdout import NAMED_HOLDOUT, NOT_NAMED_HOLDOUT  # noqa: E402
from parity.learn.planted import ALL  # noqa: E402
from parity.learn.planted_holdout import HOLDOUT  # noqa: E402
from parity.learn.subject import MISTAKES, Subject, read, run  # noqa: E402
from parity.learn.test_compare_torch import in_torch, vectors  # noqa: E402, F401
from parity.learn.test_diagnose_torch import said  # noqa: E402
from parity.learn.test_subject import first_wrong, folder, one_thread, op, relative  # noqa: E402, F401

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def first_numbers(folder):  # noqa: F811
    """For a configuration: each mistake's first wrong tensor: its name, numbers and relative error."""
    found = {}

    def of(name):
        if name not in found:
            vectors, found[name] = read(folder(name)), {}
            right = run(vectors)
            for mistake in HOLDOUT:
                if name in mistake.where:
                    dump, _ = type("Subject", (Subject,), mistake.methods)(*vectors).loss_and_grads()
                    tensor = first_wrong(dump, right)
                    assert tensor, mistake.key
                    found[name][mistake.key] = tensor, dump[tensor], relative(dump[tensor], right[tensor])
        return found[name]

    return of


@pytest.mark.parametrize("name", ALL)
def test_each_mistake_is_first_seen_where_its_row_says(first_numbers, name):
    found = first_numbers(name)
    for mistake in HOLDOUT:
        if name in mistake.where:
            tensor, _, size = found[mistake.key]
            assert op(tensor) == mistake.first(name), f"{mistake.key}: {tensor}"
            assert 1e-6 < size < 1e30, f"{mistake.key}: {tensor} differs by {size}"


def test_mistakes_with_the_same_first_numbers_are_named(first_numbers):
    def same(mistake, other):
        for name in mistake.where:
            (tensor, ours, _), (others_tensor, theirs, _) = first_numbers(name)[mistake.key], first_numbers(name)[other.key]
            if tensor != others_tensor or relative(theirs, ours) > 1e-9:
                return False
        return True

    for mistake in HOLDOUT:
        others = [other for other in HOLDOUT if other is not mistake and {*mistake.where} <= {*other.where}]
        assert [other.key for other in others if same(mistake, other)] == list(mistake.same_as), mistake.key


def test_rows_are_well_formed():
    keys = [row.key for row in (*MISTAKES, *HOLDOUT)]
    assert len(set(keys)) == len(keys) and len(HOLDOUT) >= 120
    for row in HOLDOUT:
        assert row.where and set(row.where) <= set(ALL) and set(row.instead) <= set(row.where), row.key
        assert row.methods, row.key


@pytest.mark.parametrize("mistake", HOLDOUT, ids=lambda mistake: mistake.key)
def test_the_mistake_is_named(vectors, mistake):  # noqa: F811
    reference = vectors[mistake.where[0]]
    dump, _ = type("Subject", (Subject,), mistake.methods)(*in_torch(reference, "float32")).loss_and_grads()
    diagnosis = nl.diagnose(reference, dump)
    if mistake.key in NOT_NAMED_HOLDOUT:
        assert diagnosis.unexplained                                    # at least the op is known
    else:
        assert NAMED_HOLDOUT[mistake.key] in [sentence for each in diagnosis.explanations for sentence in said(each)]
        assert len(said(diagnosis.explanations[0])) <= 4


def test_each_mistake_is_named_but_a_random_one():
    assert NAMED_HOLDOUT.keys() | NOT_NAMED_HOLDOUT == {each.key for each in HOLDOUT}
    assert not NAMED_HOLDOUT.keys() & NOT_NAMED_HOLDOUT and len(NOT_NAMED_HOLDOUT) == 1
