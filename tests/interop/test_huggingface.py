"""Hugging Face's layout: written, read back, and everything that is refused by name."""

import json
import os
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from interop.checkpoints import LLAMAS, OTHERS, SHAPE, Trap, edit_json, edit_tensors, random_model, shard, tokens
from safetensors.numpy import load_file, save_file

import numllama as nl
from numllama.backend import BFLOAT16
from numllama.interop import huggingface
from numllama.interop.huggingface import HONOURED, to_halves, to_neighbours
from numllama.model import Transformer, parameter_shapes


@pytest.fixture
def folder(tmp_path):
    """A small Llama on disk."""
    random_model().save(tmp_path / "llama")
    return tmp_path / "llama"


def refuses(path, message, **arguments):
    with pytest.raises(nl.CheckpointError, match=message):
        nl.load(path, **arguments)


# ------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("name", LLAMAS)
def test_a_llama_survives_a_save_bit_for_bit(tmp_path, name):
    model = random_model(**LLAMAS[name])
    model.save(tmp_path / "1")
    once = nl.load(tmp_path / "1")
    once.save(tmp_path / "2")
    twice = nl.load(tmp_path / "2")
    assert once.config == twice.config == nl.ModelConfig(**SHAPE | LLAMAS[name] | dict(rope_layout="half"))
    assert_same_bits(twice.params.flat, once.params.flat)
    if model.config.rope_layout == "half":
        assert_same_bits(once.params.flat, model.params.flat)
    assert_close(once.forward(tokens()), model.forward(tokens()), rtol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_llama_is_written_as_our_own(tmp_path, name):
    model = random_model(**OTHERS[name])
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "numllama"
    loaded = nl.load(tmp_path)
    assert loaded.config == model.config
    assert_same_bits(loaded.params.flat, model.params.flat)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.params)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_are_written_in_their_own_dtype(tmp_path, dtype):
    model = random_model(dtype=dtype)
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == dtype
    loaded = nl.load(tmp_path, dtype=dtype)
    assert loaded.dtype == dtype
    assert_same_bits(loaded.params.flat, model.params.flat)


def test_the_files_are_those_that_people_know(folder):
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "generation_config.json"}
    attention = [f"self_attn.{x}_proj" for x in "qkvo"]
    parts = [*attention, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    names = {f"model.layers.{i}.{part}.weight" for i in range(2) for part in parts}
    assert set(load_file(folder / "model.safetensors")) == names | {
        "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    expected = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=23, hidden_size=24, intermediate_size=20)
    expected |= dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=6, hidden_act="silu")
    expected |= dict(max_position_embeddings=12, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None)
    expected |= dict(tie_word_embeddings=False, attention_bias=False, mlp_bias=False)
    assert {key: config[key] for key in expected} == expected


# ------------------------------------------------------------------------------------------------ layouts


def test_each_heads_even_rows_come_first():
    rows = np.arange(12)[:, None] * np.ones((1, 3))
    assert to_halves(rows, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert to_halves(rows, 3)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]
    assert to_halves(rows[:, 0], 6).tolist() == list(range(12))  # a bias; heads of two


@pytest.mark.parametrize("n_heads", [1, 2, 3])
def test_neighbours_and_halves_are_inverse(n_heads):
    rows = np.random.default_rng(0).standard_normal((12, 5))
    assert_same_bits(to_neighbours(to_halves(rows, n_heads), n_heads), rows)
    assert_same_bits(to_halves(to_neighbours(rows, n_heads), n_heads), rows)


def test_wk_is_permuted_with_its_own_number_of_heads(tmp_path):
    model = random_model(rope_layout="interleaved", n_heads=4, n_kv_heads=1)
    model.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert_same_bits(saved["model.layers.1.self_attn.k_proj.weight"], model.params["blocks.1.wk"][[0, 2, 4, 1, 3, 5]])
    rows = [6 * head + row for head in range(4) for row in (0, 2, 4, 1, 3, 5)]
    assert_same_bits(saved["model.layers.1.self_attn.q_proj.weight"], model.params["blocks.1.wq"][rows])
    assert_same_bits(saved["model.layers.1.self_attn.v_proj.weight"], model.params["blocks.1.wv"])


# ------------------------------------------------------------------------------------------------ what is stored


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64, BFLOAT16], ids=["F16", "F32", "F64", "BF16"])
@pytest.mark.parametrize("dtype", [None, "float32", "float64", "bfloat16"])
def test_any_float_is_read_as_what_is_asked_for(folder, stored, dtype):
    expected = nl.load(folder).params.flat.astype(stored)
    edit_tensors(folder, lambda tensors: tensors.update({name: tensor.astype(stored) for name, tensor in tensors.items()}))
    model = nl.load(folder, dtype=dtype)
    assert_same_bits(model.params.flat, expected.astype((dtype and {"bfloat16": BFLOAT16}.get(dtype, dtype)) or "float32"))


