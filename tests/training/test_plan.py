"""What is planned is what a real run measures: memory, FLOPs, messages; and the arithmetic of time and cost."""

import json
import re
import tracemalloc
from math import prod

import numpy as np
import pytest
from helpers import EXAMPLES
from parallel.ranks_in_threads import together
from parallel.whole_batch import loss_and_grads

from numllama import ops
from numllama.cli import app
from numllama.cpu import flash_attention
from numllama.cpu import linears as cpu_linears
from numllama.model import ModelConfig, Transformer, count_parameters
from numllama.ops import linears
from numllama.optim import AdamW
from numllama.parallel.ranks import Ranks
from numllama.parallel.shards import Workers
from numllama.training import plan
from numllama.training.plan import Plan, activation_bytes, flops_per_token, memory

SHAPES = [
    dict(vocab_size=64, dim=256, n_layers=6, n_heads=4, B=8, T=128),
    dict(vocab_size=256, dim=256, n_layers=12, n_heads=4, n_kv_heads=1, B=4, T=256),
    dict(vocab_size=4096, dim=256, n_layers=4, n_heads=4, B=4, T=256),
    dict(vocab_size=64, dim=256, n_layers=3, n_heads=8, ffn_dim=1536, B=8, T=128, tie_embeddings=True),
    dict(vocab_size=64, dim=256, n_layers=6, n_heads=4, B=8, T=128, ffn="gelu", norm="layernorm", positions="learned", bias=True),
    dict(vocab_size=64, dim=256, n_layers=6, n_heads=4, ffn_dim=64, B=8, T=128),
    dict(vocab_size=64, dim=256, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=128, ffn_dim=256, B=8, T=128),
]


def build(B, T, compute_dtype="float32", **shape):
    config = ModelConfig(**shape, max_seq_len=T)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (B, T + 1))
    return Transformer(config, compute_dtype=compute_dtype), tokens[:, :-1], tokens[:, 1:]


def measured_and_planned_activations(shape, recompute, compute_dtype):
    model, tokens, targets = build(**shape, compute_dtype=compute_dtype)
    grads = model.params.zeros_like()
    model.loss_and_grads(tokens[:1], targets[:1], grads=grads)  # whatever is made once, is made
    tracemalloc.start()
    try:
        model.loss_and_grads(tokens, targets, grads=grads, recompute=recompute)
        measured = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return measured, activation_bytes(model.config, *tokens.shape, recompute, compute_dtype)


