"""Wrong repairs of the mistakes to find: a text of the file, by default the planted mistake itself, and what takes its place."""

from typing import NamedTuple

STILL = "has the numbers that the planted mistake gives"


class Repair(NamedTuple):
    """A repair of a mistake by its number, and a part of the message for each wrong result."""

    number: int
    says: dict[str, str]
    new: str
    old: str = ""


REPAIRS = [
    Repair(1, {"dbias": "summed over its own axes too"}, "dout.sum())"),
    Repair(1, {"dbias": "first row"}, "dout[0])"),
    Repair(1, {"dbias": "largest dout of all rows"}, "dout.max(0))"),
    Repair(2, {"dweight": "transposed"}, "x.reshape(-1, I).T @ dout"),
    Repair(2, {"dweight": "with x reshaped to (I, N)"}, "dout.T @ x.reshape(I, -1).T"),
    Repair(2, {"dweight": "pairs dout reshaped to (O, N)"}, "dout.reshape(O, -1) @ x.reshape(-1, I)"),
    Repair(3, {"dweight": STILL}, "dweight[tokens] = dout"),
    Repair(3, {"dweight": "mean"},
           "xp.add.at(dweight, tokens, dout / (tokens == tokens[..., None, None]).sum((-1, -2))[..., None])"),
    Repair(3, {"dweight": "adds up out in place of dout"}, "xp.add.at(dweight, tokens, weight[tokens])"),
    Repair(4, {"out": "divided by p"}, "x.dtype.type(1 / p)"),
    Repair(4, {"out": "multiplied by 1 - p instead of divided by it"}, "x.dtype.type(1 - p)"),
    Repair(4, {"out": "divided by 1 - p twice"}, "x.dtype.type((1 - p) ** -2)"),
    Repair(5, {"out": "does not divide x by cap"}, "tanh(x), SoftcapCache", "tanh(x / cap), SoftcapCache"),
    Repair(5, {"dx": "uses tanh(x * cap)"}, "t = xp_of(x).tanh(x * cap)"),
    Repair(5, {"dx": "divides tanh(x) by cap"}, "t = xp_of(x).tanh(x) / cap"),
    Repair(6, {"dgate": "the gate in place of up"}, "dgate = dout * gate * ("),
    Repair(6, {"dgate": "ignores dout"}, "dgate = up * ("),
    Repair(6, {"dgate": "the derivative of the sigmoid"}, "dgate = dout * up * (sigma * (1 - sigma))",
           "dgate = dout * (sigma + silu * (1 - sigma))"),
    Repair(7, {"dx": "dx is divided by the scale", "da": "da is divided by the scale"}, "dh = (dout @ b) / scale"),
    Repair(7, {"da": STILL}, "(scale * dh @ a)", "(dh @ a)"),
    Repair(7, {"dx": "has the scale twice", "da": "has the scale twice"}, "dh = scale**2 * (dout @ b)"),
    Repair(8, {"dx": "sums over the whole array"}, "(dout * p).sum()"),
    Repair(8, {"dx": "lacks p in the sum"}, "dout.sum(-1, keepdims=True)"),
    Repair(8, {"dx": "sums over the rows"}, "(dout * p).sum(-2, keepdims=True)"),
    Repair(9, {"out": "number of tokens in a sequence"}, "count = targets.shape[-1]"),
    Repair(9, {"out": "sum of the losses"}, "count = 1"),
    Repair(9, {"out": "number of sequences"}, "count = len(targets)"),
    Repair(10, {"dx": "a mean over axis 0"}, "n * (dn * n).mean(0, keepdims=True)"),
    Repair(10, {"dx": "sum of dn * n"}, "n * (dn * n).sum(-1, keepdims=True)"),
    Repair(10, {"dx": "treats rstd as a constant"}, "0"),
    Repair(11, {"out": "out lacks eps"}, "1.0 / xp.sqrt((x * x).mean(-1, keepdims=True))"),
    Repair(11, {"out": "sum of x² instead of its mean"}, "1.0 / xp.sqrt((x * x).sum(-1, keepdims=True) + eps)"),
    Repair(11, {"out": "lacks the root"}, "1.0 / ((x * x).mean(-1, keepdims=True) + eps)"),
    Repair(12, {"out": "mean(x²) for the variance"}, "(x * x).mean(-1, keepdims=True)"),
    Repair(12, {"out": "sum of the squares"}, "(centred * centred).sum(-1, keepdims=True)"),
    Repair(12, {"out": "one variance for all rows"}, "(centred * centred).mean()"),
    Repair(13, {"dx": "dx is dtotal", "dbranch": "dtotal"}, "    dx = dtotal\n    dbranch = dx if", "    dbranch = dx if"),
    Repair(13, {"dx": "subtracts dtotal", "dbranch": "dtotal"}, "    dx -= dtotal\n    dbranch = dx if", "    dbranch = dx if"),
    Repair(13, {"dx": STILL, "dbranch": "adds dtotal after the mask"}, "dropout_backward(dx, cache.dropout) + dtotal",
           "dropout_backward(dx, cache.dropout)"),
    Repair(14, {"dx": "-cos in place of -sin"}, "rope_forward(dout, -cos, sin, layout, out=out)[0]"),
    Repair(14, {"dx": "cos and sin exchanged"}, "rope_forward(dout, sin, cos, layout, out=out)[0]"),
    Repair(14, {"dx": "not turned back"}, "dout"),
    Repair(15, {"out": "lacks the weights"}, "out[tokens] += y"),
    Repair(15, {"out": "the largest weight for each"}, "out[tokens] += weights[tokens, 0, None] * y"),
    Repair(15, {"out": "the probabilities for weights"}, "out[tokens] += probs[tokens, e, None] * y"),
    Repair(16, {"out": "out multiplies the scores by √D"}, "scale = math.sqrt(D) if"),
    Repair(16, {"out": "lacks the scale"}, "scale = 1 if"),
    Repair(16, {"out": "from the width of the model"}, "scale = 1 / math.sqrt(H * D) if"),
    Repair(17, {"dk": "dk uses dout in place of q"}, "dk = ds.swapaxes(-1, -2) @ dout"),
    Repair(17, {"dk": "dk uses dq"}, "dk = ds.swapaxes(-1, -2) @ fold_groups(dq, K)"),
    Repair(17, {"dk": "scale"}, "dk = ds.swapaxes(-1, -2) @ fold_groups(q, K) / scale"),
    Repair(18, {"out": "sum of the last tile for z"}, "z = p.sum(-1, keepdims=True)"),
    Repair(18, {"out": "rescales the new tile's sum"}, "z = (z + p.sum(-1, keepdims=True)) * shrink"),
    Repair(18, {"out": "rescales neither z nor o"}, "o = o + p @ v[:, :, s]", "o = o * shrink + p @ v[:, :, s]"),
    Repair(19, {"values": "scores hide key t from query t"}, "causal = np.tri(x.shape[1], k=-1, dtype=bool)"),
    Repair(19, {"values": "the mask is transposed"}, "causal = np.tri(x.shape[1], dtype=bool).T"),
    Repair(19, {"values": "scores let every query see all keys"}, "causal = np.ones(2 * x.shape[1:2], dtype=bool)"),
    Repair(20, {"values": "k_all is tiled"}, "    a.k_all = np.tile(a.k_rotated, (1, H // K, 1, 1))",
           "    a.k_all = np.repeat(a.k_rotated, H // K, axis=1)"),
    Repair(20, {"values": "v_all has the first head in all places"}, "np.repeat(a.v_heads[:, :1], H, axis=1)"),
    Repair(20, {"values": "v_all repeats the turned keys"}, "np.repeat(a.k_rotated, H // K, axis=1)"),
    Repair(21, {"d_after_attention": "is d.after_ffn: the two paths"}, "return d.after_ffn",
           "return d.ffn_n * a.ffn_rstd - d.ffn_rstd * a.ffn_rstd**3 * a.after_attention / C"),
    Repair(21, {"d_after_attention": "treats a.ffn_rstd as a constant"}, "return d.after_ffn + d.ffn_n * a.ffn_rstd",
           "return d.ffn_n * a.ffn_rstd - d.ffn_rstd * a.ffn_rstd**3 * a.after_attention / C"),
    Repair(21, {"d_after_attention": "lacks the path through a.ffn_n"}, "return d.after_ffn"),
    Repair(22, {"d_scores": "mean in place of the sum"}, "(d.attention * a.attention).mean(-1, keepdims=True)"),
    Repair(22, {"d_scores": "lacks a.attention inside of the sum"}, "d.attention.sum(-1, keepdims=True)"),
    Repair(22, {"d_scores": "lacks the sum over the row"}, "0"),
]
