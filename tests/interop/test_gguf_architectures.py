"""Architectures of GGUF files: what their values mean, which models they hold, and what is refused."""

import math
from dataclasses import replace

import gguf
import numpy as np
import pytest
from helpers import assert_same_bits
from interop.checkpoints import random_model
from interop.test_gguf import write

import numllama as nl
from numllama.errors import CheckpointError
from numllama.interop import gguf_write
from numllama.interop.families import family_of
from numllama.interop.gguf_architectures import ARCHITECTURES, config_of
from numllama.interop.huggingface import to_halves
from numllama.interop.inspect import inspect
from numllama.interop.load import save
from numllama.storage.gguf_file import read_gguf

YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=8)
LINEAR = dict(rope_type="linear", factor=4.0)
LONGROPE = dict(
    rope_type="longrope", factor=2.0, original_max_position_embeddings=6, short_factor=[1.0, 1.2, 1.7],
    long_factor=[1.0, 2.5, 7.0],
)  # fmt: skip
GEMMA = dict(norm="rmsnorm1p", ffn="geglu", embed_scale=math.sqrt(24))
GEMMA_1 = GEMMA | dict(tie_embeddings=True)
GEMMA_2 = GEMMA_1 | dict(
    norm_placement="both", sliding_window=5, window_layers=(0, 2), attn_scale=6**-0.5, attn_softcap=50.0, logit_softcap=30.0
)
GEMMA_3 = GEMMA | dict(
    norm_placement="both", qk_norm="rms", sliding_window=5, window_layers=(0, 1), local_rope_theta=300.0, attn_scale=6**-0.5
)
EXPERTS = dict(ffn="moe", n_experts=4, n_experts_per_token=2)
NO_ROPE = dict(n_layers=5, rope_layers=(0, 1, 2, 4))
CASES = {  # an architecture, a hyphen, and a word for what is special: changes of a small Llama, of three layers
    "llama-plain": {},
    "llama-all_biases": dict(bias=True),
    "llama-ffn_biases": dict(bias="ffn"),
    "llama-attention_biases": dict(bias="attention", tie_embeddings=True),
    "llama-yarn": dict(rope_scaling=YARN),
    "llama-longrope": dict(rope_scaling=LONGROPE),
    "llama-experts": EXPERTS,
    "llama-biased_experts": dict(**EXPERTS, bias="attention", head_dim=10, n_kv_heads=4),
    "qwen2-plain": dict(bias="qkv"),
    "qwen2-attention_factor": dict(bias="qkv", rope_scaling={**YARN, "attention_factor": 1.5}),
    "qwen3-plain": dict(qk_norm="rms", head_dim=10),
    "qwen3moe-plain": dict(qk_norm="rms", **EXPERTS, tie_embeddings=True),
    "smollm3-plain": NO_ROPE,
    "smollm3-yarn": dict(**NO_ROPE, rope_scaling=YARN),
    "phi3-plain": dict(family="phi3"),
    "phi3-window": dict(family="phi3", sliding_window=5),
    "phi3-partial": dict(rotary_dim=4),
    "phi3-longrope": dict(family="phi3", rope_scaling={**LONGROPE, "attention_factor": 1.5}),
    "olmo2-plain": dict(norm_placement="after", qk_norm="rms_width"),
    "gemma-plain": GEMMA_1 | dict(head_dim=10),
    "gemma-linear": GEMMA_1 | dict(rope_scaling=LINEAR),
    "gemma2-plain": GEMMA_2,
    "gemma2-caps": GEMMA_2 | dict(attn_softcap=1.5, logit_softcap=2.5, window_layers=None),
    "gemma3-plain": GEMMA_3,
    "gemma3-tied": GEMMA_3 | dict(tie_embeddings=True, window_layers=None, logit_softcap=4.0, rope_scaling=LINEAR),
    "gemma3-no_windows": GEMMA_3 | dict(sliding_window=None, window_layers=None, local_rope_theta=None),
}  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)


