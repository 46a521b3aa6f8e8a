"""Wrong answers to what the next token is drawn from."""

import numpy as np

from numllama.learn.wrong_answers.table import Rows

HIDDEN = -np.inf


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


# Each rule maps logits to logits; those in WRONG stand for a mistake.


def by_temperature(x, rules):
    return x / rules["temperature"]


def by_top_k(x, rules, more=0):
    k = rules["top_k"]
    return x if k is None else np.where(x < np.sort(x)[-min(k + more, len(x))], HIDDEN, x)


def by_top_p(x, rules, before=0):
    """Hide what comes after the tokens that sum to P; `before` is the place whose sum is compared."""
    if rules["top_p"] is None:
        return x
    order = np.argsort(-x, kind="stable")
    p = softmax(x)[order]
    sums = np.concatenate([[0.0, 0.0], np.cumsum(p)])[1 - before :][: len(x)]
    out = x.copy()
    out[order[sums >= rules["top_p"]]] = HIDDEN
    return out


def by_min_p(x, rules):
    p = softmax(x)
    return x if rules["min_p"] is None else np.where(p < rules["min_p"] * p.max(), HIDDEN, x)


ORDER = (by_temperature, by_top_k, by_top_p, by_min_p)


def applied(*steps, last=softmax):
    """A row: these rules in this order, and then `last`."""
    def row(logits, temperature, top_k, top_p, min_p):
        rules = dict(logits=logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        x = logits
        for step in steps:
            x = step(x, rules)
        return last(x)

    return row


def kept(choose, value=HIDDEN, finish=softmax):
    """A row: the logits that `choose(x, rules)` keeps, and `value` in place of the others."""
    return applied(by_temperature, lambda x, rules: np.where(choose(x, rules), x, value), last=finish)


def unscaled(*steps):
    """A row that sets probabilities to zero and leaves the others as they are."""
    def row(logits, temperature, top_k, top_p, min_p):
        p = applied(*steps)(logits, temperature, top_k, top_p, min_p)
        return np.where(p > 0, softmax(logits / temperature), 0)

    return row


def exactly_k(x, rules):
    """True for k tokens, whatever equals the last of them."""
    found = np.zeros(len(x), bool)
    found[np.argsort(-x, kind="stable")[: rules["top_k"]]] = True
    return found


def from_below(x, rules):
    """The mask of top-p that adds up from the least likely token."""
    order, found = np.argsort(x, kind="stable"), np.zeros(len(x), bool)
    p = softmax(x)[order]
    found[order[np.cumsum(p) - p < rules["top_p"]]] = True
    return found


def not_put_back(x, rules):
    """The mask of top-p in the order of the sorted tokens."""
    p = np.sort(softmax(x))[::-1]
    return np.cumsum(p) - p < rules["top_p"]


def above_k(x, rules):
    """True for tokens that are likelier than the one at place k."""
    return x > np.sort(x)[-min(rules["top_k"], len(x))]


def short_top_k(x, rules):
    """A top-k without the token at place k."""
    return x if rules["top_k"] is None else np.where(above_k(x, rules), x, HIDDEN)


def short_top_p(x, rules):
    """A top-p without the token that reaches P."""
    return by_top_p(x, rules, before=-1)


TOP_K, TOP_P, MIN_P = ((by_temperature, rule) for rule in (by_top_k, by_top_p, by_min_p))
ROWS: dict[str, Rows] = {
    "temperature": [
        ("temperature is multiplied: it divides the logits.",
         lambda logits, temperature: softmax(logits * temperature)),
        ("temperature is not used.", lambda logits: softmax(logits)),
        ("temperature divides the probabilities: it divides the logits, before softmax.",
         lambda logits, temperature: softmax(logits) / temperature),
        ("temperature divides the probabilities, and softmax is taken again.",
         lambda logits, temperature: softmax(softmax(logits) / temperature)),
        ("temperature is the exponent of the probabilities: it is 1 / temperature.",
         lambda logits, temperature: softmax(logits) ** temperature),
        ("temperature gives the logits: return probabilities.", lambda logits, temperature: logits / temperature),
        ("temperature gives probabilities that do not sum to 1: divide the exponentials by their sum.",
         lambda logits, temperature: np.exp(logits / temperature - (logits / temperature).max())),
    ],
    "top_k": [
        ("top_k keeps exactly k tokens: those that equal the last of them are kept too.", kept(exactly_k)),
        ("top_k keeps one token too many: the bound is element -k of the sorted logits.",
         applied(by_temperature, lambda x, rules: by_top_k(x, rules, 1))),
        ("top_k drops the token at place k: keep what is at least as large as its logit.", kept(above_k)),
        ("top_k keeps the least likely tokens.", kept(lambda x, rules: x <= np.sort(x)[min(rules["top_k"], len(x)) - 1])),
        ("top_k sets logits to 0: a token with the logit 0 can be drawn, and only -inf gives the probability 0.",
         kept(lambda x, rules: x >= np.sort(x)[-min(rules["top_k"], len(x))], 0.0)),
        ("top_k leaves probabilities that do not sum to 1: take softmax after the filter, or divide by the sum.",
         unscaled(*TOP_K)),
        ("top_k is not used.", applied(by_temperature)),
    ],
    "top_p": [
        ("top_p drops the token that reaches P: the sum of what is kept must be at least P.",
         applied(by_temperature, short_top_p)),
        ("top_p keeps one token too many: stop once the sum has reached P.",
         applied(by_temperature, lambda x, rules: by_top_p(x, rules, before=1))),
        ("top_p adds up from the least likely token: begin with the likeliest.", kept(from_below)),
        ("top_p hides places of the sorted tokens: bring the mask back to the order of the vocabulary.", kept(not_put_back)),
        ("top_p adds up in the order of the vocabulary: sort by probability first.",
         kept(lambda x, rules: np.cumsum(softmax(x)) - softmax(x) < rules["top_p"])),
        ("top_p compares each probability with P: it is their sum that must reach P.",
         kept(lambda x, rules: softmax(x) >= rules["top_p"])),
        ("top_p compares each probability with 1 - P: it is their sum that must reach P.",
         kept(lambda x, rules: softmax(x) >= 1 - rules["top_p"])),
        ("top_p compares with P times the largest probability: that is min-p.",
         kept(lambda x, rules: softmax(x) >= rules["top_p"] * softmax(x).max())),
        ("top_p sets logits to 0: a token with the logit 0 can be drawn, and only -inf gives the probability 0.",
         applied(by_temperature, by_top_p, lambda x, rules: np.where(x == HIDDEN, 0.0, x))),
        ("top_p leaves probabilities that do not sum to 1: take softmax after the filter, or divide by the sum.",
         unscaled(*TOP_P)),
        ("top_p is not used.", applied(by_temperature)),
    ],
    "min_p": [
        ("min_p is compared with the probability itself: multiply it by the largest probability.",
         kept(lambda x, rules: softmax(x) >= rules["min_p"])),
        ("min_p drops a token that is exactly at the bound: keep what is at least min_p times as likely.",
         kept(lambda x, rules: softmax(x) > rules["min_p"] * softmax(x).max())),
        ("min_p is compared with logits: it is a fraction of the largest probability.",
         kept(lambda x, rules: x >= rules["min_p"] * x.max())),
        ("min_p is subtracted from the largest logit: as logits, the bound is max + log(min_p).",
         kept(lambda x, rules: x >= x.max() - rules["min_p"])),
        ("min_p is taken as 1 - min_p.", kept(lambda x, rules: softmax(x) >= (1 - rules["min_p"]) * softmax(x).max())),
        ("min_p is a sum, as in top-p: compare each probability with the largest.",
         applied(by_temperature, lambda x, rules: by_top_p(x, rules | {"top_p": 1 - rules["min_p"]}))),
        ("min_p sets logits to 0: a token with the logit 0 can be drawn, and only -inf gives the probability 0.",
         applied(by_temperature, by_min_p, lambda x, rules: np.where(x == HIDDEN, 0.0, x))),
        ("min_p leaves probabilities that do not sum to 1: take softmax after the filter, or divide by the sum.",
         unscaled(*MIN_P)),
        ("min_p is not used.", applied(by_temperature)),
    ],
    "all": [
        ("all takes top-p of the probabilities before top-k: take softmax again, of what top-k has left.",
         applied(by_temperature, by_top_p, by_top_k, by_min_p)),
        ("all applies min-p before top-p.", applied(by_temperature, by_top_k, by_min_p, by_top_p)),
        ("all applies temperature last: it comes first, so top-p and min-p see its probabilities.",
         applied(by_top_k, by_top_p, by_min_p, by_temperature)),
        ("all lacks top-k.", applied(by_temperature, by_top_p, by_min_p)),
        ("all lacks top-p.", applied(by_temperature, by_top_k, by_min_p)),
        ("all lacks min-p.", applied(by_temperature, by_top_k, by_top_p)),
        ("all lacks temperature.", applied(by_top_k, by_top_p, by_min_p)),
        ("all has a top-k that drops the token at place k: keep what is at least as large as its logit.",
         applied(by_temperature, short_top_k, by_top_p, by_min_p)),
        ("all has a top-p that drops the token that reaches P: the sum of what is kept must be at least P.",
         applied(by_temperature, by_top_k, short_top_p, by_min_p)),
        ("all leaves probabilities that do not sum to 1: divide by what is left, or take softmax at the end.", unscaled(*ORDER)),
    ],
}  # fmt: skip