def test_tensors_of_different_dtypes_may_be_mixed(folder):
    expected = {name: view.copy() for name, view in nl.load(folder).params.items()}
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype("float16")}))
    for name, view in nl.load(folder).params.items():
        assert_same_bits(view, expected[name].astype("float16").astype("float32") if name == "norm" else expected[name])


def test_shards_are_read_by_their_index(folder):
    expected = nl.load(folder).params.flat
    assert len(shard(folder)) == 3
    assert_same_bits(nl.load(folder).params.flat, expected)


def test_a_single_file_is_read_with_the_configuration_beside_it(folder):
    assert_same_bits(nl.load(folder / "model.safetensors").params.flat, nl.load(folder).params.flat)
    (folder / "config.json").unlink()
    refuses(folder / "model.safetensors", r"llama has no config\.json$")


def test_a_saved_rope_table_of_older_checkpoints_is_passed_over(folder):
    expected = nl.load(folder).params.flat
    edit_tensors(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, "f4")}))
    assert_same_bits(nl.load(folder).params.flat, expected)


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("native", [False, True], ids=["llama", "numllama"])
def test_a_tied_model_is_what_its_file_holds(tmp_path, native):
    model = random_model(tie_embeddings=True, **OTHERS["l2_norm"] if native else {})
    embed, head = ("embed", "head") if native else (EMBED, HEAD)
    model.save(tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({head: t[embed]}))  # written twice
    assert nl.load(tmp_path).config.tie_embeddings
    assert_same_bits(nl.load(tmp_path).params.flat, model.params.flat)
    edit_tensors(tmp_path, lambda t: t.pop(embed))  # the head alone
    assert nl.load(tmp_path).config.tie_embeddings
    assert_same_bits(nl.load(tmp_path).params.flat, model.params.flat)
    edit_tensors(tmp_path, lambda t: t.update({embed: 2 * t[head]}))  # two that differ
    untied = nl.load(tmp_path)
    assert not untied.config.tie_embeddings
    assert_same_bits(untied.params["embed"], 2 * model.params["embed"])
    assert_same_bits(untied.params["head"], model.params["embed"])
    untied.save(tmp_path)
    assert_same_bits(nl.load(tmp_path).params.flat, untied.params.flat)
    edit_tensors(tmp_path, lambda t: t.update({head: t[head][:9]}))
    refuses(tmp_path, rf"{head} has shape \(9, 24\), but \(23, 24\) is needed$")


def test_a_tied_model_without_either_matrix_lacks_its_embedding(tmp_path):
    random_model(tie_embeddings=True).save(tmp_path)
    edit_tensors(tmp_path, lambda t: t.pop(EMBED))
    refuses(tmp_path, r"lacks model\.embed_tokens\.weight$")


# ------------------------------------------------------------------------------------------------ memory


def test_loading_takes_the_memory_of_the_model_and_nothing_else(tmp_path):
    big = dict(vocab_size=1000, dim=128, n_layers=4, ffn_dim=344)
    random_model(**big).save(tmp_path)
    shard(tmp_path)
    size = 4 * nl.count_parameters(nl.ModelConfig(**SHAPE | big))
    for dtype, factor in {"float32": 1, "bfloat16": 0.5, "float64": 2}.items():
        tracemalloc.start()
        try:
            model = nl.load(tmp_path, dtype=dtype)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert model.params.flat.nbytes == factor * size
        assert peak < 1.05 * factor * size + 200_000  # no gradients, no moments, no second copy of even one matrix


