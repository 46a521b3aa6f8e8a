"""The answers to the questions on ops: one for each question, in the order of the path; their numbers and claims are computed.

A number is read from the page and compared with what the ops, or NumPy in float64, compute; a formula is read and evaluated.
"""

import math
import re
import tomllib
from itertools import permutations
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from docs.test_costs import DONE, counted
from docs.test_pages import options, source_of
from helpers import assert_close

import numllama as nl
from numllama import ops
from numllama.hashing import mix
from numllama.interop.huggingface import to_halves, to_neighbours

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")


def read(name):
    return (DOCS / name).read_text(encoding="utf-8")


def sections():
    """The answers of each page: its name, its title, and the text of each answer by number."""
    for section in re.split(r"^## ", read("answers.md"), flags=re.M)[1:]:
        title, link, rest = section.split("\n\n", 2)
        (page,) = re.fullmatch(r"\[The questions\]\(ops/(\w+)\.md#exercises\)", link).groups()
        yield page, title, items(rest)


def items(text):
    """The items of a numbered list."""
    parts = re.split(r"^(\d+)\. ", text, flags=re.M)[1:]
    return dict(zip(map(int, parts[::2]), parts[1::2], strict=True))


SECTIONS = list(sections()) if DOCS.exists() else []
ANSWERS = {page: found for page, _, found in SECTIONS}
PATH = [page.removeprefix("ops/") for page in tomllib.loads(read("path.toml")) if page.startswith("ops/")] if SECTIONS else []
PAGES = [page for page in PATH if page != "index"]
EXERCISES = {page: read(f"ops/{page}.md").partition("\n## Exercises\n")[2] for page in PAGES}


def test_the_answers_are_in_the_order_of_the_path():
    assert list(ANSWERS) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_each_question_has_an_answer_and_each_answer_a_question(page):
    asked = items(EXERCISES[page])
    assert "numllama exercises" in asked.pop(1)                        # the exercise in code, with a solution of its own
    assert list(ANSWERS[page]) == list(asked) == list(range(2, len(asked) + 2))


@pytest.mark.parametrize("page, title", [each[:2] for each in SECTIONS])
def test_a_page_and_its_answers_link_to_each_other(page, title):
    anchor = title.lower().replace(" ", "-")
    assert f"\nAfter you have tried: [the answers](../answers.md#{anchor}).\n" in EXERCISES[page]
    assert f"\n# {title}\n" in read(f"ops/{page}.md")


def test_an_excerpt_is_in_its_file():
    found = re.findall(r"```\{literalinclude\} \.\./(\S+)\n(.*?)```", dedent(read("answers.md").replace("\n   ", "\n")), re.S)
    assert len(found) == read("answers.md").count("literalinclude")
    for file, block in found:
        given = options(block)
        source = source_of((ROOT / file).read_text(encoding="utf-8"), given["pyobject"])
        assert source.count(given["start-at"]) == 1
        assert given.get("end-at", "") in source[source.index(given["start-at"]) :]


def test_code_is_not_too_wide():
    for page, found in ANSWERS.items():
        for text in found.values():
            assert max(map(len, code(text).splitlines()), default=0) <= 85, page


# ------------------------------------------------------------------------------------------------ what an answer says


def said(page, number, pattern):
    """The one part of an answer that a pattern finds."""
    (found,) = re.findall(pattern, re.sub(r"\s+", " ", ANSWERS[page][number]))
    return found


def assert_said(page, number, pattern, computed):
    """The number in an answer is the computed one, rounded to the digits that are written."""
    mantissa, _, exponent = re.sub(r"\{?,\}?", "", said(page, number, pattern)).partition(r" \cdot 10^")
    unit = 10.0 ** int(exponent.strip("{}") or 0)
    half = 0.5 * 10.0 ** -len(mantissa.partition(".")[2]) * unit
    assert abs(float(mantissa) * unit - computed) <= 1.000001 * half, (mantissa, exponent, computed)


def formula(page, number, pattern):
    """A formula in an answer, as a function of its letters. Adjacent letters are multiplied, and e is Euler's number."""
    text = re.sub(r"\\,|_i\b", "", said(page, number, pattern))
    text = re.sub(r"\^\{([^{}]*)\}", r"**(\1)", text).replace("^", "**")
    text = re.sub(r"\\frac(?:\{([^{}]*)\}\{([^{}]*)\}|(\d)(\d))", r"((\1\3)/(\2\4))", text)
    text = re.sub(r"(?<=[\w)])\s*(?=[A-Za-z(])", "*", text)
    return lambda **letters: eval(text, {"e": math.e}, letters)


def code(text):
    return "\n".join(dedent(block) for block in re.findall(r"```python\n(.*?)```", text, re.S))


def defined(page, number):
    """What the code of an answer defines."""
    names = {"np": np, "nl": nl}
    exec(code(ANSWERS[page][number]), names)
    return names


def flops(function, *args):
    """The FLOPs of a function of arrays, and its tanh."""
    DONE.clear()
    function(*map(counted, args))
    return DONE["FLOPs"], DONE["tanh"]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def silu(g):
    return ops.swiglu_forward(g, np.ones_like(g))[0]



# ------------------------------------------------------------------------------------------------ the answers


def test_linear_2_a_weight_stored_the_other_way():
    x, weight, dout = normal(7, 3), normal(5, 3), normal(7, 5)
    out, cache = ops.linear_forward(x, weight)
    dx, dweight = ops.linear_backward(dout, cache)
    U = weight.T
    assert_close(x @ U, out)
    assert_close(dout @ U.T, dx)
    assert_close(x.T @ dout, dweight.T)


