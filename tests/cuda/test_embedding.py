import numpy as np
import pytest
from emulator import emulated
from helpers import assert_same_bits
from kernel_checks import FLOAT32, HALVES, check_kernels, every_dtype, real

from numllama.ops import embedding_backward, embedding_forward

KERNELS = (["embedding_forward"], ["embedding_sort", "embedding_backward"])


def draw(V, C, *lead):
    rng = np.random.default_rng(0)
    return [rng.integers(0, V, lead), rng.standard_normal((V, C))]


@every_dtype
@pytest.mark.parametrize("shape", [(5, 8, 1), (7, 96, 65), (300, 10, 257), (3, 4096, 4), (11, 33, 2, 9)], ids=str)
def test_embedding(shape, dtype):
    into = np.random.default_rng(1).standard_normal(shape[:2]).astype(real(dtype))
    check_kernels(embedding_forward, embedding_backward, draw(*shape), dtype, KERNELS, into=into)


@pytest.mark.parametrize("tokens", ["int32", "uint16", "uint32"])
def test_tokens_as_files_hold_them(tokens):
    ids, weight = draw(7, 16, 40)
    check_kernels(embedding_forward, embedding_backward, [ids.astype(tokens), weight], FLOAT32, KERNELS)


def test_one_token_that_takes_all():
    _, weight = draw(7, 16, 1)
    check_kernels(embedding_forward, embedding_backward, [np.full(300, 3), weight], FLOAT32, KERNELS)


def test_into_is_added_to_and_returned(gpu):
    tokens, weight = draw(9, 8, 30)
    out, cache = embedding_forward(tokens, weight)
    buffer = np.ones_like(weight)
    assert embedding_backward(out, cache, into=buffer) is buffer
    np.testing.assert_allclose(buffer, 1 + embedding_backward(out, cache), rtol=1e-14)
    assert gpu.launched[1:] == ["embedding_sort", "embedding_backward"] * 2


@pytest.mark.parametrize("dtype", [FLOAT32, *HALVES], ids=str)
def test_an_id_outside_of_the_vocabulary_is_an_error_and_never_an_address(dtype, monkeypatch):
    weight = np.ones((5, 8), dtype)
    tokens = np.array([1, 5, -1, 4])
    with emulated():
        with pytest.raises(ValueError, match=r"^tokens holds 5, but must lie in 0\.\.4$"):
            embedding_forward(tokens, weight)
        monkeypatch.setattr("numllama.cuda.embedding.check_ids", lambda *_: None)  # as where the caller has checked
        out, cache = embedding_forward(tokens, weight)
        dweight = embedding_backward(np.ones((4, 8), dtype), cache, into=np.zeros((5, 8), "float32"))
    assert np.isnan(out.astype("float32")).all(1).tolist() == [False, True, True, False]
    assert dweight.sum(1).tolist() == [0, 8, 0, 0, 8]


def test_many_tokens_are_sorted_some_at_a_time(monkeypatch):
    monkeypatch.setattr("numllama.cuda.embedding.TOGETHER", 20)
    into = np.random.default_rng(1).standard_normal((9, 8)).astype("float32")
    kernels = KERNELS[0], 3 * KERNELS[1]
    check_kernels(embedding_forward, embedding_backward, draw(9, 8, 3, 17), FLOAT32, kernels, into=into)


def test_gradients_in_two_bytes_are_summed_in_float32_first(gpu):
    tokens, weight = draw(9, 8, 30)
    _, cache = embedding_forward(tokens, weight.astype(HALVES[0]))
    dout = np.random.default_rng(1).standard_normal((30, 8)).astype(HALVES[0])
    dweight = embedding_backward(dout, cache)
    assert gpu.launched == KERNELS[0] + KERNELS[1]
    assert_same_bits(dweight, embedding_backward(dout, cache, into=np.zeros((9, 8), "float32")).astype(HALVES[0]))
