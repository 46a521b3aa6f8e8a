"""Against transformers: random tiny checkpoints that it writes, and those that we write."""

import json

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from interop.checkpoints import LLAMAS, SHAPE, random_model
from interop.peer import (
    LLAMA_3,
    PARITY,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    torch,
)
from realdata import real_data
from safetensors.numpy import load_file, save_file

import numllama as nl
from numllama.cli import app
from numllama.generation.text import opening
from numllama.interop.huggingface import huggingface_names

pytestmark = PARITY

ROPES = {
    "default": dict(rope_type="default", rope_theta=10000.0),
    "llama3": LLAMA_3,
    "linear": dict(rope_type="linear", rope_theta=10000.0, factor=3.0),
}
CASES = [
    (kv_heads, tied, rope, eps)
    for kv_heads in (1, 2, 4, 8)
    for tied in (False, True)
    for rope in ("default", "llama3")
    for eps in (1e-5, 1e-6)
] + [(2, False, "linear", 1e-5)]


def theirs(kv_heads=2, tied=False, rope="default", eps=1e-5, noise=0.1, **changes):
    """A random model of transformers; its gains are random too."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=kv_heads, max_position_embeddings=128, rms_norm_eps=eps, tie_word_embeddings=tied,
        rope_parameters=dict(ROPES[rope]), bos_token_id=1, eos_token_id=[2, 3], attn_implementation="eager", **changes,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    return model


def batch(seed=1, B=2, T=24):
    tokens, targets = np.random.default_rng(seed).integers(0, 97, (2, B, T))
    targets[0, 3:8] = -100
    return tokens, targets


def loss_of(model, tokens, targets):
    logits = model(input_ids=torch.tensor(tokens)).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())


@pytest.mark.parametrize(("kv_heads", "tied", "rope", "eps"), CASES)
def test_logits_loss_and_every_gradient_equal_transformers(tmp_path, kv_heads, tied, rope, eps):
    reference = theirs(kv_heads, tied, rope, eps)
    reference.save_pretrained(tmp_path)
    model = nl.load(tmp_path)
    assert (model.config.norm_eps, model.config.n_kv_heads, model.config.tie_embeddings) == (eps, kv_heads, tied)
    tokens, targets = batch()
    expected = loss_of(reference, tokens, targets)
    expected.backward()
    assert_close(model.forward(tokens), reference(input_ids=torch.tensor(tokens)).logits.detach().numpy(), rtol=1e-5)
    loss, grads = model.loss_and_grads(tokens, targets)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    assert float(model.loss(tokens, targets)) == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: weight.grad.numpy() for name, weight in reference.named_parameters()}
    names = huggingface_names(model.config)
    assert set(names.values()) == set(gradients)
    for name, gradient in grads.items():
        assert_close(gradient, gradients[names[name]], rtol=1e-4)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("tied", [False, True])
def test_greedy_ids_are_equal_for_64_tokens(tmp_path, tied, rope):
    reference = theirs(tied=tied, rope=rope, noise=0.5)
    reference.generation_config.eos_token_id = None  # for None below is whatever stands here
    reference.save_pretrained(tmp_path)
    prompt = [5, 17, 3, 60]
    config = GenerationConfig(do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0)
    expected = reference.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 4, dtype=torch.long), generation_config=config
    )[0, 4:].tolist()  # fmt: skip
    assert nl.generate(nl.load(tmp_path), prompt, 64, temperature=0) == expected
    assert len(set(expected)) > 10  # and not one token again and again


@pytest.mark.parametrize(("kv_heads", "tied", "rope", "eps"), CASES[::3])
def test_transformers_opens_what_we_save_and_nothing_has_changed(tmp_path, kv_heads, tied, rope, eps):
    """theirs -> ours -> theirs -> ours: the same weights, configuration and stop ids."""
    reference = theirs(kv_heads, tied, rope, eps)
    reference.save_pretrained(tmp_path / "theirs")
    model = nl.load(tmp_path / "theirs")
    model.save(tmp_path / "ours")
    opened, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(opened) is LlamaForCausalLM
    assert opened.dtype == torch.float32
    for name, weight in reference.state_dict().items():
        assert_same_bits(opened.state_dict()[name].numpy(), weight.numpy())
    mine, own = opened.config.to_dict(), reference.config.to_dict()
    assert {key: mine[key] for key in own if key not in ("_name_or_path", "architectures", "dtype")} == {
        key: own[key] for key in own if key not in ("_name_or_path", "architectures", "dtype")
    }
    assert opened.generation_config.eos_token_id == [2, 3]
    assert model.stop_ids == (2, 3)
    opened.save_pretrained(tmp_path / "back")
    again = nl.load(tmp_path / "back")
    assert (again.config, again.stop_ids) == (model.config, model.stop_ids)
    assert_same_bits(again.params.flat, model.params.flat)


@pytest.mark.parametrize("name", LLAMAS)
def test_every_llama_of_ours_opens_there_and_computes_the_same(tmp_path, name):
    model = random_model(**LLAMAS[name])
    model.save(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (2, 12))
    assert_close(model.forward(tokens), opened(torch.tensor(tokens)).logits.detach().numpy(), rtol=1e-5)
    assert opened.generation_config.eos_token_id is None  # and not 2, as LlamaConfig would have it


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_gradients_of_interleaved_weights_are_those_of_transformers_permuted(tmp_path, kv_heads):
    from numllama.interop.huggingface import rope_heads, to_halves

    model = random_model(rope_layout="interleaved", n_kv_heads=kv_heads)
    model.save(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens, targets = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (2, 2, 12))
    loss_of(reference, tokens, targets).backward()
    expected = {name: weight.grad.numpy() for name, weight in reference.named_parameters()}
    names = huggingface_names(model.config)
    for name, gradient in model.loss_and_grads(tokens, targets)[1].items():
        heads = rope_heads(model.config, name)
        assert_close(gradient if heads is None else to_halves(gradient, heads), expected[names[name]], rtol=1e-4)


def test_heads_of_a_width_of_their_own(tmp_path):
    reference = theirs(head_dim=10)
    reference.save_pretrained(tmp_path)
    model, (tokens, _) = nl.load(tmp_path), batch()
    assert model.config.head_dim == 10
    assert_close(model.forward(tokens), reference(torch.tensor(tokens)).logits.detach().numpy(), rtol=1e-5)


def edit(folder, **changes):
    """Change some keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def stays_with_transformers(folder):
    """Both open the folder, and what we save of it, and compute the same."""
    model, (tokens, _) = nl.load(folder), batch()
    expected = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(tokens)).logits.detach().numpy()
    assert_close(model.forward(tokens), expected, rtol=1e-5)
    model.save(folder / "saved")
    again = AutoModelForCausalLM.from_pretrained(folder / "saved")(torch.tensor(tokens)).logits.detach().numpy()
    assert_close(again, expected, rtol=1e-5)
    return expected