def test_interleaved_weights_are_permuted_one_at_a_time(tmp_path):
    model = random_model(dim=128, n_layers=8, rope_layout="interleaved", vocab_size=50)
    tracemalloc.start()
    try:
        model.save(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 3 * 4 * 128 * 128 + 200_000
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------ two bytes


@pytest.mark.parametrize("name", ["grouped", "tied", "interleaved_biases"])
def test_bfloat16_weights_compute_what_their_values_in_float32_do(without_onednn, tmp_path, name):
    random_model(**LLAMAS[name]).save(tmp_path)
    model = nl.load(tmp_path, dtype="bfloat16")
    assert (model.dtype, model.params.flat.itemsize, model.compute_dtype) == (BFLOAT16, 2, np.float32)
    wide = Transformer(model.config)
    wide.params.flat[:] = model.params.flat
    assert model.forward(tokens()).dtype == np.float32
    assert_close(model.forward(tokens()), wide.forward(tokens()), rtol=1e-6)
    assert_close(model.loss(tokens(), tokens(2)), wide.loss(tokens(), tokens(2)), rtol=1e-6)
    assert nl.generate(model, [1, 2], 8, temperature=0) == nl.generate(wide, [1, 2], 8, temperature=0)


@pytest.mark.parametrize("name", ["gpt2", "qk_norm", "l2_norm"])
def test_bfloat16_weights_of_any_other_model_do_too(without_onednn, tmp_path, name):
    random_model(**OTHERS[name]).save(tmp_path)
    model = nl.load(tmp_path, dtype="bfloat16")
    wide = Transformer(model.config)
    wide.params.flat[:] = model.params.flat
    assert_close(model.forward(tokens()), wide.forward(tokens()), rtol=1e-6)


def test_bfloat16_weights_survive_a_save(tmp_path):
    random_model().save(tmp_path / "1")
    model = nl.load(tmp_path / "1", dtype="bfloat16")
    model.save(tmp_path / "2")
    assert json.loads((tmp_path / "2" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (tmp_path / "2" / "model.safetensors").stat().st_size < 0.6 * (tmp_path / "1" / "model.safetensors").stat().st_size
    assert_same_bits(nl.load(tmp_path / "2", dtype="bfloat16").params.flat, model.params.flat)


def test_bfloat16_weights_are_not_trained(folder):
    model = nl.load(folder, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"^weights kept in bfloat16 cannot be trained: load the model with dtype='float32'$"):
        model.loss_and_grads(tokens(), tokens())


# ------------------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    "spelling",
    [
        dict(rope_theta=500.0),
        dict(rope_theta=500.0, rope_scaling={"type": "default"}),
        dict(rope_theta=None, rope_scaling=None, rope_parameters={"rope_theta": 500.0}),
        dict(rope_theta=None, rope_scaling=None, rope_parameters={"rope_theta": 500.0, "rope_type": "default"}),
    ],
    ids=["rope_theta", "type", "rope_parameters", "rope_type"],
)
def test_all_spellings_of_plain_rope_are_read(folder, spelling):
    edit_json(folder / "config.json", **spelling)
    config = nl.load(folder).config
    assert (config.rope_theta, config.rope_scaling) == (500.0, None)


SCALED = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)


@pytest.mark.parametrize(
    "spelling",
    [
        dict(rope_theta=500.0, rope_scaling=dict(**SCALED, original_max_position_embeddings=12, rope_type="llama3")),
        dict(rope_theta=500.0, rope_scaling=dict(**SCALED, original_max_position_embeddings=12, type="llama3")),
        dict(rope_theta=None, rope_parameters=dict(
            **SCALED, original_max_position_embeddings=12, rope_type="llama3", rope_theta=500.0
        )),
    ],
    ids=["rope_type", "type", "rope_parameters"],
)  # fmt: skip
def test_all_spellings_of_scaled_rope_are_read(folder, spelling):
    edit_json(folder / "config.json", **{"rope_scaling": None, **spelling})
    config = nl.load(folder).config
    expected = {"rope_type": "llama3", **SCALED, "original_max_position_embeddings": 12}
    assert (config.rope_theta, config.rope_scaling) == (500.0, expected)


def test_what_a_config_leaves_out_is_what_hugging_face_takes(folder):
    left_out = ["num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "rope_theta"]
    left_out += ["attention_bias", "mlp_bias", "hidden_act", "initializer_range", "dropout", "numllama_init", "torch_dtype"]
    random_model(n_kv_heads=4).save(folder)
    edit_json(folder / "config.json", **dict.fromkeys(left_out))
    config = nl.load(folder).config
    assert config == nl.ModelConfig(**SHAPE | dict(n_kv_heads=4, max_seq_len=2048, norm_eps=1e-6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attention_bias="true"), 'attention_bias is "true", but must be true or false$'),
        (dict(mlp_bias=1), "mlp_bias is 1, but must be true or false$"),
        (dict(hidden_act="gelu"), 'hidden_act is "gelu", but only "silu" is supported$'),
        (dict(sliding_window="long"), 'sliding_window is "long", but must be a whole number of at least 1$'),
        (dict(quantization_config={"bits": 4}), 'quantization_config is {"bits": 4}, but only null is supported$'),
        (dict(attention_dropout=1.5), r"attention_dropout is 1.5, but must lie in \[0, 1\]$"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5, but only 1 is supported$"),
        (dict(rope_scaling={"type": "linear"}), "rope_scaling lacks factor$"),
        (dict(rope_scaling={"type": "linear", "factor": "2"}), "rope_scaling's factor is '2', but must be a positive number$"),
        (dict(rope_scaling={"type": "linear", "factor": 2, "beta": 1}), r".* of type 'linear' has unknown key\(s\) beta$"),
        (dict(rope_scaling={"rope_type": "axial", "factor": 2.0}), "rope_scaling is of type 'axial', but only 'default', 'lin"),
        (dict(rope_parameters={"rope_type": "su", "factor": 2.0}), "rope_scaling is of type 'su', but only 'default'"),
        (dict(rope_scaling={"type": "yarn", "factor": "2"}), "rope_scaling's factor is '2', but must be a positive number$"),
        (dict(rope_scaling={"type": "dynamic"}), "rope_scaling lacks factor$"),
        (dict(rope_scaling={"type": "longrope", "short_factor": [1]}), "rope_scaling lacks long_factor$"),
        (dict(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5, but only 1 is supported$"),
        (dict(rope_scaling=3), "rope_scaling is 3, but must be a mapping$"),
        (dict(model_type="falcon"), "model_type is 'falcon', but must be one of 'llama', 'mistral', .*, 'numllama'$"),
        (dict(model_type=None), "model_type is None, but must be one of 'llama', .*"),
        (dict(hidden_size=None, vocab_size=None), "the configuration lacks vocab_size, hidden_size$"),
        (dict(num_key_value_heads=3), "n_heads is 4 and n_kv_heads is 3, but the first must be a multiple of the second$"),
        (dict(hidden_size="24"), 'hidden_size is "24", but must be a whole number of at least 1$'),
    ],
    ids=lambda value: None if isinstance(value, str) else "_".join(value),
)
def test_a_configuration_that_cannot_be_honoured_is_refused_by_name(folder, changes, message):
    edit_json(folder / "config.json", **changes)
    refuses(folder, rf"config\.json: {message}")


NUMBERS = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"]
NUMBERS += ["head_dim", "max_position_embeddings", "rms_norm_eps", "initializer_range", "rope_theta", "dropout", "sliding_window"]
MAY_BE_NULL = ["num_key_value_heads", "head_dim", "sliding_window", "attention_dropout", "rope_scaling", "rope_parameters"]
MAY_BE_NULL += ["original_max_position_embeddings", "numllama_max_seq_len"]
MAY_BE_NULL += ["quantization_config", "partial_rotary_factor", "attn_logit_softcapping", "final_logit_softcapping"]
WRONG = [None, True, "x" * 10_000, "8", [8], {"a": 8}, -(10**400), 10**400, 1e999, float("nan"), 0.5, -1, [[[]]], ["x" * 10_000]]


@pytest.mark.parametrize("name", [*NUMBERS, *HONOURED, "tie_word_embeddings", "model_type", "numllama_init"])
def test_a_value_of_any_other_type_is_refused_by_name(folder, name):
    """Whatever stands in a config.json, either it is taken or one short sentence names the field."""
    path = folder / "config.json"
    before, named = json.loads(path.read_text()), 0
    for value in WRONG:
        path.write_text(json.dumps({**before, name: value}))
        try:
            nl.load(folder)
        except nl.CheckpointError as error:
            named += bool(re.search(rf"config\.json: {name} is|init is", str(error)))
            assert "damaged" not in str(error)
            assert len(str(error)) < 300 + len(str(path))
        else:
            assert value is not None or name in MAY_BE_NULL
    assert named >= 9


@pytest.mark.parametrize("name", [*NUMBERS, "bos_token_id", "eos_token_id"])
def test_a_number_of_more_digits_than_python_converts_is_refused(folder, name):
    path = folder / "config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key != name}
    path.write_text(json.dumps(values)[:-1] + f', "{name}": {"9" * 10_000}}}')
    refuses(folder, r"config\.json is not JSON: ")


@pytest.mark.parametrize(
    "changes", [dict(vocab_size=2**62), dict(intermediate_size=10**15), dict(num_attention_heads=2**40, head_dim=2)]
)
def test_a_size_is_compared_with_the_weights_before_anything_is_made_of_it(folder, changes):
    edit_json(folder / "config.json", **changes, num_key_value_heads=None)
    tracemalloc.start()
    try:
        refuses(folder, r"(has shape|more than the memory of any machine)")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_position_more_than_there_is_memory_for_costs_nothing(folder):
    edit_json(folder / "config.json", max_position_embeddings=2**62)
    model = nl.load(folder)
    assert model.config.max_seq_len == 2**62
    assert len(nl.generate(model, [1, 2], 4, temperature=0)) == 4


@pytest.mark.parametrize(
    "changes",
    [
        dict(attention_dropout=0.1),
        dict(sliding_window=4096),
        dict(sliding_window=4, use_sliding_window=True),
        dict(partial_rotary_factor=1.0),
        dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}, rope_theta=None),
        dict(rope_scaling={"type": "linear", "factor": 1.0}),
        dict(rope_scaling={}),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_nothing_is_accepted(folder, changes):
    before = nl.load(folder)
    edit_json(folder / "config.json", **changes)
    after = nl.load(folder)
    assert after.config == before.config
    assert_same_bits(after.forward(tokens()), before.forward(tokens()))


@pytest.mark.parametrize(("flag", "part"), [("attention_bias", "self_attn"), ("mlp_bias", "mlp")])
def test_biases_in_one_half_of_a_block_alone(tmp_path, flag, part):
    model = random_model(bias=True)
    for name, view in model.params.items():
        if name.endswith("_bias") and f".{part}." not in huggingface.huggingface_names(model.config)[name]:
            view[...] = 0
    model.save(tmp_path)
    others = {"attention_bias": "mlp_bias", "mlp_bias": "attention_bias"}[flag]
    edit_json(tmp_path / "config.json", **{others: False})
    refuses(tmp_path, r"has tensors that this model does not have: model\.layers\.0\..*\.bias")  # not guessed
    edit_tensors(tmp_path, lambda t: [t.pop(name) for name in list(t) if name.endswith(".bias") and f".{part}." not in name])
    loaded = nl.load(tmp_path)
    assert loaded.config.bias == {"self_attn": "attention", "mlp": "ffn"}[part]
    for name, view in loaded.params.items():
        assert_same_bits(view, model.params[name])
    assert_same_bits(loaded.forward(tokens()), model.forward(tokens()))
    loaded.save(tmp_path)
    assert nl.load(tmp_path).config == loaded.config
    assert_same_bits(nl.load(tmp_path).params.flat, loaded.params.flat)
    edit_tensors(tmp_path, lambda t: [t.pop(name) for name in list(t) if name.endswith(".bias")])
    edit_json(tmp_path / "config.json", **{others: False})
    refuses(tmp_path, rf"lacks model\.layers\.0\.{part}\.")


def test_keys_that_say_the_same_as_nothing_are_no_obstacle(folder):
    before = nl.load(folder).config
    harmless = dict(attention_dropout=0.0, pretraining_tp=1, use_cache=True, transformers_version="4.40.0", _name_or_path="x")
    edit_json(folder / "config.json", **harmless)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "sliding_window": None, "quantization_config": None}))
    assert nl.load(folder).config == before


