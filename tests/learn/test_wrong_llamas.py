"""Wrong answers to the last exercise, a whole Llama: each lost point names the mistake that was made."""

from pathlib import Path

import pytest

from numllama.learn.grade import grade

RIGHT = Path(__file__).with_name("student.py").read_text(encoding="utf-8")
TILED = "The key/value heads are tiled (0, 1, 0, 1) instead of repeated"
ADDED = "The sum is over every K-th query head, as if heads were tiled"


@pytest.mark.parametrize("right, wrong, says", [
    ("k.swapaxes(-1, -2) / math.sqrt(D), -np.inf)", "k.swapaxes(-1, -2) / D, -np.inf)",
     {"scores": "The scores are divided by D instead of √D"}),
    ("see = np.tri(T, dtype=bool)", "see = np.tri(T, k=1, dtype=bool)",
     {"attention": "A token also sees the next one: the mask's diagonal is off by one.", "d_scores": ""}),
    ("np.repeat(k, H // K, 1), np.repeat(val, H // K, 1)\n        s =",
     "np.tile(k, (1, H // K, 1, 1)), np.tile(val, (1, H // K, 1, 1))\n        s =", {"scores": TILED, "head_outputs": TILED}),
    ('q = v[at("q_rotated")] = turn(q, cos, sin, c.rope_layout)', 'q = v[at("q_rotated")] = turn(q, cos, sin, "interleaved")',
     {"q_rotated": "The pairs are those of the other layout"}),
    ("gate * sigmoid(gate) * up", "gate * sigmoid(up) * up", {"swiglu": "Gate and up are exchanged"}),
    ("ds * up * (sg + gate * sg * (1 - sg))", "ds * up * sg", {"d_gate": "The second term of silu' is missing"}),
    ('keep("after_attention", d + more)', 'keep("after_attention", more)',
     {"d_after_attention": "the residual term past it is missing"}),
    ("a * (da - (a * da).sum(-1, keepdims=True))", "a * da", {"d_scores": "The sum in softmax's gradient is missing"}),
    ("turn(dq, cos, -sin, c.rope_layout)", "turn(dq, cos, sin, c.rope_layout)",
     {"d_q": "RoPE turns the gradient forward instead of back."}),
    ("each.reshape(B, K, H // K, T, D).sum(2)", "each.reshape(B, H // K, K, T, D).sum(1)", {"d_k_rotated": ADDED, "d_v": ADDED}),
    ("np.add.at(dembed, tokens, d)", "dembed[tokens] = d",
     {"d_embed": "A token that occurs several times keeps the gradient of its last occurrence only."}),
])  # fmt: skip
def test_a_mistake_in_a_whole_llama_is_named(tmp_path, right, wrong, says):
    assert RIGHT.count(right) == 1
    path = tmp_path / "mine.py"
    path.write_text(RIGHT.replace(right, wrong), encoding="utf-8")
    lost = {point.name: point.mistake for point in grade(path, ("gqa",), 5).points if not point.earned}
    assert set(lost) == set(says)
    for name, part in says.items():
        assert part in lost[name], lost
