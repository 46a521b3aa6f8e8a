"""Mistakes to find: an op, or the block, with one line that is wrong, what was seen of it, and hints."""

from typing import NamedTuple

from numllama.learn.course.hints import Steps


class Bug(NamedTuple):
    """A mistake.

    Attributes
    ----------
    base : str
        The op, or "block".
    right, wrong : str
        The text that is replaced, which occurs once in the file, and by what.
    symptom : str
        What is shown of it: "gradcheck", "output" or "training".
    story : str
        A sentence on how it was noticed.
    minutes, worth : int
    hints : three str
    """

    base: str
    right: str
    wrong: str
    symptom: str
    story: str
    minutes: int
    worth: int
    hints: Steps


BUGS = (  # in the order of the course
    Bug("linear", "dout.sum(0))", "dout.mean(0))", "gradcheck",
        "Training works, but the biases learn slowly, and more slowly the larger the batch.", 5, 1, (
            "One gradient of three is wrong; the check says which.",
            "Write down the gradient of a bias that is added to N rows. How does it grow with N?",
            "dbias must be the sum over the rows, not their mean.")),
    Bug("linear", "dout.T @ x.reshape(-1, I)", "(x.reshape(-1, I).T @ dout).reshape(O, I)", "gradcheck",
        "Every shape is right, and the model does not learn.", 10, 2, (
            "A reshape is where mistakes hide. Is it wrong for a square weight of one row?",
            "dweight[o, i] = sum over n of dout[n, o] * x[n, i]: which index comes first?",
            "The product has shape (I, O). A reshape to (O, I) does not transpose it: multiply in the other order.")),
    Bug("embedding", "xp.add.at(dweight, tokens, dout)", "dweight[tokens] += dout", "gradcheck",
        "Frequent words learn no faster than rare ones.", 5, 1, (
            "Is it wrong for a sequence in which no token occurs twice?",
            "With a repeated index, a[i] += b reads a[i] once, so one of the additions is all that remains.",
            "np.add.at adds for each occurrence of an index.")),
    Bug("dropout", "x.dtype.type(1 / (1 - p))", "x.dtype.type(1)", "output",
        "The gradient check passes. But the loss is higher in evaluation, without dropout, than in training.", 5, 1, (
            "Compare the mean of the output with the mean of the input, for a large array of ones.",
            "Each element survives with probability 1 - p, so the mean shrinks by this factor unless something undoes it.",
            "The mask must hold 1 / (1 - p), not 1, where an element is kept.")),
    Bug("softcap", "t = xp_of(x).tanh(x / cap)", "t = xp_of(x).tanh(x)", "gradcheck",
        "With a cap of 1, everything is right. With a cap of 30, hardly any gradient comes through.", 5, 1, (
            "Which value of cap hides the mistake, and where does cap enter the backward?",
            "tanh' must be taken at the point where the forward took tanh.",
            "The backward takes tanh of x, the forward of x / cap.")),
    Bug("swiglu", "dgate = dout * up * (", "dgate = dout * (", "gradcheck",
        "The gates of a trained model have hardly moved in a useful direction.", 5, 1, (
            "out = silu(gate) * up is a product of two factors.",
            "The gradient of one factor is multiplied by the other one.",
            "dgate lacks the factor up.")),
    Bug("lora", "dh = scale * (dout @ b)", "dh = dout @ b", "gradcheck",
        "A fine-tuning with scale 1 works; with scale 0.5 one of the two matrices learns too fast.", 5, 1, (
            "Two gradients are wrong, and one is right. What do the two share?",
            "out = scale * h @ b.T: the way from out back to h passes the scale.",
            "dh lacks the scale.")),
    Bug("softmax", "(dout * p).sum(-1, keepdims=True)", "(dout * p).mean(-1, keepdims=True)", "gradcheck",
        "The gradients of each row should add up to zero, and do not.", 10, 2, (
            "Add up the formula over a row, with sum of p = 1: when is the result zero?",
            "dx[j] = p[j] * (dout[j] - sum over i of dout[i] p[i]).",
            "The second term must be a sum, not a mean.")),
    Bug("cross_entropy", "count = xp.maximum(counted.sum(), 1)", "count = max(targets.size, 1)", "output",
        "The gradient check passes. But an untrained model's loss is below log(V) as soon as a batch has padding.", 10, 2, (
            "Is the loss right if no target is ignored?",
            "The loss is a mean. Over which rows?",
            "count must be the number of targets that are not ignored, not the number of all.")),
    Bug("rmsnorm", "n * (dn * n).mean(-1, keepdims=True)", "n * (dn * n).mean()", "gradcheck",
        "With one token in the batch, everything is right.", 10, 2, (
            "What is different when there are several rows?",
            "Each row has its own rms, so each has its own mean of dn * n.",
            "The mean must be over the last axis, and keep it.")),
    Bug("rmsnorm", "1.0 / xp.sqrt((x * x).mean(-1, keepdims=True) + eps)",
        "1.0 / (xp.sqrt((x * x).mean(-1, keepdims=True)) + eps)",
        "gradcheck",
        "Logits differ a little from the original model's, and more where activations are small.", 15, 2, (
            "The backward is right: it is the derivative of another forward.",
            "rms(x) = sqrt(mean(x^2) + eps). Compare it with the code, symbol by symbol.",
            "eps belongs inside the root.")),
    Bug("layernorm", "(centred * centred).mean(-1, keepdims=True)",
        "(centred * centred).sum(-1, keepdims=True) / (x.shape[-1] - 1)", "gradcheck",
        "A checkpoint from another library gives slightly different outputs, by the same factor everywhere.", 15, 2, (
            "By what factor do the outputs differ? Try C = 2.",
            "The variance of a row can be divided by C or by C - 1. Which one does LayerNorm take?",
            "The variance must be the mean of the squares: divided by C.")),
    Bug("add_rmsnorm", "        dx += dtotal\n", "", "gradcheck",
        "A model of two blocks trains; the first blocks of a deep one learn nothing.", 10, 2, (
            "How many results does the forward have, and which of their gradients are used?",
            "total is used twice: by the norm, and by all that follows along the stream.",
            "dtotal is never added to dx.")),
    Bug("rope", "rope_forward(dout, cos, -sin, layout, out=out)[0]", "rope_forward(dout, cos, sin, layout, out=out)[0]",
        "gradcheck", "The first position has the right gradient, all others have not.", 10, 2, (
            "What is the angle at position 0?",
            "The gradient is multiplied by the transpose of the rotation.",
            "The backward must turn back: minus sin.")),
    Bug("mixture_of_experts", "out[tokens] += weights[tokens, places, None] * y",
        "out[tokens] = weights[tokens, places, None] * y",
        "output", "With one expert for each token (top_k = 1), the output is right.", 15, 2, (
            "What happens to a token that two experts work on?",
            "out is the sum over the experts of a token.",
            "The second expert overwrites what the first one has written: add instead.")),
    Bug("attention", "scale = 1 / math.sqrt(D) if", "scale = 1 / D if", "output",
        "The gradient check passes, and training works. But a published checkpoint talks nonsense.", 10, 2, (
            "Forward and backward agree, so the mistake is in what is computed and not in its derivative.",
            "The variance of a dot product of D random numbers is D. What makes it 1?",
            "Scores are divided by the square root of D.")),
    Bug("attention", "dk = ds.swapaxes(-1, -2) @ fold_groups(q, K)",
        "dk = (fold_groups(q, K).swapaxes(-1, -2) @ ds).reshape(k.shape)", "gradcheck",
        "Every shape is right, and only one of the three gradients is wrong.", 15, 3, (
            "A reshape is where mistakes hide.",
            "dk[s, d] = sum over t of ds[t, s] * q[t, d]: keys first, then components.",
            "The product has shape (D, S), and a reshape does not transpose it: multiply in the other order.")),
    Bug("flash_attention", "z = z * shrink + p.sum(-1, keepdims=True)", "z = z + p.sum(-1, keepdims=True)", "output",
        "Texts shorter than a tile are right. In longer ones, some rows are too small.", 20, 3, (
            "What changes between the first tile and the second?",
            "z is a sum of exp(s - m). What happens to its terms when m rises?",
            "z must shrink like o, before the new tile is added.")),
    Bug("block", "causal = np.tri(x.shape[1], dtype=bool)", "causal = np.tri(x.shape[1], k=1, dtype=bool)", "training",
        "The loss falls below what is possible: the next token of this text is one of two, at random.", 15, 3, (
            "Only a model that sees the answer gets below log 2.",
            "In training, the target of position t is the token at t + 1. Which positions must t not see?",
            "np.tri with k=1 lets query t see key t + 1.")),
    Bug("block", "np.repeat(a.v_heads, H // K, axis=1)", "np.tile(a.v_heads, (1, H // K, 1, 1))", "gradcheck",
        "With as many key heads as query heads, everything is right.", 20, 3, (
            "Grouped queries: which key head, and which values, does each query head use?",
            "repeat gives heads 0, 0, 1, 1; tile gives 0, 1, 0, 1.",
            "a.v_all is tiled, but a.k_all and both backwards are repeated.")),
    Bug("block", "return d.after_ffn + d.ffn_n * a.ffn_rstd", "return d.ffn_n * a.ffn_rstd", "training",
        "The loss falls too slowly, and a deep model of such blocks does not learn at all.", 20, 3, (
            "Count the uses of each value of the stream in the forward, and the terms of its gradient.",
            "after_ffn = after_attention + ffn_out hands its gradient on to both.",
            "d_after_attention lacks the gradient that comes along the stream, d.after_ffn.")),
    Bug("block", "(d.attention * a.attention).sum(-1, keepdims=True)", "(d.attention * a.attention).sum(-2, keepdims=True)",
        "training", "The loss stops falling too early. Every shape is right.", 20, 3, (
            "The two last axes of the scores have the same length, so no shape shows the mistake.",
            "Over which axis is the softmax taken: queries or keys?",
            "The sum in the softmax's backward must be over keys, the last axis.")),
)  # fmt: skip
