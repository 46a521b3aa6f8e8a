"""Mistakes of the loss."""

import math

import numpy as np

from numllama import ops
from numllama.backend import BFLOAT16
from numllama.learn.equations import OPS
from numllama.learn.mistakes.mistake import Catalogue

catalogue = Catalogue()
forward, cross_entropy = catalogue.forward, OPS["cross_entropy"].forward


def counts(targets):
    """Which targets count."""
    return targets != ops.IGNORE


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def of_targets(values, targets):
    """The target's value of each token; an ignored one has some other value."""
    return np.take_along_axis(values, np.where(counts(targets), targets, 0)[..., None], -1)[..., 0]


def losses(logits, targets):
    """Of each token, 0 where ignored."""
    return np.where(counts(targets), -of_targets(log_softmax(logits), targets), 0)


def mean(values, targets):
    """Over the tokens that count."""
    return values[counts(targets)].sum() / max(counts(targets).sum(), 1)


# ------------------------------------------------------------------------------------------------ which tokens count, and how


@forward("loss", "The sum is divided by the number of all tokens; ignored ones should not count.")
def _(logits, targets):
    return losses(logits, targets).mean()


@forward("loss", "Ignored targets count, as if they were token 0.")
def _(logits, targets):
    return cross_entropy(logits, np.where(counts(targets), targets, 0))


@forward("loss", "Ignored targets count, as if they were the last token of the vocabulary.")
def _(logits, targets):
    return cross_entropy(logits, np.where(counts(targets), targets, logits.shape[-1] - 1))


@forward("loss", "Targets with id 0 are ignored.")
def _(logits, targets):
    return cross_entropy(logits, np.where(targets == 0, ops.IGNORE, targets))


@forward("loss", "The losses are summed, not averaged.")
def _(logits, targets):
    return losses(logits, targets).sum()


@forward("loss", "The sum is divided by the number of sequences instead of tokens.")
def _(logits, targets):
    return losses(logits, targets).sum() / len(targets)


@forward("loss", "The sum is divided by the length of a sequence instead of the number of tokens.")
def _(logits, targets):
    return losses(logits, targets).sum() / targets.shape[1]


@forward("loss", "The sum is also divided by the size of the vocabulary.")
def _(logits, targets):
    return cross_entropy(logits, targets) / logits.shape[-1]


@forward("loss", "The mean of each sequence is taken first, and then the mean of these.")
def _(logits, targets):
    return np.mean([mean(*pair) for pair in zip(losses(logits, targets), targets, strict=True)])


@forward("loss", "Only the last token of each sequence counts.")
def _(logits, targets):
    return cross_entropy(logits[:, -1:], targets[:, -1:])


@forward("loss", "The last token of each sequence does not count.")
def _(logits, targets):
    return cross_entropy(logits[:, :-1], targets[:, :-1])


@forward("loss", "The first token of each sequence does not count.")
def _(logits, targets):
    return cross_entropy(logits[:, 1:], targets[:, 1:])


@forward("loss", "Only the first sequence counts.")
def _(logits, targets):
    return cross_entropy(logits[:1], targets[:1])


@forward("loss", "The targets, which are already shifted, are shifted once more.")
def _(logits, targets):
    return cross_entropy(logits[:, :-1], targets[:, 1:])


@forward("loss", "The targets are shifted back: a token's logits meet the target of the token before.")
def _(logits, targets):
    return cross_entropy(logits[:, 1:], targets[:, :-1])


@forward("loss", "The targets are rolled by one: the first target comes last.")
def _(logits, targets):
    return cross_entropy(logits, np.roll(targets, -1, 1))


@forward("loss", "The targets are the tokens themselves, not the next ones.")
def _(logits, targets, tokens):
    return cross_entropy(logits, np.where(counts(targets), tokens, targets))


@forward("loss", "Targets and logits are in different orders: sequence after sequence, and position after position.")
def _(logits, targets):
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.T.reshape(-1))


@forward("loss", "The target ids are one too large.")
def _(logits, targets):
    return cross_entropy(logits, np.where(counts(targets), (targets + 1) % logits.shape[-1], targets))


# ------------------------------------------------------------------------------------------------ the formula