def test_linear_3_half_of_the_backward():
    N, I, O = 6, 4, 5  # noqa: E741
    x, weight, dout = normal(N, I), normal(O, I), normal(N, O)
    each = [flops(np.matmul, *pair)[0] for pair in ((x, weight.T), (dout, weight), (dout.T, x))]
    letters = dict(N=N, I=I, O=O)
    assert formula("linear", 3, r"\$(2NIO)\$")(**letters) == each[1]
    assert formula("linear", 3, r"\$(4NIO)\$")(**letters) == each[1] + each[2] == 2 * each[1]
    assert said("linear", 3, r"Half of the backward.*it is a (third)") and 3 * each[1] == sum(each)


def test_linear_4_the_weights_multiplied_first():
    saved = formula("linear", 4, r"it saves \$(.*?)\$")
    of_squares = formula("linear", 4, r"this is \$(.*?)\$")
    thin = formula("linear", 4, r"F \\le (.*?)\$")
    for N, I, F, O in ((10, 4, 5, 3), (2, 4, 5, 3), (7, 12, 1, 12)):  # noqa: E741
        x, first, second = normal(I, N), normal(F, I), normal(O, F)
        apart = flops(lambda x, a, b: b @ (a @ x), x, first, second)[0]
        together = flops(lambda x, a, b: (b @ a) @ x, x, first, second)[0]
        assert formula("linear", 4, r"the other costs \$(.*?)\$")(N=N, I=I, F=F, O=O) == apart
        steps = [formula("linear", 4, pattern)(N=N, I=I, F=F, O=O) for pattern in (r"\$(2OFI)\$ once", r"then \$(2NIO)\$")]
        assert sum(steps) == together and saved(N=N, I=I, F=F, O=O) == apart - together
    for N in (3, 8, 9):
        assert of_squares(C=8, N=N) == saved(N=N, I=8, F=8, O=8)
    assert of_squares(C=8, N=8) == 0 < of_squares(C=8, N=9)
    assert thin(I=12, O=12) == 6
    assert all(saved(N=N, I=12, F=F, O=12) < 0 for F in range(1, 7) for N in (1, 10**9)) < saved(N=10**9, I=12, F=7, O=12)


def test_embedding_2_three_backwards():
    names, V = defined("embedding", 2), 11
    tokens, dout = np.random.default_rng(0).integers(0, V, 40), normal(40, 3)
    expected = ops.embedding_backward(dout, ops.embedding_forward(tokens, np.zeros((V, 3)))[1])
    for way in ("loop", "add_at", "by_sorting"):
        assert_close(names[way](dout, tokens, V), expected)
    N, V = (int(each.replace(",", "")) for each in said("embedding", 2, r"Of ([\d,]+) tokens from all ([\d,]+) ids"))
    C = 128
    assert_said("embedding", 2, r"numbers, ([\d.]+) times as many", V * C / (N * C))
    assert_said("embedding", 2, r"about (\d+) % are the first", 100 * V / N * (1 - (1 - 1 / V) ** N))
    some = np.random.default_rng(0).integers(0, 65, N)
    assert_said("embedding", 2, r"it writes (\d+) rows", len(np.unique(some)))
    assert_said("embedding", 2, r"rows instead of ([\d,]+)", N)


def test_embedding_3_tied_weights():
    tokens, targets, weight = np.array([1, 3, 1]), np.array([3, 1, 4]), normal(6, 4)
    x, embedded = ops.embedding_forward(tokens, weight)
    logits, head = ops.linear_forward(x, weight)
    dx, dweight = ops.linear_backward(ops.cross_entropy_backward(1.0, ops.cross_entropy_forward(logits, targets)[1]), head)
    assert abs(dweight).min(-1).min() > 0                              # all V rows
    below = ops.embedding_backward(dx, embedded)
    assert np.flatnonzero(abs(below).sum(-1)).tolist() == [1, 3]

    def loss(weight):
        return ops.cross_entropy_forward(weight[tokens] @ weight.T, targets)

    assert all(r.passed for r in nl.gradcheck(loss, lambda dout, cache: dout * (dweight + below), [weight]))


def test_dropout_2_the_variance():
    variance = formula("dropout", 2, r"that of \$\\mathrm\{out\}_i\$ is \$(.*?)\$")
    x = np.full(400_000, 3.0)
    for p in (0.1, 0.5, 0.9):
        kept, dropped = 3 / (1 - p), 0.0                               # with probabilities 1 - p and p
        exact = (1 - p) * kept**2 + p * dropped**2 - 9
        assert math.isclose(variance(x=3, p=p), exact)
        assert abs(ops.dropout_forward(x, p, (0, 1))[0].var() / exact - 1) < 0.01
    assert variance(x=1, p=0.5) == 1 and said("dropout", 2, r"It is \$x_i\^2\$ for \$p = (0\.5)\$")
    assert_said("dropout", 2, r"and \$(\d+) \\, x_i\^2\$ for \$p = 0.9\$", variance(x=1, p=0.9))
    assert variance(x=1, p=0.999999) > 9e5


