"""The answers to the questions of the chapters: each question has one, and each number of an answer is computed here.

What takes minutes was measured by benchmarks/answers_chapters.py and is kept in docs/answers_chapters.json.
"""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers import EXAMPLES, example

import numllama as nl
from numllama import ops
from numllama.data import synthetic
from numllama.generation.sampling import keep_min_p, keep_top_k, keep_top_p
from numllama.gradcheck import gradcheck
from numllama.interop.families import config_from_huggingface
from numllama.learn.course.functions import bpe
from numllama.learn.heads import first_token_scores, induction_scores, previous_token_scores
from numllama.learn.patching import activation_patching, attribution_patching
from numllama.optim import adamw_update
from numllama.training import plan

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")

ITEM = re.compile(r"^(\d+)\. (.*?)(?=^\d+\. |^\S|\Z)", re.S | re.M)


def page(name):
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def title(text):
    return re.search(r"^# (.*)$", text, re.M)[1]


def slug(heading):
    """The anchor that MyST gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


ANSWERS = page("answers_chapters") if DOCS.exists() else ""
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", ANSWERS, re.S | re.M))
CHAPTERS = {f"chapters/{path.stem}": path.read_text(encoding="utf-8") for path in sorted((DOCS / "chapters").glob("*.md"))}
ASKING = {name: text for name, text in CHAPTERS.items() if "\n## Exercises\n" in text}
TITLES = {name: title(text) for name, text in ASKING.items()}


def questions(name):
    """The questions of a chapter by their numbers; exercises that have a check are none."""
    items = dict(ITEM.findall(ASKING[name].split("\n## Exercises\n")[1]))
    return {number: text for number, text in items.items() if "numllama exercises" not in text}


def answers(name):
    return dict(ITEM.findall(SECTIONS[TITLES[name]]))


def answer(name, number):
    """An answer as one line."""
    return " ".join(answers(f"chapters/{name}")[str(number)].split())


def percent(part):
    return f"{100 * float(part):.0f} %"


def says(name, number, *texts):
    """The answer has these texts, whose numbers were computed."""
    text = answer(name, number)
    for each in texts:
        assert re.search(rf"(?<![\d.,]){re.escape(each)}(?!\d)", text), f"{each!r} is not in: {text}"


# ------------------------------------------------------------------------------------------------ each question has an answer


def test_the_sections_are_the_chapters_with_questions_in_the_order_of_the_path():
    order = re.findall(r'^\["(.*)"\]$', (DOCS / "path.toml").read_text(encoding="utf-8"), re.M)
    assert list(SECTIONS) == [TITLES[name] for name in sorted(ASKING, key=order.index)]


@pytest.mark.parametrize("name", ASKING)
def test_each_question_has_its_answer_and_no_answer_is_without_a_question(name):
    assert list(answers(name)) == list(questions(name))
    assert all(len(text.split()) > 5 for text in answers(name).values())


@pytest.mark.parametrize("name", ASKING)
def test_the_questions_and_their_answers_lead_to_one_another(name):
    link = f"[the answers](../answers_chapters.md#{slug(TITLES[name])})"
    assert ASKING[name].rstrip().endswith(f"\n\nAfter you have tried: {link}.")
    assert SECTIONS[TITLES[name]].startswith(f"\nThe [questions]({name}.md#exercises).\n\n")


def test_an_answer_that_is_missing_is_seen(monkeypatch):
    monkeypatch.setitem(SECTIONS, "AdamW, the schedule and clipping", "\nThe questions.\n\n3. One.\n   Two.\n4. More.\n")
    assert list(answers("chapters/adamw")) == ["3", "4"] != list(questions("chapters/adamw"))


# ------------------------------------------------------------------------------------------------ reading a model


def test_equal_attention_has_small_scores():
    T = 64
    equal = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    scores = previous_token_scores(equal), first_token_scores(equal), induction_scores(equal, T // 2)
    says("reading_a_model", 1, "{:.3f}, {:.3f} and {:.3f}".format(*scores))
    assert scores[0] == pytest.approx(sum(1 / (t + 1) for t in range(1, 64)) / 63)
    assert scores[2] == pytest.approx(sum(1 / (t + 1) for t in range(32, 64)) / 32)


@pytest.fixture(scope="module")
def patched():
    """Effects in a small model with random weights, in float64: estimated, and true of some values, as parts of the whole."""
    model = nl.Transformer(nl.ModelConfig(11, 16, 3, 4, n_kv_heads=2, max_seq_len=8, init_std=0.5), seed=0, dtype="float64")
    clean, corrupt = np.array([3, 1, 4, 1, 5]), np.array([3, 1, 9, 1, 5])
    found = attribution_patching(model, clean, corrupt, answers=(2, 7))
    names = ["embedding", "layer 2: after_ffn", "layer 1: attn_out", "layer 1: head_outputs"]
    true = activation_patching(model, clean, corrupt, names, found.answers)
    whole = found.clean - found.corrupt
    return {name: (found.effects[name] / whole, true[name] / whole) for name in names}


def test_estimates_of_heads_add_up_and_true_effects_do_not(patched):
    (estimated, true), (of_heads, true_of_heads) = patched["layer 1: attn_out"], patched["layer 1: head_outputs"]
    np.testing.assert_allclose(of_heads.sum(0), estimated, atol=1e-12)
    assert abs(true_of_heads.sum(0) - true).max() > 0.01
    source = (ROOT / "numllama/model/block.py").read_text(encoding="utf-8")
    assert re.search(r"`(linear_forward.*?)`", answer("reading_a_model", 2))[1] in source


def test_the_changed_row_restores_all_at_the_start_and_the_last_row_at_the_end(patched):
    np.testing.assert_allclose(patched["embedding"][1], [0, 0, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(patched["layer 2: after_ffn"][1], [0, 0, 0, 0, 1], atol=1e-12)


# ------------------------------------------------------------------------------------------------ adamw


def steps_of(gradients, betas=(0.9, 0.95), weight_decay=0.1):
    """The weights after each step, from 1."""
    w, m, v, path = np.ones(gradients.shape[1]), *np.zeros((2, gradients.shape[1])), []
    for t, g in enumerate(gradients, 1):
        adamw_update(w, g, m, v, t, 0.01, betas, 0.0, weight_decay)
        path.append(w.copy())
    return np.array(path)


def test_larger_gradients_change_nothing():
    gradients = np.random.default_rng(0).standard_normal((30, 5))
    np.testing.assert_allclose(steps_of(1000 * gradients), steps_of(gradients), rtol=1e-12)
    assert answer("adamw", 2).startswith("Nothing,")


def test_one_gradient_fades():
    path = steps_of(np.eye(40, 1), weight_decay=0)[:, 0]
    steps = -np.diff(path, prepend=1.0) / 0.01
    first = 1 + int(np.argmax(steps <= 0.1))
    says("adamw", 3, f"In the {first}th step, {first - 1} steps after", f"{steps[first - 2]:.3f} at {first - 1}",
         f"{steps[first - 1]:.3f} at {first}", f"= {0.9 / math.sqrt(0.95):.3f}$ of")  # fmt: skip
    assert steps[0] == pytest.approx(1) and steps[-1] / steps[-2] == pytest.approx(0.9 / math.sqrt(0.95), rel=0.01)
    formula = [0.1 * 0.9 ** (t - 1) / (1 - 0.9**t) / math.sqrt(0.05 * 0.95 ** (t - 1) / (1 - 0.95**t)) for t in range(1, 41)]
    np.testing.assert_allclose(steps, formula, rtol=1e-9)


# ------------------------------------------------------------------------------------------------ bpe, sampling


def test_a_pair_that_overlaps_itself():
    text = "aaaa"
    places = sum(pair == ("a", "a") for pair in pairwise(text))
    left = bpe.merged(tuple(text), ("a", "a"), "aa")
    says("bpe", 2, f"{places} times", f"{len(left)} tokens are left, `{' '.join(left)}`")


def test_the_longest_token_can_be_better_than_the_merges(tmp_path):
    text, word = re.search(r"text `(.*?)`, and the word `(.*?)`", answer("bpe", 3)).groups()
    merges = bpe.learn_merges(text, 3)
    spelling = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelling.append(spelling[left] + spelling[right])

    def spelled(ids):
        return ", ".join(spelling[i].decode() for i in ids)

    first, second, third = (" + ".join(map(chr, pair)) for pair in merges)
    merged, greedy = (spelled(ids) for ids in (bpe.encode_word(word, merges), longest(word.encode(), spelling)))
    says("bpe", 3, f"{first}, which occurs {text.split().count('bc')} times, then {second} and {third}",
         f"{merged}, and nothing", f"gives {greedy}.")  # fmt: skip
    (tmp_path / "text").write_text("\n".join(text.split()) + "\n")
    tokenizer = nl.Tokenizer.train(tmp_path / "text", 259, progress=False)
    vocabulary = [tokenizer.vocab[i] for i in range(259)]
    assert len(tokenizer.encode(word)) == 3 > len(longest(word.encode(), vocabulary)) == 2


def longest(text, spelling):
    """The longest token at each place."""
    ids = []
    while text:
        ids.append(max((i for i, token in enumerate(spelling) if text.startswith(token)), key=lambda i: len(spelling[i])))
        text = text[len(spelling[ids[-1]]) :]
    return ids


def kept(logits):
    return int(np.isfinite(logits).sum())


def test_the_order_of_min_p_matters_beside_top_p_and_not_beside_top_k():
    p = np.array([json.loads(re.search(r"^p = np.array\(\[(.*)\]\)$", CHAPTERS["chapters/sampling"], re.M)[1])])
    x = np.log(p)
    says("sampling", 2, f"keep {kept(keep_min_p(keep_top_p(x, 0.8), 0.1))} tokens",
         f"the other order {kept(keep_top_p(keep_min_p(x, 0.1), 0.8))}.")  # fmt: skip
    rng = np.random.default_rng(0)
    for _ in range(100):
        x, k, alpha = rng.standard_normal((3, 12)) * 2, int(rng.integers(1, 13)), rng.uniform(0.01, 0.5)
        np.testing.assert_array_equal(keep_min_p(keep_top_k(x, k), alpha), keep_top_k(keep_min_p(x, alpha), k))


def test_equally_likely_tokens():
    equal = np.zeros((1, 8))
    says("sampling", 3, f"{kept(keep_top_p(equal, 0.75))} of 8 for $P = 0.75$")
    assert math.ceil(0.75 * 8) == 6 and kept(keep_min_p(equal, 0.9)) == kept(keep_min_p(equal, 1.0)) == 8


# ------------------------------------------------------------------------------------------------ kv_cache


def turned_further():
    """The exercise's file with what the question changes."""
    from numllama.learn.course.functions import kv_cache

    source = Path(kv_cache.__file__).read_text(encoding="utf-8")
    changes = {
        "cos[new], sin[new]": "cos[after], sin[after]", "ANGLES = np.arange(S)": "ANGLES = np.arange(S + 1)",
        "    new = slice(length, end)\n": "    new, after = slice(length, end), slice(length + 1, end + 1)\n",
    }  # fmt: skip
    for right, wrong in changes.items():
        assert right in source
        source = source.replace(right, wrong)
    exec(compile(source, "kv_cache.py", "exec"), names := {})
    return vars(kv_cache), names


