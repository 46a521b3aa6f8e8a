"""The synthetic play, and its exact predictor against a forward algorithm of plain dense matrices."""

import hashlib
import re
from itertools import pairwise

import numpy as np
import pytest

from numllama.data import synthetic
from numllama.data.synthetic import best_loss, write_play


@pytest.fixture(scope="module")
def play() -> str:
    return write_play(1_000_000, seed=0)


@pytest.fixture(scope="module")
def dense() -> tuple[np.ndarray, np.ndarray]:
    """The transition matrix over (arc, position), and the character of each of these states.

    It follows the silent arcs one by one, where the module sums their series.
    """
    arcs = synthetic._arcs()
    leaving = {}
    for arc in arcs:
        leaving.setdefault(arc.node, []).append(arc)

    def begin(node: int, chance: float = 1.0):
        """The arcs that are not silent and may come next, each with the chance of one way to get there."""
        for arc in leaving[node]:
            if arc.text:
                yield arc, chance * arc.chance
            else:
                yield from begin(arc.next, chance * arc.chance)

    states = {}
    for arc in arcs:
        for position in range(len(arc.text)):
            states[id(arc), position] = len(states)
    transition = np.zeros((len(states), len(states)))
    for node in leaving:
        first = np.zeros(len(states))
        for arc, chance in begin(node):
            first[states[id(arc), 0]] += chance
        ends = [states[id(arc), len(arc.text) - 1] for arc in arcs if arc.text and arc.next == node]
        transition[ends] = first
    for arc in arcs:
        for position in range(len(arc.text) - 1):
            transition[states[id(arc), position], states[id(arc), position + 1]] = 1
    return transition, np.array(list("".join(arc.text for arc in arcs)))


def test_the_play_has_the_length_and_the_characters_that_were_promised(play):
    assert [len(write_play(n)) for n in (2, 3, 1000, 12_345)] == [2, 3, 1000, 12_345]
    assert len(play) == 1_000_000
    assert play.isascii()
    assert 50 <= len(set(play)) <= 65
    assert len(set(play.split())) > 300


def test_the_play_is_made_of_headed_speeches(play):
    speeches = play.split("\n\n")[:-1]  # the last one is cut
    headings = [speech.partition("\n")[0] for speech in speeches]
    assert all(heading.endswith(":") and heading.isupper() for heading in headings)
    assert len(set(headings)) == 18
    assert all(speech.count("\n") >= 1 and speech[-1] in ".!" for speech in speeches)
    assert all(one != other for one, other in pairwise(headings))  # nobody answers himself
    assert max(map(len, play.split("\n"))) < 250


def test_a_seed_gives_the_same_play_every_time_and_everywhere(play):
    assert write_play(5000, seed=7) == write_play(5000, seed=7)
    assert write_play(5000, seed=7) != write_play(5000, seed=8)
    assert write_play(5000) == play[:5000]
    assert hashlib.sha256(play.encode()).hexdigest()[:16] == "330e52a5dfd3ed3b"


def test_chances_of_every_node_sum_to_one():
    total = {}
    for arc in synthetic._arcs():
        total[arc.node] = total.get(arc.node, 0) + arc.chance
    assert len(total) == 3 * len(synthetic._GRAMMAR)
    assert list(total.values()) == pytest.approx([1] * len(total), abs=1e-12)


def test_the_stationary_distribution_is_stationary(dense):
    transition, letter = dense
    stationary = synthetic._source().stationary
    assert letter.tolist() == [chr(point) for point in synthetic._source().letter]
    assert stationary.min() > 0
    assert abs(stationary.sum() - 1) < 1e-12
    assert np.abs(stationary @ transition - stationary).max() < 1e-15