@forward("loss", "The logarithm has base 2 instead of e.")
def _(logits, targets):
    return cross_entropy(logits, targets) / math.log(2)


@forward("loss", "The logarithm has base 10 instead of e.")
def _(logits, targets):
    return cross_entropy(logits, targets) / math.log(10)


@forward("loss", "The minus sign is missing.")
def _(logits, targets):
    return -cross_entropy(logits, targets)


@forward("loss", "The loss is the perplexity, the exponential of the cross-entropy.")
def _(logits, targets):
    return np.exp(cross_entropy(logits, targets))


@forward("loss", "Labels are smoothed by 0.1.")
def _(logits, targets):
    return 0.9 * cross_entropy(logits, targets) - 0.1 * mean(log_softmax(logits).mean(-1), targets)


@forward("loss", "Softmax is applied twice: the loss gets probabilities instead of logits.")
def _(logits, targets):
    return cross_entropy(np.exp(log_softmax(logits)), targets)


@forward("loss", "Softmax is missing: the loss is minus the logarithm of the logit's size.")
def _(logits, targets):
    return -mean(np.log(np.abs(of_targets(logits, targets)) + 1e-9), targets)


@forward("loss", "The normaliser is missing: the loss is minus the target's logit.")
def _(logits, targets):
    return -mean(of_targets(logits, targets), targets)


@forward("loss", "The logarithm is missing: the loss is minus the target's probability.")
def _(logits, targets):
    return -mean(of_targets(np.exp(log_softmax(logits)), targets), targets)


@forward("loss", "The logarithm is missing: the loss is 1 minus the target's probability.")
def _(logits, targets):
    return 1 - mean(of_targets(np.exp(log_softmax(logits)), targets), targets)


@forward("loss", "The loss is minus the logarithm of the mean probability, not the mean of the logarithms.")
def _(logits, targets):
    return -np.log(mean(of_targets(np.exp(log_softmax(logits)), targets), targets))


@forward("loss", "The maximum is subtracted from the sum's logits, but not added back to its logarithm.")
def _(logits, targets):
    return cross_entropy(logits, targets) - mean(logits.max(-1), targets)


@forward("loss", "The logits are divided by √C first.")
def _(logits, targets, config):
    return cross_entropy(logits / math.sqrt(config.dim), targets)


@forward("loss", "The loss is that of logits with a soft cap of 30, as in Gemma 2.")
def _(logits, targets):
    return cross_entropy(30 * np.tanh(logits / 30), targets)


@forward("loss", "A z-loss of 1e-4 is added: the mean of the squared normaliser.")
def _(logits, targets):
    normaliser = logits[..., 0] - log_softmax(logits)[..., 0]
    return cross_entropy(logits, targets) + 1e-4 * mean(normaliser**2, targets)


@forward("loss", "Softmax runs over the tokens of a sequence instead of the vocabulary.")
def _(logits, targets):
    return -mean(of_targets(log_softmax(logits.swapaxes(-1, -2)).swapaxes(-1, -2), targets), targets)


@forward("loss", "The logits are rounded to bfloat16 first.")
def _(logits, targets):
    return cross_entropy(logits.astype(BFLOAT16).astype(float), targets)


@forward("loss", "The loss is the binary cross-entropy of each logit, without softmax.")
def _(logits, targets):
    right = np.arange(logits.shape[-1]) == targets[..., None]
    return mean((np.logaddexp(0, logits) - right * logits).mean(-1), targets)


for _weight in (1e-3, 1e-2, 0.1):

    @forward("loss", f"A z-loss of {_weight:g} is added: the mean of the squared normaliser.")
    def _(logits, targets, weight=_weight):
        return mean(losses(logits, targets) + weight * np.logaddexp.reduce(logits, -1) ** 2, targets)


for _small in (1e-2, 1e-3, 1e-4):

    @forward("loss", f"The probability gets {_small:g} added before its logarithm.")
    def _(logits, targets, small=_small):
        return mean(-np.log(np.exp(-losses(logits, targets)) + small), targets)


@forward("loss", "The loss is the squared distance of probabilities and one-hot targets.")
def _(logits, targets):
    probabilities = np.exp(log_softmax(logits))
    return mean((probabilities**2).sum(-1) - 2 * of_targets(probabilities, targets) + 1, targets)
