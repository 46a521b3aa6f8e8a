"""Mistakes in the backward of the loss and of the embedding, the two ends of the model."""

import numpy as np

from numllama.learn.mistakes.mistake import Catalogue
from numllama.ops import IGNORE

catalogue = Catalogue()
backward = catalogue.backward


# ------------------------------------------------------------------------------------------------ cross-entropy


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def onehot(targets, V):
    """A one at each target; zeros where the target does not count."""
    return (targets[..., None] == np.arange(V)).astype(float)


def counted(targets):
    return (targets != IGNORE)[..., None]


def errors(logits, targets):
    """softmax − onehot in rows that count: the gradient of the sum of losses."""
    return counted(targets) * (softmax(logits) - onehot(targets, logits.shape[-1]))


def mean(rows, targets):
    """Rows that count, divided by how many do."""
    return {"logits": counted(targets) * rows / max(counted(targets).sum(), 1)}


@backward("cross_entropy", "The gradient of the loss is not divided by the number of targets: a sum instead of a mean.")
def _(dout, logits, targets):
    return {"logits": errors(logits, targets)}


@backward("cross_entropy", "The gradient of the loss is divided by B·T, ignored targets included.")
def _(dout, logits, targets):
    return {"logits": errors(logits, targets) / targets.size}


@backward("cross_entropy", "The gradient of the loss is divided by the number of targets twice.")
def _(dout, logits, targets):
    return {"logits": errors(logits, targets) / counted(targets).sum() ** 2}


@backward("cross_entropy", "The gradient of the loss is divided by T only.")
def _(dout, logits, targets):
    return {"logits": errors(logits, targets) / targets.shape[1]}


@backward("cross_entropy", "The gradient of the loss is divided by B only.")
def _(dout, logits, targets):
    return {"logits": errors(logits, targets) / targets.shape[0]}


@backward("cross_entropy", "The gradient of the loss is divided by the vocabulary's size too, as a mean over logits.")
def _(dout, logits, targets):
    return mean(errors(logits, targets) / logits.shape[-1], targets)


@backward("cross_entropy", "The gradient of the loss is that of a mean over the means of sequences.")
def _(dout, logits, targets):
    counts = np.maximum(counted(targets).sum(1, keepdims=True), 1)
    return {"logits": errors(logits, targets) / counts / len(targets)}


@backward("cross_entropy", "Ignored targets get the gradient of the softmax: their rows are not zeroed.")
def _(dout, logits, targets):
    return {"logits": (softmax(logits) - onehot(targets, logits.shape[-1])) / counted(targets).sum()}


@backward("cross_entropy", "Ignored targets count as token 0.")
def _(dout, logits, targets):
    zero = np.where(targets == IGNORE, 0, targets)
    return {"logits": (softmax(logits) - onehot(zero, logits.shape[-1])) / counted(targets).sum()}


@backward("cross_entropy", "In the gradient of the loss, 1 is not subtracted at the target: softmax only.")
def _(dout, logits, targets):
    return mean(softmax(logits), targets)


@backward("cross_entropy", "In the gradient of the loss, softmax is missing: only −1 at the target.")
def _(dout, logits, targets):
    return mean(-onehot(targets, logits.shape[-1]), targets)


@backward("cross_entropy", "In the gradient of the loss, 1 is added at the target instead of subtracted.")
def _(dout, logits, targets):
    return mean(softmax(logits) + onehot(targets, logits.shape[-1]), targets)


@backward("cross_entropy", "In the gradient of the loss, 1 is subtracted at the target after the division by the count.")
def _(dout, logits, targets):
    return {"logits": counted(targets) * softmax(logits) / counted(targets).sum() - onehot(targets, logits.shape[-1])}


@backward("cross_entropy", "In the gradient of the loss, 1 is subtracted everywhere.")
def _(dout, logits, targets):
    return mean(softmax(logits) - 1, targets)


@backward("cross_entropy", "The gradient of the loss has the wrong sign.")
def _(dout, logits, targets):
    return mean(-errors(logits, targets), targets)


