"""Our filters against transformers' logits processors."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from numllama import SamplingConfig
from numllama.generation.sampling import filtered, keep_min_p, keep_top_k, keep_top_p, penalise_repetition
from numllama.ops import softmax_forward

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("transformers")
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as theirs
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

SHAPES = st.tuples(st.integers(1, 3), st.integers(2, 50))
FLOATS = st.floats(-30, 30, width=32)
DISTINCT = SHAPES.flatmap(
    lambda shape: st.lists(FLOATS, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1], unique=True).map(
        lambda values: np.array(values, "float32").reshape(shape)
    )
)
TIES = arrays("float32", SHAPES, elements=st.sampled_from([-3.0, -0.5, 0.0, 0.25, 2.0]))
many = settings(max_examples=150)


def run(processors, logits, ids=None):
    ids = np.zeros((len(logits), 0), int) if ids is None else ids
    return LogitsProcessorList(processors)(torch.from_numpy(ids), torch.from_numpy(logits)).numpy()


def assert_same_mask(ours, expected):
    """Distinct logits: the same tokens are left, and with the same values."""
    assert (np.isfinite(ours) == np.isfinite(expected)).all()
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def assert_same_values(ours, expected):
    """With ties: as many tokens are left, and with the same values; which of the equals, sorting decides."""
    np.testing.assert_allclose(np.sort(ours, -1), np.sort(expected, -1), rtol=1e-6)


@given(DISTINCT | TIES, st.data())
@many
def test_top_k(logits, data):
    k = data.draw(st.integers(1, logits.shape[1]))
    assert_same_mask(keep_top_k(logits, k), run([theirs.TopKLogitsWarper(k)], logits))


def away_from_the_edge(logits, p):
    """Whether no cumulated probability is so near to 1 − p that rounding decides."""
    return np.abs(np.sort(softmax_forward(logits.astype("float64"))[0]).cumsum(-1) - (1 - p)).min() > 1e-6


@given(DISTINCT, st.floats(0.01, 0.99))
@many
def test_top_p(logits, p):
    assume(away_from_the_edge(logits, p))
    assert_same_mask(keep_top_p(logits, p), run([theirs.TopPLogitsWarper(p)], logits))


@given(TIES, st.floats(0.01, 0.99))
@many
def test_top_p_with_ties(logits, p):
    assume(away_from_the_edge(logits, p))
    assert_same_values(keep_top_p(logits, p), run([theirs.TopPLogitsWarper(p)], logits))


@given(DISTINCT | TIES, st.floats(0, 1))
@many
def test_min_p(logits, p):
    chances, _ = softmax_forward(logits.astype("float64"))
    assume(np.abs(chances - p * chances.max(-1, keepdims=True)).min() > 1e-7 or p in (0, 1))
    assert_same_mask(keep_min_p(logits, p), run([theirs.MinPLogitsWarper(p)], logits))


@given(DISTINCT | TIES, st.floats(0.2, 5), st.integers(0, 20), st.integers(0, 2**32 - 1))
@many
def test_repetition_penalty(logits, penalty, length, seed):
    ids = np.random.default_rng(seed).integers(0, logits.shape[1], (len(logits), length))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, axis=1)
    expected = run([theirs.RepetitionPenaltyLogitsProcessor(penalty)], logits, ids)
    assert_same_mask(penalise_repetition(logits, seen, penalty), expected)


@given(DISTINCT, st.floats(0.1, 4), st.data())
@many
def test_all_of_them_in_their_order(logits, temperature, data):
    """The order in which transformers' generate puts them together."""
    k, p = data.draw(st.integers(1, logits.shape[1])), data.draw(st.floats(0.05, 0.95))
    min_p, penalty = data.draw(st.floats(0, 1)), data.draw(st.floats(0.5, 2))
    ids = np.random.default_rng(0).integers(0, logits.shape[1], (len(logits), 7))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, axis=1)
    config = SamplingConfig(temperature=temperature, top_k=k, top_p=p, min_p=min_p, repetition_penalty=penalty)

    stages = [penalise_repetition(logits.astype("float64"), seen, penalty) / temperature]
    stages.append(keep_top_k(stages[0], k))
    stages.append(keep_top_p(stages[1], p))
    chances, _ = softmax_forward(stages[2])
    assume(len(np.unique(stages[0].astype("float32"))) == logits.size)  # the penalty may make two logits equal
    assume(away_from_the_edge(stages[1], p))
    assume(np.abs(chances - min_p * chances.max(-1, keepdims=True))[chances > 0].min() > 1e-6)
    processors = [
        theirs.RepetitionPenaltyLogitsProcessor(penalty), theirs.TemperatureLogitsWarper(temperature), theirs.TopKLogitsWarper(k),
        theirs.TopPLogitsWarper(p), theirs.MinPLogitsWarper(min_p),
    ]  # fmt: skip
    assert_same_mask(filtered(penalise_repetition(logits, seen, penalty), config), run(processors, logits, ids))


def test_that_is_the_order_in_which_transformers_runs_them():
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    shape = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(**shape))
    config = GenerationConfig(do_sample=True, repetition_penalty=1.5, temperature=0.5, top_k=3, top_p=0.5, min_p=0.1)
    names = [type(processor).__name__ for processor in model._get_logits_processor(config, input_ids_seq_length=1)]
    assert names == [
        "RepetitionPenaltyLogitsProcessor", "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper",
    ]  # fmt: skip


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.9, 0.999]), st.sampled_from([1000, 32000]))
@settings(max_examples=30)
def test_top_p_over_a_large_vocabulary(seed, p, V):
    """Cumulated sums of many small probabilities, in float32 there and in float64 here."""
    logits = np.random.default_rng(seed).standard_normal((2, V), dtype="float32") * 3
    ours, expected = keep_top_p(logits, p), run([theirs.TopPLogitsWarper(p)], logits)
    assert abs(int(np.isfinite(ours).sum()) - int(np.isfinite(expected).sum())) <= 1e-3 * V
