"""GGUF files of every architecture: transformers writes a tiny random model, it is opened and saved here, llama.cpp opens it.

What the file says is read independently: by the `gguf` package, with its own names of tensors, and where it can by transformers.
"""

import gguf
import numpy as np
import pytest
from helpers import assert_same_bits
from interop.llamacpp import LlamaCpp, quantised
from interop.peer import PARITY, AutoModelForCausalLM, torch, transformers
from realdata import real_data
from safetensors.numpy import load_file

import numllama as nl
from numllama.interop.families import FAMILIES
from numllama.interop.gguf_architectures import ARCHITECTURES
from numllama.interop.load import save

pytestmark = PARITY

SIZES = dict(
    vocab_size=515, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager",
)  # fmt: skip
TIED, WIDE = dict(tie_word_embeddings=True), dict(head_dim=32)
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=64)
LINEAR = dict(rope_type="linear", rope_theta=5000.0, factor=4.0)
LONGROPE = dict(
    rope_type="longrope", rope_theta=500.0, partial_rotary_factor=0.5, short_factor=[1.0, 1.2, 1.7, 2.1],
    long_factor=[1.0, 2.5, 7.0, 9.3],
)  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
EXPERTS = dict(num_experts_per_tok=2)
GEMMA_2 = dict(head_dim=32, sliding_window=9, query_pre_attn_scalar=32)
CASES = {  # a model_type of FAMILIES, a hyphen, and a word for its configuration: the architecture, the configuration
    "llama-plain": ("llama", {}),
    "llama-attention_bias": ("llama", dict(attention_bias=True)),
    "llama-biases": ("llama", dict(attention_bias=True, mlp_bias=True, **TIED)),
    "llama-yarn": ("llama", dict(rope_parameters=YARN)),
    "mistral-wide_heads": ("llama", dict(sliding_window=None, **WIDE)),
    "mixtral-plain": ("llama", dict(num_local_experts=4, **EXPERTS)),
    "mixtral-wide_heads": ("llama", dict(num_local_experts=3, num_key_value_heads=4, **WIDE, **EXPERTS)),
    "qwen2-plain": ("qwen2", {}),
    "qwen2-tied": ("qwen2", dict(num_key_value_heads=1, **TIED)),
    "qwen2-yarn": ("qwen2", dict(rope_parameters=YARN)),
    "qwen2-attention_factor": ("qwen2", dict(rope_parameters={**YARN, "attention_factor": 1.7})),
    "qwen3-plain": ("qwen3", WIDE),
    "qwen3-default_heads": ("qwen3", dict(head_dim=128, **TIED)),
    "qwen3_moe-plain": ("qwen3moe", dict(num_experts=6, moe_intermediate_size=32, norm_topk_prob=True, **EXPERTS, **WIDE)),
    "smollm3-plain": ("smollm3", dict(num_hidden_layers=5)),
    "smollm3-untied": ("smollm3", dict(num_hidden_layers=4, tie_word_embeddings=False, rope_parameters=YARN)),
    "phi3-plain": ("phi3", {}),
    "phi3-window": ("phi3", dict(sliding_window=200, num_key_value_heads=4)),
    "phi3-partial": ("phi3", dict(rope_parameters=dict(rope_type="default", rope_theta=5e3, partial_rotary_factor=0.5))),
    "phi3-short_longrope": (
        "phi3", dict(rope_parameters=LONGROPE, original_max_position_embeddings=256, max_position_embeddings=1024)
    ),
    "phi3-longrope": ("phi3", dict(rope_parameters=LONGROPE, original_max_position_embeddings=32)),
    "olmo2-plain": ("olmo2", {}),
    "olmo2-one_head": ("olmo2", dict(num_key_value_heads=1, rope_parameters=YARN)),
    "gemma-plain": ("gemma", WIDE),
    "gemma-linear": ("gemma", dict(rope_parameters=LINEAR, num_key_value_heads=1, **WIDE)),
    "gemma2-plain": ("gemma2", GEMMA_2),
    "gemma2-caps": ("gemma2", dict(**GEMMA_2, attn_logit_softcapping=1.5, final_logit_softcapping=2.0, num_hidden_layers=4)),
    "gemma2-windows": ("gemma2", dict(**GEMMA_2, num_hidden_layers=4, layer_types=[SLIDING, SLIDING, FULL, SLIDING])),
    "gemma3_text-plain": ("gemma3", dict(**GEMMA_2, num_hidden_layers=7)),
    "gemma3_text-untied": ("gemma3", dict(**GEMMA_2, tie_word_embeddings=False, layer_types=[SLIDING, FULL, SLIDING])),
    "gemma3_text-scaled": (
        "gemma3",
        dict(
            **GEMMA_2, layer_types=[SLIDING, SLIDING, FULL], final_logit_softcapping=5.0,
            rope_parameters={FULL: LINEAR, SLIDING: dict(rope_type="default", rope_theta=300.0)},
        ),
    ),
    "gemma3_text-yarn": (
        "gemma3", dict(**GEMMA_2, rope_parameters={FULL: YARN, SLIDING: dict(rope_type="default", rope_theta=300.0)})
    ),
}  # fmt: skip
BYTES = (2, *range(3, 259))  # of tok512.bin: the end, and tokens of one byte
every_case = pytest.mark.parametrize("name", CASES)


