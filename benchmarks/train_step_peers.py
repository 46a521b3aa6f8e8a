"""The contestants of train_step.py: the same Llama, weights and batches for each. `make` returns a step() -> loss."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np

LR, CLIP, BETAS, DECAY, SEED = 1e-3, 1.0, (0.9, 0.95), 0.1, 0


def make(peer: str, config: dict, cores: int) -> tuple[Callable[[], float], str]:
    """A function that trains one step, and the names of its libraries."""
    makers = {
        "numllama": partial(numllama_step, onednn=False),
        "numllama-onednn": numllama_step,
        "numllama-bf16": partial(numllama_step, compute_dtype="bfloat16"),
        "floor": partial(floor_step, dtype="numpy"),
        "floor-onednn": partial(floor_step, dtype="float32"),
        "floor-bf16": partial(floor_step, dtype="bfloat16"),
        "torch-eager": torch_step,
        "torch-compile": lambda c, n: torch_step(c, n, compile=True),
        "torch-compile-bf16": lambda c, n: torch_step(c, n, compile=True, bfloat16=True),
        "jax": jax_step,
    }
    peer, _, technique = peer.partition("-without-")
    if technique:
        from techniques import leave_out

        leave_out(technique)
    return makers[peer](config, cores)


def model_config(config: dict):
    import numllama as nl

    return nl.ModelConfig(**{key: value for key, value in config.items() if key != "batch"})


def batches(config: dict):
    """The same endless random batches for all contestants."""
    rng = np.random.default_rng(SEED)
    while True:
        tokens = rng.integers(0, config["vocab_size"], (config["batch"], config["max_seq_len"] + 1))
        yield tokens[:, :-1], tokens[:, 1:]


def blas_name() -> str:
    from threadpoolctl import threadpool_info

    blas = [info for info in threadpool_info() if info["user_api"] == "blas"]
    kinds = [f"{info['internal_api']} {info['version']} {info.get('architecture', '')}".strip() for info in blas]
    return f"NumPy {np.__version__}, {', '.join(kinds)}"


# ------------------------------------------------------------------------------------------------ numllama


def numllama_step(config: dict, cores: int, onednn: bool = True, compute_dtype: str | None = None):
    if not onednn:
        os.environ["NUMLLAMA_ONEDNN"] = "off"
    import numllama as nl
    import numllama.data.batches as data_module
    from numllama.parallel import shards
    from numllama.system import machine

    source = batches(config)
    data_module.random_batch = lambda *_: next(source)  # the benchmark's batches instead of random windows of a text
    shards.PROCESSES_AFTER = 0.0  # as in a run after its first seconds
    model = nl.Transformer(model_config(config), seed=SEED, compute_dtype=compute_dtype)
    some = np.zeros(2 * config["max_seq_len"], dtype=np.int64)
    data = nl.Dataset(some, some, config["vocab_size"])
    settings = nl.TrainConfig(
        steps=10**9, batch_size=config["batch"], lr=LR, min_lr=LR, warmup_steps=0, beta1=BETAS[0], beta2=BETAS[1],
        weight_decay=DECAY, clip=CLIP, workers=cores, eval_every=10**9,
    )  # fmt: skip
    trainer = nl.Trainer(model, data, settings)
    loop = ExitStack()
    loop.enter_context(machine.training_settings(model.device))  # as while a Trainer runs

    def step(loop=loop):  # keep a reference: its settings would end with it
        return trainer._step().loss

    step.peak_mb = trainer._memory_mb  # with its processes
    return step, blas_name() + (f", oneDNN {onednn_version()}" if onednn else "")


def onednn_version() -> str:
    from numllama.cpu import onednn
    from numllama.install import install_command

    library = onednn.library()
    if library is None:
        raise SystemExit(f"oneDNN is not installed: {install_command('onednn')}")
    return f"{'.'.join(map(str, library.version))} ({library.instruction_set})"


# ------------------------------------------------------------------------------------------------ the floor


def floor_step(config: dict, cores: int, dtype: str):
    """Only the matrix products of a step, on half-batches in parallel threads, each call on one core.

    They are NumPy's, or in float32 or bfloat16 oneDNN's, with operands of that dtype and float32 results.
    """
    from concurrent.futures import ThreadPoolExecutor

    import ml_dtypes  # noqa: F401 - NumPy knows "bfloat16" from here on

    from numllama.cpu import onednn
    from numllama.system.blas import one_blas_thread

    c = model_config(config)
    loop = ExitStack()
    loop.enter_context(one_blas_thread())
    libraries = blas_name() if dtype == "numpy" else f"oneDNN {onednn_version()}"
    operands = "float32" if dtype == "numpy" else dtype
    parts = [config["batch"] * (i + 1) // cores - config["batch"] * i // cores for i in range(cores)]
    C, Q, KV = c.dim, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layer = [(Q, C), (KV, C), (KV, C), (C, Q), (c.ffn_dim, C), (c.ffn_dim, C), (C, c.ffn_dim)]
    rng = np.random.default_rng(SEED)

    def products(B: int):
        """The products of one thread, with operands and results allocated in advance."""
        T, K, R, D = c.max_seq_len, c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim
        N = B * T
        make = lambda *shape: rng.standard_normal(shape, dtype="float32").astype(operands)  # noqa: E731
        calls = []

        def add(a, b):
            calls.append((a, b, np.empty((*a.shape[:-1], b.shape[-1]), "float32")))

        shapes = {shape: (make(N, shape[1]), make(*shape), make(N, shape[0])) for shape in [*layer, (c.vocab_size, C)]}
        q, p, k = make(B * K, R * T, D), make(B * K, R * T, T), make(B * K, T, D)
        for i in range(c.n_layers + 1):
            for shape in layer if i < c.n_layers else [(c.vocab_size, C)]:
                x, w, dout = shapes[shape]
                add(x, w.T), add(dout, w), add(dout.T, x)
            if i < c.n_layers:
                add(q, k.swapaxes(-1, -2)), add(p, k)                                      # forward
                add(q, k.swapaxes(-1, -2)), add(p.swapaxes(-1, -2), q)                     # dp, dv
                add(p, k), add(p.swapaxes(-1, -2), q)                                      # dq, dk
        return calls

    work = [products(B) for B in parts if B]
    pool = ThreadPoolExecutor(len(work))

    def run(calls):
        for a, b, out in calls:
            np.matmul(a, b, out=out) if dtype == "numpy" else onednn.matmul(a, b, out)

    def step(loop=loop):
        list(pool.map(run, work))
        return 0.0

    return step, libraries


# ------------------------------------------------------------------------------------------------ PyTorch


def torch_on_gpu(config, batch: int, compile: bool, cudnn: bool = False) -> Callable[[], float]:
    """The step on a GPU, in bfloat16 according to PyTorch's autocast; attention by FlashAttention-2 or by cuDNN."""
    return torch_step({**config.to_dict(), "batch": batch}, 1, compile, bfloat16=True, device="cuda", cudnn=cudnn)[0]