@pytest.mark.parametrize("biases", [dict(attention_bias=True), dict(mlp_bias=True)], ids=lambda biases: next(iter(biases)))
def test_biases_in_one_half_of_a_block(tmp_path, biases):
    theirs(**biases).save_pretrained(tmp_path)
    stays_with_transformers(tmp_path)


HARMLESS = {
    "dropout": dict(attention_dropout=0.3),
    "window": dict(sliding_window=4),
    "window_that_is_on": dict(sliding_window=4, use_sliding_window=True, layer_types=["sliding_attention"] * 3),
    "partial": dict(partial_rotary_factor=1.0),
    "partial_rope": dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=1.0)),
    "linear": dict(rope_parameters=None, rope_scaling=dict(type="linear", factor=1.0)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_there_changes_nothing_here(tmp_path, name):
    reference = theirs()
    reference.save_pretrained(tmp_path)
    edit(tmp_path, **HARMLESS[name])
    expected = reference(torch.tensor(batch()[0])).logits.detach().numpy()
    assert_close(stays_with_transformers(tmp_path), expected, rtol=1e-6)


def test_llama_3s_scaling_of_the_configurations_own_length(tmp_path):
    theirs(rope="llama3").save_pretrained(tmp_path)
    rope = {key: value for key, value in LLAMA_3.items() if key != "original_max_position_embeddings"}
    edit(tmp_path, rope_parameters=rope, max_position_embeddings=40)
    stays_with_transformers(tmp_path)


@pytest.mark.parametrize("held", ["head", "both", "two"])
def test_a_tied_model_whose_file_holds_the_head(tmp_path, held):
    theirs(tied=True).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    embed = tensors.pop("model.embed_tokens.weight") if held == "head" else tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embed[::-1].copy() if held == "two" else embed
    save_file(tensors, path, {"format": "pt"})
    stays_with_transformers(tmp_path)
    assert nl.load(tmp_path).config.tie_embeddings == (held != "two")


def test_biases_in_all_linear_maps(tmp_path):
    reference = theirs(attention_bias=True, mlp_bias=True)
    reference.save_pretrained(tmp_path)
    model, (tokens, targets) = nl.load(tmp_path), batch()
    assert model.config.bias
    expected = loss_of(reference, tokens, targets)
    assert float(model.loss(tokens, targets)) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_checkpoints_of_two_bytes_and_in_shards(without_onednn, tmp_path, dtype):
    reference = theirs().to(getattr(torch, dtype))
    reference.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model = nl.load(tmp_path)
    names = huggingface_names(model.config)
    for name, view in model.params.items():
        assert_same_bits(view, reference.state_dict()[names[name]].float().numpy())
    tokens, _ = batch()
    wide = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_close(model.forward(tokens), wide(torch.tensor(tokens)).logits.detach().numpy(), rtol=1e-5)
    if dtype == "bfloat16":
        kept = nl.load(tmp_path, dtype="bfloat16")
        assert_close(kept.forward(tokens), wide(torch.tensor(tokens)).logits.detach().numpy(), rtol=1e-5)
        kept.save(tmp_path / "kept")
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / "kept")
        assert opened.dtype == torch.bfloat16


