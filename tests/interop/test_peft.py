"""Adapter files: written and read again, and what is refused by name."""

import json
import os
import zipfile

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from interop.checkpoints import LLAMAS, OTHERS, Trap, random_model, tokens
from safetensors.numpy import load_file, save_file

import numllama as nl
from numllama.errors import CheckpointError, NumllamaError
from numllama.interop.huggingface import to_halves
from numllama.interop.peft import load_adapter

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def adapted(dtype="float32", rank=3, targets=("wq", "wk", "w_down"), **changes):
    """A model with an adapter whose parameters are all random."""
    targets = ("wq", "wk") if changes.get("ffn") == "moe" else targets       # experts have no updates
    model = random_model(dtype, **changes)
    model.add_adapter(nl.LoraConfig(rank=rank, alpha=5.0, targets=targets))
    model.adapter.params.flat[...] = np.random.default_rng(1).standard_normal(model.adapter.params.flat.size)
    return model


@pytest.fixture
def folders(tmp_path):
    """A model, and an adapter for it that does not know where it lies."""
    adapted().save_adapter(tmp_path / "adapter")
    random_model().save(tmp_path / "base")
    return tmp_path


def edit(folder, **changes):
    """Change some keys of adapter_config.json."""
    path = folder / "adapter_config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    values = {name: tensor.copy() for name, tensor in load_file(path).items()}
    change(values)
    save_file(values, path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*LLAMAS, *OTHERS])
def test_an_adapter_comes_back_bit_for_bit(tmp_path, name, dtype):
    changes = {**LLAMAS, **OTHERS}[name]
    model = adapted(dtype, **changes)
    random_model(dtype, **changes).save(tmp_path / "base")
    model.generation_config = {"eos_token_id": [3, 4]}
    model.save_adapter(tmp_path / "adapter", base=tmp_path / "base")
    paths = dict(path=tmp_path / "adapter"), dict(path=tmp_path / "base", adapter=tmp_path / "adapter")
    for again in (nl.load(**path, dtype=dtype) for path in paths):
        assert again.adapter.config == model.adapter.config
        assert again.stop_ids == (3, 4)
        if model.config == again.config:  # an interleaved Llama is read as Hugging Face has it
            assert_same_bits(again.adapter.params.flat, model.adapter.params.flat)
        assert_close(again.forward(tokens()), model.forward(tokens()), rtol=1e-4 if dtype == "float32" else 1e-12)


def test_rows_of_an_interleaved_model_are_written_as_hugging_face_pairs_them(tmp_path):
    model = adapted(**LLAMAS["interleaved"])
    model.save_adapter(tmp_path)
    written = load_file(tmp_path / "adapter_model.safetensors")
    b = model.adapter.params["blocks.0.wk_lora_b"]
    expected = to_halves(b, model.config.n_kv_heads)
    assert_same_bits(written["base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"], np.ascontiguousarray(expected))
    assert not np.array_equal(expected, b)
    again = random_model(**LLAMAS["interleaved"])
    load_adapter(again, tmp_path)
    assert_same_bits(again.adapter.params.flat, model.adapter.params.flat)


def test_the_files_are_those_of_peft(folders):
    values = json.loads((folders / "adapter" / "adapter_config.json").read_text())
    assert (values["peft_type"], values["task_type"], values["r"], values["lora_alpha"]) == ("LORA", "CAUSAL_LM", 3, 5)
    assert values["target_modules"] == ["down_proj", "k_proj", "q_proj"]
    written = load_file(folders / "adapter" / "adapter_model.safetensors")
    assert written[NAME].shape == (3, 24)
    assert len(written) == 2 * 2 * 3


def test_an_adapter_may_be_stored_in_two_bytes(folders):
    edit_tensors(folders / "adapter", lambda values: values.update({k: v.astype("float16") for k, v in values.items()}))
    (folders / "adapter" / "checksums.json").unlink()
    model = nl.load(folders / "base", adapter=folders / "adapter")
    assert model.adapter.params.flat.dtype == np.float32