def model_of(name, **changes):
    return random_model(**dict(n_layers=3) | CASES[name] | changes)


@every_case
def test_a_round_trip_changes_no_bit(tmp_path, name):
    model = model_of(name)
    model.save(tmp_path / "x.gguf")
    assert read_gguf(tmp_path / "x.gguf").values["general.architecture"] == name.partition("-")[0]
    again, one = nl.load(tmp_path / "x.gguf"), np.float32(model.config.norm == "rmsnorm1p")
    scaling = again.config.rope_scaling or {}
    if "attention_factor" in scaling:  # a product in the file
        scaling["attention_factor"] = round(scaling["attention_factor"], 6)
    assert again.config == replace(model.config, family=again.config.family)
    assert family_of(again.config) in ARCHITECTURES[name.partition("-")[0]].families
    for key, ours in model.params.items():
        gain = one if key.endswith("norm") else 0  # what is stored is 1 + weight
        assert_same_bits(again.params[key] + gain, ours + gain)


@every_case
def test_inspect_counts_every_parameter_once(name):
    model = model_of(name)
    assert inspect(model)["parameters"]["total"] == model.params.flat.size


@every_case
def test_neighbours_are_reordered_as_the_architecture_needs_them(tmp_path, name):
    if CASES[name].get("rotary_dim"):
        with pytest.raises(ValueError, match=r"rope\.dimension_count is 4, but only the head size, 6"):
            model_of(name, rope_layout="interleaved").save(tmp_path / "x.gguf")
        return
    model = model_of(name, rope_layout="interleaved")
    model.save(tmp_path / "x.gguf")
    tokens = np.arange(12)[None]
    np.testing.assert_allclose(nl.load(tmp_path / "x.gguf").forward(tokens), model.forward(tokens), atol=5e-5)


@every_case
def test_rows_and_gains_are_stored_as_llama_cpp_computes_with_them(tmp_path, name):
    """Neighbours in a Llama and a SmolLM 3, halves elsewhere; a gain of 1 + weight as such; stacked maps one after the other."""
    model = model_of(name)
    model.save(tmp_path / "x.gguf")
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    c, params = model.config, model.params
    assert_same_bits(stored["output_norm.weight"], params["norm"] + (1 if "gemma" in name else 0))
    last = {part: params[f"blocks.{c.n_layers - 1}.{part}"] for part in ("wq", "wk", "wv")}
    if name.startswith(("llama", "smollm3")):
        pairs = {"wq": (c.n_heads, 2, -1), "wk": (c.n_kv_heads, 2, -1)}
        last |= {part: last[part].reshape(*split, c.dim).swapaxes(1, 2).reshape(-1, c.dim) for part, split in pairs.items()}
    start = f"blk.{c.n_layers - 1}."
    if name.startswith("phi3"):
        assert_same_bits(stored[f"{start}attn_qkv.weight"], np.concatenate([*last.values()]))
    else:
        for part, theirs in (("wq", "attn_q"), ("wk", "attn_k"), ("wv", "attn_v")):
            assert_same_bits(stored[f"{start}{theirs}.weight"], last[part])
    if c.ffn == "moe":
        assert_same_bits(stored[f"{start}ffn_down_exps.weight"], params[f"blocks.{c.n_layers - 1}.experts_down"])


@every_case
def test_names_are_those_of_the_architecture(tmp_path, name):
    model_of(name).save(tmp_path / "x.gguf")
    arch = next(kind for kind, text in gguf.MODEL_ARCH_NAMES.items() if text == name.partition("-")[0])
    layers = range(model_of(name).config.n_layers)
    known = {gguf.TENSOR_NAMES[tensor].format(bid=i) for tensor in gguf.MODEL_TENSORS[arch] for i in layers}
    known |= {gguf.TENSOR_NAMES[tensor] for tensor in (gguf.MODEL_TENSOR.ROPE_FACTORS_LONG, gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT)}
    assert {key.rpartition(".")[0] for key in read_gguf(tmp_path / "x.gguf").tensors} <= known


