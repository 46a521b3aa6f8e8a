"""Plain functions (AdamW, sampling, attention with a KV cache, byte-pair encoding) and gradients of the block, with mistakes."""

from learn.wrong_code import Code

ADAMW = [
    Code("adamw", {"w": "lacks both bias corrections"}, """
        b1, b2 = betas
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        return w - lr * (m / (np.sqrt(v) + eps) + weight_decay * w), m, v
    """, "adamw_step"),
    Code("adamw", {"w": "adds the weight decay to the gradient", "m": "has the weight decay in it", "v": "decay in it"}, """
        b1, b2 = betas
        g = g + weight_decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        return w - lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), m, v
    """, "adamw_step"),
    Code("adamw", {"w": "eps inside the root"}, """
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * np.square(g)
        step = m / (1 - betas[0] ** t) * (v / (1 - betas[1] ** t) + eps) ** -0.5
        return (1 - lr * weight_decay) * w - lr * step, m, v
    """, "adamw_step"),
    Code("adamw", {"w": "eps is multiplied by sqrt(1 - beta2**t)"}, """
        b1, b2 = betas
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        rate = lr * np.sqrt(1 - b2**t) / (1 - b1**t)
        return w - rate * m / (np.sqrt(v) + eps) - lr * weight_decay * w, m, v
    """, "adamw_step"),
    Code("adamw", {"m": "m is the corrected mean", "v": "v is the corrected mean"}, """
        b1, b2 = betas
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m, v = m / (1 - b1**t), v / (1 - b2**t)
        return w - lr * weight_decay * w - lr * m / (np.sqrt(v) + eps), m, v
    """, "adamw_step"),
    Code("adamw", {"w": "without lr"}, """
        b1, b2 = betas
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        return w - weight_decay * w - lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), m, v
    """, "adamw_step"),
    Code("adamw", {"w": "decays after the step"}, """
        b1, b2 = betas
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        return w - lr * weight_decay * w, m, v
    """, "adamw_step"),
    Code("adamw", {"v": "lacks the factor 1 - beta2", "w": None}, """
        b1, b2 = betas
        m, v = b1 * m + (1 - b1) * g, b2 * v + g * g
        return w - lr * weight_decay * w - lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), m, v
    """, "adamw_step"),
    Code("adamw", {"m": "m is v: return w, m, v", "v": None}, """
        b1, b2 = betas
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        return w - lr * weight_decay * w - lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), v, m
    """, "adamw_step"),
    Code("adamw", {"w": "t is the number of this step, from 1"}, """
        b1, b2 = betas
        m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2, t + 1
        return w - lr * weight_decay * w - lr * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), m, v
    """, "adamw_step"),
]
SAMPLING = [
    Code("sampling", {"top_k": "drops the token at place k", "all": "has a top-k that drops the token at place k"}, """
        x = logits / temperature
        if top_k is not None:
            x = np.where(x > np.sort(x)[-min(top_k, len(x))], x, -np.inf)
        p = softmax(x)
        if top_p is not None:
            order = np.argsort(-p, kind="stable")
            x[order[np.cumsum(p[order]) - p[order] >= top_p]] = -np.inf
        p = softmax(x)
        return softmax(np.where(p < (min_p or 0) * p.max(), -np.inf, x))
    """, "next_distribution"),
    Code("sampling", {"top_p": "drops the token that reaches P", "all": "has a top-p that drops the token that reaches P"}, """
        x = logits / temperature
        if top_k is not None:
            x = np.where(x >= np.sort(x)[-min(top_k, len(x))], x, -np.inf)
        p = softmax(x)
        if top_p is not None:
            order = np.argsort(-p, kind="stable")
            x[order[1:][np.cumsum(p[order])[1:] >= top_p]] = -np.inf
        p = softmax(x)
        return softmax(np.where(p < (min_p or 0) * p.max(), -np.inf, x))
    """, "next_distribution"),
    Code("sampling", {"top_k": "keeps exactly k tokens", "top_p": "drops the token that reaches P", "all": None}, """
        x = logits / temperature
        order = np.argsort(-x, kind="stable")
        if top_k:
            x[order[top_k:]] = -np.inf
        if top_p:
            x[order[np.cumsum(softmax(x)[order]) > top_p + 1e-12]] = -np.inf
        if min_p:
            x[softmax(x) < min_p * softmax(x).max()] = -np.inf
        return softmax(x)
    """, "next_distribution"),
    Code("sampling", {"all": "all takes top-p of the probabilities before top-k"}, """
        x = logits / temperature
        p = softmax(x)
        order = np.argsort(-p)
        keep = np.ones(len(x), bool)
        if top_k is not None:
            keep &= x >= np.sort(x)[-min(top_k, len(x))]
        if top_p is not None:
            keep[order] &= np.cumsum(p[order]) - p[order] < top_p
        if min_p is not None:
            keep &= p >= min_p * p.max()
        return softmax(np.where(keep, x, -np.inf))
    """, "next_distribution"),
    Code("sampling", {"top_k": "do not sum to 1", "top_p": "do not sum to 1", "min_p": "do not sum to 1", "all": None}, """
        p = softmax(logits / temperature)
        if top_k is not None:
            p = np.where(p >= np.sort(p)[::-1][min(top_k, len(p)) - 1], p, 0)
        if top_p is not None:
            order = np.argsort(-p)
            p[order[np.cumsum(p[order]) - p[order] >= top_p]] = 0
        if min_p is not None:
            p = np.where(p >= min_p * p.max(), p, 0)
        return p
    """, "next_distribution"),
    Code("sampling", {"min_p": "is compared with the probability itself", "all": None}, """
        x = logits / temperature
        if top_k is not None:
            x = np.where(x >= np.sort(x)[-min(top_k, len(x))], x, -np.inf)
        if top_p is not None:
            order = np.argsort(x)[::-1]
            p = softmax(x)[order]
            x[order[np.cumsum(p) - p >= top_p]] = -np.inf
        if min_p is not None:
            x = np.where(softmax(x) >= min_p, x, -np.inf)
        return softmax(x)
    """, "next_distribution"),
    Code("sampling", {"min_p": "exactly at the bound", "top_p": "hides places of the sorted tokens", "all": None}, """
        x = logits / temperature
        if top_k is not None:
            x = np.where(x >= np.sort(x)[-min(top_k, len(x))], x, -np.inf)
        if top_p is not None:
            p = np.sort(softmax(x))[::-1]
            x = np.where(np.cumsum(p) - p >= top_p, -np.inf, x)
        if min_p is not None:
            x = np.where(softmax(x) > min_p * softmax(x).max(), x, -np.inf)
        return softmax(x)
    """, "next_distribution"),
    Code("sampling", {"temperature": "multiplied", "top_k": "sets logits to 0", "top_p": None, "min_p": None, "all": None}, """
        x = logits * temperature
        if top_k is not None:
            x = np.where(x >= np.sort(x)[-min(top_k, len(x))], x, 0)
        return softmax(x)
    """, "next_distribution"),
    Code("sampling", {"temperature": "divides the probabilities", "top_k": None, "top_p": "not used", "min_p": "not used",
                      "all": None}, """
        p = softmax(logits) / temperature
        if top_k is not None:
            p = p * (p > np.sort(p)[-top_k - 1]) if top_k < len(p) else p
        return p / p.sum() if top_k is not None else p
    """, "next_distribution"),
    Code("sampling", {"top_p": "adds up from the least likely", "all": None}, """
        x = logits / temperature
        if top_k is not None:
            x = np.where(x >= np.sort(x)[-min(top_k, len(x))], x, -np.inf)
        if top_p is not None:
            order = np.argsort(x)
            p = softmax(x)[order]
            x[order[np.cumsum(p) - p >= top_p]] = -np.inf
        if min_p is not None:
            x = np.where(softmax(x) >= min_p * softmax(x).max(), x, -np.inf)
        return softmax(x)
    """, "next_distribution"),
    Code("sampling", {"all": "applies temperature last"}, """
        x = logits.copy()
        if top_k is not None:
            x = np.where(x >= np.sort(x)[-min(top_k, len(x))], x, -np.inf)
        if top_p is not None:
            order = np.argsort(-x)
            p = softmax(x)[order]
            x[order[np.cumsum(p) - p >= top_p]] = -np.inf
        if min_p is not None:
            x = np.where(softmax(x) >= min_p * softmax(x).max(), x, -np.inf)
        return softmax(x / temperature)
    """, "next_distribution"),
]
CACHED = """
        B, H, T, D = q.shape
        at = np.arange(length, length + T)
        keys, values = keys.copy(), values.copy()
        keys[:, :, {place}], values[:, :, {place}] = turn(k, cos[{k_at}], sin[{k_at}]), v
        s = np.einsum("bhtd,bhsd->bhts", turn(q, cos[{q_at}], sin[{q_at}]), keys) / D**0.5
        return softmax(np.where({seen}, s, -np.inf)) @ values, keys, values
"""
PARTS = dict(place="at", k_at="at", q_at="at", seen="np.arange(keys.shape[2]) <= at[:, None]")


