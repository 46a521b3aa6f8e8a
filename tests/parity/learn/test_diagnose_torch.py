"""nl.diagnose on a Llama in PyTorch with one planted mistake: the right one is named, among few that give the same numbers."""

import pytest

import numllama as nl

torch = pytest.importorskip("torch")
from parity.learn.named import NAMED, NOT_NAMED  # noqa: E402
from parity.learn.subject import MISTAKES, Subject, run  # noqa: E402
from parity.learn.test_compare_torch import TRAINING, in_torch, one_thread, pairs, vectors  # noqa: E402, F401

pytestmark = pytest.mark.parity
MODEL = [each for each in MISTAKES if each.op not in TRAINING]


def first_place(mistake):
    """A configuration on which float32 shows the mistake."""
    return "large-eps" if mistake.key.startswith("norm-eps") else mistake.where[0]


def said(explanation):
    return [" ".join(explanation.mistakes), *explanation.others]


@pytest.mark.parametrize("mistake", MODEL, ids=lambda mistake: mistake.key)
def test_the_mistake_is_named(vectors, mistake):  # noqa: F811
    name = first_place(mistake)
    diagnosis = nl.diagnose(vectors[name], run(in_torch(vectors[name], "float32"), mistake.key))
    names = [sentence for each in diagnosis.explanations for sentence in said(each)]
    if mistake.key in NOT_NAMED:
        assert diagnosis.unexplained or diagnosis.explanations          # at least the op is known
    else:
        assert NAMED[mistake.key] in names
        assert len(said(diagnosis.explanations[0])) <= 4


def test_nearly_all_have_a_name():
    assert len(MODEL) >= 120 and NAMED.keys() | NOT_NAMED == {each.key for each in MODEL}
    assert len(NOT_NAMED) <= 0.02 * len(MODEL)


@pytest.mark.parametrize(("one", "other"), pairs()[:40], ids=lambda mistake: mistake.key)
def test_of_two_mistakes_the_first_is_named(vectors, one, other):  # noqa: F811
    reference = vectors["gqa"]
    dump, _ = type("Both", (Subject,), {**one.methods, **other.methods})(*in_torch(reference)).loss_and_grads()
    diagnosis = nl.diagnose(reference, dump)
    names = [sentence for each in diagnosis.explanations for sentence in said(each)]
    expected = {NAMED.get(one.key), NAMED.get(other.key)} - {None}
    assert not expected or expected & {*names}
