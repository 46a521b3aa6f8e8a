"""`nl.judge` has nothing to say against PyTorch's own functions and their gradients by autograd, in any of four dtypes."""

import os

import pytest

import numllama as nl
from numllama.learn.judge_ops import JUDGED

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.parity
SEEDS = range(int(os.environ.get("NUMLLAMA_JUDGE_SEEDS", 2)))
DTYPES = ("float32", "float64", "bfloat16", "float16")


def turned(x1, x2, cos, sin):
    return x1 * cos - x2 * sin, x2 * cos + x1 * sin


def attention(q, k, v, first, last):
    keys = torch.arange(k.shape[2])
    seen = (first[..., None] <= keys) & (keys < last[..., None])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], enable_gqa=True)


def router(logits, k):
    probs = F.softmax(logits, -1)
    weights, _ = torch.topk(probs, k)
    return weights / weights.sum(-1, keepdim=True), probs


def mixture_of_experts(x, w, gate, up, down, k):
    rows = x.flatten(0, -2)
    weights, probs = router(rows @ w.T, k)
    weights = torch.zeros_like(probs).scatter(1, torch.topk(probs, k).indices, weights)
    h = F.silu(torch.einsum("nc,efc->nef", rows, gate)) * torch.einsum("nc,efc->nef", rows, up)
    return torch.einsum("nef,ecf,ne->nc", h, down, weights).reshape(x.shape), probs


def load_balancing(probs, chosen):
    E = probs.shape[1]
    return E * (F.one_hot(chosen, E).sum(1).to(probs.dtype).mean(0) * probs.mean(0)).sum()


FORMULAS = {
    "linear": F.linear,
    "linear_bias": F.linear,
    "lora": lambda x, a, b, scale: scale * F.linear(F.linear(x, a), b),
    "embedding": F.embedding,
    "rmsnorm": lambda x, w, eps: F.rms_norm(x, w.shape, w, eps),
    "add_rmsnorm": lambda x, branch, w, eps: (x + branch, F.rms_norm(x + branch, w.shape, w, eps)),
    "layernorm": lambda x, w, b, eps: F.layer_norm(x, w.shape, w, b, eps),
    "rope": lambda x, cos, sin: torch.cat(turned(*x.chunk(2, -1), cos, sin), -1),
    "rope_interleaved": lambda x, cos, sin: torch.stack(turned(x[..., ::2], x[..., 1::2], cos, sin), -1).flatten(-2),
    "softmax": lambda x: F.softmax(x, -1),
    "attention": attention,
    "flash_attention": attention,
    "causal_attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
    "swiglu": lambda gate, up: F.silu(gate) * up,
    "geglu": lambda gate, up: F.gelu(gate, approximate="tanh") * up,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_exact": F.gelu,
    "softcap": lambda x, cap: cap * torch.tanh(x / cap),
    "cross_entropy": lambda logits, targets: F.cross_entropy(logits.flatten(0, -2), targets.flatten()),
    "router": router,
    "load_balancing": load_balancing,
    "mixture_of_experts": mixture_of_experts,
}


def by_autograd(op, formula):
    """Forward and backward of a formula."""

    def forward(*arguments):
        leaves = [each.detach() if torch.is_tensor(each) else each for each in arguments]
        wrt = [each.requires_grad_() for each in leaves if torch.is_tensor(each) and each.is_floating_point()]
        out = formula(*leaves)
        return out, (out, wrt[: len(JUDGED[op].gradients)])

    return forward, lambda dout, cache: torch.autograd.grad(*cache, dout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", FORMULAS)
def test_pytorchs_own_functions_pass(op, dtype):
    slow = op == "mixture_of_experts" and dtype == "float16"  # a dense sum of all experts, by products without a fast library
    cases = ["plain", "odd", "strided"] if slow else None
    for seed in SEEDS:
        verdict = nl.judge(op, by_autograd(op, FORMULAS[op]), seed=seed, dtype=dtype, framework="torch", cases=cases)
        assert verdict, str(verdict)


def test_every_op_but_one_has_a_formula():
    assert set(JUDGED) - set(FORMULAS) == {"dropout"}  # PyTorch draws other masks


WRONG = {
    "eps outside the root": ("rmsnorm", lambda x, w, eps: x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * w),
    "no 1/√D": ("causal_attention", lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True, scale=1.0)),
    "the next key is seen": ("causal_attention", lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.ones(q.shape[2], q.shape[2]).tril(1).bool(), enable_gqa=True)),
    "the other layout": ("rope", FORMULAS["rope_interleaved"]),
    "a gate without its sigmoid": ("swiglu", lambda gate, up: F.relu(gate) * up),
    "an output that is detached": ("softmax", lambda x: x * 0 + F.softmax(x, -1).detach()),
    "a mean over ignored targets too": ("cross_entropy", lambda logits, targets: F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), reduction="sum") / targets.numel()),
    "weights that are not normalised": ("router", lambda z, k: (torch.topk(F.softmax(z, -1), k)[0], F.softmax(z, -1))),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_found_in_any_dtype(what, dtype):
    op, formula = WRONG[what]
    assert not nl.judge(op, by_autograd(op, formula), seed=0, dtype=dtype, framework="torch")


def test_a_tensors_memory_is_overwritten_like_an_arrays():
    kept = {}

    def forward(x, w, eps):
        return kept.setdefault(x.data_ptr(), F.rms_norm(x, w.shape, w, eps))

    verdict = nl.judge("rmsnorm", forward, seed=0, framework="torch")
    assert not any(case.passed for case in verdict.cases)
    assert "rounding explains" in verdict.cases[0].problem


def test_a_kernel_may_write_to_tensors():
    def forward(x, w, eps, out):
        out.copy_(F.rms_norm(x, w.shape, w, eps))

    assert nl.judge("rmsnorm", forward, dtype="bfloat16", framework="torch", style="out")