def cached(says, **parts):
    return Code("kv_cache", says, CACHED.format(**PARTS | parts), "cached_attention")


KV_CACHE = [
    cached({"out": "a key of zeros has the score 0"},
           seen="(np.arange(keys.shape[2]) <= at[:, None]) | (np.arange(keys.shape[2]) >= length + T)"),
    cached({"out": "no mask among the new tokens"}, seen="np.arange(keys.shape[2]) < length + T"),
    cached({"out": "lets tokens see all slots"}, seen="True"),
    cached({"out": "mask that begins at position 0"}, seen="np.tri(T, keys.shape[2], dtype=bool)"),
    cached({"out": "queries and keys from position 0", "keys": "turned from position 0"}, k_at=":T", q_at=":T"),
    cached({"out": "queries one position too far"}, q_at="np.minimum(at + 1, len(cos) - 1)"),
    cached({"out": "new tokens one position too far", "keys": "one position too far"},
           q_at="np.minimum(at + 1, len(cos) - 1)", k_at="np.minimum(at + 1, len(cos) - 1)"),
    cached({"out": "one token too wide"}, seen="np.arange(keys.shape[2]) <= at[:, None] + 1"),
    cached({"out": None, "keys": "written from slot 0 on", "values": "written from slot 0 on"}, place=":T"),
    Code("kv_cache", {"out": "does not turn the new keys", "keys": "keys are not turned"}, """
        T, D = q.shape[2:]
        at = slice(length, length + T)
        keys, values = keys.copy(), values.copy()
        keys[:, :, at], values[:, :, at] = k, v
        s = turn(q, cos[at], sin[at]) @ keys[:, :, : length + T].swapaxes(-1, -2) / np.sqrt(D)
        s[..., length:] += np.where(np.tri(T, dtype=bool), 0, -np.inf)
        return softmax(s) @ values[:, :, : length + T], keys, values
    """, "cached_attention"),
    Code("kv_cache", {"out": "lacks the division of the scores", "keys": "what is filled", "values": "what is filled"}, """
        T = q.shape[2]
        at = slice(length, length + T)
        keys = np.concatenate([keys[:, :, :length], turn(k, cos[at], sin[at])], axis=2)
        values = np.concatenate([values[:, :, :length], v], axis=2)
        s = turn(q, cos[at], sin[at]) @ keys.swapaxes(-1, -2)
        return softmax(np.where(np.tri(T, length + T, length, dtype=bool), s, -np.inf)) @ values, keys, values
    """, "cached_attention"),
    Code("kv_cache", {"out": "turns the keys of the cache again"}, """
        T, D = q.shape[2:]
        at, end = slice(length, length + T), length + T
        keys, values = keys.copy(), values.copy()
        raw = np.concatenate([keys[:, :, :length], k], axis=2)
        keys[:, :, at], values[:, :, at] = turn(k, cos[at], sin[at]), v
        s = turn(q, cos[at], sin[at]) @ turn(raw, cos[:end], sin[:end]).swapaxes(-1, -2) / D**0.5
        return softmax(np.where(np.tri(T, end, length, dtype=bool), s, -np.inf)) @ values[:, :, :end], keys, values
    """, "cached_attention"),
]
LEARN = """
        words = {words}
        spelling, merges = [bytes([i]) for i in range(256)], []
        for new in range(256, 256 + n_merges):
            counts = {{}}
            for ids, n in words.items():
                for pair in zip(ids, ids[1:]):
                    counts[pair] = counts.get(pair, 0) + {n}
            if not counts:
                break
            best = {best}
            words = {{merged(ids, best, new): n for ids, n in words.items()}}
            spelling.append(spelling[best[0]] + spelling[best[1]])
            merges.append(best)
        return merges
"""
CHOSEN = "max(counts, key=lambda p: (counts[p], spelling[p[0]], spelling[p[1]]))"