def test_biases_in_all_linear_maps_are_read(tmp_path):
    model = random_model(bias=True)
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["attention_bias"], config["mlp_bias"]) == ("llama", True, True)
    assert_same_bits(nl.load(tmp_path).params.flat, model.params.flat)


@pytest.mark.parametrize("content", ["{", "[]", "\xff", 100_000 * "["])
def test_a_config_that_is_not_json_is_named(folder, content):
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    refuses(folder, r"config\.json (is not JSON: .*|holds no JSON object)$")


# ------------------------------------------------------------------------------------------------ tensors


def test_missing_tensors_are_named(folder):
    edit_tensors(folder, lambda t: [t.pop("model.layers.1.mlp.up_proj.weight"), t.pop("lm_head.weight")])
    refuses(folder, r"llama lacks model\.layers\.1\.mlp\.up_proj\.weight, lm_head\.weight$")


def test_many_missing_tensors_are_counted(folder):
    edit_json(folder / "config.json", num_hidden_layers=3)
    names = [f"model.layers.2.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")]
    refuses(folder, rf"lacks {', '.join(names)}, model\.layers\.2\.self_attn\.o_proj\.weight, .* and 4 more$")


def test_an_absurd_number_of_layers_is_not_listed(folder):
    edit_json(folder / "config.json", num_hidden_layers=10**9)
    refuses(folder, r"llama has 21 tensors, which cannot be 1000000000 layers$")


