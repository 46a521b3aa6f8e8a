"""Hints in three steps for each result of each op: the idea, the equation to start from, and the line in words."""

Steps = tuple[str, str, str]

OVER_ROWS = (
    "The bias was added to every row, so every row has a share in its gradient.",
    "out[n, o] = ... + bias[o] for all n, so dbias[o] = sum over n of dout[n, o].",
    "Flatten dout to rows, and sum over the rows.",
)  # fmt: skip
GAIN = (
    "One gain serves all rows, so its gradient is a sum over all of them.",
    "out[r, c] = n[r, c] * weight[c], with n the normalised x: dweight[c] = sum over rows r of dout[r, c] * n[r, c].",
    "Multiply dout by the normalised x, flatten to rows of C, and sum over the rows.",
)  # fmt: skip
UP = (
    "up enters the output as a plain factor.",
    "out = f(gate) * up, so d out / d up = f(gate).",
    "Multiply dout by the activated gate, which is computed again from gate.",
)  # fmt: skip

HINTS: dict[str, dict[str, Steps]] = {
    "linear": {
        "out": (
            "Each output is the dot product of a row of x with a row of weight.",
            "out[n, o] = sum over i of x[n, i] * weight[o, i] + bias[o].",
            "Flatten x to (N, I), multiply by weight transposed, add the bias, and give the result x's leading axes again.",
        ),
        "dx": (
            "x[n, i] enters every output of its row, with the factor weight[o, i]: sum over the outputs.",
            "dx[n, i] = sum over o of dout[n, o] * weight[o, i].",
            "Flatten dout to (N, O), multiply by weight without transposing it, and give the result x's shape.",
        ),
        "dweight": (
            "weight[o, i] enters output o of every row, with the factor x[n, i]: sum over all rows.",
            "dweight[o, i] = sum over n of dout[n, o] * x[n, i].",
            "Flatten both to rows, and multiply dout transposed by x: (O, N) @ (N, I). No reshape is needed after it.",
        ),
        "dbias": OVER_ROWS,
    },
    "lora": {
        "out": (
            "Two thin linear maps, one after the other, and a scale.",
            "h = x @ a.T is (N, R), and out = scale * h @ b.T is (N, O).",
            "Flatten x, times a transposed, times scale, times b transposed; give the result x's leading axes. Cache h.",
        ),
        "dx": (
            "h = x @ a.T is a linear map of x: dx = dh @ a, where dh is the gradient of h, through b and the scale.",
            "dh[n, r] = scale * sum over o of dout[n, o] * b[o, r], and dx[n, i] = sum over r of dh[n, r] * a[r, i].",
            "Compute dh = scale * (dout @ b) on rows, multiply it by a, and give the result x's shape.",
        ),
        "da": (
            "a is the weight of the map from x to h: its gradient is like dweight in linear.",
            "da[r, i] = sum over n of dh[n, r] * x[n, i], with dh as in dx.",
            "Multiply dh transposed by the rows of x. The scale is already in dh.",
        ),
        "db": (
            "b is the weight of the map from h to out: like dweight in linear, times the scale.",
            "db[o, r] = scale * sum over n of dout[n, o] * h[n, r].",
            "Multiply dout transposed, as rows, by scale * h.",
        ),
    },
    "embedding": {
        "out": (
            "An embedding is a table: each token picks its row.",
            "out[n] = weight[tokens[n]].",
            "Index weight with the array of tokens; NumPy does the rest. The cache holds tokens and weight.",
        ),
        "dweight": (
            "A token that occurs several times gets the sum of its gradients; dweight[tokens] += dout keeps only one.",
            "dweight[v] = sum over all places n with tokens[n] == v of dout[n].",
            "Start from zeros like weight, and let np.add.at add dout at tokens: it adds for each occurrence.",
        ),
    },
    "softmax": {
        "out": (
            "Exponentials of a row, divided by their sum.",
            "p[i] = exp(x[i] - m) / sum over j of exp(x[j] - m), where the largest x of the row, m, keeps exp from overflowing.",
            "Subtract the row's maximum, exponentiate, divide by the sum; a row of -inf only gives zeros. The cache holds p.",
        ),
        "dx": (
            "Every x[j] enters the sum that divides all p[i], so it moves all of its row.",
            "dp[i]/dx[j] = p[i] (delta_ij - p[j]): dx[j] = sum over i of dout[i] p[i] (delta_ij - p[j]).",
            "p times (dout minus the sum of dout * p over the last axis, kept as an axis of length 1).",
        ),
    },
    "cross_entropy": {
        "out": (
            "The loss of a row is minus the log of the probability of its target.",
            "loss = sum over counted rows of (log(sum over v of exp(logits[v])) - logits[target]) / count.",
            "Log-sum-exp, the maximum taken off and added back, minus the target's logit; zero where ignored; sum over count.",
        ),
        "dlogits": (
            "Predicted probabilities minus the one-hot target, divided by count; ignored rows get zero.",
            "d lse / d logits[v] = p[v], and d logits[target] / d logits[v] is 1 where v is the target and 0 elsewhere.",
            "exp(logits - lse) minus one-hot, times dout / count, times 0 for the rows whose target is -1.",
        ),
    },
    "swiglu": {
        "out": (
            "The gate passes through SiLU, and scales up.",
            "out = gate * sigmoid(gate) * up.",
            "Multiply gate, sigmoid(gate) and up. The cache holds the two inputs.",
        ),
        "dgate": (
            "silu(g) = g * sigmoid(g) is a product, so its derivative has two terms. The other factor, up, stays.",
            "silu'(g) = sigmoid(g) + g * sigmoid(g) * (1 - sigmoid(g)).",
            "dout times up times (sigma + silu * (1 - sigma)).",
        ),
        "dup": UP,
    },
    "gelu": {
        "out": (
            "Each x is scaled by the normal distribution function at x, here approximated by a tanh.",
            "out = x * (1 + tanh u) / 2 with u = SLOPE * (x + CUBIC * x^3).",
            "0.5 * x * (1 + tanh(...)), with the cube written as x * x * x.",
        ),
        "dx": (
            "x * (1 + tanh u) / 2 is a product, and u depends on x: the product rule gives two terms.",
            "tanh'(u) = 1 - tanh(u)^2 and u' = SLOPE * (1 + 3 * CUBIC * x^2).",
            "dout times ((1 + tanh) / 2 plus x / 2 times (1 - tanh squared) times u').",
        ),
    },
    "geglu": {
        "out": (
            "SwiGLU with another gate: GELU in place of SiLU.",
            "out = gelu(gate) * up.",
            "Call gelu_forward on gate, take its first result, and multiply by up.",
        ),
        "dgate": (
            "The gradient of gelu(gate) is dout * up; gelu_backward takes it from there.",
            "d loss / d gate = gelu'(gate) * (dout * up).",
            "Call gelu_backward with dout * up and a GELUCache of gate, in its tanh form.",
        ),
        "dup": UP,
    },
    "softcap": {
        "out": (
            "A tanh that is linear near zero and saturates at the cap.",
            "out = cap * tanh(x / cap).",
            "Divide by cap, take tanh, multiply by cap.",
        ),
        "dx": (
            "The chain rule: the cap outside and the division inside cancel.",
            "d/dx cap * tanh(x / cap) = tanh'(x / cap), and tanh' = 1 - tanh^2.",
            "Compute t = tanh(x / cap) again; dout times (1 minus t squared).",
        ),
    },
    "rmsnorm": {
        "out": (
            "Each row is divided by its root mean square, then scaled by the gain.",
            "rms(x) = sqrt(mean(x^2) + eps), with eps inside the root; out = x / rms(x) * weight.",
            "rstd is 1 over the root of (mean of x * x over the last axis, kept, plus eps). Return x * rstd * weight.",
        ),
        "dx": (
            "x[j] enters its own output and, through rstd, all outputs of its row: two terms.",
            "d rstd/dx[j] = -rstd^3 x[j] / C. With n = x * rstd and dn = dout * weight: dx[j] = sum over i of dn[i] dn_i/dx[j].",
            "rstd times (dn minus n times the mean of dn * n over the last axis, kept as an axis of length 1).",
        ),
        "dweight": GAIN,
    },
    "layernorm": {
        "out": (
            "Like RMSNorm, but the mean is subtracted first, and a bias is added last.",
            "n = (x - mean) / sqrt(var + eps), with the variance over C and not C - 1; out = n * weight + bias.",
            "Centre each row, divide by the root of the mean square of what is left plus eps, times weight, plus bias.",
        ),
        "dx": (
            "x[j] also changes the mean (by 1/C) and rstd: subtract two terms from dn.",
            "dn[i]/dx[j] = rstd (delta_ij - 1/C - n[i] n[j] / C), with dn = dout * weight as the gradient of n.",
            "rstd times (dn minus its mean minus n times the mean of dn * n); both means over the last axis, kept.",
        ),
        "dweight": GAIN,
        "dbias": OVER_ROWS,
    },
    "add_rmsnorm": {
        "out": (
            "Add first, then normalise the sum. Both the sum and its norm are results.",
            "total = x + dropout(branch), out = rmsnorm(total).",
            "Drop out the branch if there is a key, add x if there is one, call rmsnorm_forward on the sum; return (total, out).",
        ),
        "dx": (
            "total continues along the stream and goes through the norm: it has two uses, so add both gradients.",
            "d total = dtotal + (rmsnorm's dx for dout), and total = x + ..., so dx = d total.",
            "Call rmsnorm_backward with dout and its cache, and add dtotal to its first result.",
        ),
        "dbranch": (
            "The branch was added after dropout: its gradient is dx, through the same mask.",
            "total = x + branch * mask / (1 - p), so dbranch = dx * mask / (1 - p).",
            "Call dropout_backward with dx and dropout's cache; without dropout, dbranch is dx.",
        ),
        "dweight": (
            "The gain belongs to the norm: like dweight in rmsnorm, with total in place of x.",
            "dweight[c] = sum over rows of dout * total * rstd.",
            "It is the second result of rmsnorm_backward.",
        ),
    },
    "dropout": {
        "out": (
            "Each element is kept or set to zero, and what is kept is scaled up.",
            "out = x * m / (1 - p), with m = 0 or 1.",
            "Multiply x by dropout_mask(x, p, key), which has the factor in it; cache p, key and the shape.",
        ),
        "dx": (
            "Dropout multiplies by numbers that do not depend on x: the same mask, from the same key, with the same factor.",
            "out[i] = x[i] * mask[i], so dx[i] = dout[i] * mask[i].",
            "Multiply dout by dropout_mask with the p and the key of the cache.",
        ),
    },
    "rope": {
        "out": (
            "Each pair of components is a point in a plane that turns by the angle of its position.",
            "out1 = x1 cos - x2 sin, out2 = x2 cos + x1 sin.",
            "Take both halves by pairs(D, layout), turn them, and write them to the same places of an empty array like x.",
        ),
        "dx": (
            "The transpose of a rotation is the rotation by the opposite angle.",
            "dx1 = dout1 cos + dout2 sin, dx2 = dout2 cos - dout1 sin.",
            "Call rope_forward with dout, cos, minus sin and the layout; its first result is dx.",
        ),
    },
    "mixture_of_experts": {
        "out": (
            "Each token goes through the k experts that the router chose, and their outputs are added with its weights.",
            "out[t] = sum over chosen e of weight[t, e] * down_e(swiglu(gate_e x[t], up_e x[t])).",
            "For each expert: find its tokens, run them through its three matrices, add weight * y to out at these tokens.",
        ),
        "dx": (
            "Each token's experts add their part to its row, and so does the router.",
            "dx[t] = sum over its experts of (the expert's dx) + dlogits[t] @ router.",
            "Add linears_backward's first result at the expert's tokens; the router's linear_backward adds to it by dx=dx.",
        ),
        "drouter": (
            "out is linear in the weights of the experts, and those come from the router's logits.",
            "dweights[t, e] = sum over c of dout[t, c] * y[t, c]; router_backward gives dlogits; logits = rows @ router.T.",
            "Fill dweights at (tokens, places) with the sum of dout * y; router_backward; linear_backward's second result.",
        ),
        "dgate": (
            "An expert's matrices see only its own tokens, each with its weight.",
            "dy = weight * dout at its tokens; dh = dy @ down; then swiglu_backward and linears_backward.",
            "linears_backward of swiglu_backward(dh, activation), added into dgate's row e: into=(dgate, dup).",
        ),
        "dup": (
            "As dgate: up is the second matrix of the same pair of maps.",
            "swiglu_backward(dh, activation) gives the gradients of both maps' outputs.",
            "It is filled by the same call of linears_backward as dgate.",
        ),
        "ddown": (
            "Like dweight in linear, for the map from h to y: the gradient of y is weight * dout.",
            "ddown[c, f] = sum over the expert's tokens of weight * dout[c] * h[f].",
            "linear_backward(dy, last, into=ddown), where last is the LinearCache of h and down.",
        ),
    },
    "attention": {
        "out": (
            "Each query mixes the values, by the softmax of how well the keys match it.",
            "s = q k^T / sqrt(D), -inf where hidden; p = softmax(s) over the keys; out = p v.",
            "fold_groups lets the query heads of a key head share it: fold q, multiply, mask, softmax, fold p, times v.",
        ),
        "dq": (
            "Read the forward upwards: out = p v, p = softmax(s), s = q k^T * scale.",
            "dp = dout v^T; ds = p (dp - sum over keys of dp p); dq = ds k * scale.",
            "ds comes from softmax_backward(dp, SoftmaxCache(p)), times scale; ds @ k, reshaped to q's shape.",
        ),
        "dk": (
            "dk sums over queries, and over the query heads of its group.",
            "dk[s, d] = sum over t of ds[t, s] * q[t, d] * scale.",
            "ds with its last two axes swapped, @ the folded q. Folding adds the heads of a group: nothing is left to sum.",
        ),
        "dv": (
            "dv sums over queries, and over the query heads of its group.",
            "out[t] = sum over s of p[t, s] v[s], so dv[s] = sum over t of p[t, s] * dout[t].",
            "The folded p with its last two axes swapped, @ the folded dout.",
        ),
    },
    "flash_attention": {
        "out": (
            "Attention in tiles of keys: keep the largest score, the sum of exponentials and the weighted sum of values so far.",
            "When the maximum rises from m to m', both sums shrink by exp(m - m'); at the end out = o / z and lse = m + log z.",
            "For each tile: scores, new top, p = exp(scores - top), z = z * shrink + sum of p, o = o * shrink + p @ v.",
        ),
        "dq": (
            "Each tile of p is computed again from lse, and adds its part to dq.",
            "ds = p (dp - delta), with delta = sum over D of dout * out, known before the first tile.",
            "Add ds @ keys * scale to the tile of queries.",
        ),
        "dk": (
            "Each tile adds to the keys it has seen.",
            "dk[s] = sum over t of ds[t, s] * q[t] * scale, with ds = p (dp - delta).",
            "Add ds with its last two axes swapped, @ the folded queries, times scale.",
        ),
        "dv": (
            "Each tile adds to the values it has seen, by the probabilities computed again.",
            "p = exp(s - lse), and dv[s] = sum over t of p[t, s] * dout[t].",
            "Add p with its last two axes swapped, @ the folded dout.",
        ),
    },
}  # fmt: skip