REFUSED = {
    "kind": (dict(peft_type="IA3"), 'peft_type is "IA3", but only "LORA" is supported'),
    "dora": (dict(use_dora=True), "use_dora is true, but only false is supported"),
    "bias": (dict(bias="all"), 'bias is "all", but only "none" is supported'),
    "modules": (dict(modules_to_save=["lm_head"]), r"adapter lacks base_model\.model\.lm_head\.weight$"),
    "other_modules": (
        dict(modules_to_save=["score", "lm_head"]),
        "modules_to_save holds score, but only embed_tokens, lm_head, model.embed_tokens can be replaced",
    ),
    "ranks": (dict(rank_pattern={"q_proj": 2}), r"q_proj.lora_A.weight has shape \(3, 24\), but \(2, 24\) is needed"),
    "no_ranks": (dict(rank_pattern={"q_proj": "2"}), r'rank_pattern is {"q_proj": "2"}, but must map names to whole numbers'),
    "alphas": (dict(alpha_pattern=[3]), r"alpha_pattern is \[3\], but must map names to positive numbers"),
    "targets": (dict(target_modules=3), "target_modules is 3, but must be a regular expression or a list of names"),
    "no_target": (dict(target_modules=["x_proj"]), r'target_modules is \["x_proj"\], but names no matrix of a block$'),
    "expression": (dict(target_modules="(q_proj"), r"'\(q_proj' is no regular expression that can be used: missing \)"),
    "slow": (dict(target_modules=r"(x|\w|\.|.)*[^a-z._0-9]"), "is no regular expression that can be used: regex timed out"),
    "long_expression": (dict(target_modules="x" * 1001), "target_modules is .*, but must be a regular expression or a list"),
    "pissa": (dict(init_lora_weights="pissa"), 'init_lora_weights is "pissa", but only true is supported'),
    "layers": (dict(layer_replication=[[0, 1]]), r"layer_replication is \[\[0, 1\]\], but only null is supported"),
    "no_rank": (dict(r="absent"), "adapter_config.json: the configuration lacks r$"),
    "rank": (dict(r="many"), 'adapter_config.json: r is "many", but must be a whole number of at least 1'),
    "truth": (dict(r=True), "adapter_config.json: r is true, but must be a whole number of at least 1"),
    "digits": (dict(r=10**400), r"adapter_config.json: r is 1000+\.\.\., but no number here may be so large$"),
    "alpha": (dict(lora_alpha=None), "adapter_config.json: lora_alpha is null, but must be a positive number"),
    "more_digits": (dict(lora_alpha=10**400), r"lora_alpha is 1000+\.\.\., but no number here may be so large$"),
    "rslora": (dict(use_rslora="yes"), 'use_rslora is "yes", but must be true or false'),
    "layers_by_name": (dict(layers_to_transform="0"), 'layers_to_transform is "0", but must be a layer or a list of layers'),
    "long": (dict(bias="x" * 10_000), r'bias is "x+\.\.\., but only "none" is supported'),
    "huge_rank": (dict(r=2**60), r"q_proj.lora_A.weight has shape \(3, 24\), but \(1152921504606846976, 24\) is needed"),
    "another_rank": (dict(r=4), r"q_proj.lora_A.weight has shape \(3, 24\), but \(4, 24\) is needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(folders, name):
    changes, message = REFUSED[name]
    edit(folders / "adapter", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        nl.load(folders / "base", adapter=folders / "adapter")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "changes", [dict(target_modules=["q_proj"]), dict(layers_to_transform=[0]), dict(exclude_modules=["k_proj"])]
)  # fmt: skip
def test_tensors_that_the_configuration_does_not_name_are_refused(folders, changes):
    edit(folders / "adapter", **changes)
    with pytest.raises(CheckpointError, match="has tensors that this model does not have: base_model"):
        nl.load(folders / "base", adapter=folders / "adapter")


def test_a_configuration_without_targets_leaves_them_to_the_tensors(folders):
    edit(folders / "adapter", target_modules="absent")
    (folders / "adapter" / "checksums.json").unlink()
    assert nl.load(folders / "base", adapter=folders / "adapter").adapter.config.targets == ("wq", "wk", "w_down")
    edit_tensors(folders / "adapter", lambda values: values.clear())
    with pytest.raises(CheckpointError, match=r"for this model: target_modules is null, but names no matrix of a block$"):
        nl.load(folders / "base", adapter=folders / "adapter")


@pytest.mark.parametrize("name", ["tied", "grouped"])
def test_a_head_of_its_own_replaces_the_models(tmp_path, name):
    model = adapted(**LLAMAS[name])
    config = nl.LoraConfig(rank=3, alpha=5.0, targets=("wq", "wk", "w_down"), modules_to_save=("head",))
    random_model(**LLAMAS[name]).save(tmp_path / "base")
    if name == "tied":
        model.save_adapter(tmp_path / "adapter")
        edit(tmp_path / "adapter", modules_to_save=["lm_head"])
        with pytest.raises(CheckpointError, match="but the model's embedding and head are one matrix"):
            nl.load(tmp_path / "base", adapter=tmp_path / "adapter")
        return
    values, params = model.adapter.params, model.params
    other = random_model(**LLAMAS[name])
    other.add_adapter(config)
    for own in other.adapter.params:
        other.adapter.params[own] = 2 * params["head"] if own == "head" else values[own]
    other.save_adapter(tmp_path / "adapter", base=tmp_path / "base")
    again = nl.load(tmp_path / "adapter")
    assert again.adapter.config == config
    assert_same_bits(again.adapter.params.flat, other.adapter.params.flat)
    assert_same_bits(again.params.flat, params.flat)
    assert_close(again.forward(tokens()), 2 * model.forward(tokens()), rtol=1e-5)
    for kept in ("bfloat16", "float32"):
        assert nl.load(tmp_path / "adapter", dtype=kept).dtype == kept


def test_an_adapter_that_names_every_layer_is_whole(folders):
    edit(folders / "adapter", layers_to_transform=[0, 1])
    (folders / "adapter" / "checksums.json").unlink()
    assert nl.load(folders / "base", adapter=folders / "adapter").adapter




DAMAGE = {
    "missing": (lambda values: values.pop(NAME), f"lacks {NAME}"),
    "extra": (lambda values: values.update(x=np.ones(2)), "has tensors that this model does not have: x"),
    "embedding": (
        lambda values: values.update({"base_model.model.model.embed_tokens.lora_A.weight": np.ones((3, 23))}),
        "has tensors that this model does not have: base_model.model.model.embed_tokens",
    ),
    "shape": (lambda values: values.update({NAME: np.ones((3, 20))}), r"q_proj.lora_A.weight has shape \(3, 20\)"),
    "half": (
        lambda values: [values.pop(name) for name in list(values) if ".layers.0." not in name],
        r"lacks base_model\.model\.model\.layers\.1\.self_attn\.q_proj\.lora_A\.weight",
    ),
    "no_b": (lambda values: [values.pop(name) for name in list(values) if "lora_B" in name], r"lacks .*q_proj\.lora_B\.weight"),
    "nothing": (lambda values: values.clear(), r"lacks .*lora_A\.weight"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_tensors_that_do_not_fit_are_named(folders, name):
    change, message = DAMAGE[name]
    edit_tensors(folders / "adapter", change)
    with pytest.raises(CheckpointError, match=message):
        nl.load(folders / "base", adapter=folders / "adapter")


def test_an_adapter_needs_its_model(folders):
    with pytest.raises(CheckpointError, match=r"is an adapter for None, which is not a folder or file here: load that"):
        nl.load(folders / "adapter")
    edit(folders / "adapter", base_model_name_or_path="meta-llama/Llama-3.2-1B")
    with pytest.raises(CheckpointError, match=r"is an adapter for 'meta-llama/Llama-3.2-1B', which is not a folder"):
        nl.load(folders / "adapter")


def test_files_that_are_not_there_are_named(folders):
    with pytest.raises(CheckpointError, match=r"base has no adapter_config\.json$"):
        nl.load(folders / "base", adapter=folders / "base")
    (folders / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter has no adapter_model\.safetensors$"):
        nl.load(folders / "base", adapter=folders / "adapter")


def test_a_model_without_an_adapter_has_none_to_save(tmp_path):
    with pytest.raises(ValueError, match="the model has no adapter to save"):
        random_model().save_adapter(tmp_path)


def test_a_save_that_fails_leaves_what_was_there(folders, monkeypatch):
    before = {path.name: path.read_bytes() for path in (folders / "adapter").iterdir()}
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(NumllamaError, match="could not be written: No space left on device"):
        adapted(rank=2).save_adapter(folders / "adapter")
    assert {path.name: path.read_bytes() for path in (folders / "adapter").iterdir()} == before


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zipped", "bare"])
def test_a_pickled_adapter_is_refused_with_the_reason_and_never_run(folders, name, zipped):
    (folders / "adapter" / "adapter_model.safetensors").unlink()
    trap = Trap(folders / "sprung").pickled()
    if zipped:
        with zipfile.ZipFile(folders / "adapter" / name, "w") as archive:
            archive.writestr("adapter/data.pkl", trap)
    else:
        (folders / "adapter" / name).write_bytes(trap)
    with pytest.raises(CheckpointError, match=rf"{name} is a Python pickle, which can run any program"):
        nl.load(folders / "base", adapter=folders / "adapter")
    assert not (folders / "sprung").exists()


def test_an_adapter_that_is_its_own_base_is_named(folders):
    again = folders / "again"
    adapted().save_adapter(again, base=folders / "adapter")
    for base in ("again", "adapter"):  # through another one, and at once
        edit(folders / "adapter", base_model_name_or_path=str(folders / base))
        with pytest.raises(CheckpointError, match=r"(again|adapter) is an adapter for a model that is an adapter for it$"):
            nl.load(folders / "adapter")


def test_an_adapter_over_an_adapter_is_both(folders):
    adapted().save_adapter(folders / "first", base=folders / "base")
    adapted(targets=("wo",)).save_adapter(folders / "second", base=folders / "first")
    model = nl.load(folders / "first")
    model.merge_adapter()
    load_adapter(model, folders / "second")
    assert_same_bits(nl.load(folders / "second").forward(tokens()), model.forward(tokens()))


@pytest.mark.parametrize("name", ["x" * 300, "y" * 10_000, "a\0b", 3, ["base"], {}, True])
def test_a_base_that_no_file_can_be_called_is_named_in_one_short_sentence(folders, name):
    edit(folders / "adapter", base_model_name_or_path=name)
    with pytest.raises(CheckpointError, match=r"adapter is an adapter for .*, which is not a folder or f") as caught:
        nl.load(folders / "adapter")
    assert len(str(caught.value)) < 600