@backward("cross_entropy", "In the gradient of the loss, logits stand instead of their softmax.")
def _(dout, logits, targets):
    return mean(logits - onehot(targets, logits.shape[-1]), targets)


@backward("cross_entropy", "In the gradient of the loss, log-softmax stands instead of softmax.")
def _(dout, logits, targets):
    return mean(np.log(softmax(logits)) - onehot(targets, logits.shape[-1]), targets)


@backward("cross_entropy", "In the gradient of the loss, exp(logit − max) is not divided by its sum.")
def _(dout, logits, targets):
    return mean(np.exp(logits - logits.max(-1, keepdims=True)) - onehot(targets, logits.shape[-1]), targets)


@backward("cross_entropy", "In the gradient of the loss, sigmoid stands instead of softmax.")
def _(dout, logits, targets):
    return mean(0.5 * (1 + np.tanh(logits / 2)) - onehot(targets, logits.shape[-1]), targets)


@backward("cross_entropy", "In the gradient of the loss, softmax is over the tokens instead of the vocabulary.")
def _(dout, logits, targets):
    return mean(softmax(logits.swapaxes(1, 2)).swapaxes(1, 2) - onehot(targets, logits.shape[-1]), targets)


@backward("cross_entropy", "The gradient of the loss goes through softmax again: p·(e − Σ e·p) with e = p − onehot.")
def _(dout, logits, targets):
    p, e = softmax(logits), errors(logits, targets)
    return mean(p * (e - (p * e).sum(-1, keepdims=True)), targets)


@backward("cross_entropy", "The gradient of the loss is −onehot/p, that of the probabilities, without softmax's backward.")
def _(dout, logits, targets):
    return mean(-onehot(targets, logits.shape[-1]) / softmax(logits), targets)


@backward("cross_entropy", "Only the target's logit gets a gradient.")
def _(dout, logits, targets):
    return mean(errors(logits, targets) * onehot(targets, logits.shape[-1]), targets)


@backward("cross_entropy", "In the gradient of the loss, 1 is subtracted at the input token instead of the target.")
def _(dout, logits, targets, tokens):
    return mean(softmax(logits) - onehot(tokens, logits.shape[-1]), targets)


@backward("cross_entropy", "In the gradient of the loss, 1 is subtracted at the next token's target.")
def _(dout, logits, targets):
    return mean(softmax(logits) - onehot(np.roll(targets, -1, 1), logits.shape[-1]), targets)


@backward("cross_entropy", "In the gradient of the loss, 1 is subtracted at the likeliest token instead of the target.")
def _(dout, logits, targets):
    return mean(softmax(logits) - onehot(logits.argmax(-1), logits.shape[-1]), targets)


@backward("cross_entropy", "Only the last token of each sequence gets a gradient of the loss.")
def _(dout, logits, targets):
    last = (np.arange(targets.shape[1]) == targets.shape[1] - 1)[:, None]
    return mean(errors(logits, targets) * last, targets)


@backward("cross_entropy", "The last token of each sequence gets no gradient of the loss.")
def _(dout, logits, targets):
    others = (np.arange(targets.shape[1]) < targets.shape[1] - 1)[:, None]
    return mean(errors(logits, targets) * others, targets)


@backward("cross_entropy", "Only the first sequence gets a gradient of the loss.")
def _(dout, logits, targets):
    return mean(errors(logits, targets) * (np.arange(len(targets)) == 0)[:, None, None], targets)


@backward("cross_entropy", "Only the last sequence gets a gradient of the loss.")
def _(dout, logits, targets):
    return mean(errors(logits, targets) * (np.arange(len(targets)) == len(targets) - 1)[:, None, None], targets)


# ------------------------------------------------------------------------------------------------ the embedding


def added(dout, tokens, weight):
    """The right gradient: the sum over the occurrences of each token."""
    dweight = np.zeros_like(weight)
    np.add.at(dweight, tokens, dout)
    return dweight