def test_extra_tensors_are_named(folder):
    edit_tensors(folder, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(16, "f4")}))
    refuses(folder, r"llama has tensors that this model does not have: model\.layers\.0\.self_attn\.q_proj\.bias$")


def test_mis_shaped_tensors_are_named(folder):
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.copy()}))
    refuses(folder, r"llama: lm_head\.weight has shape \(24, 23\), but \(23, 24\) is needed$")


def test_quantised_tensors_are_named(folder):
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype("int8")}))
    refuses(folder, r"model\.safetensors: lm_head\.weight is stored as I8, but only BF16, F16, F32, F64 can be read")


# ------------------------------------------------------------------------------------------------ files


def test_a_folder_without_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    refuses(folder, r"llama has no weights: neither model\.safetensors nor model\.safetensors\.index\.json is there$")


def test_a_folder_without_a_configuration_is_named(folder):
    (folder / "config.json").unlink()
    refuses(folder, r"llama has no config\.json$")


def test_a_truncated_shard_is_named(folder):
    path = folder / shard(folder)[1]
    path.write_bytes(path.read_bytes()[:-7])
    refuses(folder, r"model-00002-of-00003\.safetensors is cut short: it has \d+ bytes of \d+$")


def test_a_missing_shard_is_named(folder):
    (folder / shard(folder)[1]).unlink()
    refuses(folder, r"llama lacks model-00002-of-00003\.safetensors, which its model\.safetensors\.index\.json names$")


