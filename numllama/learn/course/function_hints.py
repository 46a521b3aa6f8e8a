"""Hints in three steps for each result of the exercises that are a plain function."""

from numllama.learn.course.hints import Steps

FUNCTION_HINTS: dict[str, dict[str, Steps]] = {
    "adamw": {
        "w": (
            "Two things move a weight: the decay, by a share of the weight itself, and the mean gradient over its usual size.",
            "w - lr * weight_decay * w - lr * m_hat / (sqrt(v_hat) + eps), with m_hat = m / (1 - beta1**t), and v_hat likewise.",
            "Update m and v first; divide each by 1 minus its beta to the power t; take the root, add eps behind it, and divide.",
        ),
        "m": (
            "A running mean: most of the old one stays, and a little of the gradient is added.",
            "m = beta1 * m + (1 - beta1) * g.",
            "Return this mean as it is: the correction and the weight decay are for the weights alone.",
        ),
        "v": (
            "The same running mean, of the squares of the gradient.",
            "v = beta2 * v + (1 - beta2) * g**2.",
            "As for m, with the second beta and g * g; return it without root and without correction.",
        ),
    },
    "sampling": {
        "temperature": (
            "Temperature changes the distances between the logits, before softmax.",
            "p[v] = exp(x[v] / temperature) / sum over u of exp(x[u] / temperature).",
            "softmax of logits / temperature.",
        ),
        "top_k": (
            "Find the k-th largest logit; whatever is smaller must not be drawn.",
            "Keep v if x[v] >= x of place k. A token with the logit -inf has the probability 0.",
            "Sort, take element -k (or the first one if k is larger than V), set smaller logits to -inf; softmax at the end.",
        ),
        "top_p": (
            "Take tokens from the likeliest on, and stop once they sum to P. The token that reaches P is kept.",
            "A token is dropped if the probabilities of those before it already sum to P or more.",
            "order = argsort of -x; p in this order; cumsum(p) - p is what comes before; set x[order[before >= top_p]] to -inf.",
        ),
        "min_p": (
            "The bound is a fraction of the largest probability, so it is low where the model is not certain.",
            "Keep v if p[v] >= min_p * max over u of p[u].",
            "softmax; compare with min_p times its maximum; set the logits below it to -inf; softmax again.",
        ),
        "all": (
            "Each rule is applied to what the ones before it have left, so the probabilities change in between.",
            "Temperature, top-k, top-p, min-p; a rule that needs probabilities takes the softmax of the logits as they are then.",
            "Pass one array through all rules; each sets some elements to -inf. Take softmax in top-p, in min-p, and at the end.",
        ),
    },
    "kv_cache": {
        "out": (
            "The new tokens are rows length to length + T - 1 of the whole text: their positions and their masks say so.",
            "Query t is at position length + t; it sees the keys s <= length + t, and no slot that is still empty.",
            "Turn q by rows length to length + T of the table; scores for the first length + T slots; -inf where s > length + t.",
        ),
        "keys": (
            "A key is kept as attention will use it: turned by the angle of its own position.",
            "keys[length + t] = turn(k[t], cos[length + t], sin[length + t]).",
            "Copy keys; write turn(k, cos[new], sin[new]) at [:, :, new], with new = slice(length, length + T).",
        ),
        "values": (
            "Values have no position: they are kept as they are.",
            "values[length + t] = v[t].",
            "Copy values; write v at [:, :, length : length + T].",
        ),
    },
    "bpe": {
        "merges": (
            "Count the pairs, merge the most frequent one everywhere, and count again.",
            "count(a, b) = sum over words of how often the word occurs * how often b follows a in it.",
            "max of the pairs by the key (count, bytes of the left token, bytes of the right one); then merged() on every word.",
        ),
        "ids": (
            "A new word is merged in the order in which the merges were learned, wherever their pairs stand in it.",
            "Of all neighbours that can merge, the pair that was learned first comes first.",
            "From the bytes of the word: for each merge in turn, replace its pair everywhere, by merged().",
        ),
    },
}  # fmt: skip
