"""The ladder: its rungs are equal in size, differ in one thing, have right gradients, and its table is true."""

import json
import re
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers import EXAMPLES, assert_close, example, normal

import numllama as nl
from numllama.data.dataset import text_dataset
from numllama.data.synthetic import write_play

V = 65  # characters of Shakespeare
NAMES = ["bigram", "rnn", "head", "heads", "block", "gpt2", "rmsnorm", "rope", "swiglu", "gqa", "qk-norm"]
SMALL = ["Bigram", "Rnn", "Heads"]


def rungs():
    return {rung.name: (rung, example("llamafy").config_of(rung, V)) for rung in example("llamafy").RUNGS}


def small(name, **changes):
    """One of the example's own models, in float64."""
    shape = dict(vocab_size=7, dim=8, n_layers=1, n_heads=2, positions="learned", max_seq_len=6, init_std=0.5) | changes
    return getattr(example("llamafy"), name)(nl.ModelConfig(**shape), seed=3, dtype="float64")


def run(monkeypatch, name, *args):
    """The example's command line."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
    example(name).main()


@pytest.fixture
def play(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text(write_play(8_000), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------ the rungs


def test_all_rungs_have_the_same_number_of_parameters_within_two_percent():
    ladder = example("llamafy")
    assert list(rungs()) == NAMES
    counts = []
    for rung, config in rungs().values():
        counts.append(rung.model(config).params.flat.size)
        assert counts[-1] == ladder.count_parameters(rung, config)
    assert max(counts) / min(counts) < 1.02


def test_a_rung_differs_from_the_one_below_it_in_what_it_names_alone():
    for below, name in pairwise(NAMES[NAMES.index("gpt2") :]):
        (_, before), (rung, after) = rungs()[below], rungs()[name]
        assert replace(before, ffn_dim=1, **rung.config) == replace(after, ffn_dim=1)
        assert len(rung.config) == 1
    head, heads = rungs()["head"][1], rungs()["heads"][1]
    assert replace(head, n_heads=4, n_kv_heads=4, head_dim=heads.head_dim) == heads


def test_the_last_rungs_are_what_they_are_called():
    gpt2, swiglu, gqa = (rungs()[name][1] for name in ("gpt2", "swiglu", "gqa"))
    assert (gpt2.norm, gpt2.positions, gpt2.ffn) == ("layernorm", "learned", "gelu")
    assert (swiglu.norm, swiglu.positions, swiglu.ffn, swiglu.n_kv_heads) == ("rmsnorm", "rope", "swiglu", swiglu.n_heads)
    assert gqa.n_kv_heads == gqa.n_heads // 2


def test_the_bytes_of_the_cache_are_those_of_the_cache():
    ladder = example("llamafy")
    for rung, config in rungs().values():
        if rung.model is nl.Transformer:
            cache = nl.KVCache(nl.Transformer(config), capacity=8)
            kept = (cache.keys.nbytes + cache.values.nbytes) / cache.capacity
            assert ladder.cache_bytes(rung, config) == kept
    assert [ladder.cache_bytes(*rungs()[name]) for name in ("bigram", "rnn")] == [0, 0]
    assert ladder.cache_bytes(*rungs()["heads"]) == 2 * 4 * rungs()["heads"][1].dim
    assert 2 * ladder.cache_bytes(*rungs()["gqa"]) == ladder.cache_bytes(*rungs()["swiglu"])


def test_what_the_book_shows_is_of_these_rungs_and_teaches_what_the_page_says():
    path = EXAMPLES.parent / "docs" / "chapters" / "ladder.json"
    if not path.exists():
        pytest.skip("tests without the documents")
    kept, seeds = json.loads(path.read_text(encoding="utf-8")), {}
    for rung in kept["rungs"]:
        assert dict(rung, runs=[]) == example("llamafy").about(rungs()[rung["name"]][0], V)
        assert [run["seed"] for run in rung["runs"]] == [0, 1, 2]
        assert {run["curve"][-1][0] for run in rung["runs"]} == {kept["settings"]["steps"]}
        seeds[rung["name"]] = np.array([run["validation_loss"] for run in rung["runs"]])
    assert list(seeds) == NAMES
    losses = {name: each.mean() for name, each in seeds.items()}
    assert losses["rnn"] < min(losses[name] for name in ("head", "heads", "block", "gpt2"))
    assert losses["heads"] - losses["block"] > 0.4
    gains = {name: losses[below] - losses[name] for below, name in pairwise(NAMES[NAMES.index("gpt2") :])}
    assert max(gains, key=gains.get) == "rope"
    level = [losses[name] - losses["rnn"] for name in ("rope", "swiglu", "gqa")]
    assert max(np.abs(level)) < 0.01 < min(np.ptp(seeds[name]) for name in ("rope", "swiglu", "gqa"))
    assert seeds["qk-norm"].max() < seeds["rnn"].min()
    assert [bool(each) for each in seeds["rope"] < seeds["swiglu"]][:2] == [False, True]


# ------------------------------------------------------------------------------------------------ gradients


def test_the_gradients_of_the_recurrent_network():
    ladder, rng = example("llamafy"), np.random.default_rng([1, 0])
    args = [normal(np, rng, 2, 5, 3), normal(np, rng, 4, 3), normal(np, rng, 4, 4), normal(np, rng, 4)]
    nl.gradcheck(ladder.rnn_forward, ladder.rnn_backward, args)


def test_the_gradients_of_heads_alone():
    ladder, rng = example("llamafy"), np.random.default_rng([1, 1])
    args = [normal(np, rng, 2, 5, 6), *(normal(np, rng, 6, 6) for _ in range(4))]
    nl.gradcheck(lambda *args: ladder.heads_forward(*args, 2), ladder.heads_backward, args)


@pytest.mark.parametrize("name", SMALL)
def test_the_gradients_of_a_whole_model(name):
    model, rng = small(name), np.random.default_rng([1, 2])
    tokens, targets = rng.integers(0, 7, (2, 3, 5))

    def forward(flat):
        model.params.flat[...] = flat
        return model.loss(tokens, targets), flat

    def backward(dout, flat):
        model.params.flat[...] = flat
        return dout * model.loss_and_grads(tokens, targets)[1].flat

    nl.gradcheck(forward, backward, [model.params.flat.copy()], directions=6)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_parts_add_up_to_those_of_the_whole_batch(name):
    model, rng = small(name), np.random.default_rng([1, 3])
    tokens, targets = rng.integers(0, 7, (2, 4, 5))
    loss, grads = model.loss_and_grads(tokens, targets)
    parts = model.params.zeros_like()
    losses = [model.loss_and_grads(tokens[i], targets[i], grads=parts, count=20)[0] for i in (slice(0, 1), slice(1, 4))]
    assert_close(parts.flat, grads.flat)
    assert_close(sum(losses), loss)
    assert_close(model.loss(tokens, targets), loss)


@pytest.mark.parametrize("name, looks_back", [("Bigram", False), ("Rnn", True), ("Heads", True)])
def test_a_rung_sees_no_later_token_and_all_but_the_bigram_see_earlier_ones(name, looks_back):
    model, rng = small(name), np.random.default_rng([1, 4])
    x = normal(np, rng, 1, 6, 8)
    changed = x.copy()
    changed[:, 3] += 1
    differs = abs(model.forward(changed)[0] - model.forward(x)[0]).max((0, 2)) > 1e-9
    assert differs.tolist() == [False] * 3 + [True] + [looks_back] * 2


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.thorough
def test_the_ladder_prints_a_true_table_and_keeps_all_results(tmp_path, monkeypatch, capsys, play):
    args = ("--data", play, "--out", tmp_path, "--steps", 2, "--seeds", 0, 5, "--rungs", "gqa", "rnn", "bigram")
    run(monkeypatch, "llamafy", *args)
    kept = json.loads((tmp_path / "ladder.json").read_text(encoding="utf-8"))
    assert [rung["name"] for rung in kept["rungs"]] == ["bigram", "rnn", "gqa"]
    printed = capsys.readouterr().out.splitlines()
    seconds = [one["seconds"] for rung in kept["rungs"] for one in rung["runs"]]
    assert min(seconds) > 0
    assert printed[-1] == f"One seed took {sum(seconds) / 2 / 60:.1f} minutes."
    rows = [line for line in printed if line.startswith("| ")][1:]
    for row, rung in zip(rows, kept["rungs"], strict=True):
        name, parameters, cache, loss, speed, changed = row.strip("| ").split(" | ")
        losses = [one["validation_loss"] for one in rung["runs"]]
        assert [one["seed"] for one in rung["runs"]] == [0, 5]
        assert (name, parameters, cache) == (rung["name"], f"{rung['parameters']:,}", f"{rung['cache_bytes']:,}")
        assert loss == f"{np.mean(losses):.3f} ± {np.std(losses, ddof=1):.3f}"
        assert float(speed.replace(",", "")) > 0
        assert changed in [one.changed for one in example("llamafy").RUNGS]
        assert [[step for step, _ in one["curve"]] for one in rung["runs"]] == [[1, 2]] * 2
        assert losses[0] != losses[1]
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


def test_the_loss_of_a_rung_is_that_of_the_whole_validation_split():
    ladder, data = example("llamafy"), text_dataset(write_play(8_000), "a play")
    rung = ladder.RUNGS[1]
    settings = nl.TrainConfig(steps=1, batch_size=4, lr=1e-30, weight_decay=0.0, warmup_steps=0, eval_batches=1, workers=1)
    model = rung.model(ladder.config_of(rung, data.vocab_size), seed=0)
    windows = data.batches(4, ladder.SEQ_LEN).validation()
    expected = sum(float(model.loss(window.tokens, window.targets, count=1)) for window in windows) / (len(data.val) - 1)
    assert ladder.train(rung, data, settings, "cpu")["validation_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "args, says",
    [
        (["--rungs", "gpt3"], "invalid choice: 'gpt3'"),
        (["--steps", "0"], "steps is 0, but must be a whole number of at least 1"),
        (["--lr", "-1"], "lr is -1.0, but must be a positive number"),
        (["--seeds", "-1"], "seed is -1, but must be a whole number of at least 0"),
        (["--device", "tpu"], "device is 'tpu', but must be 'cpu', 'cuda' or 'cuda:N'"),
        (["--data", "no.txt"], "no.txt does not exist"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_code_two(tmp_path, monkeypatch, capsys, play, args, says):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "llamafy", "--data", play, "--out", tmp_path / "ladder", *args)
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "llamafy.py: " in line]
    assert says in line
    assert not (tmp_path / "ladder").exists()


def test_results_are_not_written_over(tmp_path, monkeypatch, capsys, play):
    (tmp_path / "ladder.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "llamafy", "--data", play, "--out", tmp_path, "--steps", 1)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"llamafy.py: {tmp_path} already holds results: choose another --out\n"
    assert (tmp_path / "ladder.json").read_text(encoding="utf-8") == "{}"


def test_without_matplotlib_there_is_a_table_and_a_line_that_says_what_is_missing(tmp_path, monkeypatch, capsys, play):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run(monkeypatch, "llamafy", "--data", play, "--out", tmp_path, "--steps", 1, "--rungs", "bigram")
    assert re.search(r"\| bigram .*\n\nOne seed .*\nno plot: it needs", capsys.readouterr().out)
    assert not (tmp_path / "ladder.png").exists()