def torch_llama(c, lr: float = LR, betas: tuple = BETAS, decay: float = DECAY, device: str = "cpu", seed: int = SEED):
    """The model of a configuration, with numllama's initial weights, and its AdamW."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    import numllama as nl

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
            self.attn_norm, self.ffn_norm = nn.RMSNorm(c.dim, c.norm_eps), nn.RMSNorm(c.dim, c.norm_eps)
            self.wq, self.wk = nn.Linear(c.dim, width, bias=False), nn.Linear(c.dim, kv_width, bias=False)
            self.wv, self.wo = nn.Linear(c.dim, kv_width, bias=False), nn.Linear(width, c.dim, bias=False)
            self.w_gate, self.w_up = nn.Linear(c.dim, c.ffn_dim, bias=False), nn.Linear(c.dim, c.ffn_dim, bias=False)
            self.w_down = nn.Linear(c.ffn_dim, c.dim, bias=False)

        def forward(self, x, cos, sin):
            B, T, _ = x.shape
            n = self.attn_norm(x)
            q = rotate(self.wq(n).view(B, T, c.n_heads, c.head_dim).transpose(1, 2), cos, sin)
            k = rotate(self.wk(n).view(B, T, c.n_kv_heads, c.head_dim).transpose(1, 2), cos, sin)
            v = self.wv(n).view(B, T, c.n_kv_heads, c.head_dim).transpose(1, 2)
            grouped = c.n_heads != c.n_kv_heads
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            x = x + self.wo(a.transpose(1, 2).reshape(B, T, -1))
            n = self.ffn_norm(x)
            return x + self.w_down(F.silu(self.w_gate(n)) * self.w_up(n))

    def rotate(x, cos, sin):
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)

    class Llama(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(c.vocab_size, c.dim)
            self.blocks = nn.ModuleList(Block() for _ in range(c.n_layers))
            self.norm = nn.RMSNorm(c.dim, c.norm_eps)
            self.head = nn.Linear(c.dim, c.vocab_size, bias=False)
            if c.tie_embeddings:
                self.head.weight = self.embed.weight
            cos, sin = nl.ops.rope_table(np.arange(c.max_seq_len), c.head_dim, c.rope_theta)
            self.register_buffer("cos", torch.from_numpy(cos))
            self.register_buffer("sin", torch.from_numpy(sin))

        def forward(self, tokens, targets):
            x, T = self.embed(tokens), tokens.shape[1]
            for block in self.blocks:
                x = block(x, self.cos[:T], self.sin[:T])
            logits = self.head(self.norm(x))
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    model = Llama()
    weights = nl.Transformer(c, seed=seed).params
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name.removesuffix(".weight")]))
    model.to(device)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=True)


def torch_step(
    config: dict, cores: int, compile: bool = False, bfloat16: bool = False, device: str = "cpu", cudnn: bool = False
):
    from contextlib import nullcontext

    import torch

    torch.set_num_threads(cores)
    model, optimizer = torch_llama(model_config(config), device=device)
    run = torch.compile(model) if compile else model
    source, attention = batches(config), nullcontext
    if cudnn:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        attention = partial(sdpa_kernel, SDPBackend.CUDNN_ATTENTION)

    def step():
        tokens, targets = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in next(source))
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16), attention():
            loss = run(tokens, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step, f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


# ------------------------------------------------------------------------------------------------ JAX


def jax_step(config: dict, cores: int):
    import jax
    import jax.numpy as jnp

    import numllama as nl

    c = model_config(config)
    params = {name: jnp.array(value) for name, value in nl.Transformer(c, seed=SEED).params.items()}
    cos, sin = (jnp.array(table) for table in nl.ops.rope_table(np.arange(c.max_seq_len), c.head_dim, c.rope_theta))

    def norm(x, weight):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * weight

    def rotate(x):
        x1, x2 = jnp.split(x, 2, axis=-1)
        a, b = cos[:, None], sin[:, None]
        return jnp.concatenate((x1 * a - x2 * b, x2 * a + x1 * b), axis=-1)

    def loss_of(params, tokens, targets):
        B, T = tokens.shape
        x = params["embed"][tokens]
        for i in range(c.n_layers):
            w = {name.split(".")[2]: value for name, value in params.items() if name.startswith(f"blocks.{i}.")}
            n = norm(x, w["attn_norm"])
            q = rotate((n @ w["wq"].T).reshape(B, T, c.n_heads, c.head_dim))
            k = rotate((n @ w["wk"].T).reshape(B, T, c.n_kv_heads, c.head_dim))
            v = (n @ w["wv"].T).reshape(B, T, c.n_kv_heads, c.head_dim)
            x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(B, T, -1) @ w["wo"].T
            n = norm(x, w["ffn_norm"])
            x = x + (jax.nn.silu(n @ w["w_gate"].T) * (n @ w["w_up"].T)) @ w["w_down"].T
        logits = norm(x, params["norm"]) @ params["head"].T
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()

    @jax.jit
    def train(params, m, v, t, tokens, targets):
        loss, grads = jax.value_and_grad(loss_of)(params, tokens, targets)
        length = jnp.sqrt(sum((g * g).sum() for g in grads.values()))
        scale = jnp.minimum(1.0, CLIP / (length + 1e-6))
        b1, b2 = BETAS
        m = {n: b1 * m[n] + (1 - b1) * g * scale for n, g in grads.items()}
        v = {n: b2 * v[n] + (1 - b2) * (g * scale) ** 2 for n, g in grads.items()}

        def move(n, w):
            w = w * (1 - LR * DECAY) if w.ndim == 2 else w
            return w - LR / (1 - b1**t) * m[n] / (jnp.sqrt(v[n] / (1 - b2**t)) + 1e-8)

        return {n: move(n, w) for n, w in params.items()}, m, v, loss

    state = [params, jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)]
    source, count = batches(config), [0]

    def step():
        count[0] += 1
        *state[:], loss = train(*state, float(count[0]), *next(source))
        return float(loss)

    return step, f"JAX {jax.__version__}"


if __name__ == "__main__":
    print(__doc__)  # what runs it
