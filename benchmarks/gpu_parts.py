"""The parts of gpu.py, each run in a separate process. A part is a generator of figures: dicts with a name."""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from numllama.backend import BFLOAT16
from numllama.checks import checked_ids

BF16_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "B200": 2250, "L40": 181, "4090": 165}  # dense, as NVIDIA says
TOKENS = 16384  # of a training step
MEASURED_SECONDS = 1.5  # of each turn of a contestant
LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0


def run(part: str, rows: Path, data: Path | None) -> None:
    """Measure a part, and write each figure immediately."""
    name, *words = part.split()
    parts = {"machine": machine, "same": same, "kernels": kernels, "products": products, "attention": attention, "decode": decode}
    figures = {**parts, "training": training, "shakespeare": lambda: shakespeare(data)}[name](*words)
    with open(rows, "a", encoding="utf-8") as file:
        for figure in figures:
            file.write(json.dumps(figure) + "\n")
            file.flush()


def gpu():
    """CuPy, with an initialised GPU."""
    from numllama.backend import array_module

    return array_module("cuda")


def torch_or_none():
    """PyTorch, if it is installed and finds the GPU."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def milliseconds(*functions: Callable[[], object], rounds: int = 5, at_least: float = 20.0) -> list[float]:
    """Median time on the GPU of one call of each function; they take turns, and each turn lasts `at_least` ms."""
    cupy = gpu()
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()

    def timed(function: Callable, calls: int) -> float:
        cupy.cuda.Device().synchronize()
        start.record()
        for _ in range(calls):
            function()
        stop.record()
        stop.synchronize()
        return cupy.cuda.get_elapsed_time(start, stop) / calls

    calls = []
    for function in functions:
        function()  # compiled
        calls.append(max(1, min(1000, math.ceil(at_least / max(timed(function, 2), 1e-3)))))
    times = [[timed(function, n) for function, n in zip(functions, calls, strict=True)] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def copy_speed(n_bytes: int = 2**30) -> float:
    """GB/s of a copy within the GPU's memory, bytes read and bytes written."""
    cupy = gpu()
    a, b = cupy.empty(n_bytes, np.uint8), cupy.empty(n_bytes, np.uint8)
    (ms,) = milliseconds(lambda: cupy.copyto(a, b))
    return 2 * n_bytes / ms / 1e6


# ------------------------------------------------------------------------------------------------ machine, kernels, products


def machine(n: int = 8192) -> Iterator[dict]:
    """The machine, and the two speeds to which everything else is compared."""
    from numllama.cuda.gemm import gemm

    cupy, torch = gpu(), torch_or_none()
    a, b = normal(n, n), normal(n, n)
    (ms,) = milliseconds(lambda: gemm(a, b))
    yield {
        "name": "machine", "gpu": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(), "cupy": cupy.__version__,
        "driver": str(cupy.cuda.runtime.driverGetVersion()), "torch": torch.__version__ if torch else "none",
        "numpy": np.__version__, "python": sys.version.split()[0],
        "copy_gbs": copy_speed(), "product_tflops": 2 * n**3 / ms / 1e9,
    }  # fmt: skip


def kernels(N: int = 65536, C: int = 768, F: int = 2048, V: int = 50257, P: int = 2**27) -> Iterator[dict]:
    """Every memory-bound kernel in bfloat16, at sizes beyond any cache, compared with the bytes that it must move."""
    copy = copy_speed()
    for name, n_bytes, call in kernel_calls(N, C, F, V, P):
        (ms,) = milliseconds(call)
        yield {"name": name, "us": 1e3 * ms, "gbs": n_bytes / ms / 1e6, "share": n_bytes / ms / 1e6 / copy}