def test_dropout_3_one_key_for_two_places():
    p, x = 0.2, np.full(400_000, 3.0)

    def dropped(x, key):
        return ops.dropout_forward(x, p, key)[0]

    shared, apart = formula("dropout", 3, r"variance \$(4.*?)\$"), formula("dropout", 3, r"instead of \$(2.*?)\$")
    assert abs((dropped(x, (0,)) + dropped(x, (0,))).var() / shared(x=3, p=p) - 1) < 0.01
    assert abs((dropped(x, (0,)) + dropped(x, (1,))).var() / apart(x=3, p=p) - 1) < 0.01
    mean = formula("dropout", 3, r"the mean is \$(.*?)\$")
    assert abs(dropped(dropped(x, (0,)), (0,)).mean() / mean(x=3, p=p) - 1) < 0.01
    assert abs(dropped(dropped(x, (0,)), (1,)).mean() / 3 - 1) < 0.01


def test_dropout_4_bits_that_change():
    numbers = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    changed = [mix(numbers) ^ mix(numbers ^ np.uint32(1 << bit)) for bit in range(32)]
    means = [np.unpackbits(each.view(np.uint8)).sum() / len(numbers) for each in changed]
    assert_said("dropout", 4, r"(\d+) of 32", np.mean(means))
    low, high = map(float, said("dropout", 4, r"between ([\d.]+) and ([\d.]+)\."))
    assert low == math.floor(10 * min(means)) / 10 and high == math.ceil(10 * max(means)) / 10


def test_softcap_2_the_largest_probability():
    bound = formula("softcap", 2, r"= (\\frac\{1\}.*?)\$")
    for V, c in ((5, 0.5), (100, 3.0)):
        x = np.full(V, -1e9)
        x[0] = 1e9
        p = ops.softmax_forward(ops.softcap_forward(x, c)[0])[0]
        assert math.isclose(p.max(), bound(V=V, c=c), rel_tol=1e-12)
        others = ops.softmax_forward(ops.softcap_forward(1e9 * normal(100, V), c)[0])[0]
        assert others.max() <= bound(V=V, c=c) * (1 + 1e-12)
    V, c = (int(said("softcap", 2, pattern).replace("{,}", "")) for pattern in (r"V = ([\d{,}]+)\$", r"2's \$c = (\d+)\$"))
    assert_said("softcap", 2, r"below 1 by \$(.*?)\$", 1 / (1 + math.exp(2 * c) / (V - 1)))
    half = 0.5 * math.log(V - 1)
    assert_said("softcap", 2, r"\\tfrac12 \\log\(V - 1\) = ([\d.]+)\$", half)
    assert math.isclose(bound(V=V, c=half), 0.5)


def test_softcap_3_a_hard_cap():
    c, h = 2.0, 1e-6
    x = np.array([-50.0, -2.1, -1.9, 0.3, 1.9, 2.1, 50.0])
    moved = [np.clip(x + step, -c, c) for step in (h, -h)]
    np.testing.assert_allclose((moved[0] - moved[1]) / (2 * h), abs(x) < c, atol=1e-9)

    def slope(x):
        return ops.softcap_backward(np.ones_like(x), ops.softcap_forward(x, c)[1])[0]

    assert_said("softcap", 3, r"at \$x = 2c\$ is still ([\d.]+)\.", slope(np.array([2 * c])))
    assert_said("softcap", 3, r"at \$10c\$ it is \$(.*?)\$", slope(np.array([10 * c])))
    assert slope(np.array([10 * c], "float32")) == 0


def test_swiglu_2_the_minimum_of_silu():
    g, steps = -1.0, []
    for _ in range(3):
        g -= (1 + g + math.exp(g)) / (1 + math.exp(g))
        steps.append(g)
    for said_so, step in zip(re.findall(r"-\d\.\d+", said("swiglu", 2, r"steps are (.*?)\. There")), steps, strict=True):
        assert float(said_so) == round(step, 5)
    g = np.array([steps[-1]])
    (dgate, _), grid = ops.swiglu_backward(np.ones(1), ops.swiglu_forward(g, np.ones(1))[1]), np.linspace(-20, 5, 100_001)
    assert abs(dgate[0]) < 1e-9 and silu(g)[0] <= silu(grid).min() + 1e-12
    assert_close(silu(g), 1 + g, 1e-9)
    assert_said("swiglu", 2, r"= 1 \+ g = (-[\d.]+)\$", silu(g)[0])


def test_swiglu_3_glu():
    changed = code(ANSWERS["swiglu"][3])
    source = (ROOT / "numllama/ops/swiglu.py").read_text(encoding="utf-8")
    assert "return gate * sigmoid(gate) * up" in source and "silu = gate * sigma" in source
    assert [line.partition(" = ")[0] for line in changed.splitlines()] == ["dgate", "dup"]

    def sigmoid(g):
        return 1 / (1 + np.exp(-g))

    def backward(dout, cache):
        names = dict(zip(("gate", "up"), cache, strict=True), dout=dout, sigma=sigmoid(cache[0]))
        exec(changed, names)
        return names["dgate"], names["dup"]

    args = [3 * normal(4, 5), normal(4, 5, seed=1)]
    assert all(r.passed for r in nl.gradcheck(lambda g, u: (sigmoid(g) * u, (g, u)), backward, args))
    wide_open = np.array([30.0]), np.ones(1)
    assert backward(np.ones(1), wide_open)[0][0] < 1e-12
    assert abs(ops.swiglu_backward(np.ones(1), ops.swiglu_forward(*wide_open)[1])[0][0] - 1) < 1e-10