def test_best_loss_equals_the_forward_algorithm_with_dense_matrices(dense):
    transition, letter = dense
    alphabet = sorted(set(letter))
    emits = (letter[:, None] == np.array(alphabet)).astype(float)
    text, window = write_play(3000, seed=3)[-190:], 25  # eight windows, the last one shorter
    starts = range(0, len(text) - 1, window)
    rows = [text[i : i + window + 1] for i in starts]

    alpha = np.tile(synthetic._source().stationary, (len(rows), 1))
    losses = []
    for t in range(window):
        rows = [row for row in rows if t + 1 < len(row)]  # only the last one can drop out
        alpha = alpha[: len(rows)] * emits[:, [alphabet.index(row[t]) for row in rows]].T
        alpha /= alpha.sum(axis=1, keepdims=True)
        alpha = alpha @ transition
        chances = alpha @ emits
        assert np.abs(chances.sum(axis=1) - 1).max() < 1e-12
        losses += [-np.log(chances[k, alphabet.index(row[t + 1])]) for k, row in enumerate(rows)]
    assert len(losses) == len(text) - 1
    assert abs(best_loss(text, window) - np.mean(losses)) < 1e-12


@pytest.mark.parametrize("window", [2, 64])
def test_windows_are_cut_as_in_validation(play, window):
    text = play[-3001:-1]  # more windows of two than are filtered together
    parts = [text[i : i + window + 1] for i in range(0, len(text) - 1, window)]
    total = sum(best_loss(part, window) * (len(part) - 1) for part in parts)
    assert best_loss(text, window) == pytest.approx(total / (len(text) - 1), abs=1e-12)


def test_a_window_may_be_longer_than_the_text(play):
    assert best_loss(play[:50], 10_000) == best_loss(play[:50], 49)


def test_a_longer_window_is_never_worse(play):
    losses = [best_loss(play[-20_000:], window) for window in (4, 16, 64, 256)]
    assert losses == sorted(losses, reverse=True)
    assert 0.7 < losses[-1] < losses[-2] < 0.85


def test_no_bigram_or_trigram_model_comes_close(play):
    """They are even fitted on the text that they are judged by."""
    text = play[-20_000:]
    codes, n = np.frombuffer(play.encode(), np.uint8).astype(int), 128
    bigrams = np.bincount(codes[:-1] * n + codes[1:], minlength=n**2).reshape(n, n)
    trigrams = np.bincount((codes[:-2] * n + codes[1:-1]) * n + codes[2:], minlength=n**3).reshape(n, n, n)
    codes = codes[-len(text) :]
    bigram = -np.log((bigrams / bigrams.sum(-1, keepdims=True).clip(1))[codes[:-1], codes[1:]]).mean()
    context = trigrams / trigrams.sum(-1, keepdims=True).clip(1)
    trigram = -np.log(context[codes[:-2], codes[1:-1], codes[2:]]).mean()
    assert best_loss(text, 64) < 0.6 * trigram < 0.6 * bigram
    # With a window of one the best predictor is the bigram model, and the fitted one converges to it.
    assert best_loss(text, 1) == pytest.approx(bigram, rel=2e-3)


def test_the_loss_does_not_depend_on_the_play():
    one, other = (best_loss(write_play(200_000, seed), 256) for seed in (1, 2))
    assert one != other
    assert one == pytest.approx(other, rel=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: write_play(1), r"n_characters is 1, but must be at least 2$"),
        (lambda: write_play(-5), r"n_characters is -5, but must be at least 2$"),
        (lambda: best_loss("the king", 0), r"window is 0, but must be at least 1$"),
        (lambda: best_loss("", 8), r"text has length 0, but must have at least 2 characters$"),
        (lambda: best_loss("D", 8), r"text has length 1, but must have at least 2 characters$"),
    ],
)
def test_a_bad_argument_is_named(call, message):
    with pytest.raises(ValueError, match="^" + message):
        call()


@pytest.mark.parametrize("window", [1, 5, 64, 1000])
@pytest.mark.parametrize("character", ["#", "\0", "é", "\ud800"])
def test_a_character_that_the_source_does_not_know_is_refused(play, window, character):
    for position in (0, 1, 64, 65, 299):
        text = play[:position] + character + play[position + 1 : 300]
        sentence = f"text has {character!r} at position {position}, but the source cannot produce it there"
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            best_loss(text, window)


def test_a_verb_that_does_not_agree_with_its_subject_is_refused():
    assert best_loss("the proud king of Rome rules ", 64) > 0
    with pytest.raises(ValueError, match=r"^text has 's' at position 28, but the source cannot"):
        best_loss("the proud kings of Rome rules ", 64)


def test_a_window_knows_nothing_of_the_words_before_it():
    assert best_loss("the proud kings of Rome rules ", 10) > 0