def learning(says, words="Counter(tuple(word.encode()) for word in text.split())", n="n", best=CHOSEN):
    return Code("bpe", {"merges": says}, LEARN.format(words=words, n=n, best=best), "learn_merges")


BPE = [
    Code("bpe", {"merges": "one pair again and again"}, """
        words, merges = Counter(tuple(word.encode()) for word in text.split()), []
        spelling = {byte: bytes([byte]) for byte in range(256)}
        for new in range(256, 256 + n_merges):
            counts = Counter()
            for word, times in words.items():
                for pair in pairwise(word):
                    counts[pair] += times
            if not counts:
                break
            merges.append(max(counts, key=lambda pair: (counts[pair], spelling[pair[0]], spelling[pair[1]])))
        return merges
    """, "learn_merges"),
    learning("take the first of several pairs", best="max(counts, key=counts.get)"),
    learning("the pair that sorts first", best="min(counts, key=lambda p: (-counts[p], spelling[p[0]], spelling[p[1]]))"),
    learning("compare the numbers of tokens", best="max(counts, key=lambda p: (counts[p], p))"),
    learning("count each word once", n="1"),
    learning("reach from one word into the next", words="{tuple(text.encode()): 1}"),
    learning("whose spaces are left out", words="{tuple(b''.join(text.encode().split())): 1}"),
    learning("made of characters", words="Counter(tuple(map(ord, word)) for word in text.split())"),
    Code("bpe", {"merges": "most frequent pairs of the bytes"}, """
        counts = Counter()
        for word in text.split():
            counts.update(pairwise(word.encode()))
        return sorted(counts, key=lambda pair: (counts[pair], pair), reverse=True)[:n_merges]
    """, "learn_merges"),
    Code("bpe", {"ids": "merge the leftmost pair first"}, """
        ids, ranks = list(word.encode()), {pair: i for i, pair in enumerate(merges)}
        i = 0
        while i < len(ids) - 1:
            if (ids[i], ids[i + 1]) in ranks:
                ids[i : i + 2] = [256 + ranks[ids[i], ids[i + 1]]]
                i = max(i - 1, 0)
            else:
                i += 1
        return ids
    """, "encode_word"),
    Code("bpe", {"ids": "replace each pair once"}, """
        ids = list(word.encode())
        for new, pair in enumerate(merges, 256):
            for i in range(len(ids) - 1):
                if (ids[i], ids[i + 1]) == pair:
                    ids[i : i + 2] = [new]
                    break
        return ids
    """, "encode_word"),
    Code("bpe", {"ids": "take the longest token"}, """
        spelling = [bytes([i]) for i in range(256)]
        for left, right in merges:
            spelling.append(spelling[left] + spelling[right])
        numbers, left, ids = {each: i for i, each in enumerate(spelling)}, word.encode(), []
        while left:
            n = max(n for n in range(1, len(left) + 1) if left[:n] in numbers)
            ids.append(numbers[left[:n]])
            left = left[n:]
        return ids
    """, "encode_word"),
    Code("bpe", {"ids": "number new tokens from 0 on"}, """
        ids = tuple(word.encode())
        for new, pair in enumerate(merges, 256):
            ids = merged(ids, pair, new)
        return [i - 256 if i > 255 else i for i in ids]
    """, "encode_word"),
    Code("bpe", {"ids": "learned last first"}, """
        ids = list(word.encode())
        while can := [pair for pair in pairwise(ids) if pair in merges]:
            best = max(can, key=merges.index)
            at = list(pairwise(ids)).index(best)
            ids[at : at + 2] = [256 + merges.index(best)]
        return ids
    """, "encode_word"),
    Code("bpe", {"ids": "no merge is applied"}, "return list(word.encode('utf-8'))", "encode_word"),
]
BLOCK = [
    Code("block", {"d_x": "treats a.attn_rstd as a constant"}, "return d.after_attention + d.attn_n * a.attn_rstd", "d_x"),
    Code("block", {"d_after_attention": "lacks d.after_ffn: the stream itself goes on"}, """
        n, r = a.after_attention.shape[-1], a.ffn_rstd
        return r * d.ffn_n - d.ffn_rstd * a.after_attention * r**3 / n
    """, "d_after_attention"),
    Code("block", {"d_scores": "lacks the sum over the row"}, "return d.attention * a.attention", "d_scores"),
    Code("block", {"d_scores": "sums over the queries"}, """
        inner = np.einsum("bhts,bhts->bhs", d.attention, a.attention)
        return a.attention * (d.attention - inner[:, :, None])
    """, "d_scores"),
    Code("block", {"d_k_rotated": "heads that are H/K apart"}, """
        B, _, T, _ = d.k_all.shape
        return d.k_all.reshape(B, -1, K, T, D).sum(axis=1)
    """, "d_k_rotated"),
    Code("block", {"d_q_heads": "turns forward again"}, "return turn(d.q_rotated, a.cos, a.sin)", "d_q_heads"),
    Code("block", {"d_q_rotated": "lacks the division by sqrt(D)"}, "return np.matmul(d.scores, a.k_all)", "d_q_rotated"),
    Code("block", {"d_gate": "lacks its second term"}, "return a.sigma * d.silu", "d_gate"),
    Code("block", {"d_attn_norm": "lacks the part through w.wv"}, "return d.q @ w.wq + d.k @ w.wk", "d_attn_norm"),
    Code("block", {"d_wq": "uses a.x in place of a.attn_norm"}, "return np.einsum('btq,btc->qc', d.q, a.x)", "d_wq"),
    Code("block", {"d_w_down": "transposed"}, "return rows(a.swiglu).T @ rows(d.ffn_out)", "d_w_down"),
    Code("block", {"d_q": "without exchanging the axes"}, "return d.q_heads.reshape(a.q.shape)", "d_q"),
    Code("block", {"d_ffn_gain": "first axis alone"}, "return np.sum(d.ffn_norm * a.ffn_n, axis=0)", "d_ffn_gain"),
    Code("block", {"d_attn_rstd": "lost its last axis"}, "return (a.x * d.attn_n).sum(2)", "d_attn_rstd"),
]
STUDENTS = [*ADAMW, *SAMPLING, *KV_CACHE, *BPE, *BLOCK]