def test_swiglu_4_the_width_of_the_feed_forward():
    F, unit = formula("swiglu", 4, r"gives \$F = (.*?)\$"), int(said("swiglu", 4, r"up to a multiple of (\d):"))

    def width(C):
        return nl.ModelConfig(65, C, 1, 1).ffn_dim

    for C in range(2, 200, 2):
        assert math.isclose(3 * C * F(C=C), 2 * C * 4 * C) and width(C) == unit * math.ceil(8 * C / 3 / unit)
    assert_said("swiglu", 4, r"(\d+) for \$C = 128\$", width(128))
    assert_said("swiglu", 4, r"exactly (\d+) for", width(768))
    assert width(768) == F(C=768)
    assert_said("swiglu", 4, r"has ([\d,]+) for \$C = 4096\$", nl.ModelConfig.preset("llama-2-7b").ffn_dim)
    unit = int(said("swiglu", 4, r"Llama 2 7B rounds up to a multiple of (\d+),"))
    assert_said("swiglu", 4, r"has ([\d,]+) for \$C = 4096\$", unit * math.ceil(F(C=4096) / unit))
    assert_said("swiglu", 4, r"instead of ([\d,]+)\.", width(4096))


@pytest.mark.parametrize("form", ["tanh", "none"])
def test_gelu_2_the_difference_of_two_sides(form):
    x = np.linspace(-6, 6, 101)
    np.testing.assert_allclose(ops.gelu_forward(x, form)[0] - ops.gelu_forward(-x, form)[0], x, atol=1e-14)


def test_gelu_3_the_two_forms():
    x = np.linspace(-8, 8, 160_001)
    difference = ops.gelu_forward(x)[0] - ops.gelu_forward(x, "none")[0]
    np.testing.assert_allclose(difference, difference[::-1], atol=1e-14)
    largest = abs(difference).max()
    assert_said("gelu", 3, r"or \$(.*?)\$, at", largest)
    epsilons = said("gelu", 3, r"About ([\d,]+) float32 epsilons \(\$2\^\{-23\}\$\)")
    assert float(epsilons.replace(",", "")) == round(largest / np.finfo("float32").eps, -1) and np.finfo("float32").eps == 2**-23
    at = abs(x[abs(difference) > largest - 1e-12])
    assert_said("gelu", 3, r"at \$x = ([\d.]+)\$", at.min())
    assert_said("gelu", 3, r"at \$x = -([\d.]+)\$", at.max())


def test_gelu_4_a_third_form():
    names = defined("gelu", 4)                                         # its gradient check raises an exception if it fails
    x = normal(3, 5)
    assert_close(names["forward"](x)[0], silu(1.702 * x) / 1.702)
    with pytest.raises(nl.GradientError):
        nl.gradcheck(names["forward"], lambda dout, x: dout * names["sigmoid"](1.702 * x), [x])


def test_geglu_2_the_minima():
    grid = np.linspace(-3, 0, 300_001)
    for form in ("tanh", "none"):
        y = ops.gelu_forward(grid, form)[0]
        assert_said("geglu", 2, r"At \$g = (.*?)\$", grid[y.argmin()])
        assert_said("geglu", 2, r"where it is \$(.*?)\$", y.min())
    y = silu(grid)
    assert_said("geglu", 2, r"SiLU's is at \$(.*?)\$", grid[y.argmin()])
    assert_said("geglu", 2, r"deeper, \$(.*?)\$", y.min())


def test_geglu_3_reglu():
    gate, up, dout = normal(4, 5), normal(4, 5, seed=1), normal(4, 5, seed=2)

    def backward(dout, cache):
        gate, up = cache
        return np.where(gate > 0, dout * up, 0), dout * np.maximum(0, gate)

    assert all(r.passed for r in nl.gradcheck(lambda g, u: (np.maximum(0, g) * u, (g, u)), backward, [gate, up]))
    dgate, dup = backward(dout, (gate, up))
    assert not dgate[gate < 0].any() and not dup[gate < 0].any() and (gate < 0).any()


def test_geglu_4_one_tanh():
    one_tanh = defined("geglu", 4)["one_tanh"]
    dout, gate, up = normal(9, 7), normal(9, 7, seed=1), normal(9, 7, seed=2)
    for actual, expected in zip(one_tanh(dout, gate, up), ops.geglu_backward(dout, (gate, up)), strict=True):
        assert_close(actual, expected)
    now, before = (said("geglu", 4, pattern) for pattern in (r"This is \$(\d+)NF\$", r"instead of \$(\d+)NF\$ and \$2NF\$"))
    assert flops(one_tanh, dout, gate, up) == (int(now) * gate.size, gate.size)
    assert f"| backward | ${before}NF$, and $2NF$ tanh |" in read("ops/geglu.md")    # test_costs counts it


def test_lora_2_the_product_of_the_factors_first():
    first = formula("lora", 2, r": \$(2IO\(R \+ N\))\$ in all")
    apart = formula("lora", 2, r"instead of \$(2NR.*?)\$")
    enough = formula("lora", 2, r"only for \$N > (.*?)\$")
    thin = formula("lora", 2, r"never if \$R \\le (.*?)\$")
    merged = formula("lora", 2, r"as soon as \$N > (.*?)\$")
    sizes = dict(I=6, O=3, R=4)
    x, a, b = normal(5, 6), normal(4, 6), normal(3, 4)
    assert flops(np.matmul, b, a)[0] == formula("lora", 2, r"costs \$(2OIR)\$")(**sizes)
    assert flops(np.matmul, x, (b @ a).T)[0] == formula("lora", 2, r"then \$(2NIO)\$")(N=5, **sizes)
    assert flops(lambda x, a, b: x @ (b @ a).T, x, a, b)[0] == first(N=5, **sizes)
    assert flops(lambda x, a, b: (x @ a.T) @ b.T, x, a, b)[0] == apart(N=5, **sizes)
    assert [first(N=N, **sizes) < apart(N=N, **sizes) for N in range(1, 9)] == [enough(**sizes) < N for N in range(1, 9)]
    assert enough(**sizes) == 4
    assert thin(I=6, O=3) == 2 and not any(first(N=N, I=6, O=3, R=2) < apart(N=N, I=6, O=3, R=2) for N in (1, 10**9))
    assert first(N=10**9, I=6, O=3, R=3) < apart(N=10**9, I=6, O=3, R=3)
    assert_said("lora", 2, r"any rank up to ([\d,]+)\.", thin(I=4096, O=4096))
    for N in (1, 2, 3):
        alone = first(N=0, **sizes)                                    # the product of the factors
        assert (alone < apart(N=N, **sizes)) == (merged(I=6, O=3) < N)
    assert not first(N=10**9, I=4096, O=4096, R=2048) < apart(N=10**9, I=4096, O=4096, R=2048)