def theirs(name, noise=0.2, **changes):
    """A random model of transformers, its gains and biases too. A small embedding lets other tokens than the last be likely."""
    torch.manual_seed(0)
    architecture = getattr(transformers, FAMILIES[name.partition("-")[0]].architecture)
    model = architecture(architecture.config_class(**SIZES | CASES[name][1] | changes))
    with torch.no_grad():
        for weight in model.parameters():
            weight += (0.05 if weight is model.get_input_embeddings().weight else noise) * torch.randn_like(weight)
    return model.eval()


@pytest.fixture
def opened(tmp_path, name):
    """Their model, the same one opened here, and the path of the file that was saved."""
    reference = theirs(name)
    reference.save_pretrained(tmp_path)
    model = nl.load(tmp_path)
    model.save(tmp_path / "x.gguf", nl.Tokenizer.load(real_data("tok512.bin")))
    return reference, model, tmp_path / "x.gguf"


def logprobs(model, ids):
    """Of the token after these."""
    logits = np.asarray(model.forward(np.array([ids]))[0, -1], "float64")
    return logits - np.logaddexp.reduce(logits)


@every_case
def test_llama_cpp_gives_the_same_greedy_ids_and_probabilities(opened):
    _, model, path = opened
    short = (model.config.rope_scaling or {}).get("original_max_position_embeddings") == 256
    there = LlamaCpp(path, context=256 if short else 512)  # in a context longer than that it takes the long factors for any text
    close, seen = 2e-3 if model.config.ffn == "geglu" else 1e-4, set()  # its GELU is a table of float16
    for seed in range(4):
        ids = [1, *np.random.default_rng(seed).integers(3, 512, 60).tolist()]
        ours = nl.generate(model, ids, 24, temperature=0, stop_ids=[2])
        assert there.greedy(ids, 24)[: len(ours)] == ours
        found = there.likeliest(ids, 10, BYTES)
        np.testing.assert_allclose(list(found.values()), logprobs(model, ids)[list(found)], atol=close)
        seen |= set(ours)
    assert len(seen) > 12


def numbers(scaling):
    """Those of a RoPE scaling; an attention factor is a product in a file."""
    return np.hstack([0, *(scaling[key] for key in sorted(scaling or {}) if key != "rope_type")])


@every_case
def test_reading_it_back_changes_no_bit(opened):
    """A gain of 1 + weight is stored as it is multiplied by, so the last bits of a small weight are lost, but not those of it."""
    _, model, path = opened
    again, one = nl.load(path), np.float32(model.config.norm == "rmsnorm1p")
    theirs_, ours = again.config.to_dict(), model.config.to_dict()
    assert theirs_.pop("family") in (ours.pop("family"), None)  # a Mistral without a window is a Llama
    np.testing.assert_allclose(numbers(theirs_.pop("rope_scaling")), numbers(ours.pop("rope_scaling")), rtol=1e-6)
    assert theirs_ == ours
    for key, ours in model.params.items():
        gain = one if key.endswith("norm") else 0
        assert_same_bits(again.params[key] + gain, ours + gain)
    for folder in ("a", "b"):
        save(again if folder == "b" else model, path.parent / folder / "x.gguf")
    assert (path.parent / "a" / "x.gguf").read_bytes() == (path.parent / "b" / "x.gguf").read_bytes()