WIDER = dict(embed_scale=8.0, attn_scale=0.25)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
@pytest.mark.parametrize("name", ["llama-experts", "qwen3moe-plain", "phi3-plain", "gemma3-plain"])
def test_other_types_are_read_in_blocks_of_rows(tmp_path, monkeypatch, name, dtype):
    model = model_of(name, dim=64, ffn_dim=96, head_dim=16, **WIDER if "gemma" in name else {})
    save(model, tmp_path / "x.gguf", dtype=dtype)
    whole = nl.load(tmp_path / "x.gguf")
    largest = np.abs(whole.params.flat - model.params.flat).max() / np.abs(model.params.flat).max()
    assert 0 < largest < {"float16": 5e-4, "bfloat16": 4e-3, "q8_0": 4e-3}[dtype]
    for key, gain in model.params.items():
        if gain.ndim == 1 or key.endswith("router"):
            np.testing.assert_allclose(whole.params[key], gain, atol=1e-7)
    monkeypatch.setattr("numllama.model.parameters.COPIED", 7 * 64)  # 7 rows cut through heads; an expert is one block
    assert_same_bits(nl.load(tmp_path / "x.gguf").params.flat, whole.params.flat)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama-plain", dict(sliding_window=5), "sliding_window is 5, but in llama it is None"),
        ("llama-plain", dict(rope_scaling=dict(rope_type="dynamic", factor=2.0, original_max_position_embeddings=4)),
         "rope_scaling is .*dynamic.*, but in llama it is None"),
        ("llama-plain", dict(rope_scaling={**YARN, "beta_slow": 0.01}), "rope_scaling is .*, but in llama it is"),
        ("llama-plain", dict(norm="layernorm"), "norm is 'layernorm', but in llama it is 'rmsnorm'"),
        ("llama-plain", dict(positions="learned"), "positions is 'learned', but in llama it is 'rope'"),
        ("llama-plain", dict(qk_norm="l2"), "qk_norm is 'l2', but in llama it is None"),
        ("llama-experts", dict(router_score="sigmoid"), "router_score is 'sigmoid', but in llama it is 'softmax'"),
        ("qwen2-plain", dict(sliding_window=5), "sliding_window is 5, but in qwen2 it is None"),
        ("qwen3-plain", dict(bias="attention"), "bias is 'attention', but in qwen3 it is False"),
        ("qwen3-plain", dict(rope_scaling=LONGROPE | dict(short_factor=[1.0] * 5, long_factor=[2.0] * 5)),
         "scaled by 'longrope', but in qwen3 only linear, yarn are supported"),
        ("qwen3moe-plain", dict(router_normalised=False), "router_normalised is False, but in qwen3moe it is True"),
        ("smollm3-plain", dict(rope_layers=(0, 2)), r"rope_layers is \(0, 2\), but in smollm3 it is \(0, 1, 2, 4\)"),
        ("smollm3-plain", dict(bias=True), "bias is True, but in smollm3 it is False"),
        ("phi3-partial", dict(head_dim=8), "4 heads of 8 are not as wide as the model, 24, but in phi3 they must be"),
        ("olmo2-plain", dict(tie_embeddings=True), "tie_embeddings is True, but in olmo2 it is False"),
        ("gemma-plain", dict(tie_embeddings=False), "tie_embeddings is False, but in gemma it is True"),
        ("gemma2-plain", dict(attn_softcap=None), r"attn_softcap is None, but in gemma2 it is 50\.0"),
        ("gemma2-plain", dict(window_layers=(1,)), r"window_layers is \(1,\), but in gemma2 it is \(0, 2\)"),
        ("gemma2-plain", dict(sliding_window=None, window_layers=None), "sliding_window is None, but in gemma2 it is 4096"),
        ("gemma2-plain", dict(attn_scale=0.5), r"attn_scale is 0\.5, but in gemma2 it is 0\.408"),
    ],
)  # fmt: skip
def test_what_no_architecture_holds_is_refused_by_name(tmp_path, name, changes, words):
    with pytest.raises(ValueError, match=f"^a GGUF file cannot hold this model: .*{words}"):
        model_of(name, **changes).save(tmp_path / "x.gguf")
    assert not any(tmp_path.iterdir())


