"""Mistakes in the backward of matrix products and of the residual stream, and terms that are missing or taken twice.

The right ones, over all N = B·T rows:   dx = dout · weight,   dweight = doutᵀ · x.   A value that several equations use gets the
sum of their gradients.
"""

from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply

catalogue = Catalogue()
backward = catalogue.backward


def product(dout, x):
    """doutᵀ · x over all rows."""
    return dout.reshape(-1, dout.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def weight_from(dout, x, weight):
    """The weight's gradient from other inputs or another gradient, if they have its shape."""
    if weight.shape != (dout.shape[-1], x.shape[-1]):
        raise DoesNotApply
    return {"weight": product(dout, x)}


# ------------------------------------------------------------------------------------------------ dx


@backward("linear", "dx has the weight transposed, or reshaped instead of transposed.")
def _(dout, x, weight):
    return {"x": dout @ weight.T.reshape(weight.shape)}


@backward("linear", "dx is taken twice.")
def _(dout, x, weight):
    return {"x": 2 * dout @ weight}


@backward("linear", "dx has the wrong sign.")
def _(dout, x, weight):
    return {"x": -dout @ weight}


@backward("q", "The gradient of attn_norm lacks the term through the queries.")
def _(dout, x, weight):
    return {"x": None}


@backward("k", "The gradient of attn_norm lacks the term through the keys.")
def _(dout, x, weight):
    return {"x": None}


@backward("v", "The gradient of attn_norm lacks the term through the values.")
def _(dout, x, weight):
    return {"x": None}


@backward("gate", "The gradient of ffn_norm lacks the term through the gate.")
def _(dout, x, weight):
    return {"x": None}


@backward("up", "The gradient of ffn_norm lacks the term through up.")
def _(dout, x, weight):
    return {"x": None}


@backward("attn_out ffn_out logits", "The gradient stops at this matrix: its input gets none.")
def _(dout, x, weight):
    return {"x": None}


@backward("v", "The values get the gradient of the keys: dk and dv are exchanged in dx.")
def _(dout, x, weight, d_k):
    return {"x": d_k @ weight}


@backward("k", "The keys get the gradient of the values: dk and dv are exchanged in dx.")
def _(dout, x, weight, d_v):
    return {"x": d_v @ weight}


@backward("k", "The gradient of attn_norm has the value's matrix for the keys.")
def _(dout, x, weight, wv):
    return {"x": dout @ wv}


@backward("v", "The gradient of attn_norm has the key's matrix for the values.")
def _(dout, x, weight, wk):
    return {"x": dout @ wk}


@backward("gate", "The gradient of ffn_norm has the matrix of up for the gate.")
def _(dout, x, weight, w_up):
    return {"x": dout @ w_up}


@backward("up", "The gradient of ffn_norm has the gate's matrix for up.")
def _(dout, x, weight, w_gate):
    return {"x": dout @ w_gate}


@backward("logits", "The gradient at the logits goes back through the embedding instead of the head.")
def _(dout, x, embed):
    return {"x": dout @ embed}


# ------------------------------------------------------------------------------------------------ dweight


@backward("linear", "dweight is transposed, or reshaped instead of transposed.")
def _(dout, x, weight):
    return {"weight": product(x, dout).reshape(weight.shape)}


@backward("linear", "dweight is a mean over all tokens instead of a sum.")
def _(dout, x, weight):
    return {"weight": product(dout, x) / x[..., 0].size}


@backward("linear", "dweight is a mean over sequences instead of a sum.")
def _(dout, x, weight):
    return {"weight": product(dout, x) / len(x)}


@backward("linear", "dweight is a mean over the tokens of a sequence instead of a sum.")
def _(dout, x, weight):
    return {"weight": product(dout, x) / x.shape[1]}


@backward("linear", "dweight is that of the last sequence only: it is overwritten instead of added to.")
def _(dout, x, weight):
    return {"weight": product(dout[-1], x[-1])}


@backward("linear", "dweight is that of the first sequence only.")
def _(dout, x, weight):
    return {"weight": product(dout[0], x[0])}


@backward("linear", "dweight is that of the last token of each sequence only.")
def _(dout, x, weight):
    return {"weight": product(dout[:, -1], x[:, -1])}


@backward("linear", "dweight is that of the last row only: each row overwrites it.")
def _(dout, x, weight):
    return {"weight": product(dout[-1, -1], x[-1, -1])}


@backward("linear", "dweight leaves out the last token of each sequence.")
def _(dout, x, weight):
    return {"weight": product(dout[:, :-1], x[:, :-1])}


@backward("linear", "dweight pairs each token's gradient with the input of the token before.")
def _(dout, x, weight):
    return {"weight": product(dout[:, 1:], x[:, :-1])}


@backward("linear", "dweight leaves out the first token of each sequence.")
def _(dout, x, weight):
    return {"weight": product(dout[:, 1:], x[:, 1:])}


@backward("linear", "dweight pairs each token's gradient with the input of the token after.")
def _(dout, x, weight):
    return {"weight": product(dout[:, :-1], x[:, 1:])}


@backward("q k v attn_out gate up ffn_out", "The next block's dweight is in it: blocks share a buffer that is not zeroed.")
def _(dout, x, weight, d_weight_of_next_layer):
    return {"weight": product(dout, x) + d_weight_of_next_layer}


@backward("linear", "dweight is added twice.")
def _(dout, x, weight):
    return {"weight": 2 * product(dout, x)}


@backward("linear", "dweight has the wrong sign.")
def _(dout, x, weight):
    return {"weight": -product(dout, x)}


@backward("q k v attn_out gate up ffn_out", "The weight gets no gradient.")
def _(dout, x, weight):
    return {"weight": None}


@backward("logits", "The gradient of the head's matrix is missing; with tied embeddings, one of two terms.")
def _(dout, x, weight):
    return {"weight": None}


@backward("q k v", "dweight has the block's input instead of attn_norm: the values before the norm.")
def _(dout, weight, block_input):
    return weight_from(dout, block_input, weight)


@backward("q k v", "dweight has ffn_norm instead of attn_norm.")
def _(dout, weight, ffn_norm):
    return weight_from(dout, ffn_norm, weight)


@backward("q k v", "dweight has the normalised input without its gain.")
def _(dout, x, weight, w_attn_norm):
    return weight_from(dout, x / w_attn_norm, weight)


@backward("attn_out", "dweight has head outputs that are not merged but only reshaped: heads and tokens are mixed.")
def _(dout, x, weight, head_outputs):
    return weight_from(dout, head_outputs.reshape(x.shape), weight)


@backward("attn_out", "dweight has attn_norm, the input of attention, instead of the merged heads.")
def _(dout, weight, attn_norm):
    return weight_from(dout, attn_norm, weight)


@backward("gate up", "dweight has after_attention instead of ffn_norm: the values before the norm.")
def _(dout, weight, after_attention):
    return weight_from(dout, after_attention, weight)


@backward("gate up", "dweight has attn_norm instead of ffn_norm.")
def _(dout, weight, attn_norm):
    return weight_from(dout, attn_norm, weight)


@backward("gate up", "dweight has the normalised input without its gain.")
def _(dout, x, weight, w_ffn_norm):
    return weight_from(dout, x / w_ffn_norm, weight)


@backward("ffn_out", "dweight has the gate instead of swiglu's output.")
def _(dout, weight, gate):
    return weight_from(dout, gate, weight)


@backward("ffn_out", "dweight has up instead of swiglu's output.")
def _(dout, weight, up):
    return weight_from(dout, up, weight)


@backward("logits", "dweight has the last block's output instead of the norm's.")
def _(dout, weight, last):
    return weight_from(dout, last, weight)


@backward("logits", "dweight has the normalised input without its gain.")
def _(dout, x, weight, w_norm):
    return weight_from(dout, x / w_norm, weight)


@backward("q", "The gradient of wq has that of the keys instead of the queries.")
def _(dout, x, weight, d_k):
    return weight_from(d_k, x, weight)


@backward("k", "The gradient of wk has that of the values instead of the keys.")
def _(dout, x, weight, d_v):
    return weight_from(d_v, x, weight)


@backward("k", "The gradient of wk has that of the queries instead of the keys.")
def _(dout, x, weight, d_q):
    return weight_from(d_q, x, weight)


@backward("v", "The gradient of wv has that of the keys instead of the values.")
def _(dout, x, weight, d_k):
    return weight_from(d_k, x, weight)


@backward("gate", "The gradient of w_gate has that of up instead of the gate.")
def _(dout, x, weight, d_up):
    return weight_from(d_up, x, weight)


@backward("up", "The gradient of w_up has that of the gate instead of up.")
def _(dout, x, weight, d_gate):
    return weight_from(d_gate, x, weight)


# ------------------------------------------------------------------------------------------------ the residual stream


@backward("after_attention", "The gradient flows back through attention only: the residual term past it is missing.")
def _(dout, x, branch):
    return {"x": None}


@backward("after_ffn", "The gradient flows back through the feed-forward only: the residual term past it is missing.")
def _(dout, x, branch):
    return {"x": None}


@backward("after_attention", "The gradient flows past attention only: attention itself gets none.")
def _(dout, x, branch):
    return {"branch": None}


@backward("after_ffn", "The gradient flows past the feed-forward only: the feed-forward itself gets none.")
def _(dout, x, branch):
    return {"branch": None}


@backward("add", "The residual stream's gradient is added twice.")
def _(dout, x, branch):
    return {"x": 2 * dout}


@backward("add", "The branch gets the gradient twice.")
def _(dout, x, branch):
    return {"branch": 2 * dout}


@backward("add", "Each of the two terms of a sum gets half of the gradient.")
def _(dout, x, branch):
    return dout / 2, dout / 2