# ------------------------------------------------------------------------------------------------ the block

COPY: Steps = (
    "An addition hands its gradient on unchanged.",
    "y = x + z, so dx = dy.",
    "Return the gradient of the sum.",
)  # fmt: skip
INPUT: Steps = (
    "A linear map's input: sum over its outputs, as dx in linear.",
    "y = x @ w.T, so dx[n, i] = sum over o of dy[n, o] * w[o, i].",
    "The gradient of the output @ the weight, not transposed.",
)  # fmt: skip
INPUTS: Steps = (
    "This value fed several linear maps, so their gradients add up.",
    "Each map y = x @ w.T gives dx = dy @ w.",
    "One product for each map: the gradient of its output @ its weight. Add them.",
)  # fmt: skip
WEIGHT: Steps = (
    "A linear map's weight: sum over all rows of all sequences, as dweight in linear.",
    "y = x @ w.T, so dw[o, i] = sum over n of dy[n, o] * x[n, i].",
    "rows(gradient of the output) transposed @ rows(the map's input).",
)  # fmt: skip
FACTOR: Steps = (
    "An elementwise product: the gradient is multiplied by the other factor.",
    "y = x * z, so dx = dy * z.",
    "The gradient of the product times the other factor.",
)  # fmt: skip
BLOCK_GAIN: Steps = (
    "One gain serves all rows: sum over them.",
    "y[n, c] = x[n, c] * gain[c], so dgain[c] = sum over n of dy[n, c] * x[n, c].",
    "rows(gradient times the normalised value), summed over axis 0.",
)  # fmt: skip
RSTD: Steps = (
    "One factor served a whole row: its gradient is a sum over the row.",
    "n[c] = x[c] * rstd, so drstd = sum over c of dn[c] * x[c].",
    "The gradient of n times x, summed over the last axis, which is kept as an axis of length 1.",
)  # fmt: skip
STREAM: Steps = (
    "The stream is used three times: by the residual sum, by n, and by rstd. Add three terms.",
    "rstd = (mean(x^2) + eps)^(-1/2), so d rstd/dx[c] = -rstd^3 * x[c] / C.",
    "The gradient of the residual sum, plus d n times rstd, minus d rstd times rstd cubed times x over C.",
)  # fmt: skip
SUM_GROUP: Steps = (
    "One key head was copied to H/K query heads: its gradient is the sum over the copies.",
    "np.repeat puts the copies of a head next to each other: heads 0, 0, 1, 1.",
    "Reshape to (B, K, H // K, T, D) and sum over axis 2.",
)  # fmt: skip
TURN_BACK: Steps = (
    "The transpose of a rotation is the rotation by the opposite angle.",
    "turn is linear in x, and its matrix is orthogonal: the gradient is turned back.",
    "turn with cos and minus sin.",
)  # fmt: skip
RESHAPED: Steps = (
    "Splitting and merging heads only moves numbers: the gradient moves back.",
    "merge_heads and split_heads undo each other.",
    "Call the other one of the two on the gradient.",
)  # fmt: skip
SCORE: Steps = (
    "A product of two matrices: sum over the axis that the two do not share. The mask needs nothing: there d.scores is 0.",
    "s[t, u] = sum over j of q[t, j] k[u, j] / sqrt(D): dq[t] = sum over u of ds[t, u] k[u] / sqrt(D), and dk likewise over t.",
    "d.scores, with its last two axes swapped for the keys, @ the other matrix, divided by the root of D.",
)  # fmt: skip