def test_one_more_turn_changes_the_keys_only():
    right, wrong = turned_further()
    (out, keys, values), (same, other, same_values) = (each["in_pieces"]([3, 5]) for each in (right, wrong))
    np.testing.assert_allclose(same, out, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(same_values, values)
    assert (abs(other - keys).max(-1) > 1e-3).all()
    failing = []
    for name, test in wrong.items():
        if name.startswith("test_"):
            try:
                test()
            except AssertionError:
                failing.append(name)
    says("kv_cache", 2, *(f"`{name}` fails, and the other tests pass" for name in failing))
    assert len(failing) == 1


def test_an_empty_slot_takes_weight():
    def share(n, score):
        return float(ops.softmax_forward(np.array([[0.0] + n * [score]]))[0][0, 0])

    assert share(7, 0.0) == pytest.approx(1 / 8) and share(7, -5.0) == pytest.approx(1 / (1 + 7 * math.exp(-5)))
    says("kv_cache", 3, f"{percent(share(10, -5.0))} for", f"still half for $n = {math.exp(5):.0f}")
    assert share(148, -5.0) == pytest.approx(0.5, abs=0.001)


# ------------------------------------------------------------------------------------------------ attention_cost, experts


@pytest.fixture(scope="module")
def configs():
    published = json.loads((DOCS / "chapters/published_configs.json").read_text(encoding="utf-8"))
    return {name: config_from_huggingface(values) for name, values in published.items()}


def cache_bytes(c, tokens):
    return 2 * c.n_layers * c.n_kv_heads * c.head_dim * 2 * tokens


def test_where_attention_overtakes_the_feed_forward(configs):
    C = 4096
    at = next(T for T in range(1, 10 * C) if 2 * C * T * (T + 1) >= 2 * 8 * C * C * T)
    two, three = (3 * c.dim * c.ffn_dim / (c.n_heads * c.head_dim) for c in (configs["Llama 2 7B"], configs["Llama 3 8B"]))
    says("attention_cost", 1, f"$T = 8C - 1$: {at:,} for", f"({two:,.0f})", f"by {percent(three / at - 1)}", f"({three:,.0f})")
    assert at == 8 * C - 1


def test_a_cache_for_64_texts(configs):
    c, GiB = configs["Llama 3 8B"], 2**30
    size, weights = cache_bytes(c, 64 * 8192), 2 * nl.count_parameters(c)
    all_heads = replace(c, n_kv_heads=32)
    larger, with_heads = cache_bytes(all_heads, 64 * 8192), 2 * nl.count_parameters(all_heads)
    says("attention_cost", 2, f"{cache_bytes(c, 1) / 1024:.0f} KiB",
         f"{size / GiB:.0f} GiB, {size / weights:.1f} times the {weights / GiB:.0f} GiB",
         f"{larger / GiB:.0f} GiB, and {larger / with_heads:.1f} times", f"{with_heads / GiB:.1f} GiB.")  # fmt: skip


def test_the_fewest_milliseconds(configs):
    c, bandwidth = configs["Llama 2 7B"], 3.35e12
    read, cache = 2 * (nl.count_parameters(c) - c.vocab_size * c.dim), cache_bytes(c, 4096)
    batch = read + 16 * cache
    ms = 1e3 / bandwidth
    says(
        "attention_cost", 3, f"Alone, {(read + cache) * ms:.1f} ms", f"{read / 1e9:.1f} GB of weights",
        f"{cache / 1e9:.1f} GB of cache",
        f"{batch / 1e9:.1f} GB in {batch * ms:.1f} ms", f"{batch * ms / 16:.2f} ms for each", f"takes {cache * ms:.2f}."
    )  # fmt: skip


def test_the_products_of_attention_in_training():
    config = nl.ModelConfig(64, 32, 2, 4, n_kv_heads=2, max_seq_len=128)
    found = plan.flops_per_token(config, 128)
    products = 2 * (nl.count_parameters(config) - 64 * 32 - 5 * 32)     # without embedding and gains
    attention = found["forward"] - products
    assert attention > 0 and found["backward"] == 2 * products + 2.5 * attention
    source = Path(plan.__file__).read_text(encoding="utf-8")
    says("attention_cost", 4, f"{1 + 2.5} times the second term", "`2.5 * attention`", '"and 5/2 of attention"')
    assert "2.5 * attention" in source and "and 5/2 of attention" in source


def test_where_the_measured_lines_cross():
    measured = json.loads((DOCS / "chapters/attention_cost.json").read_text(encoding="utf-8"))
    ms = {name: np.array(row["ms"]) for name, row in measured["parts"].items()}
    lengths, matrices = np.log(measured["lengths"]), ms["projections"] + ms["feed-forward"]

    def crossing(name):
        above = np.log(ms[name] / matrices)
        (i,) = np.flatnonzero((above[:-1] < 0) & (above[1:] >= 0))
        return math.exp(np.interp(0, above[i : i + 2], lengths[i : i + 2]))

    layer = nl.ModelConfig(**measured["layer"])
    expected = (4 * layer.dim**2 + 3 * layer.dim * layer.ffn_dim) / layer.dim
    says("attention_cost", 5, f"about {crossing('attention, all scores at once'):,.0f} tokens",
         f"about {round(crossing('flash attention'), -2):,.0f};", f"{round(expected, -2):,.0f}.")  # fmt: skip


def test_what_a_token_meets_in_mixtral(configs):
    c = configs["Mixtral 8x7B"]
    expert = 3 * 4096 * 14336
    layer = 2 * 4096 * 128 * (32 + 8) + 8 * 4096 + 2 * expert + 2 * 4096
    active = 32 * layer + 2 * 32000 * 4096 + 4096
    assert active == nl.count_parameters(c) - 32 * 6 * expert
    of_experts = 32 * 2 * expert
    says("experts", 1, f"{active / 1e9:.2f} billion", f"{of_experts / 1e9:.2f} billion, or {percent(of_experts / active)}")


def test_a_dense_model_of_the_same_arithmetic(configs):
    c = configs["Mixtral 8x7B"]
    dense = replace(nl.PRESETS["llama-2-7b"], n_kv_heads=8, ffn_dim=2 * c.ffn_dim)
    mixture = replace(dense, ffn_dim=c.ffn_dim, ffn="moe", n_experts=8, n_experts_per_token=2)
    assert nl.count_parameters(mixture) == nl.count_parameters(c)
    active = nl.count_parameters(c) - 3 * 32 * 6 * c.dim * c.ffn_dim
    assert active - nl.count_parameters(dense) == 32 * 8 * 4096        # the router
    plans = [plan.Plan(config) for config in (mixture, dense)]
    large, small = (each.memory() for each in plans)
    says("experts", 2, f"`ffn_dim` {dense.ffn_dim:,}", f"{large['all of it'] / 1e9:.0f} GB", f"{small['all of it'] / 1e9:.0f} GB",
         f"({small['activations'] / 1e9:.0f} GB)", f"{large['moments'] / small['moments']:.1f} times as large")  # fmt: skip
    assert round(large["activations"] / 1e9) == round(small["activations"] / 1e9)
    flops = [each.figures()["flops per token"] for each in plans]
    assert flops[0] == pytest.approx(flops[1], rel=1e-3)


def test_two_experts_learn_fastest_from_equal_weights():
    rng = np.random.default_rng(0)
    z, dw = rng.standard_normal((6, 2)), rng.standard_normal((6, 2))
    (w, _), cache = ops.router_forward(z, 2)
    dz = np.take_along_axis(ops.router_backward((dw, None), cache), cache.chosen, -1)
    np.testing.assert_allclose(dz[:, 0], w[:, 0] * w[:, 1] * (dw[:, 0] - dw[:, 1]), rtol=1e-12)
    np.testing.assert_allclose(dz.sum(-1), 0, atol=1e-15)
    says("experts", 3, r"\frac14", f"{0.25 / (0.99 * 0.01):.0f} times smaller")


def test_uneven_experts_are_fewer():
    def read(chances, N):
        return (1 - (1 - np.array(chances)) ** N).sum()

    even, uneven = [2 / 8] * 8, [0.75 * 2 / 4] * 4 + [0.25 * 2 / 4] * 4
    assert sum(even) == sum(uneven) == 2 and read(even, 4) == pytest.approx(8 * (1 - (1 - 2 / 8) ** 4))
    says("experts", 5, f"4 tokens read {read(uneven, 4):.1f} experts and not {read(even, 4):.1f}")
    drawn = np.random.default_rng(0).dirichlet(np.ones(8), 200) * 2
    assert all(read(q, 9) <= read(even, 9) for q in drawn if q.max() <= 1)


def test_a_bias_for_the_choice_alone():
    """The line of the answer in the router: right gradients of the logits, and none of the bias."""
    (line,) = re.findall(r"^ *(chosen = .*)$", answers("chapters/experts")["6"], re.M)
    source = (ROOT / "numllama/ops/router.py").read_text(encoding="utf-8")
    changes = {'chosen = xp.argsort(-probs, -1, kind="stable")[:, :top_k]': line,
               "logits: Array, top_k: int, score": "logits: Array, bias: Array, top_k: int, score"}  # fmt: skip
    for right, wrong in changes.items():
        assert source.count(right) == 1
        source = source.replace(right, wrong)
    names = {"__name__": "biased_router"}
    exec(compile(source.replace("@accelerated\n", ""), "router.py", "exec", dont_inherit=True), names)
    z, bias = np.random.default_rng(0).standard_normal((5, 6)), np.array([2.0, 0, 0, 0, -2.0, 0])

    def forward(z):
        return names["router_forward"](z, bias, 2, "sigmoid")

    gradcheck(forward, names["router_backward"], [z])
    (weights, probs), cache = forward(z)
    assert (cache.chosen != ops.router_forward(z, 2, "sigmoid")[1].chosen).any()
    taken = np.take_along_axis(probs, cache.chosen, -1)
    np.testing.assert_allclose(weights, taken / taken.sum(-1, keepdims=True))
    for i in range(6):                                                  # the loss does not move with the bias
        (moved, _), _ = names["router_forward"](z, bias + 1e-6 * np.eye(6)[i], 2, "sigmoid")
        np.testing.assert_array_equal(moved, weights)


# ------------------------------------------------------------------------------------------------ what breaks training


def best_predictions(windows):
    """The source's own chances of each next character: code points (n, T + 1) -> (n, T, code points)."""
    source, n = synthetic._source(), len(windows)
    nodes, found = len(source.reach), np.zeros((n, windows.shape[1] - 1, 128))
    row, state = np.nonzero(windows[:, :1] == source.letter)
    weight = source.stationary[state]
    for t, seen in enumerate(windows.T[1:]):
        weight = weight / np.bincount(row, weight, n)[row]
        following = source.next[state]
        inside, ended = following < 0, following >= 0
        mass = np.bincount(row[ended] * nodes + following[ended], weight[ended], n * nodes).reshape(n, nodes) @ source.reach
        new, arc = np.nonzero((mass > 0)[:, source.node])
        row = np.concatenate([row[inside], new])
        state = np.concatenate([state[inside] + 1, source.first[arc]])
        weight = np.concatenate([weight[inside], mass[new, source.node[arc]] * source.chance[arc]])
        np.add.at(found, (row, t, source.letter[state]), weight)
        possible = source.letter[state] == seen[row]
        row, state, weight = row[possible], state[possible], weight[possible]
    return found


def entropy(p):
    return float(-(p * np.log(np.where(p > 0, p, 1))).sum(-1).mean())


def test_the_best_loss_if_a_third_of_the_targets_is_random(measured):
    play = synthetic.write_play(200_000)
    letters = sorted(set(play))
    V = len(letters)
    windows = np.lib.stride_tricks.sliding_window_view(synthetic._code_points(play), 33)[::400]
    p = best_predictions(windows)
    chances = np.take_along_axis(p, windows[:, 1:, None].astype(int), -1)
    text = "".join(map(chr, windows[7]))
    assert -np.log(chances[7]).mean() == pytest.approx(synthetic.best_loss(text, 32))
    p = p[..., [ord(letter) for letter in letters]]
    np.testing.assert_allclose(p.sum(-1), 1)
    certain = entropy(2 / 3 * np.eye(V)[:1] + 1 / 3 / V)
    says("what_breaks_training", 4, f"$V = {V}$", f"{certain:.2f}", f"{entropy(2 / 3 * p + 1 / 3 / V):.2f}", f"{entropy(p):.2f}",
         f"{measured['breaks']['random third']:.2f}")  # fmt: skip


# ------------------------------------------------------------------------------------------------ the ladder


@pytest.fixture(scope="module")
def gated():
    """What the page's cell defines."""
    (cell,) = re.findall(r"^```\{code-cell\} python\n(.*?)^```$", ANSWERS, re.S | re.M)
    if not EXAMPLES.exists():
        pytest.skip("tests without the examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        exec(cell, names := {})
    return names


def test_the_gated_network_is_right_and_runs_as_a_rung(gated, capsys):
    args = [np.random.default_rng(1).standard_normal(shape) for shape in ((3, 4, 2), (6, 2), (6, 2), (6,))]
    gradcheck(gated["gru_forward"], gated["gru_backward"], args)
    model = gated["Gru"](nl.ModelConfig(7, 4, 1, 1), dtype="float64")
    tokens = np.random.default_rng(0).integers(0, 7, (2, 5))
    _, grads = model.loss_and_grads(tokens, tokens)
    for name in ("embed", "w_h", "bias"):
        at = (0,) if name == "bias" else (tokens[0, 0] if name == "embed" else 5, 1)
        rises = []
        for step in (1e-6, -1e-6):
            model.params[name][at] += step
            rises.append(float(model.loss(tokens, tokens)))
            model.params[name][at] -= step
        assert grads[name][at] == pytest.approx((rises[0] - rises[1]) / 2e-6, rel=1e-5, abs=1e-9)


# ------------------------------------------------------------------------------------------------ scaling laws


@pytest.fixture(scope="module")
def laws():
    return example("scaling_laws")


@pytest.fixture(scope="module")
def runs():
    return json.loads((DOCS / "chapters/scaling_laws.json").read_text(encoding="utf-8"))["runs"]


@pytest.fixture(scope="module")
def law(laws, runs):
    return laws.fit(*laws.points(runs))


def test_the_law_without_the_largest_model(laws, runs, law):
    fewer = laws.fit(*laws.points(runs[:-1]))
    n, d, losses = laws.points(runs[-1:])
    predicted = fewer(n, d)
    says("scaling_laws", 1, f"{predicted[0]:.3f} for its first reading and {predicted[-1]:.3f} for its last",
         f"and {losses[0]:.3f} and {losses[-1]:.3f} were measured",
         f"$E$ from {law.E:.1f} to {fewer.E:.1f}", f"from {law.beta:.2f} to {fewer.beta:.2f}")  # fmt: skip
    assert 0.015 < abs(predicted / losses - 1).max() < 0.02


def test_squared_errors(laws, runs, law):
    n, d, losses = laws.points(runs)
    squared = laws.fit(n, d, losses, delta=1e9)
    errors, others = (abs(each(n, d) / losses - 1) * 100 for each in (law, squared))
    square = np.log(law(n, d) / losses) ** 2
    assert law(n, d)[0] < losses[0] and square[:2].tolist() == sorted(square, reverse=True)[:2]
    says("scaling_laws", 2, f"up to {errors[0]:.1f} %", f"{percent(square[0] / square.sum())} of the sum",
         f"shrinks to {others[0]:.1f} %",
         f"from {np.median(errors):.2f} % to {np.median(others):.2f} %", f"$E$ from {law.E:.1f} to {squared.E:.1f}")  # fmt: skip


def test_embeddings_as_parameters(laws, runs, law):
    n, d, losses = laws.points(runs)
    embeddings = np.repeat([2 * 65 * run["dim"] for run in runs], 7)
    other = laws.fit(n + embeddings, d, losses)
    errors = [100 * float(np.median(abs(each / losses - 1))) for each in (other(n + embeddings, d), law(n, d))]
    share = embeddings / n
    says("scaling_laws", 3, f"{percent(share[0])} of its other", f"{percent(share[-1])} of the largest",
         "{:.2f} % instead of {:.2f} %".format(*errors),
         f"= {other.alpha:.2f}$ in place of {law.alpha:.2f}")  # fmt: skip


def test_how_often_a_long_run_reads_the_text(laws, runs):
    read, text = 6000 * laws.BATCH_SIZE * laws.SEQ_LEN, 1_115_394 * 9 // 10  # tinyshakespeare, of which a tenth is for validation
    says("scaling_laws", 4, f"{read / text:.1f} times: it reads {read:,} characters", f"has {text:,}",
         f"has {min(run['parameters'] for run in runs):,} parameters")


# ------------------------------------------------------------------------------------------------ quantisation


@pytest.fixture(scope="module")
def quantise():
    return example("quantise")


def test_the_size_of_llama_3(quantise):
    c = nl.PRESETS["llama-3-8b"]
    n = nl.count_parameters(c)
    gains = (2 * c.n_layers + 1) * c.dim
    rows = c.n_layers * (2 * c.dim + 2 * c.n_kv_heads * c.head_dim + 2 * c.ffn_dim + c.dim) + 2 * c.vocab_size
    sizes = f"{4 * n / 1e9:.1f} GB, {2 * n / 1e9:.1f} GB, {(n - gains + 4 * rows + 4 * gains) / 1e9:.2f} GB"
    says("quantisation", 1, f"{n / 1e9:.2f} billion", sizes, f"{rows / 1e6:.1f} million rows", f"{4.5 / 8 * n / 1e9:.2f} GB")
    assert quantise.bits_per_weight(4, 32) == 4.5


def test_the_variance_of_rounding():
    s = 0.3
    x = (np.arange(100_000) + 0.5) / 100_000 * s - s / 2
    assert (x * x).mean() == pytest.approx(s**2 / 12)


def error_in_blocks(quantise, n, bits=4):
    w = np.random.default_rng(0).standard_normal((2**20 // n, n))
    return float((quantise.symmetric(w, bits, n) - w).std())


def test_the_error_grows_slowly_with_the_block(quantise):
    small, rows = error_in_blocks(quantise, 32), error_in_blocks(quantise, 4096)
    assert math.log(4096) / math.log(32) == pytest.approx(12 / 5)
    says("quantisation", 3, f"= {math.sqrt(12 / 5):.2f}$", f"it is {rows / small:.2f}", "16 for a float16")
    blocks, whole, fifth = error_in_blocks(quantise, 16), error_in_blocks(quantise, 256), error_in_blocks(quantise, 256, 5)
    says("quantisation", 3, f"by {whole / blocks:.1f}, and a fifth bit by {whole / fifth:.1f}")
    assert whole / fifth == pytest.approx(15 / 7, rel=0.01)


def best_end(w):
    """The factor of the largest weight at which the grid ends best, in 4 bits, and the mean square error there and at 1."""
    factors = np.arange(0.4, 1.005, 0.01)
    errors = []
    for factor in factors:
        s = factor * abs(w).max(-1, keepdims=True) / 7
        errors.append(float(((np.rint(w / s).clip(-7, 7) * s - w) ** 2).mean()))
    best = int(np.argmin(errors))
    return float(factors[best]), errors[best], errors[-1]


def test_a_shorter_grid(quantise):
    normal = np.random.default_rng(0).standard_normal((64, 256))
    factor, least, whole = best_end(normal)
    assert whole == pytest.approx(float(((quantise.symmetric(normal, 4) - normal) ** 2).mean()))
    assert factor * abs(normal).max(-1).mean() == pytest.approx(2.5, abs=0.05)
    rng = np.random.default_rng(1)
    blocks, rows = best_end(rng.standard_normal((4096, 32)))[0], best_end(rng.standard_normal((64, 4096)))[0]
    says("quantisation", 5, f"{factor:.2f}.", f"by {percent(1 - least / whole)}", f"from {whole:.4f} to {least:.4f}",
         f"{blocks:.2f} in blocks of 32", f"{rows:.2f} for 4096")  # fmt: skip


# ------------------------------------------------------------------------------------------------ what is measured and kept


@pytest.fixture(scope="module")
def measured():
    return json.loads((DOCS / "answers_chapters.json").read_text(encoding="utf-8"))


def mean(losses):
    return float(np.mean(losses))


def test_the_breaks_with_fewer_windows(measured):
    many, few = (measured["breaks"]["windows"][windows] for windows in ("16", "2"))
    gaps = {name: [mean(runs[name]) - mean(runs["healthy"]) for runs in (many, few)] for name in many}
    gaps["lr x 40"] = gaps.pop("lr x 40, no clipping")
    moved = {name: "from {:.2f} to {:.2f}".format(*gap) for name, gap in gaps.items()}
    says("what_breaks_training", 1, f"{mean(few['healthy']):.2f} and not {mean(many['healthy']):.2f}",
         *(f"{moved[name]} for `{name}`" for name in ("lr x 10", "lr x 40", "std 0.0001")),
         f"`AdamW eps 0.3`, {moved['AdamW eps 0.3']},")  # fmt: skip
    assert {name for name, (before, after) in gaps.items() if after > before + 0.02} == {
        "lr x 10", "std 0.0001", "lr x 40",
    }  # fmt: skip
    fallen = {name: before - after for name, (before, after) in gaps.items() if name != "targets not shifted"}
    assert max(fallen, key=fallen.get) == "AdamW eps 0.3"


def test_the_other_breaks(measured):
    found = measured["breaks"]
    (warm, cold), (warm_10, cold_10) = (found["warm-up"][times] for times in ("1", "10"))
    says("what_breaks_training", 2, f"ends at {cold:.2f}, and at {warm:.2f} with it", f"{cold_10:.2f} and {warm_10:.2f}.")
    whole, (last, others) = found["one key too many"]
    says("what_breaks_training", 3, f"To {whole:.3f}.", f"loss is {others:.3f}", f"Its loss is {last:.2f}", f"{last:.2f} / 32")
    assert last / 32 == pytest.approx(whole, rel=0.03)
    rates = found["std 1"]
    best = min(rates, key=rates.get)
    healthy = mean(found["windows"]["16"]["healthy"][:1])
    losses = f"{best}: the loss is {rates[best]:.2f} instead of {rates['0.005']:.2f}"
    says("what_breaks_training", 5, losses, f"{healthy:.2f} in the")
    assert rates["0.04"] - rates[best] < 0.01 and rates["0.16"] > rates[best] + 0.2


def test_the_first_step_is_the_whole_rate_for_noise_too():
    g = np.random.default_rng(0).standard_normal(9) * np.logspace(-6, 2, 9)
    np.testing.assert_allclose(abs(steps_of(g[None], weight_decay=0)[0] - 1), 0.01)


def test_one_key_too_many_shows_the_next_token_to_all_queries_but_the_last(measured):
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 6, 4))
    last = np.minimum(np.arange(6) + 2, 6)
    moved = v.copy()
    moved[:, :, 4] += 1
    outs = [ops.flash_attention_forward(q, k, each, None, last)[0] for each in (v, moved)]
    assert np.flatnonzero(abs(outs[1] - outs[0]).max((0, 1, 3))).tolist() == [3, 4, 5]


def test_single_heads_and_facts(measured):
    found = measured["smollm2"]
    repeated = {name: losses[1] - found["without"]["none"][1] for name, losses in found["without"].items()}
    both = repeated.pop("19.3 and 22.1")
    names = [name for name in repeated if name not in ("none", "16.0")]
    order = sorted(names, key=lambda name: -repeated[name])
    one, two, three = (f"{repeated[name]:.2f}" for name in order[:3])
    small = max(abs(repeated[name]) for name in order[3:])
    says("reading_a_model", 5, f"{order[0]} and {order[1]} most, by {one} and {two} nats",
         f"then {order[2]} by {three}",
         f"cost {both:.2f}, more than the sum of {repeated['19.3'] + repeated['22.1']:.2f}",
         f"by {small:.2f} or less")  # fmt: skip
    for name in ("19.3", "22.1"):
        above = sorted(f"{layer}.{head}" for layer, head in found["induction"] if layer > int(name.split(".")[0]))
        says("reading_a_model", 5, f"{', '.join(above[:-1])} and {above[-1]} for {name}")
    king, *others, opposite = (found["facts"][name]["true"] for name in ("king", "language", "currency", "colour", "opposite"))
    says("reading_a_model", 6, f"{king:.2f} of the", *(f"{effect:.2f} for the" for effect in others), f"({opposite:.2f})")


def test_the_lens_with_the_gain_of_the_next_norm(measured):
    ranks = measured["smollm2"]["lens"]
    *others, end = ranks["next"]
    says("reading_a_model", 4, f"between {min(others):,} and {max(others):,}", f"rank {ranks['last'][24]} after layer 23",
         f"{ranks['last'][28]} after layer 27")  # fmt: skip
    assert end == ranks["last"][-1] == 1


def test_matrices_of_one_kind(measured):
    found = {kind: mean(perplexities) for kind, perplexities in measured["quantise"]["one kind"].items()}
    says("quantisation", 4, f"from {found['none']:.2f} to {found['head']:.2f} and {found['w_down']:.2f}",
         f"`embed` to {found['embed']:.2f}", f"`wq` to {found['wq']:.2f}")  # fmt: skip
    assert sorted(found, key=found.get)[:3] == ["none", "wq", "embed"]


def test_the_cliff_of_smollm2(measured):
    found = measured["quantise"]["smollm2"]
    rows, blocks = ([found[bits][i] for bits in ("5", "4", "3")] for i in (0, 1))
    says("quantisation", 6, f"perplexity of {found['exact']:.0f}", f"{rows[0]:.0f} in five bits, {rows[1]:.0f} in four",
         "{:.0f}, {:.0f} and {:.0f}".format(*blocks))  # fmt: skip
    assert rows[2] > 49152                                             # worse than a guess


def test_a_factor_that_is_too_large_hardly_hurts(measured):
    without, large = (measured["experts"][factor] for factor in ("0", "1"))
    says("experts", 4, f"ends at {mean(large['losses']):.2f}, and at {mean(without['losses']):.2f} without")
    says("experts", 4, f"at most {max(large['busiest'])} times its part instead of {min(without['busiest'])} or more")
    assert sum(large["idle"]) == 0 and set(without["idle"]) == {2, 3}


@pytest.fixture(scope="module")
def ladder():
    """The losses of the page's rungs with seed 0, that of all measurements here."""
    kept = json.loads((DOCS / "chapters/ladder.json").read_text(encoding="utf-8"))["rungs"]
    return {rung["name"]: rung["runs"][0]["validation_loss"] for rung in kept}


def test_the_gated_network_on_the_ladder(measured, ladder):
    says("ladder", 4, f"ends at {measured['gru']:.3f} after", f"at {ladder['rnn']:.3f}", f"at {ladder['qk-norm']:.3f}")
    assert measured["gru"] < min(ladder.values())


def test_short_windows_and_few_parameters_on_the_ladder(measured, ladder):
    short, quarter = measured["short"], measured["quarter"]
    gains = {name: loss - ladder[name] for name, loss in short.items()}
    says("ladder", 1, f"ends at {short['rnn']:.3f} and the last rung at {short['qk-norm']:.3f}",
         f"{gains['qk-norm']:.3f} and not {gains['rnn']:.3f}")  # fmt: skip
    says("ladder", 2, f"end at {quarter['rope']:.3f} and {quarter['qk-norm']:.3f}", f"recurrent network at {quarter['rnn']:.3f}",
         f"{quarter['block']:.3f} for `block` and {quarter['gpt2']:.3f} for `gpt2`")  # fmt: skip
    assert sorted(quarter, key=quarter.get) == ["qk-norm", "rope", "rnn", "block", "gpt2"]
    loss = {name: quarter[name] - ladder[name] for name in quarter}
    assert max(loss, key=loss.get) == "gpt2" and 0.09 < 256 * 48 / 115_000 < 0.11


def test_swiglu_before_rope(measured, ladder):
    before = measured["order"]
    says("ladder", 3, f"from {ladder['rmsnorm']:.3f} to {before:.3f}", f"gains {ladder['rope'] - ladder['swiglu']:.3f}",
         f"gains {before - ladder['swiglu']:.3f} and not {ladder['rmsnorm'] - ladder['rope']:.3f}")  # fmt: skip
    assert before > ladder["rmsnorm"]
