"""The plots show the numbers that they were given."""

import numpy as np
import pytest

import numllama as nl
from numllama.learn.plots import norms_by_layer, plot_attention, plot_histograms, plot_norms, plot_token_probabilities

pytest.importorskip("matplotlib")


def test_attention_has_a_map_for_each_head_with_the_queries_at_the_end_of_the_keys():
    attention = np.random.default_rng(0).dirichlet(np.ones(5), (3, 2))
    figure = plot_attention(attention, list("abcde"))
    assert [np.array_equal(ax.images[0].get_array(), attention[h]) for h, ax in enumerate(figure.axes)] == [True] * 3
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["d", "e"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list("abcde")


def test_the_norms_of_the_layers_and_the_rest_make_the_norm_of_everything():
    model = nl.Transformer(nl.ModelConfig(vocab_size=5, dim=8, n_layers=2, n_heads=2), dtype="float64")
    norms = norms_by_layer(model.params)
    assert set(norms) == {"embed", "layer 0", "layer 1", "head", "norm"}
    assert sum(norm**2 for norm in norms.values()) == pytest.approx(float((model.params.flat**2).sum()), rel=1e-12)
    figure = plot_norms([norms, {name: 2 * norm for name, norm in norms.items()}])
    curves = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert {name: list(curve) for name, curve in curves.items()} == {name: [norm, 2 * norm] for name, norm in norms.items()}


def test_a_histogram_counts_each_array_on_one_axis():
    figure = plot_histograms({"small": np.full(100, 0.1), "large": np.linspace(-2, 2, 50)}, bins=5)
    heights = [[patch.get_height() for patch in ax.patches] for ax in figure.axes]
    assert sum(heights[0]) == 100 and max(heights[0]) == 100 and len(heights[0]) == 4
    assert heights[1] == [13, 12, 12, 13]
    assert figure.axes[0].patches[0].get_x() == figure.axes[1].patches[0].get_x()


def test_the_likeliest_tokens_come_first_with_their_probabilities():
    p = np.array([0.1, 0.5, 0.15, 0.25])
    figure = plot_token_probabilities(np.log(p) + 7, list("abcd"), most=3)
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([0.5, 0.25, 0.15])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["'b'", "'d'", "'c'"]


@pytest.mark.parametrize(
    "draw, sentence",
    [
        (lambda: plot_attention(np.ones((2, 2))), r"^attention has shape \(2, 2\), but must be"),
        (lambda: plot_norms([]), "^history is empty"),
        (lambda: plot_histograms({}), "^activations is empty"),
        (lambda: plot_token_probabilities(np.ones(3), "ab"), r"^logits has shape \(3,\), but there are 2 tokens$"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(draw, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw()