def test_a_tensor_that_is_not_in_its_shard_is_named(folder):
    shard(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if "00002" not in file}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(folder, r"llama lacks model\.")


def test_a_tensor_that_an_index_looks_for_elsewhere_is_named(folder):
    names = shard(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    places = {**index["weight_map"], "lm_head.weight": next(n for n in names if n != index["weight_map"]["lm_head.weight"])}
    path.write_text(json.dumps({"weight_map": places}))
    refuses(folder, rf"index\.json says that 'lm_head\.weight' is in {places['lm_head.weight']}, but it is not$")


def test_a_tensor_that_stands_in_two_shards_is_named(folder):
    names = shard(folder)
    both = load_file(folder / names[0]) | load_file(folder / names[1])
    save_file(both, folder / names[0], {"format": "pt"})
    refuses(folder, rf"{names[0]} holds 'model\..*', which model\.safetensors\.index\.json does not say$")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\udc80\ud800"])
def test_an_index_may_name_what_no_file_can_be_called(folder, name):
    shard(folder)
    edit_json(folder / "model.safetensors.index.json", weight_map={"lm_head.weight": name})
    refuses(folder, r"llama lacks .*, which its model\.safetensors\.index\.json names$")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "generation_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_file_that_is_no_regular_file_is_refused_unread(folder, file, kind):
    (folder / file).unlink()
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](folder / file)
    refuses(folder, rf"{file} is (not a regular file|a folder, but a file is needed)$")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_names_only_files_of_its_folder(folder, name):
    shard(folder)
    edit_json(folder / "model.safetensors.index.json", weight_map={"lm_head.weight": name})
    refuses(folder, rf"index\.json names '{name}', which is not a file of this folder$")


