"""nl.compare on Llamas that others wrote in PyTorch: right ones are the same, and of wrong ones the wrong op is named."""

import numpy as np
import pytest

import numllama as nl
from numllama.learn.vectors import STANDARD, standard_vectors

torch = pytest.importorskip("torch")
from parity.learn.planted_variants import VARIANTS  # noqa: E402
from parity.learn.subject import MISTAKES, Subject, run  # noqa: E402
from parity.learn.test_subject import one_thread, op, steps_for  # noqa: E402, F401

pytestmark = pytest.mark.parity
# Gradients of one op have no order; a mask may be seen in the scores or in what softmax makes of them; and losses of later steps
# are compared before norms of earlier ones.
SAME_OP = {
    "d up": "d gate", "d k_rotated": "d q_rotated", "d k": "d q", "d k_norm": "d q_norm", "d_weights k_norm": "d_weights q_norm",
    "attention": "scores", "optimizer losses": "optimizer norms",
}  # fmt: skip
TRAINING = ("after", "optimizer losses", "optimizer norms")


@pytest.fixture(scope="module")
def vectors():
    return {name: standard_vectors(name) for name in STANDARD}


def in_torch(vectors, dtype="float64"):
    """What the subject reads: tensors of a dtype, and the manifest."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in vectors.tensors.items()}
    real = getattr(torch, dtype)
    return {name: t.to(real) if t.is_floating_point() else t for name, t in tensors.items()}, vectors.manifest


def differing(comparison):
    return [(each.name, each.error, each.allowed) for each in comparison.judged if each.verdict != "same"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", STANDARD)
def test_a_right_llama_is_the_same(name, dtype):
    for seed in range(17):  # of twelve configurations: 204 models in each dtype
        vectors = standard_vectors(name, seed)
        dump = run(in_torch(vectors, dtype), steps=0 if dtype == "bfloat16" else 10)
        assert not differing(nl.compare(vectors, dump, dtype=dtype)), seed


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.key)
def test_a_right_llama_that_is_written_in_another_way_is_the_same(vectors, variant):
    for name in variant.where:
        assert not differing(nl.compare(vectors[name], run(in_torch(vectors[name], "float32"), variant.key, steps=10))), name


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.key)
def test_the_wrong_op_is_named(vectors, mistake):
    name = mistake.where[0]
    comparison = nl.compare(vectors[name], run(in_torch(vectors[name]), mistake.key, steps=steps_for(mistake)))
    first, right = op(comparison.wrong()[0].name), mistake.first(name)
    assert right in (first, SAME_OP.get(first))
    said = next(said for said in (comparison.forward, comparison.backward, comparison.others) if said)
    assert "is the first that is wrong" in said


def pairs():
    """Pairs of mistakes in different ops of a model with grouped queries; none changes the same step of the subject."""
    rng, chosen = np.random.default_rng(0), []
    rows = [each for each in MISTAKES if "gqa" in each.where and each.op not in TRAINING]
    while len(chosen) < 100:
        first, second = (rows[int(i)] for i in rng.choice(len(rows), 2, replace=False))
        if first.op != second.op and first.methods.keys().isdisjoint(second.methods):
            chosen.append((first, second))
    return chosen


@pytest.mark.parametrize(("one", "other"), pairs(), ids=lambda mistake: mistake.key)
def test_of_two_mistakes_the_first_op_is_named(vectors, one, other):
    reference = vectors["gqa"]
    dump, _ = type("Both", (Subject,), {**one.methods, **other.methods})(*in_torch(reference)).loss_and_grads()
    comparison = nl.compare(reference, dump)
    order = [each.name for each in comparison.judged]
    alone = [nl.compare(reference, run(in_torch(reference), each.key)).wrong()[0].name for each in (one, other)]
    assert comparison.wrong()[0].name == min(alone, key=order.index)
