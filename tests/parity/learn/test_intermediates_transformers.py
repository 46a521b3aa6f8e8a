"""The stream and attention of every layer, and their gradients, against transformers and autograd."""

import numpy as np
import pytest
from helpers import assert_close
from interop.peer import PARITY, torch
from parity.interop.test_families import CASES, theirs

import numllama as nl
from numllama.learn.intermediates import forward
from numllama.learn.tracing import trace

pytestmark = PARITY

NAMES = [
    "mistral-window", "qwen2-tied", "qwen3-biases", "smollm3-biases", "phi3-partial", "olmo2-biases", "gemma-biases",
    "gemma2-caps", "gemma3_text-scaled", "llama-mlp_bias",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_streams_attention_and_their_gradients_are_those_of_autograd(tmp_path, name):
    reference = theirs(name)
    reference.save_pretrained(tmp_path)
    reference, model = reference.double(), nl.load(tmp_path, dtype="float64")
    ids = np.random.default_rng(0).integers(3, 97, 13)
    out = reference(input_ids=torch.tensor(ids[None, :-1]), output_hidden_states=True, output_attentions=True)
    kept = {"embedding": out.hidden_states[0], "logits": out.logits}
    kept |= {f"layer {i}: after_ffn": x for i, x in enumerate(out.hidden_states[1:-1])}        # the last one is normalised
    kept |= {f"layer {i}: attention": p for i, p in enumerate(out.attentions)} | {"norm": out.hidden_states[-1]}
    for tensor in kept.values():
        tensor.retain_grad()
    torch.nn.functional.cross_entropy(out.logits[0], torch.tensor(ids[1:])).backward()
    traced = {t.name: t for t in trace(model, None, ids.tolist()).values}
    assert len(kept) == 2 * model.config.n_layers + 2
    for each, tensor in kept.items():
        value, gradient = tensor.detach().numpy(), tensor.grad.numpy()
        if each.endswith("attention"):                                 # hidden keys: the trace shows zeros
            gradient = np.where(value == 0, 0, gradient)
        assert_close(traced[each].value, value, rtol=1e-5)             # transformers computes softmax and RoPE in float32
        assert_close(traced[each].gradient, gradient, rtol=1e-4)


def test_every_family_but_mixtures_is_here():
    assert {name.partition("-")[0] for name in NAMES} == {name.partition("-")[0] for name in CASES}


@pytest.mark.parametrize("name", ["gemma2-caps", "phi3-window"])
def test_an_edited_value_changes_the_logits_as_a_hook_does(tmp_path, name):
    reference = theirs(name)
    reference.save_pretrained(tmp_path)
    reference, model = reference.double(), nl.load(tmp_path, dtype="float64")
    ids = np.random.default_rng(1).integers(3, 97, (1, 9))
    reference.model.layers[1].self_attn.o_proj.register_forward_hook(lambda module, args, out: out * 0.5)
    expected = reference(input_ids=torch.tensor(ids)).logits.detach().numpy()
    run = forward(model, ids, edits={"layer 1: attn_out": lambda value: 0.5 * value})
    assert_close(run.logits, expected, rtol=1e-5)
