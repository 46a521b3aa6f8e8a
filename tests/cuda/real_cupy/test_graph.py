"""A training step that is recorded and replayed gives what its launches give one by one, and what the host decides."""

import threading
import time
from collections import Counter

import numpy as np
import pytest
from helpers import assert_same_bits
from tiny import CONFIG, TOKENS, trainer

from numllama import ModelConfig
from numllama.cuda import sources
from numllama.cuda.stream import Stream
from numllama.data.batches import TokenBatches, counted, random_batch
from numllama.ops import IGNORE

LLAMA = dict(max_seq_len=16)
GPT2 = dict(max_seq_len=16, norm="layernorm", ffn="gelu", positions="learned", bias=True, tie_embeddings=True)


def run(steps=10, variant=LLAMA, by_host=False, **changes):
    """Losses, norms and parameters of a run, and what the optimizer has counted."""
    config = ModelConfig.from_dict({**CONFIG.to_dict(), "n_layers": 1, **variant})
    made = trainer(config=config, steps=steps, eval_every=steps, **changes)
    if by_host:
        made._whole_step = None
    return [(report.loss, report.grad_norm) for report in made], made.model.params.flat, made.optimizer.steps


def graphs(gpu):
    """How many graphs were made, and how often one was launched."""
    return tuple(gpu.counts()[name] for name in ("graphs", "graph launches"))


