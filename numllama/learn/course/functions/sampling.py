"""What the next token is drawn from: temperature, top-k, top-p and min-p.

The rules are on the page docs/chapters/sampling. They apply in this order, each to what the ones before it have left; None means
that a rule is not used. Tokens that must not be drawn get the probability 0, and the others sum to 1.
"""

import numpy as np


def softmax(x):                                                        # (V,) -> (V,)
    e = np.exp(x - x.max())
    return e / e.sum()


def next_distribution(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The probabilities of the next token.

    Parameters
    ----------
    logits : array, shape (V,)
        -inf for a token that must not be drawn.
    temperature : float
        More than 0; divides the logits.
    top_k : int, optional
        Keep the k likeliest tokens, and all that are as likely as the last of them. It may be larger than V.
    top_p : float, optional
        Keep the fewest of the likeliest tokens whose probabilities sum to at least this. 0 < top_p <= 1.
    min_p : float, optional
        Keep the tokens that are at least this times as likely as the likeliest. 0 < min_p <= 1.

    Returns
    -------
    probabilities : array, shape (V,)
    """
    x = logits / temperature                                           # (V,)
    if top_k is not None:
        least = np.sort(x)[-min(top_k, len(x))]
        x = np.where(x < least, -np.inf, x)
    if top_p is not None:
        order = np.argsort(-x)                                         # the likeliest first
        p = softmax(x)[order]
        likelier = np.cumsum(p) - p                                    # the probability of all tokens before this one
        x[order[likelier >= top_p]] = -np.inf
    if min_p is not None:
        p = softmax(x)
        x = np.where(p < min_p * p.max(), -np.inf, x)
    return softmax(x)


# ---------------------------------------------------------------------------------------------- the test:  pytest sampling.py


LOGITS = np.random.default_rng(0).standard_normal(20) * 2
WHOLE = softmax(LOGITS)
RULES = [dict(temperature=0.7), dict(top_k=5), dict(top_p=0.8), dict(min_p=0.1), dict(temperature=1.5, top_k=9, top_p=0.9)]


def test_every_distribution_sums_to_one():
    for rules in RULES:
        p = next_distribution(LOGITS, **rules)
        assert p.shape == LOGITS.shape and (p >= 0).all()
        np.testing.assert_allclose(p.sum(), 1)


def test_temperature_divides_the_distances_of_log_probabilities():
    p = np.log(next_distribution(LOGITS, temperature=0.5))
    np.testing.assert_allclose(p - p[0], (LOGITS - LOGITS[0]) / 0.5)


def test_what_is_kept_keeps_its_ratios_and_is_the_likeliest():
    for rules in (dict(top_k=5), dict(top_p=0.8), dict(min_p=0.1)):
        p = next_distribution(LOGITS, **rules)
        kept = p > 0
        np.testing.assert_allclose(p[kept], WHOLE[kept] / WHOLE[kept].sum())
        assert WHOLE[kept].min() > WHOLE[~kept].max()


def test_how_many_are_kept():
    assert (next_distribution(LOGITS, top_k=5) > 0).sum() == 5
    assert (next_distribution(np.array([3.0, 1.0, 1.0, 0.0]), top_k=2) > 0).tolist() == [True, True, True, False]
    kept = WHOLE[next_distribution(LOGITS, top_p=0.8) > 0]
    assert kept.sum() >= 0.8 > kept.sum() - kept.min()
    assert ((next_distribution(LOGITS, min_p=0.1) > 0) == (WHOLE / WHOLE.max() >= 0.1)).all()


def test_a_rule_sees_what_the_rules_before_it_have_left():
    after = next_distribution(np.log([0.4, 0.3, 0.2, 0.1]), top_k=2, top_p=0.55)  # 4/7 and 3/7: the first has more than 0.55
    np.testing.assert_allclose(after, [1, 0, 0, 0])
    colder = next_distribution(np.log([0.5, 0.3, 0.2]), temperature=0.5, top_p=0.6)  # squared: 25, 9 and 4 of 38
    np.testing.assert_allclose(colder, [1, 0, 0])