def test_lora_3_the_same_update():
    x, a, b, M = normal(5, 6), normal(2, 6), normal(3, 2), normal(2, 2)
    expected = ops.lora_forward(x, a, b, 0.5)[0]
    for matrix in (M, 10 * np.eye(2)):
        assert_close(ops.lora_forward(x, matrix @ a, b @ np.linalg.inv(matrix), 0.5)[0], expected, 1e-11)


def test_lora_4_the_other_start():
    out, cache = ops.lora_forward(normal(5, 6), np.zeros((2, 6)), normal(3, 2), 0.5)
    _, da, db = ops.lora_backward(normal(5, 3), cache)
    assert not out.any() and not db.any() and abs(da).min() > 0


def test_softmax_2_two_numbers():
    x = 5 * normal(20, 2)
    assert_close(ops.softmax_forward(x)[0][:, 0], 1 / (1 + np.exp(-(x[:, 0] - x[:, 1]))))


def test_softmax_3_temperatures():
    x, dp = np.array([0.0, 3.0, 1.0, -2.0]), np.array([1.0, -2.0, 0.5, 3.0])

    def forward(x, T):
        p, cache = ops.softmax_forward(x / T)
        return p, (cache, T)

    def backward(dp, cache):
        return ops.softmax_backward(dp, cache[0]) / cache[1]

    def at(x, T):
        p, cache = forward(x, T)
        return p, backward(dp, cache)

    assert all(result.passed for result in nl.gradcheck(lambda x: forward(x, 0.7), backward, [x]))
    p, dx = at(x, 0.01)
    assert_close(p, np.array([0.0, 1.0, 0.0, 0.0]))
    assert abs(dx).max() < 1e-80
    lead = x[1] - x[2]
    assert math.isclose(at(x, 0.05)[1][2] / (dp[2] - dp[1]), math.exp(-lead / 0.05) / 0.05, rel_tol=1e-9)
    p, dx = at(x, 1e6)
    np.testing.assert_allclose(p, 1 / len(x), rtol=1e-5)
    np.testing.assert_allclose(1e6 * dx, (dp - dp.mean()) / len(x), atol=1e-5)
    tied = np.array([3.0, 3.0, 1.0, 0.0])
    (p, dx), (_, colder) = at(tied, 0.02), at(tied, 0.01)
    assert_close(p, np.array([0.5, 0.5, 0.0, 0.0]))
    assert_close(colder[:2], 2 * dx[:2])


def test_softmax_4_the_largest_entry():
    x = normal(2000, 4) * 3
    x[0, 0] = np.log(np.exp(x[0, 1:]).sum())                           # as large as all others together
    p = ops.softmax_forward(x)[0]
    jacobians = p[..., None] * (np.eye(4) - p[:, None])
    largest = formula("softmax", 4, r"and is \$(.*?)\$ there")()
    assert math.isclose(jacobians[0, 0, 0], largest) and math.isclose(p[0, 0], formula("softmax", 4, r"for \$p_i = (.*?)\$")())
    assert jacobians.max() <= largest * (1 + 1e-12)
    assert (jacobians[:, ~np.eye(4, dtype=bool)] < 0).all()


def test_cross_entropy_2_and_4_all_tokens_equally_likely():
    loss = ops.cross_entropy_forward(np.full((3, 65), 1.7), np.array([0, 64, 7]))[0]
    assert_said("cross_entropy", 2, r"\$1/V\$: ([\d.]+) for \$V = 65\$", loss)
    assert math.isclose(math.exp(loss), 65)
    model, tokens = nl.Transformer(nl.ModelConfig.preset("shakespeare-cpu"), seed=0), np.random.default_rng(0)
    logits = model.forward(tokens.integers(0, 65, (8, 64))).astype(float)
    losses = [ops.cross_entropy_forward(logits, np.full((8, 64), target))[0] for target in range(65)]
    started = float(said("cross_entropy", 2, r"starts near ([\d.]+)\."))
    assert abs(np.mean(losses) - started) < 0.015
    assert abs(np.mean(losses) - math.log(65) - logits.var(-1).mean() / 2) < 0.01