def overwritten(dout, tokens, weight):
    """What `dweight[tokens] += dout` leaves: the last occurrence of each token."""
    dweight = np.zeros_like(weight)
    for token, row in zip(tokens.ravel(), dout.reshape(-1, dout.shape[-1]), strict=True):
        dweight[token] = row
    return dweight


@backward("embedding", "A token that occurs several times keeps the gradient of its last occurrence only.")
def _(dout, tokens, weight):
    return {"weight": overwritten(dout, tokens, weight)}


@backward("embedding", "A token that occurs several times keeps the gradient of its first occurrence only.")
def _(dout, tokens, weight):
    return {"weight": overwritten(dout[::-1, ::-1], tokens[::-1, ::-1], weight)}


@backward("embedding", "A token that occurs several times in a sequence keeps the gradient of its last occurrence there.")
def _(dout, tokens, weight):
    return {"weight": sum(overwritten(rows, ids, weight) for rows, ids in zip(dout, tokens, strict=True))}


@backward("embedding", "A token that occurs at the same place of several sequences keeps the gradient of the last one.")
def _(dout, tokens, weight):
    return {"weight": sum(overwritten(dout[:, t], tokens[:, t], weight) for t in range(tokens.shape[1]))}


@backward("embedding", "A token that occurs several times gets the mean of its gradients instead of the sum.")
def _(dout, tokens, weight):
    counts = np.bincount(tokens.ravel(), minlength=len(weight))
    return {"weight": added(dout, tokens, weight) / np.maximum(counts, 1)[:, None]}


@backward("embedding", "The embedding's gradient is in the rows of the next larger ids.")
def _(dout, tokens, weight):
    return {"weight": np.roll(added(dout, tokens, weight), 1, 0)}


@backward("embedding", "The embedding's gradient is in the rows of the next smaller ids.")
def _(dout, tokens, weight):
    return {"weight": np.roll(added(dout, tokens, weight), -1, 0)}


@backward("embedding", "The embedding's gradient is in the rows of the targets instead of the tokens.")
def _(dout, tokens, weight, targets):
    counts = targets != IGNORE
    return {"weight": added(dout[counts], targets[counts], weight)}


@backward("embedding", "The embedding's gradient is that of the first sequence only.")
def _(dout, tokens, weight):
    return {"weight": added(dout[0], tokens[0], weight)}


@backward("embedding", "The embedding's gradient is that of the last sequence only.")
def _(dout, tokens, weight):
    return {"weight": added(dout[-1], tokens[-1], weight)}


@backward("embedding", "The embedding's gradient leaves out the first token of each sequence.")
def _(dout, tokens, weight):
    return {"weight": added(dout[:, 1:], tokens[:, 1:], weight)}


@backward("embedding", "The embedding's gradient leaves out the last token of each sequence.")
def _(dout, tokens, weight):
    return {"weight": added(dout[:, :-1], tokens[:, :-1], weight)}


@backward("embedding", "The embedding's gradient is divided by the number of tokens in a sequence.")
def _(dout, tokens, weight):
    return {"weight": added(dout, tokens, weight) / tokens.shape[1]}


@backward("embedding", "The embedding's gradient is divided by the number of sequences.")
def _(dout, tokens, weight):
    return {"weight": added(dout, tokens, weight) / tokens.shape[0]}


@backward("embedding", "The embedding's gradient is divided by the number of all tokens.")
def _(dout, tokens, weight):
    return {"weight": added(dout, tokens, weight) / tokens.size}


@backward("embedding", "The embedding's gradient is multiplied by √C.")
def _(dout, tokens, weight):
    return {"weight": added(dout, tokens, weight) * weight.shape[1] ** 0.5}


@backward("embedding", "The embedding's gradient is added twice.")
def _(dout, tokens, weight):
    return {"weight": 2 * added(dout, tokens, weight)}


@backward("embedding", "The embedding's gradient is missing; with tied embeddings, one of two terms.")
def _(dout, tokens, weight):
    return {"weight": None}