def test_what_only_training_needs_is_not_in_a_file(tmp_path):
    model = model_of("llama-experts", dropout=0.5, init_std=0.1, init="truncated_normal", router_aux_loss=True)
    model.save(tmp_path / "x.gguf")
    assert nl.load(tmp_path / "x.gguf").config == model_of("llama-experts").config


# ------------------------------------------------------------------------------------------------ reading


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """Save a model with other values; None leaves one out."""

    def saved(name, values, vectors=None, **changes):
        def described(config):
            architecture, found, old = gguf_write_described(config)
            found = {key: value for key, value in (found | values).items() if value is not None}
            return architecture, found, old if vectors is None else vectors

        gguf_write_described = gguf_write.described
        monkeypatch.setattr(gguf_write, "described", described)
        model = model_of(name, **changes)
        model.save(tmp_path / "x.gguf")
        monkeypatch.undo()
        return model, tmp_path / "x.gguf"

    return saved


WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


@pytest.mark.parametrize(
    ("name", "left_out", "fields"),
    [
        ("gemma2-caps", ("attn_logit_softcapping", "final_logit_softcapping"), dict(attn_softcap=50.0, logit_softcap=30.0)),
        ("gemma2-caps", (WINDOW, PATTERN), dict(sliding_window=4096, window_layers=(0, 2))),
        ("gemma3-plain", (WINDOW,), dict(sliding_window=None, window_layers=None, local_rope_theta=None)),
        ("gemma3-plain", ("rope.freq_base_swa", PATTERN), dict(local_rope_theta=1e4, sliding_window=5, window_layers=None)),
        ("gemma-plain", ("rope.freq_base", "rope.dimension_count", "attention.value_length"), dict(rope_theta=1e4, head_dim=10)),
        ("phi3-window", (WINDOW,), dict(sliding_window=None)),
        ("phi3-longrope", ("rope.scaling.type",), dict(rope_scaling={**LONGROPE, "attention_factor": 1.5})),
        ("qwen2-attention_factor", ("rope.scaling.attn_factor",), dict(rope_scaling=YARN)),
    ],
)  # fmt: skip
def test_what_a_file_leaves_out_is_what_llama_cpp_takes(changed, name, left_out, fields):
    model, path = changed(name, dict.fromkeys(left_out))
    assert nl.load(path).config == replace(model.config, **fields)


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        (np.array([True, False, True]), (0, 2)), (np.array([True, True, True]), None), (np.uint32(0), None),
        (np.uint32(3), (0, 1)), (np.uint32(9), None),
    ],
)  # fmt: skip
def test_layers_with_a_window_are_counted_or_listed(changed, pattern, layers):
    _, path = changed("gemma3-plain", {PATTERN: pattern})
    config = nl.load(path).config
    assert (config.sliding_window, config.window_layers) == (5, layers)
    _, path = changed("gemma3-plain", {PATTERN: np.array([False, False, False])})
    assert nl.load(path).config.sliding_window is None


LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
THREE = np.ones(3, "<f4")