BLOCK_HINTS: dict[str, Steps] = {
    "d_ffn_out": COPY, "d_w_down": WEIGHT, "d_swiglu": INPUT, "d_up": FACTOR, "d_silu": FACTOR,
    "d_gate": (
        "silu is a product of gate with sigma, which depends on gate too: two terms.",
        "sigma' = sigma * (1 - sigma), so silu' = sigma + gate * sigma * (1 - sigma).",
        "d.silu times (sigma plus gate * sigma * (1 - sigma)).",
    ),
    "d_w_up": WEIGHT, "d_w_gate": WEIGHT, "d_ffn_norm": INPUTS,
    "d_ffn_gain": BLOCK_GAIN, "d_ffn_n": FACTOR, "d_ffn_rstd": RSTD, "d_after_attention": STREAM,
    "d_attn_out": COPY, "d_wo": WEIGHT, "d_merged": INPUT, "d_head_outputs": RESHAPED,
    "d_attention": (
        "A product of two matrices, attention @ v: this is the gradient of the left one.",
        "out[t] = sum over s of p[t, s] v[s], so dp[t, s] = sum over j of dout[t, j] v[s, j].",
        "d.head_outputs @ v_all with its last two axes swapped.",
    ),
    "d_v_all": (
        "A product of two matrices, attention @ v: this is the gradient of the right one.",
        "out[t] = sum over s of p[t, s] v[s], so dv[s] = sum over t of p[t, s] dout[t].",
        "attention with its last two axes swapped, @ d.head_outputs.",
    ),
    "d_scores": HINTS["softmax"]["dx"],
    "d_q_rotated": SCORE, "d_k_all": SCORE, "d_k_rotated": SUM_GROUP, "d_v_heads": SUM_GROUP,
    "d_q_heads": TURN_BACK, "d_k_heads": TURN_BACK, "d_q": RESHAPED, "d_k": RESHAPED, "d_v": RESHAPED,
    "d_wq": WEIGHT, "d_wk": WEIGHT, "d_wv": WEIGHT, "d_attn_norm": INPUTS,
    "d_attn_gain": BLOCK_GAIN, "d_attn_n": FACTOR, "d_attn_rstd": RSTD, "d_x": STREAM,
}  # fmt: skip
