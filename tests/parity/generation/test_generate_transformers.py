"""Generation against transformers' generate: the same ids, cached, batched, and through a window."""

import numpy as np
import pytest
from interop.peer import LLAMA_3, PARITY, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, torch

import numllama as nl

pytestmark = PARITY

SHAPE = dict(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=8,
    max_position_embeddings=256, attn_implementation="eager", bos_token_id=None, eos_token_id=None, pad_token_id=0,
)  # fmt: skip


def both(folder, kv_heads=2, **changes):
    """A random model of transformers, decided enough that greed has no ties, and the same one here."""
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=kv_heads, **changes)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += 0.15 * torch.randn_like(weight)
    theirs.save_pretrained(folder)
    return theirs, nl.load(folder)


def generated(theirs, prompts, n, **settings):
    """transformers' new ids for prompts of any lengths: padded on the left."""
    T = max(map(len, prompts))
    tokens = torch.tensor([[0] * (T - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (T - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        out = theirs.generate(tokens, attention_mask=mask, max_new_tokens=n, do_sample=False, **settings)
    return out[:, T:].tolist()


def prompts_of(*lengths):
    rng = np.random.default_rng(5)
    return [rng.integers(1, 97, length).tolist() for length in lengths]


@pytest.mark.parametrize("rope", [dict(rope_type="default", rope_theta=10000.0), LLAMA_3], ids=["default", "llama3"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_64_greedy_ids_of_ragged_prompts(tmp_path, kv_heads, tied, rope):
    theirs, ours = both(tmp_path, kv_heads, tie_word_embeddings=tied, rope_parameters=rope)
    prompts = prompts_of(1, 17, 5, 40)
    expected = generated(theirs, prompts, 64)
    assert len({tuple(row) for row in expected}) == 4
    assert nl.generate(ours, prompts, 64, temperature=0) == expected
    assert nl.generate(ours, prompts[3], 64, temperature=0) == expected[3]


def test_greed_with_a_repetition_penalty(tmp_path):
    """Of one prompt: transformers' penalty counts its own padding as seen."""
    theirs, ours = both(tmp_path)
    for prompt in prompts_of(3, 20):
        expected = generated(theirs, [prompt], 64, repetition_penalty=1.3)
        assert [nl.generate(ours, prompt, 64, temperature=0, repetition_penalty=1.3)] == expected
        assert expected != generated(theirs, [prompt], 64)


def test_stop_ids(tmp_path):
    theirs, ours = both(tmp_path)
    prompts = prompts_of(4, 9, 2)
    whole = generated(theirs, prompts, 64)
    stops = [whole[0][20], whole[1][31]]
    expected = generated(theirs, prompts, 64, eos_token_id=stops)
    ours = nl.generate(ours, prompts, 64, temperature=0, stop_ids=stops)
    for row, full in zip(ours, expected, strict=True):
        assert row == full[: len(row)]                                     # theirs goes on with the stop id and padding
        assert len(row) == 64 or full[len(row)] in stops
    assert min(map(len, ours)) < 64


def test_log_probabilities(tmp_path):
    theirs, ours = both(tmp_path)
    prompt = prompts_of(12)[0]
    with torch.inference_mode():
        out = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, 12), max_new_tokens=20, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    ids = out.sequences[0, 12:].tolist()
    expected = [float(torch.log_softmax(logits[0], -1)[i]) for logits, i in zip(out.logits, ids, strict=True)]
    new, logprobs = nl.generate(ours, prompt, 20, temperature=0, logprobs=True)
    assert new == ids
    assert logprobs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("window", [4, 13])
def test_a_window_is_mistrals(tmp_path, window):
    """A Mistral is a Llama whose tokens see `sliding_window` others: our window, on the same weights."""
    torch.manual_seed(0)
    theirs = MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=2, head_dim=6, sliding_window=window)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += 0.15 * torch.randn_like(weight)
    llama = LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2))
    llama.load_state_dict(theirs.state_dict())
    llama.save_pretrained(tmp_path)
    ours = nl.load(tmp_path)
    for prompt in prompts_of(1, 30):
        (expected,) = generated(theirs, [prompt], 64)
        assert nl.generate(ours, prompt, 64, temperature=0, window=window) == expected
        assert nl.generate(ours, prompt, 64, temperature=0) != expected