@pytest.mark.parametrize(
    ("name", "values", "vectors", "words"),
    [
        ("qwen2-plain", {WINDOW: np.uint32(5)}, None, "needs qwen2.attention.sliding_window, which numllama does not compute"),
        ("qwen3-plain", {"pooling_type": np.uint32(1)}, None, "needs qwen3.pooling_type"),
        ("qwen3moe-plain", {"expert_count": None}, None, "lacks expert_count"),
        ("qwen3moe-plain", {"expert_feed_forward_length": None}, None, "lacks expert_feed_forward_length"),
        ("qwen3moe-plain", {"expert_count": np.uint32(3)}, None, r"ffn_gate_inp\.weight has shape \(4, 24\), but \(3, 24\)"),
        ("qwen3moe-plain", {"expert_count": np.uint32(0)}, None, r"lacks blk\.0\.ffn_gate\.weight"),
        ("llama-experts", {"expert_used_count": np.uint32(5)}, None, "n_experts is 4 and n_experts_per_token is 5"),
        ("llama-experts", {"expert_gating_func": np.uint32(2)}, None, "expert_gating_func is 2, but only 1 is supported"),
        ("llama-experts", {"expert_weights_scale": np.float32(2.5)}, None, "expert_weights_scale is 2.5, but only 1"),
        ("qwen2-attention_factor", {"rope.scaling.yarn_beta_fast": np.float32(4)}, None, "beta_fast is 4.0, but only 32"),
        ("qwen2-attention_factor", {"rope.scaling.yarn_log_multiplier": np.float32(0.1)}, None, "needs qwen2.*log_mul"),
        ("qwen2-plain", {"rope.scaling.attn_factor": np.float32(2)}, None, "attn_factor is 2.0, but only yarn and longrope"),
        ("gemma3-plain", {PATTERN: np.array([True, False])}, None, "pattern has 2 entries, but there are 3 layers"),
        ("gemma3-plain", {PATTERN: np.float32(2)}, None, "must be a whole number, or true or false for each layer"),
        ("gemma2-plain", {"attn_logit_softcapping": np.float32(0)}, None, "must be a positive number"),
        ("phi3-longrope", {}, {LONG: THREE}, r"it lacks rope_factors_short\.weight"),
        ("phi3-longrope", {}, {LONG: THREE, SHORT: np.ones(2, "<f4")}, r"rope_factors_short\.weight has 2 numbers, .* 3 pairs"),
        ("phi3-longrope", {}, {LONG: THREE, SHORT: -THREE}, r"rope_factors_short\.weight holds numbers by which"),
        ("gemma3-plain", {"attention.head_count": np.uint32(100)}, None, "head_count is 100, but the model is only 24 wide"),
        ("llama-plain", {}, {"rope_freqs.weight": np.array([1, 2, 1], "<f4")}, r"rope_freqs\.weight scales RoPE in another way"),
        ("llama-plain", {}, {"rope_freqs.weight": np.ones(2, "<f4")}, r"rope_freqs\.weight has 2 numbers, but .* 3 pairs"),
        ("llama-plain", {}, {"rope_freqs.weight": 0 * THREE}, r"rope_freqs\.weight holds numbers by which frequencies cannot"),
        ("phi3-longrope", {}, {LONG: THREE, SHORT: np.ones((3, 1), "<f4")}, r"has shape \(3, 1\), but must be a vector"),
        ("phi3-longrope", {"rope.scaling.original_context_length": np.uint32(1)}, None, "must be a whole number of at least 2"),
        ("llama-yarn", {}, {"rope_freqs.weight": 2 * THREE}, "is scaled by 'yarn' and by rope_freqs"),
        ("qwen3-plain", {}, {LONG: np.ones(5, "<f4"), SHORT: np.ones(5, "<f4")}, "it lacks rope.scaling.original_context_length"),
        ("phi3-plain", {"rope.dimension_count": np.uint32(5)}, None, "rotary_dim is 5, but must be even"),
        ("olmo2-plain", {"attention.head_count": np.uint32(3)}, None, "n_heads is 3 and n_kv_heads is 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(changed, name, values, vectors, words):
    _, path = changed(name, values, vectors)
    with pytest.raises(CheckpointError, match=words):
        nl.load(path)


@pytest.mark.parametrize(
    ("biased", "bias"), [(["attn_q", "attn_k", "attn_v"], "qkv"), (["ffn_gate", "ffn_up", "ffn_down"], "ffn")]
)
def test_biases_of_some_maps_of_a_llama(tmp_path, biased, bias):
    sizes = {"attn_k": 128, "attn_v": 128}
    found = write(tmp_path / "x.gguf", tensors={f"blk.0.{part}.bias": (sizes.get(part, 256),) for part in biased})
    model = nl.load(tmp_path / "x.gguf")
    assert model.config.bias == bias
    if bias == "qkv":
        assert_same_bits(model.params["blocks.0.wk_bias"], to_halves(found["blk.0.attn_k.bias"], 2))
        assert_same_bits(model.params["blocks.0.wv_bias"], found["blk.0.attn_v.bias"])
    write(tmp_path / "y.gguf", tensors={"blk.0.attn_q.bias": (256,)})
    with pytest.raises(CheckpointError, match=r"tensors that this model does not have: blk\.0\.attn_q\.bias"):
        nl.load(tmp_path / "y.gguf")


# Values of published files: numbers from their headers, and fields of their models' config.json.
def sizes(context, width, layers, hidden, heads, kv_heads, eps=1e-6, **values):
    return {
        "context_length": context, "embedding_length": width, "block_count": layers, "feed_forward_length": hidden,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.layer_norm_rms_epsilon": eps,
    } | {key.replace("__", "."): value for key, value in values.items()}  # fmt: skip


PUBLISHED = {
    "gemma-2-9b": (
        "gemma2", sizes(8192, 3584, 42, 14336, 16, 8, attention__key_length=256, attention__sliding_window=4096),
        dict(attn_scale=256**-0.5, sliding_window=4096, window_layers=tuple(range(0, 42, 2)), attn_softcap=50.0),
    ),
    "gemma-2-27b": (
        "gemma2", sizes(8192, 4608, 46, 36864, 32, 16, attention__key_length=128, attention__sliding_window=4096),
        dict(attn_scale=144**-0.5, head_dim=128, logit_softcap=30.0),
    ),
    "gemma-3-27b": (
        "gemma3",
        sizes(131072, 5376, 62, 21504, 32, 16, attention__key_length=128, attention__sliding_window=1024, rope__freq_base=1e6)
        | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        dict(attn_scale=168**-0.5, window_layers=tuple(i for i in range(62) if i % 6 != 5), local_rope_theta=1e4),
    ),
    "qwen3-30b-a3b": (
        "qwen3moe",
        sizes(40960, 2048, 48, 6144, 32, 4, attention__key_length=128, expert_count=128, expert_used_count=8, rope__freq_base=1e6)
        | {"expert_feed_forward_length": 768},
        dict(ffn="moe", ffn_dim=768, n_experts=128, n_experts_per_token=8, router_normalised=True, qk_norm="rms", head_dim=128),
    ),
    "mixtral-8x7b": (
        "llama", sizes(32768, 4096, 32, 14336, 32, 8, 1e-5, expert_count=8, expert_used_count=2, rope__freq_base=1e6),
        dict(ffn="moe", n_experts=8, n_experts_per_token=2, ffn_dim=14336, rope_theta=1e6),
    ),
    "smollm3-3b": (
        "smollm3", sizes(65536, 2048, 36, 11008, 16, 4, rope__freq_base=5e6),
        dict(rope_layers=tuple(i for i in range(36) if i % 4 != 3), rope_theta=5e6),
    ),
    "phi-3-mini-4k": (
        "phi3", sizes(4096, 3072, 32, 8192, 32, 32, 1e-5, rope__dimension_count=96, attention__sliding_window=2047),
        dict(sliding_window=2047, rotary_dim=None, family="phi3"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_of_published_files(name):
    architecture, values, fields = PUBLISHED[name]
    config = config_of(architecture, values, {"token_embd.weight": (32000, values["embedding_length"])}, {})
    for key, value in fields.items():
        assert getattr(config, key) == value, key
    assert family_of(config) in ARCHITECTURES[architecture].families


def test_every_architecture_is_here():
    assert {name.partition("-")[0] for name in CASES} == set(ARCHITECTURES)