def test_cross_entropy_3_parts_of_a_batch():
    logits, targets = normal(40, 6), np.random.default_rng(0).integers(0, 6, 40)
    whole, cache = ops.cross_entropy_forward(logits, targets)
    parts = slice(0, 10), slice(10, 40)
    count = int(said("cross_entropy", 3, r"`count=(\d+)`"))
    losses, caches = zip(*(ops.cross_entropy_forward(logits[part], targets[part], count=count) for part in parts), strict=True)
    assert_close(sum(losses), whole)
    gradients = [ops.cross_entropy_backward(1.0, each) for each in caches]
    assert_close(np.concatenate(gradients), ops.cross_entropy_backward(1.0, cache))
    each = ops.cross_entropy_forward(logits, targets, count=1)[1].lse - logits[np.arange(40), targets]
    mean_of_means = np.mean([ops.cross_entropy_forward(logits[part], targets[part])[0] for part in parts])
    first, second, right = (int(said("cross_entropy", 3, pattern)) for pattern in
                            (r"weight \$1/(\d+)\$", r"second \$1/(\d+)\$", r"be \$1/(\d+)\$"))  # fmt: skip
    assert_close(each[:10].sum() / first + each[10:].sum() / second, mean_of_means)
    assert_close(each.sum() / right, whole)
    assert abs(mean_of_means - whole) > 1e-3


def rms(x, weight, dout, eps=0.0):
    out, cache = ops.rmsnorm_forward(x, weight, eps)
    return out, ops.rmsnorm_backward(dout, cache)[0]


def test_rmsnorm_2_a_row_seven_times_as_large():
    x, weight, dout = normal(4, 6), normal(6), normal(4, 6, seed=1)
    (out, dx), (out7, dx7) = rms(x, weight, dout), rms(7 * x, weight, dout)
    assert_close(out7, out)
    assert_close(int(said("rmsnorm", 2, r"it is divided by (\d)\.")) * dx7, dx)


def test_rmsnorm_3_one_component():
    x, weight = np.array([[-3.0], [0.2], [5.0]]), np.array([1.5])
    out, dx = rms(x, weight, normal(3, 1))
    assert_close(out, np.sign(x) * weight)
    np.testing.assert_allclose(dx, 0, atol=1e-15)


def test_rmsnorm_4_the_epsilon_that_shows():
    rng, C = np.random.default_rng(0), 64
    x = rng.standard_normal((1, C)) * 3

    def cosine(dn, eps):
        dx = rms(np.broadcast_to(x, dn.shape), np.ones(C), dn, eps)[1]
        return (dx * x).sum(-1) / np.linalg.norm(dx, axis=-1) / np.linalg.norm(x)

    along = x / np.linalg.norm(x)
    across = rng.standard_normal((1, C))
    across -= (across * along).sum() * along
    dn, square = along + across / np.linalg.norm(across), (x * x).mean()
    share = int(said("rmsnorm", 4, r"\\overline\{x\^2\} / (\d+)\$"))
    assert abs(cosine(dn, square / share)[0] - 0.01) < 1e-6
    assert_said("rmsnorm", 4, r"About (\d+) % of the mean", 100 / share)
    for eps in (square / 500, square / share):
        assert abs(cosine(dn, eps)[0] / (eps / (eps + square)) - 1) < 1e-4
    assert_said("rmsnorm", 4, r"is below ([\d.]+)\. ", math.sqrt(share * 10 ** int(said("rmsnorm", 4, r"10\^\{(-\d)\}"))))
    random = cosine(rng.standard_normal((2000, C)), square / share)
    assert abs(np.sqrt((random**2).mean()) / 0.01 * math.sqrt(C) - 1) < 0.05


def test_layernorm_2_two_sums_that_vanish():
    x, weight, dout = normal(4, 6), normal(6), normal(4, 6, seed=1)
    for eps in (0.0, 0.3):
        _, cache = ops.layernorm_forward(x, weight, np.zeros(6), eps)
        dx, (n, dn) = ops.layernorm_backward(dout, cache)[0], ((x - cache.mean) * cache.rstd, dout * weight)
        np.testing.assert_allclose(dx.sum(-1), 0, atol=1e-14)
        np.testing.assert_allclose((dx * n).sum(-1), (eps * cache.rstd**3)[:, 0] * (dn * n).sum(-1), atol=1e-14)


def test_layernorm_3_a_row_of_mean_zero():
    x, dout = normal(4, 6), normal(4, 6, seed=1)
    x -= x.mean(-1, keepdims=True)
    out, cache = ops.layernorm_forward(x, np.ones(6), np.zeros(6), 1e-5)
    dx = ops.layernorm_backward(dout, cache)[0]
    out_rms, dx_rms = rms(x, np.ones(6), dout, 1e-5)
    assert_close(out, out_rms)
    assert_close(dx - dx_rms, np.broadcast_to(-cache.rstd * dout.mean(-1, keepdims=True), x.shape))


def test_layernorm_4_two_ways_to_a_variance():
    noise = np.random.default_rng(0).standard_normal((200, 768))
    x = (1e4 + noise).astype(np.float32)
    mean = x.mean(-1, keepdims=True)
    here, other = ((x - mean) ** 2).mean(-1), (x * x).mean(-1) - mean[:, 0] ** 2
    assert abs(here / noise.var(-1) - 1).max() < 1e-3
    assert_said("layernorm", 4, r"multiple of ([\d.]+)\. The other", float(np.spacing(np.float32(1e4))))
    unit = int(said("layernorm", 4, r"a multiple of (\d), such"))
    assert np.spacing(np.float32(1e8)) == unit and not (other % unit).any()
    assert {-8.0, 0.0, 8.0} <= set(other.tolist())


