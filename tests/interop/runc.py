"""llama2.c's run.c once more in NumPy, one token at a time, from the bytes of its files: an independent word on them."""

import struct

import numpy as np


def read_tokenizer(path, vocab_size):
    """The bytes of each token: a score, a length, the bytes; <0x0A> stands for a byte."""
    data, at, pieces = path.read_bytes(), 4, []
    for _ in range(vocab_size):
        _, length = struct.unpack_from("<fi", data, at)
        piece = data[at + 8 : at + 8 + length]
        pieces.append(bytes([int(piece[3:5], 16)]) if piece.startswith(b"<0x") and len(piece) == 6 else piece)
        at += 8 + length
    assert at == len(data)
    return pieces


class RunC:
    """The model in a version 0 file; `forward(token, pos)` as run.c's."""

    def __init__(self, path):
        data = path.read_bytes()
        dim, hidden, L, H, K, V, T = struct.unpack("<7i", data[:28])
        self.L, self.H, self.K, self.D, self.vocab_size = L, H, K, dim // H, abs(V)
        floats, at = np.frombuffer(data, "<f4", offset=28), 0

        def take(*shape):
            nonlocal at
            at += int(np.prod(shape))
            return floats[at - int(np.prod(shape)) : at].reshape(shape)

        kv = K * self.D
        self.embedding, self.att_norm = take(abs(V), dim), take(L, dim)
        self.wq, self.wk, self.wv, self.wo = take(L, dim, dim), take(L, kv, dim), take(L, kv, dim), take(L, dim, dim)
        self.ffn_norm, self.w1, self.w2, self.w3 = take(L, dim), take(L, hidden, dim), take(L, dim, hidden), take(L, hidden, dim)
        self.final_norm, self.cos, self.sin = take(dim), take(T, self.D // 2), take(T, self.D // 2)
        self.head = self.embedding if V > 0 else take(abs(V), dim)
        assert at == len(floats)
        self.keys, self.values = np.zeros((2, L, T, K, self.D), "f4")

    def forward(self, token, pos):
        """The logits after one token."""
        x = self.embedding[token]
        for layer in range(self.L):
            n = rmsnorm(x, self.att_norm[layer])
            q = self.rotate(self.wq[layer] @ n, pos).reshape(self.H, self.D)
            self.keys[layer, pos] = self.rotate(self.wk[layer] @ n, pos).reshape(self.K, self.D)
            self.values[layer, pos] = (self.wv[layer] @ n).reshape(self.K, self.D)
            heads = []
            for h in range(self.H):
                group = h // (self.H // self.K)
                scores = self.keys[layer, : pos + 1, group] @ q[h] / np.sqrt(np.float32(self.D))
                weights = np.exp(scores - scores.max())
                heads.append(weights / weights.sum() @ self.values[layer, : pos + 1, group])
            x = x + self.wo[layer] @ np.concatenate(heads)
            n = rmsnorm(x, self.ffn_norm[layer])
            gate = self.w1[layer] @ n
            x = x + self.w2[layer] @ (gate / (1 + np.exp(-gate)) * (self.w3[layer] @ n))
        return self.head @ rmsnorm(x, self.final_norm)

    def rotate(self, vector, pos):
        """Neighbours are the real and the imaginary part of a number that turns."""
        turned = vector.reshape(-1, self.D // 2, 2) @ np.array([1, 1j], "c8") * (self.cos[pos] + 1j * self.sin[pos])
        return np.stack([turned.real, turned.imag], -1).ravel()


def rmsnorm(x, weight):
    return weight * x / np.sqrt(np.mean(x * x) + np.float32(1e-5))