def test_configurations_spelled_as_before_transformers_5(tmp_path):
    reference = theirs(rope="llama3")
    reference.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    rope = values.pop("rope_parameters")
    values |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": values.pop("dtype")}
    path.write_text(json.dumps(values))
    model, (tokens, _) = nl.load(tmp_path), batch()
    assert_close(model.forward(tokens), reference(torch.tensor(tokens)).logits.detach().numpy(), rtol=1e-5)


def test_a_trained_model_of_llama2c_opens_in_transformers(tmp_path):
    model = nl.load(real_data("stories260K.bin"))
    model.save(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    config = GenerationConfig(do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0)
    ids = opened.generate(torch.tensor([[1]]), attention_mask=torch.ones(1, 1, dtype=torch.long), generation_config=config)
    assert nl.generate(model, [1], 64, temperature=0) == ids[0, 1:].tolist()


def test_a_converted_model_of_llama2c_writes_the_same_text_in_transformers(tmp_path, capsys):
    folder, words = tmp_path / "folder", ["--tokenizer", str(real_data("tok512.bin"))]
    assert app(["convert", str(real_data("stories260K.bin")), str(folder), *words], result_action="return_value") == 0
    theirs, opened = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    model, tokenizer = nl.load(folder), nl.Tokenizer.load(folder)
    config = GenerationConfig(do_sample=False, max_new_tokens=60, eos_token_id=None, pad_token_id=0)
    for prompt in ("Once upon a time", "Lily and Ben are  friends.\n", "Café 🎉", "the"):
        asked = theirs(prompt, return_tensors="pt")
        ids = asked.input_ids[0].tolist()
        assert ids == [*opening(model, tokenizer), *tokenizer.encode(prompt)]
        assert ids[0] == 1
        new = opened.generate(asked.input_ids, attention_mask=asked.attention_mask, generation_config=config)[0, len(ids) :]
        assert nl.generate(model, ids, 60, temperature=0, stop_ids=()) == new.tolist()
        capsys.readouterr()
        words = ["generate", str(folder), prompt, "--temperature", "0", "--max-new-tokens", "60"]
        assert app(words, result_action="return_value") == 0
        said = theirs.decode([*ids, *new.tolist()], skip_special_tokens=True)
        assert capsys.readouterr().out.removesuffix("\n").removeprefix(" ") == said.removeprefix(" ")


def test_torchs_own_files_are_refused_and_never_run(tmp_path):
    theirs().save_pretrained(tmp_path)
    torch.save(theirs().state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(nl.CheckpointError, match=r"pytorch_model\.bin is a Python pickle"):
            nl.load(path)
    torch.save(theirs().state_dict(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(nl.CheckpointError, match=r"old\.bin is a Python pickle"):
        nl.load(tmp_path / "old.bin")