@pytest.mark.parametrize("content", ['{"metadata": {}}', '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_named(folder, content):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(content)
    refuses(folder, r"index\.json is damaged: it does not say which tensor is in which file$")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zipped", "bare"])
def test_pickles_are_refused_with_the_reason_and_never_run(folder, name, zipped):
    (folder / "model.safetensors").unlink()
    trap = Trap(folder / "sprung").pickled()
    if zipped:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("model/data.pkl", trap)
    else:
        (folder / name).write_bytes(trap)
    for path in (folder, folder / name):
        refuses(path, rf"{name} is a Python pickle, which can run any program when it is opened, so it is never read")
    assert not (folder / "sprung").exists()


# ------------------------------------------------------------------------------------------------ generation config


@pytest.mark.parametrize(
    ("content", "stop_ids"),
    [
        ({}, ()),
        ({"eos_token_id": None}, ()),
        ({"eos_token_id": 2}, (2,)),
        ({"bos_token_id": 20, "eos_token_id": [21, 22], "temperature": 0.6, "top_p": 0.9, "do_sample": True}, (21, 22)),
    ],
    ids=["none", "null", "one", "two"],
)
def test_the_stop_ids_are_those_of_the_generation_config(folder, content, stop_ids):
    edit_json(folder / "config.json", eos_token_id=7)  # an older word on the same matter
    (folder / "generation_config.json").write_text(json.dumps(content))
    model = nl.load(folder)
    assert model.stop_ids == stop_ids
    model.save(folder)
    assert json.loads((folder / "generation_config.json").read_text()) == content
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == content.get("eos_token_id")
    assert nl.load(folder).stop_ids == stop_ids


def test_without_a_generation_config_the_configuration_tells_the_stop_ids(folder):
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", bos_token_id=1, eos_token_id=[2, 3])
    model = nl.load(folder)
    assert (model.stop_ids, model.generation_config) == ((2, 3), {"bos_token_id": 1, "eos_token_id": [2, 3]})
    edit_json(folder / "config.json", eos_token_id="</s>")
    refuses(folder, r'llama.config\.json: eos_token_id is "</s>", but must be a token or a list of tokens$')


def test_a_new_model_has_no_stop_ids():
    assert random_model().stop_ids == ()


@pytest.mark.parametrize("ids", ["</s>", [1, None], 1.5, True, {"a": 1}, [[1]], 10**400, ["x" * 10_000]])
@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id", "pad_token_id"])
def test_a_special_id_that_is_no_token_is_named(folder, name, ids):
    (folder / "generation_config.json").write_text(json.dumps({name: ids}))
    refuses(folder, rf"generation_config\.json: {name} is .{{,60}}, but (must be|no number)")


@pytest.mark.parametrize("ids", [-1, [22, -1], 128009, [22, 128009], None, []])
def test_a_stop_id_that_never_comes_is_taken(folder, ids):
    """As transformers does: -1 for none, ids of a larger vocabulary, null."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert nl.load(folder).generation_config == {"eos_token_id": ids}


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", "hot"), ("top_p", [1]), ("top_k", 10**400), ("do_sample", 1), ("min_p", float("nan")),
                        ("repetition_penalty", True)],
)  # fmt: skip
def test_a_setting_of_another_type_is_named(folder, name, value):
    (folder / "generation_config.json").write_text(json.dumps({name: value}))
    refuses(folder, rf"generation_config\.json: {name} is ")


# ------------------------------------------------------------------------------------------------ saving


def test_a_tokenizer_is_saved_along(tmp_path):
    random_model().save(tmp_path / "new" / "model", nl.CharTokenizer("abc"))
    assert nl.CharTokenizer.load(tmp_path / "new" / "model").characters == "abc"


def test_a_full_disk_leaves_the_old_model(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(file, *_):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "write_tensors", full_disk)
    with pytest.raises(nl.CheckpointError, match=r"llama could not be written: No space left on device$"):
        random_model(tie_embeddings=True).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_is_saved_over_an_older_one(folder):
    model = random_model(dim=32, tie_embeddings=True)
    model.save(folder)
    assert_same_bits(nl.load(folder).params.flat, model.params.flat)
    assert len(list(folder.iterdir())) == 3


def test_a_training_run_is_not_written_over(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"version": "0.1.0", "model": {}, "train": {}}))
    with pytest.raises(ValueError, match=r"which holds a training run: save the model to another folder$"):
        random_model().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["file", "model.safetensors"])
def test_a_file_is_not_a_folder(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"^path is .*{name}, but must be a folder or end in \.bin or \.gguf$"):
        random_model().save(tmp_path / name)


def test_every_parameter_of_a_llama_has_a_name_of_its_own():
    config = nl.ModelConfig(**SHAPE, bias=True)
    names = huggingface.huggingface_names(config)
    assert list(names) == list(parameter_shapes(config))
    assert len(set(names.values())) == len(names)