@pytest.mark.parametrize("compute_dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_activations_are_within_ten_percent_of_what_a_step_measures(shape, recompute, compute_dtype):
    measured, planned = measured_and_planned_activations(shape, recompute, compute_dtype)
    assert planned == pytest.approx(measured, rel=0.1)


def test_bfloat16_on_a_cpu_that_cannot_multiply_it(without_onednn):
    measured, planned = measured_and_planned_activations(SHAPES[0], False, "bfloat16")
    assert planned == pytest.approx(measured, rel=0.1)
    assert planned < measured_and_planned_activations(SHAPES[0], False, "float32")[1]


def test_a_gpu_keeps_all_activations_in_two_bytes():
    config = ModelConfig(vocab_size=64, dim=256, n_layers=6, n_heads=4)
    half, whole = (activation_bytes(config, 8, 128, False, dtype, on_gpu=True) for dtype in ("bfloat16", "float32"))
    assert 2 * half == whole


def test_accumulation_takes_the_memory_of_one_shard_however_large_the_batch_is():
    peaks = []
    for rows in (2, 12):
        model, tokens, targets = build(B=rows, T=64, vocab_size=64, dim=64, n_layers=4, n_heads=2)
        pool = Workers(model, 1)
        loss_and_grads(pool, tokens, targets, rows)
        tracemalloc.start()
        try:
            loss_and_grads(pool, tokens, targets, rows)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


@pytest.mark.parametrize(("gpus", "sharded"), [(1, False), (2, False), (2, True), (4, True)])
def test_weights_gradients_and_moments_are_what_ranks_keep(gpus, sharded):
    shape = dict(vocab_size=2000, dim=256, n_layers=4, n_heads=4, B=1, T=8)

    def kept(comm):
        model, _, _ = build(**shape)
        pool = Ranks(model, comm, sharded)
        optimizer = AdamW(pool.params)
        owned = pool.params.flat.nbytes if sharded else 0
        moments = sum(state.flat.nbytes for state in optimizer.state.values())
        return model.params.flat.nbytes, pool._total.flat.nbytes + (gpus > 1) * pool._grads.flat.nbytes, moments + owned

    planned = memory(build(**shape)[0].config, 1, 8, gpus=gpus, shard_optimizer=sharded)
    measured = np.mean(together(gpus, kept), axis=0)
    assert [planned[name] for name in ("weights", "gradients", "moments")] == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_flops_are_within_ten_percent_of_the_products_of_a_step(without_onednn, monkeypatch, shape, recompute):
    """Every product is counted where it is made, by the shapes of its operands."""
    model, tokens, targets = build(**shape)
    done, factor = [0], [0]
    plain_scores = flash_attention.scores

    def scores(q, k, mask):
        s = plain_scores(q, k, mask)
        done[0] += factor[0] * 2 * s.size * q.shape[-1]
        return s

    def counted(name, products, of_linear):
        plain = getattr(ops, name)

        def run(*args, **kwargs):
            if of_linear:
                x, weight = args[:2] if name.endswith("forward") else args[1][:2]
                done[0] += products * 2 * prod(x.shape[:-1]) * weight.size
            factor[0] = products
            return plain(*args, **kwargs)

        monkeypatch.setattr(ops, name, run)
        if of_linear:
            for several in (linears, cpu_linears):  # where several maps are one after the other
                monkeypatch.setattr(several, name, run, raising=False)

    monkeypatch.setattr(flash_attention, "scores", scores)
    for name, products in (("linear_forward", 1), ("linear_backward", 2)):
        counted(name, products, True)
    for name, products in (("flash_attention_forward", 2), ("flash_attention_backward", 5)):
        counted(name, products, False)
    model.loss_and_grads(tokens, targets, recompute=recompute)
    planned = sum(flops_per_token(model.config, shape["T"], recompute).values()) * tokens.size
    assert planned == pytest.approx(done[0], rel=0.1)


def test_messages_are_what_ranks_send():
    """Of what a rank has, all but its own part goes out, and all but its own part comes in."""
    sent = {}

    def run(comm):
        model, tokens, targets = build(vocab_size=50, dim=64, n_layers=2, n_heads=2, B=3, T=8)
        pool, plain, total = Ranks(model, comm), comm.reduce_scatter, [0]

        def counting(array, bounds, into, **options):
            total[0] += array.nbytes - into.nbytes
            return plain(array, bounds, into, **options)

        comm.reduce_scatter = counting
        loss_and_grads(pool, tokens, targets, 3)
        sent[comm.rank] = total[0]
        return model.config

    config, *_ = together(3, run)
    planned = Plan(config, gpus=3, seq_len=8, batch_size=3).figures()["sent"] / 2  # as much comes back
    assert np.mean(list(sent.values())) == pytest.approx(planned, rel=0.1)


def test_time_and_cost_by_hand():
    config = ModelConfig.preset("llama-3-8b")
    p = Plan(config, gpus=64, batch_size=512, seq_len=4096, tokens=1e12, mfu=0.5, price=2.0)
    f = p.figures()
    per_token = f["flops per token"]
    assert per_token == pytest.approx(6 * 7.5e9, rel=0.1)
    assert f["computing"] == pytest.approx(8 * 4096 * per_token / (989e12 * 0.5))
    assert f["sending"] == pytest.approx(2 * 4 * count_parameters(config) * 63 / 64 / 50e9, rel=0.01)
    assert f["steps"] == -(-(10**12) // (512 * 4096))
    assert f["cost"] == pytest.approx(f["seconds"] / 3600 * 64 * 2)
    assert f["step"] == f["computing"] + f["sending"] - f["hidden"]


def test_the_documents_table_is_what_the_plan_says():
    path = EXAMPLES.parent / "docs" / "scaling.md"
    if not path.exists():
        pytest.skip("tests without the documents")
    rows = re.findall(r"^\| (\d+) \| (\d+) x (\d+) \| (.*) \|$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 2
    for gpus, batch_size, seq_len, shown in rows:
        run = dict(gpus=int(gpus), batch_size=int(batch_size), seq_len=int(seq_len), shard_optimizer=True, recompute=True)
        figures = Plan(ModelConfig.preset("llama-3-8b"), **run).figures()
        assert shown.split(" | ") == [f"{figures[name]:.2f}" for name in ("computing", "sending", "hidden", "step")]


def test_the_command_prints_all_of_it(capsys):
    words = ["plan", "--preset", "llama-3-8b", "--gpus", "64", "--tokens", "160e9", "--shard-optimizer", "--recompute"]
    assert app(words, result_action="return_value") == 0
    out = capsys.readouterr().out
    parts = ["weights", "gradients", "moments", "activations"]
    for words in ("8,030,261,248 parameters", "64 x h100 on 8 machine(s)", *parts, "6.17 days, about $23,703"):
        assert words in out


def test_a_program_reads_the_same(capsys):
    assert app(["plan", "--preset", "117m", "--gpus", "8", "--json"], result_action="return_value") == 0
    found = json.loads(capsys.readouterr().out)
    plan = Plan(ModelConfig.preset("117m"), gpus=8, seq_len=1024)
    assert found["memory"]["all_of_it"] == plan.memory()["all of it"]
    assert found["tokens_per_second"] == plan.figures()["tokens per second"]


IMPOSSIBLE = [
    (dict(gpu="h1000"), "gpu is 'h1000', but must be one of 'rtx4090', 'a100'"),
    (dict(gpus=0), "gpus is 0, but must be a whole number of at least 1"),
    (dict(mfu=1.5), r"mfu is 1.5, but must lie in \(0, 1\]"),
    (dict(seq_len=9000), "seq_len is 9000, but the model's max_seq_len is 8192"),
    (dict(gpus=10**400), "gpus is 1000.*, but no number here may be so large"),
    (dict(rows=True), "rows is True, but must be a whole number of at least 1"),
    (dict(tokens=None), "tokens is None, but must be positive and finite"),
    (dict(network="fast"), "network is 'fast', but must be positive and finite"),
    (dict(price=-1.0), "price is -1.0, but must not be negative"),
    (dict(tokens=float("inf")), "tokens is inf, but must be positive and finite"),
    (dict(gpus=1024), "batch_size is 512, but 1024 GPUs need a sequence each"),
]


@pytest.mark.parametrize("changes", [dict(n_layers=10**12), dict(vocab_size=10**15), dict(ffn_dim=2**62)])
def test_a_model_beyond_any_machine_is_planned_at_once(changes):
    config = ModelConfig(**dict(vocab_size=100, dim=8, n_layers=1, n_heads=1, max_seq_len=2048) | changes)
    figures = plan.Plan(config).values()
    assert figures["memory"]["weights"] > 1e13
    assert "DOES NOT FIT" in plan.Plan(config).text()


@pytest.mark.parametrize(("changes", "sentence"), IMPOSSIBLE)
def test_an_impossible_plan_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan.Plan(ModelConfig.preset("llama-3-8b"), **changes)


# ------------------------------------------------------------------------------------------------ for people


@pytest.mark.parametrize(("value", "units", "words"), [
    (141e9, plan.BYTE_UNITS, "141.00 GB"), (3.23e6, plan.BYTE_UNITS, "3.23 MB"), (40, plan.BYTE_UNITS, "40.00 B"),
    (2 * 86400, plan.TIME_UNITS, "2.00 days"), (90, plan.TIME_UNITS, "1.50 minutes"), (0.0123, plan.TIME_UNITS, "12.30 ms"),
    (0.0, plan.TIME_UNITS, "0.00 us"), (4e12, plan.BYTE_UNITS, "4,000.00 GB"),
])  # fmt: skip
def test_a_value_is_shown_in_a_unit_in_which_it_is_not_zero(value, units, words):
    assert plan.in_units(value, units) == words


@pytest.mark.parametrize("run", [dict(gpu="cpu"), dict(gpu="h100"), dict(gpu="rtx4090", gpus=2, rows=4)])
@pytest.mark.parametrize("shape", [dict(), dict(dim=8, n_layers=1, n_heads=1, n_kv_heads=1, ffn_dim=8)])
def test_nothing_of_a_small_model_is_shown_as_zero(run, shape):
    config = ModelConfig.preset("shakespeare-cpu", vocab_size=65, **shape)
    text = Plan(config, **dict(seq_len=64, batch_size=12, tokens=1e6) | run).text()
    memory = text.split("memory of")[1].split("\n\n")[0]
    assert not re.search(r"\b0\.00 [GMk]?B", memory)
    assert not re.search(r"a step: 0\.00 |steps, 0\.00 ", text)


@pytest.mark.parametrize(("changes", "advice"), [
    (dict(), "see --recompute, --gpus with --shard-optimizer"),
    (dict(recompute=True), "see --gpus with --shard-optimizer"),
    (dict(gpus=4, rows=2), "see --shard-optimizer, --recompute, fewer --rows"),
    (dict(gpus=4, rows=2, recompute=True, shard_optimizer=True), "see fewer --rows, more --gpus"),
    (dict(gpus=4, batch_size=4, recompute=True, shard_optimizer=True), "it takes a smaller model, or a shorter --seq-len"),
    (dict(gpu="cpu", batch_size=1, recompute=True), "it takes a smaller model, or a shorter --seq-len"),
])  # fmt: skip
def test_advice_is_what_is_not_taken_yet(monkeypatch, changes, advice):
    monkeypatch.setattr(plan, "machine_memory", lambda: 8e9)
    text = Plan(ModelConfig.preset("llama-3-8b"), **changes).text()
    assert re.search("DOES NOT FIT: (.*)", text)[1] == advice
    assert ("with recomputation" in text) == changes.get("recompute", False)


def test_a_cpu_is_planned_as_train_runs_on_it(monkeypatch):
    monkeypatch.setattr(plan, "available_cores", lambda: 3)
    monkeypatch.setattr(plan, "machine_memory", lambda: 8e9)
    config = ModelConfig.preset("shakespeare-cpu", vocab_size=65)
    p = Plan(config, gpu="cpu", batch_size=64, seq_len=64)
    assert (p.compute_dtype, p.rows) == ("float32", 3 * 16)  # 4 shards of 16 sequences, of which three run at once
    f = p.figures()
    assert f["step"] == pytest.approx(64 * 64 * f["flops per token"] / (3 * plan.CORE_FLOPS * 0.4))
    assert p.memory()["activations"] == activation_bytes(config, 48, 64, False)
    text = p.text()
    for words in ("this machine's CPU, 3 core(s)", "of 8.00 GB: fits", "estimated: time, from 150 GFLOP/s of a core"):
        assert words in text
    assert "$" not in text
    with pytest.raises(ValueError, match="gpus is 2, but cpu is this machine's"):
        Plan(config, gpu="cpu", gpus=2, seq_len=64)


def test_a_preset_with_a_recipe_is_planned_as_train_runs_it(capsys):
    assert app(["plan", "--preset", "shakespeare-cpu"], result_action="return_value") == 0
    out = capsys.readouterr().out
    assert "this machine's CPU" in out
    assert "12 x 64 tokens a step, float32" in out
    assert "2,000 steps" in out
    assert app(["plan", "--preset", "shakespeare", "--batch-size", "4"], result_action="return_value") == 0
    assert "1 x h100 on 1 machine(s): 4 x 256 tokens" in capsys.readouterr().out