def assert_same_run(one, other):
    assert one[0] == other[0]
    assert_same_bits(one[1], other[1])
    assert one[2] == other[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ten_replayed_steps_are_ten_plain_steps_bit_for_bit(gpu, dtype):
    replayed = run(dtype=dtype)
    assert graphs(gpu) == (1, 9)
    plain = run(dtype=dtype, graph=False)
    assert graphs(gpu) == (1, 9)
    assert_same_run(replayed, plain)
    assert_same_run(plain, run(dtype=dtype, by_host=True))
    assert len({loss for loss, _ in plain[0]}) == 10


@pytest.mark.parametrize("changes", [dict(shards=2), dict(recompute=True), dict(clip=1e9)], ids=str)
def test_whatever_a_step_consists_of(gpu, changes):
    assert_same_run(run(steps=4, **changes), run(steps=4, by_host=True, **changes))
    assert gpu.counts()["graph launches"] == 3


@pytest.mark.parametrize(("head_dim", "dtype"), [(48, "bfloat16"), (36, "float32"), (144, "bfloat16")])
def test_heads_of_every_size_are_recorded(gpu, head_dim, dtype):
    """Read where they lie, padded, and larger than the flash kernels take."""
    variant = {**LLAMA, "head_dim": head_dim}
    assert_same_run(run(steps=4, variant=variant, dtype=dtype), run(steps=4, variant=variant, dtype=dtype, by_host=True))
    assert gpu.counts()["graph launches"] == 3


def test_any_number_of_tokens_is_recorded(gpu, monkeypatch):
    """The embedding's backward sorts some at a time."""
    monkeypatch.setattr("numllama.cuda.embedding.TOGETHER", 5)
    assert_same_run(run(steps=4), run(steps=4, by_host=True))
    assert gpu.counts()["graph launches"] == 3


def test_a_gpt2_is_recorded_too(gpu):
    assert_same_run(run(steps=4, variant=GPT2), run(steps=4, variant=GPT2, by_host=True))
    assert gpu.counts()["graph launches"] == 3


def test_a_step_that_cannot_be_recorded_runs_launch_by_launch(gpu, monkeypatch):
    def fail(self, run):
        raise RuntimeError("cudaErrorStreamCaptureInvalidated")

    record = Stream.record
    monkeypatch.setattr(Stream, "record", fail)
    with pytest.warns(UserWarning, match=r"^a training step could not be recorded as a CUDA graph, and runs launch by launch: "):
        plain = run(steps=4)
    assert gpu.counts()["graph launches"] == 0
    monkeypatch.setattr(Stream, "record", record)
    assert_same_run(plain, run(steps=4))
    assert gpu.counts()["graph launches"] == 3


def test_a_step_that_looks_at_a_number_cannot_be_recorded(gpu, monkeypatch):
    made = trainer(steps=3, eval_every=3)
    plain = made.model.loss_and_grads

    def nosy(*args, **kwargs):
        loss, grads = plain(*args, **kwargs)
        assert np.isfinite(float(loss))
        return loss, grads

    monkeypatch.setattr(made.model, "loss_and_grads", nosy)
    with pytest.warns(UserWarning, match="the current stream is capturing, so D2H transfers are disallowed"):
        assert len(list(made)) == 3
    assert gpu.counts()["graph launches"] == 0


@pytest.mark.parametrize("where", [(), (0,)], ids=["plain", "replayed"])
def test_nothing_changes_where_a_gradient_is_not_finite(gpu, where):
    made = trainer(steps=9)
    batch = counted(*random_batch(TOKENS, 3, 24, 0, 1))
    for _ in where:
        made._whole_step(batch, 1, 1e-2)
        made._whole_step(batch, 2, 1e-2)
    steps, flat = made.optimizer.steps, made.model.params.flat
    good = float(flat[5])
    before = [state.flat.copy() for state in made.optimizer.state.values()]
    flat[5] = np.inf
    loss, norm = made._whole_step(batch, 3, 1e-2)
    assert not (np.isfinite(loss) and np.isfinite(norm))
    assert made.optimizer.steps == steps
    for old, state in zip(before, made.optimizer.state.values(), strict=True):
        assert_same_bits(old, state.flat)
    flat[5] = good
    assert np.isfinite(made._whole_step(batch, 4, 1e-2)).all()
    assert made.optimizer.steps == steps + 1


# The shape of the preset `shakespeare`, with tiny widths: six layers, dropout, a vocabulary whose rows are not aligned.
SHAKESPEARE = dict(
    vocab_size=65, dim=32, n_layers=6, n_heads=2, n_kv_heads=2, head_dim=64, ffn_dim=48, max_seq_len=8, dropout=0.2
)  # fmt: skip
OF_A_LAYER = {
    "product": 12,  # qkv, wo, gate and up, w_down; for each dx and dW
    "add_rmsnorm_forward": 2, "add_rmsnorm_backward": 2, "rope": 2, "swiglu_forward": 1, "swiglu_backward": 1,
}  # fmt: skip
OF_THE_REST = {  # the last norm, the head, the loss, the embedding, and what comes after the gradients
    "product": 3, "add_rmsnorm_forward": 1, "add_rmsnorm_backward": 1, "cross_entropy_forward": 1, "cross_entropy_backward": 1,
    "embedding_forward": 1, "embedding_sort": 1, "embedding_backward": 1, "gradient_norm": 1, "adamw": 1, "memset": 1,
}  # fmt: skip
MOST_NODES = 170


def nodes(gpu, **changes):
    """How often each kind of node is in the graph of a step; attention's kernels by one name."""
    run(steps=2, batch_size=2, **changes)
    return Counter("attention" if kind.startswith("flash_attention") else kind for kind in gpu.graph().elements())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_step_of_shakespeare_has_few_nodes(gpu, dtype):
    found = nodes(gpu, variant=SHAKESPEARE, dtype=dtype)
    attention = found.pop("attention")
    expected = Counter({kind: 6 * n for kind, n in OF_A_LAYER.items()}) + Counter(OF_THE_REST)
    assert found == expected, sorted(found.items())
    assert attention % 6 == 0 and found.total() + attention <= MOST_NODES, (found, attention)


def test_a_step_without_dropout_has_as_many(gpu):
    """Of fewer layers, in grouped heads: the first norm has neither a sum nor a mask in front of it."""
    found = nodes(gpu, variant=SHAKESPEARE | dict(n_layers=3, dropout=0.0, n_heads=4), dtype="bfloat16")
    del found["attention"]
    expected = Counter({kind: 3 * n for kind, n in OF_A_LAYER.items()}) + Counter(OF_THE_REST)
    expected += Counter({"rmsnorm_forward": 1})
    assert found == expected - Counter({"add_rmsnorm_forward": 1})


@pytest.mark.parametrize(
    "variant",
    [
        dict(tie_embeddings=True), dict(qk_norm="rms"), dict(rope_layout="interleaved"), dict(n_heads=1, n_kv_heads=1),
        dict(n_heads=4, n_kv_heads=1, qk_norm="l2"), dict(dropout=0.0), dict(vocab_size=97),
    ],
    ids=str,
)  # fmt: skip
def test_nothing_is_copied_or_converted_on_the_way(gpu, variant):
    """Whatever the variant: beside kernels and products, only gradients of tied embeddings and of norms of heads are added."""
    found = nodes(gpu, variant=SHAKESPEARE | dict(n_layers=1) | variant, dtype="bfloat16")
    kernels = {name for path in sources.KERNELS.glob("*.cu") for name in sources.compiled_text(path.stem, ()).kernels}
    others = {kind: n for kind, n in found.items() if kind not in kernels | {"product", "attention", "memset"}}
    gains = {"rms": {"cupy_add__float32_float32_float32": 2}, "l2": {"cupy_fill": 2}}.get(variant.get("qk_norm"), {})
    assert others == ({"cupy_add__float32_float32_float32": 1} if variant.get("tie_embeddings") else gains)


def test_what_the_host_tells_is_all_that_changes(gpu):
    """The learning rate, the bias correction and the masks of a replayed step are its own."""
    rates = run(steps=6, lr=1e-2)
    assert_same_run(rates, run(steps=6, lr=1e-2, by_host=True))
    other = run(steps=6, lr=2e-2)
    assert rates[0][0] == other[0][0] and rates[0][2] != other[0][2]


def masked(batch):
    return lambda self, position, rows=None: counted(*masked_targets(*batch(self, position)[:2])).rows(rows)


def masked_targets(tokens, targets):
    """A third of them, and other ones in each row."""
    return tokens, np.where((targets + np.arange(len(targets))[:, None]) % 3 == 0, IGNORE, targets)


@pytest.mark.parametrize("changes", [dict(), dict(shards=2), dict(dtype="bfloat16")], ids=str)
def test_ignored_targets_count_nowhere(gpu, monkeypatch, changes):
    """Their number differs from step to step, and a recorded step is given it as it is given its tokens."""
    monkeypatch.setattr(TokenBatches, "batch", masked(TokenBatches.batch))
    replayed = run(steps=5, **changes)
    assert gpu.counts()["graph launches"] == 4
    assert_same_run(replayed, run(steps=5, by_host=True, **changes))
    if not changes:
        threads = run(steps=5, device="cpu")
        assert [loss for loss, _ in replayed[0]] == pytest.approx([loss for loss, _ in threads[0]], rel=1e-5)


def test_a_batch_of_another_shape_is_run_by_the_host(gpu):
    made = trainer(steps=2)
    batch = counted(*random_batch(TOKENS, 3, 24, 0, 1))
    assert made._whole_step.supports_batch(batch)
    assert not made._whole_step.supports_batch(batch.rows(slice(2)))
    assert not made._whole_step.supports_batch(batch._replace(segments=np.zeros_like(batch.tokens)))


@pytest.mark.parametrize("changes", [dict(optimizer="sgd"), dict(dtype="float16")], ids=str)
def test_what_the_host_has_to_decide_about_is_not_recorded(gpu, changes):
    made = trainer(steps=2, **changes)
    assert made._whole_step is None
    assert len(list(made)) == 2


def test_the_next_batch_is_drawn_while_the_gpu_works(gpu, monkeypatch):
    """On another thread, before the step in hand has said its loss; and each step has its own batch."""
    batch, asked = TokenBatches.batch, {}

    def draw(self, position, rows=None):
        asked[position.step] = threading.current_thread()
        return batch(self, position, rows)

    def step(given, number, lr):
        patience = time.monotonic() + 10
        while number + 1 not in asked and time.monotonic() < patience:
            time.sleep(0.001)
        assert asked[number + 1] is not threading.main_thread()
        expected = random_batch(made.data.train, 3, 24, 0, number)
        for part, own in zip(given[:2], expected, strict=True):
            np.testing.assert_array_equal(part, own)
        return run(given, number, lr)

    monkeypatch.setattr(TokenBatches, "batch", draw)
    made = trainer(steps=5, eval_every=5)
    run = made._whole_step
    step.memory_bytes, step.supports_batch = run.memory_bytes, run.supports_batch
    monkeypatch.setattr(made, "_whole_step", step)
    assert len(list(made)) == 5
    made.close()