def permuted(rows, heads):
    """As llama.cpp's converter does for RoPE of neighbours."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def expected_tensors(architecture, config, folder):
    """The tensors of a file, from the safetensors file that transformers wrote and the names that the `gguf` package has."""
    names = gguf.get_tensor_name_map(
        next(kind for kind, text in gguf.MODEL_ARCH_NAMES.items() if text == architecture), config.num_hidden_layers
    )
    found, experts = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        before, number, after = name.partition(".experts.")
        if number:
            i, part, _ = after.split(".")
            experts.setdefault(f"{before}.experts.{part}.weight", {})[int(i)] = tensor
        else:
            found[name] = tensor
    found |= {name: np.stack([parts[i] for i in range(len(parts))]) for name, parts in experts.items()}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in found.items():
        part = name.split(".")[-2]
        if architecture in ("llama", "smollm3") and part in heads:
            tensor = permuted(tensor, heads[part])
        if architecture.startswith("gemma") and part.endswith("norm"):
            tensor = tensor + np.float32(1)
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), tensor


@every_case
def test_the_tensors_are_those_that_the_gguf_package_names(opened, name):
    reference, _, path = opened
    architecture = CASES[name][0]
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    for key, tensor in expected_tensors(architecture, reference.config, path.parent):
        assert_same_bits(stored.pop(key), tensor)
    longrope = {f"rope_factors_{kind}.weight": LONGROPE[f"{kind}_factor"] for kind in ("long", "short")}
    for key in [*stored]:
        assert_same_bits(stored.pop(key), np.array(longrope[key], "float32"))


K = gguf.Keys
VALUES = {
    K.LLM.CONTEXT_LENGTH: "max_position_embeddings", K.LLM.EMBEDDING_LENGTH: "hidden_size",
    K.LLM.BLOCK_COUNT: "num_hidden_layers", K.LLM.FEED_FORWARD_LENGTH: "intermediate_size",
    K.Attention.HEAD_COUNT: "num_attention_heads",
    K.Attention.HEAD_COUNT_KV: "num_key_value_heads", K.Attention.LAYERNORM_RMS_EPS: "rms_norm_eps",
    K.LLM.VOCAB_SIZE: "vocab_size", K.LLM.EXPERT_USED_COUNT: "num_experts_per_tok",
    K.LLM.EXPERT_FEED_FORWARD_LENGTH: "moe_intermediate_size", K.LLM.ATTN_LOGIT_SOFTCAPPING: "attn_logit_softcapping",
    K.LLM.FINAL_LOGIT_SOFTCAPPING: "final_logit_softcapping", K.Attention.SLIDING_WINDOW: "sliding_window",
    K.Rope.SCALING_ORIG_CTX_LEN: "rope_parameters.original_max_position_embeddings",
    K.Rope.FREQ_BASE: "rope_parameters.rope_theta", K.Rope.SCALING_TYPE: "rope_parameters.rope_type",
}  # fmt: skip


@every_case
def test_the_values_are_those_of_the_config_json(opened, name):
    reference, _, path = opened
    architecture, reader = CASES[name][0], gguf.GGUFReader(path)
    fields = {key.removeprefix(f"{architecture}."): field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == architecture
    values = reference.config.to_dict()
    rope = values["rope_parameters"]
    values |= {f"rope_parameters.{key}": value for key, value in {**rope, **rope.get(FULL, {})}.items()}
    if architecture == "qwen3moe":
        values["intermediate_size"] = values["moe_intermediate_size"]  # transformers' own has no use in the model
    n = 0
    for key, theirs_ in VALUES.items():
        if (short := key.removeprefix("{arch}.")) in fields:
            value = values[theirs_] or 0
            assert fields[short] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key
            n += 1
    assert n >= 9
    head_dim = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    assert fields["attention.key_length"] == fields["attention.value_length"] == head_dim
    assert fields["rope.dimension_count"] == head_dim * rope.get("partial_rotary_factor", 1)
    n_experts = values.get("num_local_experts", values.get("num_experts"))
    assert fields.get("expert_count") == n_experts
    known = {key for group in (K.LLM, K.Attention, K.Rope) for key in vars(group).values() if isinstance(key, str)}
    ours = [key for key in reader.fields if key.startswith(f"{architecture}.")]
    assert {key.replace(architecture, "{arch}", 1) for key in ours} <= known


# transformers reads no more architectures than these, of a Qwen 3 no other head size, no scaled RoPE, no biases of a Llama, and
# not these fields of a configuration.
SCALE = dict(query_pre_attn_scalar=32)
SECOND_OPINION = {
    **{key: {} for key in ("llama-plain", "qwen2-plain", "qwen2-tied", "qwen3-default_heads", "phi3-plain")},
    "qwen3_moe-plain": dict(moe_intermediate_size=32),
    "gemma2-plain": SCALE, "gemma2-caps": dict(**SCALE, attn_logit_softcapping=1.5, final_logit_softcapping=2.0),
    "gemma3_text-plain": SCALE,
}  # fmt: skip


@pytest.mark.parametrize("name", SECOND_OPINION)
def test_transformers_opens_it_too(opened, name):
    reference, _, path = opened
    asked = dict(gguf_file=path.name, dtype=torch.float32, pad_token_id=0, **SECOND_OPINION[name])
    there = AutoModelForCausalLM.from_pretrained(path.parent, **asked, attn_implementation="eager").eval()
    assert type(there) is type(reference)
    state = there.state_dict()
    for key, weight in reference.state_dict().items():
        one = float(key.endswith("norm.weight") and "Gemma" in type(there).__name__)
        assert_same_bits((state[key] + one).numpy(), (weight + one).numpy())
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        np.testing.assert_allclose(there(tokens).logits, reference(tokens).logits, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("-plain")])
@pytest.mark.parametrize(("dtype", "close"), [("float16", 0.01), ("bfloat16", 0.1), ("q8_0", 0.2)])
def test_llama_cpp_opens_other_types(tmp_path, name, dtype, close):
    """Vectors and routers stay in float32. llama.cpp rounds the activations, too."""
    theirs(name).save_pretrained(tmp_path)
    save(nl.load(tmp_path), tmp_path / "x.gguf", nl.Tokenizer.load(real_data("tok512.bin")), dtype)
    model = nl.load(tmp_path / "x.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert {kind for key, kind in kinds.items() if "norm" in key or "ffn_gate_inp" in key} <= {"F32"}
    ids = [1, *range(10, 30)]
    found = LlamaCpp(tmp_path / "x.gguf").likeliest(ids, 3, BYTES)
    np.testing.assert_allclose(list(found.values()), logprobs(model, ids)[list(found)], atol=close)


def requantised(source, target, kind, others):
    """The same file with its matrices rounded by llama.cpp; the embedding and the head to another type."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    found = {}
    for tensor in reader.tensors:
        data, type_ = tensor.data, gguf.GGMLQuantizationType.F32
        if data.ndim > 1 and "ffn_gate_inp" not in tensor.name:
            type_ = others if tensor.name in ("token_embd.weight", "output.weight") else kind
            block, size = gguf.GGML_QUANT_SIZES[type_]
            data = quantised(data, type_, data.shape[-1] // block * size)
        found[tensor.name] = data if type_ == 0 else gguf.dequantize(data, type_)
        writer.add_tensor(tensor.name, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


T = gguf.GGMLQuantizationType
BLOCKS = dict(hidden_size=256, intermediate_size=256, num_hidden_layers=2)
QUANTISED = {
    "mixtral-plain": (T.Q4_K, {}), "qwen3_moe-plain": (T.Q5_K, dict(moe_intermediate_size=256, head_dim=64)),
    "phi3-plain": (T.Q4_K, {}), "gemma3_text-plain": (T.Q4_0, {}),
    "smollm3-plain": (T.IQ4_XS, {}), "qwen2-plain": (T.Q3_K, {}), "olmo2-plain": (T.Q2_K, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTISED)
def test_what_llama_cpp_quantised_opens(tmp_path, name):
    kind, changes = QUANTISED[name]
    theirs(name, 0.06, **BLOCKS, **changes).save_pretrained(tmp_path)
    nl.load(tmp_path).save(tmp_path / "x.gguf", nl.Tokenizer.load(real_data("tok512.bin")))
    found = requantised(tmp_path / "x.gguf", tmp_path / "y.gguf", kind, T.Q6_K)
    model = nl.load(tmp_path / "y.gguf")
    c, params = model.config, model.params
    assert_same_bits(params["embed"], found["token_embd.weight"])
    for i in range(c.n_layers):
        block = {name: params[f"blocks.{i}.{name}"] for name in ("wo", "wq", "wk")}
        assert_same_bits(block["wo"], found[f"blk.{i}.attn_output.weight"])
        if ARCHITECTURES[CASES[name][0]].turns_neighbours:
            block |= {"wq": permuted(block["wq"], c.n_heads), "wk": permuted(block["wk"], c.n_kv_heads)}
        Q, KV = len(block["wq"]), len(block["wk"])
        fused = found.get(f"blk.{i}.attn_qkv.weight")
        assert_same_bits(block["wq"], found[f"blk.{i}.attn_q.weight"] if fused is None else fused[:Q])
        assert_same_bits(block["wk"], found[f"blk.{i}.attn_k.weight"] if fused is None else fused[Q : Q + KV])
        if c.ffn == "moe":
            assert_same_bits(params[f"blocks.{i}.experts_down"], found[f"blk.{i}.ffn_down_exps.weight"])
    ids = [1, *range(10, 30)]
    likeliest = LlamaCpp(tmp_path / "y.gguf").likeliest(ids, 3, BYTES)
    np.testing.assert_allclose(list(likeliest.values()), logprobs(model, ids)[list(likeliest)], atol=0.1)


def test_every_architecture_and_family_is_here():
    assert {architecture for architecture, _ in CASES.values()} == set(ARCHITECTURES)
    assert {name.partition("-")[0] for name in CASES} == set(FAMILIES)
