"""Elementwise ops with a mistake in each."""

from learn.wrong_code import Code

SWIGLU = [
    Code("swiglu", {"dgate": "derivative of the sigmoid"}, """
        g, u = cache
        sig = 1.0 / (1.0 + np.exp(-g))
        return dout * u * sig * (1.0 - sig), dout * g * sig
    """),
    Code("swiglu", {"dgate": "second term"}, """
        g, u = cache
        sig = 1.0 / (1.0 + np.exp(-g))
        dsilu = sig
        return dout * u * dsilu, dout * (g * sig)
    """),
    Code("swiglu", {"dgate": "lacks up"}, """
        g, u = cache
        sig = 1 / (1 + np.exp(-g))
        dswish = sig * (1 + g * (1 - sig))
        return dout * dswish, dout * g * sig
    """),
    Code("swiglu", {"dup": "sigmoid(gate) in place of silu(gate)"}, """
        g, u = cache
        sig = 1 / (1 + np.exp(-g))
        return dout * u * (g * sig + sig * (1 - g * sig)), dout * sig
    """),
    Code("swiglu", {"dgate": "numbers of dup", "dup": "numbers of dgate"}, """
        g, u = cache
        s = sigmoid(g)
        return dout * g * s, dout * u * s * (1 + g - g * s)
    """),
    Code("swiglu", {"dgate": "lacks sigma in the second term"}, """
        g, u = cache
        s = sigmoid(g)
        dg = u * s + u * g * (1 - s)
        return dg * dout, g * s * dout
    """),
    Code("swiglu", {"dgate": "1 - silu in place of 1 - sigma"}, """
        g, u = cache
        s = sigmoid(g)
        silu = g * s
        return dout * u * (s + silu * (1 - silu)), dout * silu
    """),
    Code("swiglu", {"dgate": "sigmoid(-gate)", "dup": "gate * (1 - sigmoid(gate))"}, """
        g, u = cache
        sig = 1 / (1 + np.exp(g))
        return dout * u * (sig + g * sig * (1 - sig)), dout * g * sig
    """),
    Code("swiglu", {"out": "gate itself"}, "return up / (1 + np.exp(-gate)), None", "forward"),
    Code("swiglu", {"out": "exchanged"}, "return gate * up / (1 + np.exp(-up)), None", "forward"),
]
GELU = [
    Code("gelu", {"dx": "lacks u'"}, """
        x = cache.x
        t = np.tanh(SLOPE * (x + CUBIC * x**3))
        return dout * 0.5 * ((1 + t) + x * (1 - t**2))
    """),
    Code("gelu", {"dx": "lacks the 3"}, """
        x = cache.x
        t = np.tanh(SLOPE * (x + CUBIC * x**3))
        return dout * 0.5 * ((1 + t) + x * (1 - t**2) * SLOPE * (1 + CUBIC * x**2))
    """),
    Code("gelu", {"dx": "exact form"}, """
        from math import erf, pi, sqrt
        x = cache.x
        cdf = 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))
        return dout * (cdf + x * np.exp(-(x**2) / 2) / sqrt(2 * pi))
    """),
    Code("gelu", {"dx": "Φ(x) only"}, """
        x, _ = cache
        return dout * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * np.power(x, 3))))
    """),
    Code("gelu", {"dx": "1 - tanh u in place"}, """
        x, _ = cache
        t = np.tanh(SLOPE * (x + CUBIC * x**3))
        du = SLOPE + 3 * SLOPE * CUBIC * x**2
        return dout * (0.5 + 0.5 * t + 0.5 * x * (1 - t) * du)
    """),
    Code("gelu", {"dx": "lacks SLOPE in u'"}, """
        x, _ = cache
        t = np.tanh(SLOPE * (x + CUBIC * x**3))
        return dout * (0.5 + 0.5 * t + 0.5 * x * (1 - t * t) * (1 + 3 * CUBIC * x**2))
    """),
    Code("gelu", {"dx": "1.702"}, """
        x, _ = cache
        s = 1 / (1 + np.exp(-1.702 * x))
        return dout * s * (1 + 1.702 * x * (1 - s))
    """),
    Code("gelu", {"out": "cubic term"}, "return x * 0.5 * (1 + np.tanh(SLOPE * x)), None", "forward"),
    Code("gelu", {"out": "with erf"}, """
        from math import erf
        return x * (1 + np.vectorize(erf)(x / 2**0.5)) / 2, None
    """, "forward"),
]
GEGLU = [
    Code("geglu", {"dgate": "lacks up"}, """
        g, u = cache
        return gelu_backward(dout, GELUCache(g, "tanh")), dout * gelu_forward(g)[0]
    """),
    Code("geglu", {"dgate": "exact GELU"}, """
        g, u = cache
        return gelu_backward(dout * u, GELUCache(g, "none")), dout * gelu_forward(g)[0]
    """),
    Code("geglu", {"dup": "exact GELU"}, """
        g, u = cache
        return u * gelu_backward(dout, GELUCache(g, "tanh")), dout * gelu_forward(g, "none")[0]
    """),
    Code("geglu", {"dup": "gate in place of gelu(gate)"}, """
        g, u = cache
        return u * gelu_backward(dout, GELUCache(g, "tanh")), dout * g
    """),
    Code("geglu", {"dgate": "takes the input of gelu"}, """
        g, u = cache
        a, _ = gelu_forward(g)
        return gelu_backward(dout * u, GELUCache(a, "tanh")), dout * a
    """),
    Code("geglu", {"dgate": "gelu in place of its derivative"}, """
        g, u = cache
        a, _ = gelu_forward(g)
        return dout * u * a, dout * a
    """),
    Code("geglu", {"out": "exchanged"}, "return gate * gelu_forward(up)[0], None", "forward"),
]
SOFTCAP = [
    Code("softcap", {"dx": "1 - t in place"}, "x, cap = cache\nreturn dout * (1 - np.tanh(x / cap))"),
    Code("softcap", {"dx": "out in place of t"}, """
        x, cap = cache
        y = cap * np.tanh(x / cap)
        return dout * (1 - y**2)
    """),
    Code("softcap", {"dx": "lacks the inner 1 / cap"}, """
        x, cap = cache
        return dout * cap * (1 - np.square(np.tanh(x / cap)))
    """),
    Code("softcap", {"dx": "lacks the outer cap"}, """
        x, cap = cache
        return dout / (cap * np.cosh(x / cap) ** 2)
    """),
    Code("softcap", {"dx": "tanh(x) in place"}, "return dout / np.cosh(cache.x) ** 2"),
    Code("softcap", {"dx": "like that of a clip"}, "return np.where(np.abs(cache.x) < cache.cap, dout, 0)"),
    Code("softcap", {"out": "clipped"}, "return np.minimum(np.maximum(x, -cap), cap), None", "forward"),
    Code("softcap", {"out": "does not divide x by cap"}, """
        e = np.exp(2 * x)
        return cap * (e - 1) / (e + 1), None
    """, "forward"),
]
STUDENTS = [*SWIGLU, *GELU, *GEGLU, *SOFTCAP]
