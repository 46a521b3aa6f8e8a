"""nl.diagnose on a Llama in PyTorch whose training has one planted mistake: the right one is named."""

import pytest

import numllama as nl

torch = pytest.importorskip("torch")
from parity.learn.named_training import NAMED  # noqa: E402
from parity.learn.planted_training import TRAINING  # noqa: E402
from parity.learn.subject import run  # noqa: E402
from parity.learn.test_compare_torch import in_torch, one_thread, vectors  # noqa: E402, F401
from parity.learn.test_diagnose_torch import said  # noqa: E402

pytestmark = pytest.mark.parity
SAME = ({"clip-missing", "clip-at-10"},)  # the norms of "mha" are below 10


@pytest.mark.parametrize("mistake", TRAINING, ids=lambda mistake: mistake.key)
def test_the_mistake_is_named(vectors, mistake):  # noqa: F811
    name = mistake.where[0]
    diagnosis = nl.diagnose(vectors[name], run(in_torch(vectors[name]), mistake.key, steps=10))
    (explanation,) = diagnosis.explanations
    alike = next((keys for keys in SAME if mistake.key in keys), {mistake.key})
    assert {*said(explanation)} == {NAMED[key] for key in alike} and not diagnosis.unexplained


def test_all_have_a_name():
    assert NAMED.keys() == {each.key for each in TRAINING} and len(NAMED) >= 60