def test_add_rmsnorm_2_a_scaled_stream():
    alpha, (x, branch, weight) = 0.7, (normal(4, 6), normal(4, 6, seed=1), normal(6))

    def forward(x, branch):
        return ops.add_rmsnorm_forward(alpha * x, branch, weight, 1e-5)

    def backward(douts, cache):
        total, _, _ = ops.add_rmsnorm_backward(douts, cache)
        return alpha * total, total

    assert all(result.passed for result in nl.gradcheck(forward, backward, [x, branch]))
    scale, layers = said("add_rmsnorm", 2, r"alpha = ([\d.]+)\$ and (\d+) layers")
    assert_said("add_rmsnorm", 2, r" layers, ([\d.]+)\.", float(scale) ** int(layers))


def test_add_rmsnorm_3_one_array_under_two_names():
    x, branch, weight = normal(4, 6), normal(4, 6, seed=1), normal(6)
    for key, same in ((None, True), ((0, 1), False)):
        _, cache = ops.add_rmsnorm_forward(x, branch, weight, 1e-5, 0.5, key)
        dx, dbranch, _ = ops.add_rmsnorm_backward((normal(4, 6, seed=2), normal(4, 6, seed=3)), cache)
        before = dbranch.copy()
        dx += 1
        assert np.array_equal(dbranch, before + 1 if same else before)


def test_rope_2_complex_numbers():
    (q1, q2), (k1, k2), t, s, w = normal(2), normal(2, seed=1), 7, 3, 0.3
    product = complex(q1, q2) * np.exp(1j * t * w) * complex(k1, -k2) * np.exp(-1j * s * w)
    assert np.isclose(product, complex(q1 * k1 + q2 * k2, q2 * k1 - q1 * k2) * np.exp(1j * (t - s) * w))
    turned = [ops.rope_forward(np.array([pair])[None, None], *(f(np.array([[w * at]])) for f in (np.cos, np.sin)))[0].ravel()
              for pair, at in (((q1, q2), t), ((k1, k2), s))]  # fmt: skip
    assert np.isclose(turned[0] @ turned[1], product.real)


def test_rope_3_the_slowest_pair():
    above, below = map(int, said("rope", 3, r"\\theta\^\{(\d+)/(\d+)\}"))
    exponent = above / below
    for theta in (10_000, 500_000):
        cos, sin = ops.rope_table(np.arange(2), 128, float(theta), dtype="float64")
        assert cos.shape == (2, 1 + int(said("rope", 3, r"is \$j = (\d+)\$")))
        angle = math.atan2(sin[1, -1], cos[1, -1])
        assert math.isclose(angle, theta ** -exponent)
        assert_said("rope", 3, rf"([\d,]+) for \$\\theta = {theta}\$", 2 * math.pi / angle)


def test_rope_4_the_layouts():
    to_half, H, D, C = defined("rope", 4)["to_half"], 3, 8, 5
    wq, wk, x = normal(H * D, C), normal(H * D, C, seed=1), normal(4, C)
    assert np.array_equal(to_half(wq, H), to_halves(wq, H))
    assert np.array_equal(to_neighbours(to_half(wq, H), H), wq)
    table = ops.rope_table(np.arange(4), D, 100.0, dtype="float64")

    def scores(wq, wk, layout):
        heads = [(x @ weight.T).reshape(1, 4, H, D).swapaxes(1, 2) for weight in (wq, wk)]
        q, k = (ops.rope_forward(each, *table, layout)[0] for each in heads)
        return q @ k.swapaxes(-1, -2)

    right = scores(wq, wk, "interleaved")
    assert_close(scores(to_half(wq, H), to_half(wk, H), "half"), right)
    assert abs(scores(wq, wk, "half") - right).max() > 0.1


def test_mixture_of_experts_2_one_expert():
    x, router, (gate, up, down) = normal(5, 3), normal(4, 3), (normal(4, 6, 3), normal(4, 6, 3, seed=1), normal(4, 3, 6))
    for normalise, learns in ((True, False), (False, True)):
        _, cache = ops.mixture_of_experts_forward(x, router, gate, up, down, 1, "softmax", normalise)
        drouter = ops.mixture_of_experts_backward((normal(5, 3, seed=2), None), cache)[1]
        assert (abs(drouter).max() > 1e-3) == learns
        if not learns:
            assert (cache.router.weights == 1).all() and not drouter.any()
    logits, dw = normal(5, 4), normal(5, 1)
    (weights, probs), cache = ops.router_forward(logits, 1, "softmax", False)
    assert_close(weights, probs.max(-1, keepdims=True))
    dp = np.zeros((5, 4))
    np.put_along_axis(dp, cache.chosen, dw, -1)
    assert_close(ops.router_backward((dw, None), cache), ops.softmax_backward(dp, ops.softmax_forward(logits)[1]))


def test_mixture_of_experts_3_equal_probabilities():
    N, E, k = 50, 8, 3
    chosen = np.stack([np.random.default_rng(n).permutation(5)[:k] for n in range(N)])    # three experts get no token
    probs = np.full((N, E), 1 / E)
    probs[::2, 0], probs[::2, 1] = probs[::2, 0] * 1.5, probs[::2, 1] * 0.5
    probs[1::2, 0], probs[1::2, 1] = probs[1::2, 0] * 0.5, probs[1::2, 1] * 1.5
    assert math.isclose(ops.load_balancing_forward(probs, chosen)[0], k)
    assert len(set(np.bincount(chosen.ravel(), minlength=E).tolist())) > 2