def kernel_calls(N: int, C: int, F: int, V: int, P: int) -> Iterator[tuple[str, int, Callable]]:
    """Name, minimum bytes, and call of each kernel: N rows of C or F, N/16 rows of V, P parameters."""
    from numllama import ops
    from numllama.cuda.clip import clip_factor
    from numllama.optim import adamw_update

    xp = gpu()
    x, y, gain, n = normal(N, C), normal(N, C), xp.ones(C, np.float32), 2 * N * C
    yield "rmsnorm forward", 2 * n, partial(ops.rmsnorm_forward, x, gain, 1e-5)
    yield "rmsnorm backward", 3 * n, partial(ops.rmsnorm_backward, y, ops.rmsnorm_forward(x, gain, 1e-5)[1])
    yield "add_rmsnorm forward", 4 * n, partial(ops.add_rmsnorm_forward, x, y, gain, 1e-5)
    yield "add_rmsnorm backward", 4 * n, partial(ops.add_rmsnorm_backward, (x, y), ops.add_rmsnorm_forward(x, y, gain, 1e-5)[1])
    yield "dropout", 2 * n, partial(ops.dropout_forward, x, 0.2, (1, 2))
    yield "softmax forward", 2 * n, partial(ops.softmax_forward, x)
    yield "softmax backward", 3 * n, partial(ops.softmax_backward, y, ops.softmax_forward(x)[1])
    T = min(1024, N)
    heads = x.reshape(N // T, T, C // 64, 64).swapaxes(1, 2)
    yield "rope", 2 * n, partial(ops.rope_forward, heads, *ops.rope_table(xp.arange(T), 64, 10000.0))
    tokens, weight = xp.asarray(np.random.default_rng(0).integers(0, V, N)), normal(V, C)
    with checked_ids():  # as in a step: checking ids would synchronise
        yield "embedding forward", 2 * n, partial(ops.embedding_forward, tokens, weight)
        some = slice(0, N // 4)  # as many tokens as a step has
        into = xp.zeros((V, C), np.float32)
        yield "embedding backward", 10 * C * N // 4, partial(ops.embedding_backward, x[some], (tokens[some], weight), into)

        gate, up, dout, n = normal(N, F), normal(N, F), normal(N, F), 2 * N * F
        yield "swiglu forward", 3 * n, partial(ops.swiglu_forward, gate, up)
        yield "swiglu backward", 5 * n, partial(ops.swiglu_backward, dout, (gate, up))

        logits, targets, n = normal(N // 16, V), tokens[: N // 16], 2 * (N // 16) * V
        yield "cross_entropy forward", n, partial(ops.cross_entropy_forward, logits, targets, count=N)
        cache = ops.cross_entropy_forward(logits, targets, count=N)[1]
        yield "cross_entropy backward", 2 * n, partial(ops.cross_entropy_backward, 1.0, cache, out=xp.empty_like(logits))

    w, g, m, v = (normal(P, dtype=np.float32) for _ in range(4))
    yield "norm and clip factor", 4 * P, partial(clip_factor, g, w[:1], 1.0)
    yield "adamw", 30 * P, partial(adamw_update, w, g, m, v * v, 3, 1e-9, BETAS, 1e-8, 0.1, normal(P))


def normal(*shape: int, dtype=BFLOAT16):
    """Normal numbers on the GPU; a small sample is repeated, because drawing millions takes long on a CPU."""
    return gpu().asarray(np.resize(np.random.default_rng(0).standard_normal(2**16, dtype=np.float32), shape)).astype(dtype)


def products(N: int = TOKENS, scale: int = 1) -> Iterator[dict]:
    """Each product of a layer and of the head, and their gradients; ours add float32 gradients inside the product."""
    for what, C, O in (  # noqa: E741
        ("117m wq", 768, 768), ("117m w_up", 768, 2048), ("117m w_down", 2048, 768), ("117m head", 768, 50257),
        ("345m wq", 1024, 1024), ("345m w_up", 1024, 2736), ("345m w_down", 2736, 1024),
    ):  # fmt: skip
        C, O = C // scale, O // scale  # noqa: E741
        for which, pair in product_calls(N, C, O).items():
            rates = [2 * N * C * O / ms / 1e9 for ms in milliseconds(*pair.values())]
            yield {"name": what + which, **dict(zip(pair, rates, strict=True))}


def product_calls(N: int, C: int, O: int) -> dict[str, dict[str, Callable]]:  # noqa: E741
    """Forward, dx and dweight of a linear map, in numllama and in PyTorch."""
    from numllama.cuda.gemm import gemm

    xp, torch = gpu(), torch_or_none()
    x, w, dout = normal(N, C), normal(O, C), normal(N, O)
    out, dx, dw = xp.empty((N, O), BFLOAT16), xp.empty((N, C), BFLOAT16), xp.zeros((O, C), np.float32)
    ours = partial(gemm, x, w.T, out), partial(gemm, dout, w, dx), partial(gemm, dout.T, x, dw, beta=1.0)
    calls = {which: {"numllama": call} for which, call in zip(("", " dx", " dw"), ours, strict=True)}
    if torch:
        tx, tw, td = (torch.randn(s, device="cuda", dtype=torch.bfloat16) for s in ((N, C), (O, C), (N, O)))
        for pair, (a, b) in zip(calls.values(), ((tx, tw.T), (td, tw), (td.T, tx)), strict=True):
            pair["torch"] = partial(torch.matmul, a, b)
    return calls


# ------------------------------------------------------------------------------------------------ attention


def attention(tokens: int = TOKENS, width: int = 2048, lengths: tuple[int, ...] = (512, 1024, 2048, 4096)) -> Iterator[dict]:
    """Causal attention forward and backward in bfloat16, against PyTorch's two fast back ends."""
    torch = torch_or_none()
    for D, T in product((64, 128), lengths):
        B, H = max(1, tokens // T), width // D
        shape = B, T, H, D  # in memory, as projections leave them
        calls = {"numllama": our_attention(shape)} | (torch_attention(torch, shape) if torch else {})
        flops = 4 * B * H * T * T * D / 2
        for which, i, factor in (("forward", 0, 1.0), ("backward", 1, 2.5)):
            rates = [factor * flops / ms / 1e9 for ms in milliseconds(*(pair[i] for pair in calls.values()))]
            yield {"name": f"D = {D}, T = {T}, {which}", **dict(zip(calls, rates, strict=True))}


def our_attention(shape: tuple) -> tuple[Callable, Callable]:
    """Forward and backward."""
    from numllama import ops

    q, k, v, dout = (normal(*shape).swapaxes(1, 2) for _ in range(4))
    _, cache = ops.flash_attention_forward(q, k, v)
    return partial(ops.flash_attention_forward, q, k, v), partial(ops.flash_attention_backward, dout, cache)


def torch_attention(torch, shape: tuple) -> dict[str, tuple[Callable, Callable]]:
    """The same for scaled_dot_product_attention, with each back end that runs here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    calls = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        *inputs, dout = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(4))
        for x in inputs:
            x.requires_grad_()

        def forward(inputs=inputs, backend=backend):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)

        try:
            out = forward()
        except RuntimeError as error:  # not built, or not for this GPU
            print(f"{name}: {error}", file=sys.stderr)
            continue
        calls[name] = forward, partial(torch.autograd.grad, out, inputs, dout, retain_graph=True)
    return calls


# ------------------------------------------------------------------------------------------------ training


def training(model: str, T: str, rounds: int = 4, tokens: int = TOKENS) -> Iterator[dict]:
    """Tokens per second of a step, alternating; MFU counts 6 FLOPs per weight and token, and all those of attention."""
    import train_step_peers as peers

    import numllama as nl

    config = nl.ModelConfig.preset(model, max_seq_len=int(T), dropout=0.0)
    T, B = int(T), max(1, tokens // int(T))
    torch = torch_or_none()
    makers = {
        "numllama": lambda: our_step(config, B, T, graph=True),
        "numllama without graph": lambda: our_step(config, B, T, graph=False),
    }
    if torch:
        makers |= {
            "torch eager": lambda: peers.torch_on_gpu(config, B, compile=False),
            "torch compile": lambda: peers.torch_on_gpu(config, B, compile=True),
            "torch compile cudnn": lambda: peers.torch_on_gpu(config, B, compile=True, cudnn=True),
        }
    steps, memory, losses = {}, {}, {}
    for name, make in makers.items():
        try:
            before = free_mb()
            step = make()
            losses[name] = [step() for _ in range(5)]  # compiled, recorded
            steps[name], memory[name] = step, before - free_mb()
        except Exception as error:  # a contestant that fails does not stop the others
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            n, start = 0, time.perf_counter()
            while (now := time.perf_counter() - start) < MEASURED_SECONDS or n < 3:
                step()  # which ends with the loss on the host
                n += 1
            seconds[name].append(now / n)
        for name, times in seconds.items():  # after each round: what is known so far
            known = {"name": name, "losses": losses[name], "memory_mb": memory[name]}
            yield known | speeds(config, B, T, statistics.median(times))


def speeds(config, B: int, T: int, seconds: float) -> dict:
    """Tokens per second, and the share of the GPU's peak (MFU)."""
    from numllama.model import count_parameters

    weights = count_parameters(config) - (0 if config.tie_embeddings else config.vocab_size * config.dim)
    flops = B * T * (6 * weights + 12 * config.n_layers * config.n_heads * config.head_dim * T)
    name = gpu().cuda.runtime.getDeviceProperties(0)["name"].decode()
    peak = next((tflops for key, tflops in BF16_TFLOPS.items() if key in name), None)
    return {"tokens_per_s": B * T / seconds, "ms": 1e3 * seconds, "mfu": flops / seconds / peak / 1e12 if peak else None}


def free_mb() -> float:
    """The GPU memory in use, according to the driver."""
    return gpu().cuda.runtime.memGetInfo()[0] / 1e6


def our_step(config, B: int, T: int, graph: bool, dtype: str = "bfloat16", dropout: float = 0.0) -> Callable[[], float]:
    """A training step as the Trainer runs it."""
    import train_step_peers as peers

    import numllama as nl
    from numllama.cuda.graph import training_step
    from numllama.data.batches import counted

    model = nl.Transformer(config, seed=0, device="cuda", compute_dtype=dtype)
    optimizer = nl.AdamW(model.params, LR, betas=BETAS, weight_decay=DECAY)
    step = training_step(model, optimizer, batch_size=B, seq_len=T, clip=CLIP, graph=graph)
    source, count = peers.batches({"vocab_size": config.vocab_size, "batch": B, "max_seq_len": T}), [0]

    def run() -> float:
        count[0] += 1
        return step(counted(*next(source)), count[0], LR)[0]

    run.model, run.step = model, step
    return run


def same(steps: int = 20, **changes) -> Iterator[dict]:
    """The losses are the same bits with and without the graph, and from run to run; and close to a CPU's in float32."""
    import numllama as nl
    from numllama.optim import clip_grad_norm

    B, T = 4, 128
    shape = dict(vocab_size=256, dim=256, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=T, dropout=0.1)
    config = nl.ModelConfig(**{**shape, **changes})
    T = config.max_seq_len
    runs = {}
    for dtype in ("float32", "bfloat16"):
        for graph in (True, False, True):
            run = our_step(config, B, T, graph, dtype)
            losses = [run() for _ in range(steps)]
            runs.setdefault(dtype, []).append((losses, graph, run.step.launches))
    import train_step_peers as peers

    cpu, source = nl.Transformer(config, seed=0), peers.batches({"vocab_size": config.vocab_size, "batch": B, "max_seq_len": T})
    optimizer, expected = nl.AdamW(cpu.params, LR, betas=BETAS, weight_decay=DECAY), []
    for step in range(1, steps + 1):
        loss, grads = cpu.loss_and_grads(*next(source), key=(0, step, 0))
        clip_grad_norm(grads, CLIP)
        optimizer.step(grads, LR)
        expected.append(float(loss))
    for dtype, three in runs.items():
        first, plain, again = (losses for losses, _, _ in three)
        off = max(abs(a / b - 1) for a, b in zip(first, expected, strict=True))
        says = [
            f"graph launched {three[0][2]} of {steps - 1} times",
            f"losses with and without the graph {'the same' if first == plain else 'DIFFER'}",
            f"run to run {'the same' if first == again else 'DIFFER'}",
            f"off a CPU's in float32 by {off:.1e}",
        ]
        yield {"name": f"{steps} steps in {dtype}", "says": ", ".join(says), "losses": first, "expected": expected}
    for graph in (True, False):
        run = our_step(config, B, T, graph)
        for _ in range(3):
            run()
        n, name = launches(run), f"a step {'with' if graph else 'without'} the graph"
        yield {"name": name, "says": f"{n} launches by the host", "launches": n}


def launches(run: Callable) -> int:
    """The number of numllama's kernels, products or graphs that the host launches in one call."""
    from numllama.cuda import launch

    backend, n = launch.backend, [0]
    before = run.step.launches

    class Counting:
        def __getattr__(self, name):
            if name in ("run", "gemm"):
                n[0] += 1
            return getattr(backend, name)

    launch.backend = Counting()
    try:
        run()
    finally:
        launch.backend = backend
    return n[0] + run.step.launches - before


# ------------------------------------------------------------------------------------------------ decoding, a whole run


def decode(preset: str = "117m", new: int = 128, batches: tuple[int, ...] = (1, 16, 64)) -> Iterator[dict]:
    """Tokens per second, greedy, after a prompt of 16 tokens."""
    import numllama as nl

    config = nl.ModelConfig.preset(preset)
    model = nl.Transformer(config, seed=0, device="cuda", compute_dtype="bfloat16")
    for B in batches:
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, (B, 16)).tolist()
        seconds = []
        for n in (new // 4, new, new):
            start = time.perf_counter()
            nl.generate(model, prompts, n, temperature=0.0)
            seconds.append(time.perf_counter() - start)
        rate = B * new / min(seconds[1:])
        yield {"name": f"decoding {preset}, {B} at once", "says": f"{rate:,.0f} tokens/s", "tokens_per_s": rate}


def shakespeare(data: Path | None, **changes) -> Iterator[dict]:
    """The preset's whole run, with dropout, as in `numllama train --device cuda`, but without checkpoints."""
    from dataclasses import replace

    import numllama as nl
    from numllama.data.dataset import load_dataset
    from numllama.data.shakespeare import shakespeare_dataset
    from numllama.training.config import recipe

    dataset = load_dataset(data) if data else shakespeare_dataset()[0]
    config = nl.ModelConfig.preset("shakespeare", vocab_size=dataset.vocab_size)
    settings = replace(recipe("shakespeare"), compute_dtype="bfloat16", **changes)
    model = nl.Transformer(config, seed=settings.seed, device="cuda", compute_dtype="bfloat16")
    trainer = nl.Trainer(model, dataset, settings)
    next(iter(trainer))  # kernels are compiled
    start, best, at = time.perf_counter(), math.inf, 0
    for report in trainer:
        if report.val_loss is not None:
            best, at = min((best, at), (report.val_loss, report.step))
            seconds = time.perf_counter() - start
            says = f"best validation loss {best:.4f} at step {at}; {report.step} of {settings.steps} steps in {seconds:.1f} s"
            yield {"name": "shakespeare", "says": says, "best": best, "step": report.step, "seconds": seconds}


if __name__ == "__main__":
    print(__doc__)  # what runs it