def test_mixture_of_experts_4_sigmoid():
    source = (ROOT / "numllama/ops/router.py").read_text(encoding="utf-8")
    for line in re.findall(r"`(softmax_backward\(dp, |dp \* probs.*?)(?:\.\.\.\))?`", ANSWERS["mixture_of_experts"][4]):
        assert f"return {line}" in source
    z, h = normal(1, 5), 1e-6
    for score in ("softmax", "sigmoid"):
        raised = z + h * (np.arange(5) == 2)
        p, up = (ops.router_forward(each, 2, score)[0][1][0] for each in (z, raised))
        expected = -p * p[2] if score == "softmax" else np.zeros(5)
        expected[2] = p[2] * (1 - p[2])
        np.testing.assert_allclose((up - p) / h, expected, atol=1e-6)


def test_attention_2_two_keys():
    a = normal(2)
    q, k, v = np.ones((1, 1, 1, 1)), a.reshape(1, 1, 2, 1), normal(1, 1, 2, 1)
    p = ops.attention_forward(q, k, v, scale=1.0)[1].p.ravel()
    assert math.isclose(p[0], 1 / (1 + math.exp(-(a[0] - a[1]))))


def test_attention_3_equal_keys():
    q, v, dout = normal(1, 2, 6, 4), normal(1, 2, 6, 4, seed=1), normal(1, 2, 6, 4, seed=2)
    k = np.broadcast_to(normal(1, 2, 1, 4), v.shape).copy()
    out, cache = ops.attention_forward(q, k, v)
    assert_close(out, v.cumsum(2) / np.arange(1, 7)[:, None])
    dq, dk, _ = ops.attention_backward(dout, cache)
    np.testing.assert_allclose(dq, 0, atol=1e-14)
    assert abs(dk).max() > 0.1


def test_attention_4_twice_as_many_query_heads():
    ratios = {}
    models = [nl.Transformer(nl.ModelConfig(65, 32, 1, H, n_kv_heads=2, head_dim=8), seed=0) for H in (4, 8)]
    for name in ("wq", "wk", "wv", "wo"):
        few, many = (model.params[f"blocks.0.{name}"].size for model in models)
        ratios[name] = many / few
    caches = [ops.attention_forward(normal(1, H, 3, 8), normal(1, 2, 3, 8), normal(1, 2, 3, 8))[1] for H in (4, 8)]
    ratios |= {name: getattr(caches[1], name).size / getattr(caches[0], name).size for name in ("q", "k", "v", "p")}
    assert ratios == dict(wq=2, wk=1, wv=1, wo=2, q=2, k=1, v=1, p=2)
    few, many = map(nl.KVCache, models)
    assert few.keys.shape == many.keys.shape and few.values.shape == many.values.shape


def summary(a, v):
    """The largest score, and the two sums of flash attention."""
    m = a.max()
    return m, np.exp(a - m).sum(), np.exp(a - m) @ v


def test_flash_attention_2_merged_halves():
    merge, a, v = defined("flash_attention", 2)["merge"], 300 * normal(12), normal(12, 3)
    parts = [summary(a[i : i + 3], v[i : i + 3]) for i in range(0, 12, 3)]
    m, z, _ = summary(a, v)
    for first, *others in permutations(parts):
        for other in others:
            first = merge(first, other)
        assert first[0] == m
        assert_close(np.array([first[1]]), np.array([z]))
        assert_close(first[2] / first[1], ops.softmax_forward(a)[0] @ v)
    assert all(map(np.array_equal, merge(parts[0], parts[1]), merge(parts[1], parts[0])))


def test_flash_attention_3_a_query_that_sees_no_key():
    q, k, v = normal(1, 1, 3, 4), normal(1, 1, 5, 4), normal(1, 1, 5, 4, seed=1)
    for forward, backward in ((ops.flash_attention_forward.reference, ops.flash_attention_backward.reference),
                              (ops.flash_attention_forward, ops.flash_attention_backward)):  # fmt: skip
        out, cache = forward(q, k, v, np.zeros(3, int), np.array([2, 0, 5]))
        assert not out[0, 0, 1].any() and cache.lse[0, 0, 1] == 0
        dq, dk, dv = backward(np.ones_like(out), cache)
        assert not dq[0, 0, 1].any() and all(np.isfinite(each).all() for each in (dq, dk, dv))


def test_flash_attention_4_an_output_in_bfloat16():
    q, k, v, dout = normal(1, 1, 5, 4), normal(1, 1, 9, 4), normal(1, 1, 9, 4, seed=1), normal(1, 1, 5, 4, seed=2)
    out, cache = ops.flash_attention_forward.reference(q, k, v)
    p, scale = ops.attention_forward(q, k, v)[1].p, cache.scale
    bits = (out.astype(np.float32).view(np.uint32) + 0x8000) & 0xFFFF0000                # 8 significant ones
    stored = bits.view(np.float32).astype(float)
    assert 2**-10 < abs(stored / out - 1).max() < 2**-8
    assert_said("flash_attention", 4, r"2\^\{-8\} = ([\d.]+)\$ %", 100 * 2**-8)
    dq, dk, dv = ops.flash_attention_backward.reference(dout, cache)
    dq_off, dk_off, dv_off = ops.flash_attention_backward.reference(dout, cache._replace(out=stored))
    e = (dout * (stored - out)).sum(-1, keepdims=True)                 # of delta
    assert_close(dq_off - dq, -scale * e * (p @ k), 1e-9)
    assert_close(dk_off - dk, -scale * (p * e).swapaxes(-1, -2) @ q, 1e-9)
    assert np.array_equal(dv_off, dv)
    delta = (p * (dout @ v.swapaxes(-1, -2))).sum(-1)
    assert_close((dout * out).sum(-1), delta)
