"""From a bigram to a Llama, one change at a time.

    python examples/llamafy.py                                        # every rung of the ladder, one seed
    python examples/llamafy.py --rungs gpt2 rope --seeds 0 1 2        # some rungs, and the spread between seeds
    python examples/llamafy.py --steps 5000 --device cuda

Each rung changes one thing, named in RUNGS. One of its widths is chosen so that all rungs have the same number of parameters,
within 2 %. All are trained alike, on the same tokens of Shakespeare in the same order. The first rungs have a few lines of
forward and backward of their own; from "block" on, a rung is numllama's Transformer with another configuration.

OUT/ladder.json holds all results, OUT/ladder.png plots the validation losses.
"""

import argparse
import json
import statistics
import sys
import time
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import numllama as nl
from numllama import ops
from numllama.backend import Array, array_module, xp_of
from numllama.data.shakespeare import shakespeare_dataset
from numllama.install import install_command
from numllama.model.block import merge_heads, split_heads
from numllama.model.parameters import Gradients, Parameters
from numllama.storage.files import write_text

PARAMETERS = 460_000                                                   # of every rung
SEQ_LEN, BATCH_SIZE, LEARNING_RATE = 256, 8, 6e-3


# ------------------------------------------------------------------------------------------------ bigram


class Bigram:
    """Predict the next token from the current one only: a row of `embed`, times `head`.

    That is a V x V table, factored into two matrices. It has more columns than the table needs, to have as many parameters as the
    other rungs; they gain nothing, because the model still sees a single token.
    The methods are those that a `Trainer` needs. The next rungs put something between embedding and head.
    """

    adapter = None
    trainable = weights = property(lambda self: self.params)

    def __init__(self, config: nl.ModelConfig, *, seed: int = 0, device: str = "cpu", dtype: str = "float32") -> None:
        self.config, self.device, self.xp = config, device, array_module(device)
        self.dtype = self.compute_dtype = np.dtype(dtype)
        shapes, rng = self.shapes(config), np.random.default_rng(seed)
        values = [config.init_std * rng.standard_normal(shape) * (len(shape) == 2) for shape in shapes.values()]
        self.params = Parameters(shapes, self.xp.asarray(np.concatenate([v.ravel() for v in values]), dtype=self.dtype))

    @classmethod
    def shapes(cls, c: nl.ModelConfig) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter; matrices first."""
        return {"embed": (c.vocab_size, c.dim), "head": (c.vocab_size, c.dim), **cls.between(c)}

    @staticmethod
    def between(c: nl.ModelConfig) -> dict[str, tuple[int, ...]]:
        return {}

    def forward(self, x: Array) -> tuple[Array, Any]:                  # x (B, T, C)
        return x, None

    def backward(self, dout: Array, cache: Any, g: Gradients) -> Array:
        """dx (B, T, C); adds the gradients of the parameters in between to `g`."""
        return dout

    def loss(self, tokens: Array, targets: Array, *, count: int | None = None, **unused: Any) -> Array:
        return self._run(tokens, targets, count)[0]

    def loss_and_grads(
        self, tokens: Array, targets: Array, *, grads: Gradients | None = None, count: int | None = None, **unused: Any
    ) -> tuple[Array, Gradients]:
        """Like :meth:`numllama.Transformer.loss_and_grads`; options that these models lack, such as dropout, are ignored."""
        g = self.params.zeros_like() if grads is None else grads
        loss, embed_cache, cache, head_cache, loss_cache = self._run(tokens, targets, count)
        dlogits = ops.cross_entropy_backward(1.0, loss_cache)          # (B, T, V)
        dx, dhead = ops.linear_backward(dlogits, head_cache)
        g.add("head", dhead)
        dx = self.backward(dx, cache, g)                               # (B, T, C)
        with g.adding_to("embed") as total:
            ops.embedding_backward(dx, embed_cache, into=total)
        return loss, g

    def _run(self, tokens: Array, targets: Array, count: int | None) -> tuple:
        x, embed_cache = ops.embedding_forward(self.xp.asarray(tokens), self.params["embed"])
        x, cache = self.forward(x)
        logits, head_cache = ops.linear_forward(x, self.params["head"])
        loss, loss_cache = ops.cross_entropy_forward(logits, self.xp.asarray(targets), count=count)
        return loss, embed_cache, cache, head_cache, loss_cache


# ------------------------------------------------------------------------------------------------ a recurrent network


class Rnn(Bigram):
    """Remember the past only in a state that every token updates."""

    @staticmethod
    def between(c):
        return {"w_x": (c.dim, c.dim), "w_h": (c.dim, c.dim), "bias": (c.dim,)}

    def forward(self, x):
        return rnn_forward(x, self.params["w_x"], self.params["w_h"], self.params["bias"])

    def backward(self, dout, cache, g):
        dx, *gradients = rnn_backward(dout, cache)
        return added(g, ("w_x", "w_h", "bias"), gradients, dx)


def rnn_forward(x: Array, w_x: Array, w_h: Array, bias: Array) -> tuple[Array, tuple]:
    """h[t] = tanh(w_x x[t] + w_h h[t-1] + bias), and h = 0 before the first token (Elman 1990)."""
    B, T, _ = x.shape
    a, input_cache = ops.linear_forward(x, w_x, bias)                  # (B, T, C)
    h = xp_of(x).zeros((B, T + 1, len(w_h)), x.dtype)                  # from h[:, 0] = 0
    for t in range(T):
        h[:, t + 1] = xp_of(x).tanh(a[:, t] + h[:, t] @ w_h.T)
    return h[:, 1:], (input_cache, w_h, h)


def rnn_backward(dout: Array, cache: tuple) -> tuple[Array, ...]:
    """Through time, from the last token to the first: dx, dw_x, dw_h, dbias.

    A state feeds the output and the next state. With z the argument of the tanh, and dz = 0 after the last token,
        dz[t] = (dout[t] + w_hᵀ dz[t+1]) ⊙ (1 - h[t]²)
    All tokens share the weights, so the weights' gradients are sums over t.
    """
    input_cache, w_h, h = cache
    dz, dh = xp_of(h).empty_like(dout), 0
    for t in reversed(range(dout.shape[1])):
        dz[:, t] = (dout[:, t] + dh) * (1 - h[:, t + 1] ** 2)
        dh = dz[:, t] @ w_h                                            # (B, C)
    dx, dw_x, dbias = ops.linear_backward(dz, input_cache)
    _, dw_h = ops.linear_backward(dz, (h[:, :-1], w_h, None))
    return dx, dw_x, dw_h, dbias


# ------------------------------------------------------------------------------------------------ attention only


class Heads(Bigram):
    """Causal attention between embedding and head; learned positions, because attention ignores order."""

    @staticmethod
    def between(c):
        return {"pos_embed": (c.max_seq_len, c.dim), **dict.fromkeys(("wq", "wk", "wv", "wo"), (c.dim, c.dim))}

    def forward(self, x):
        w = self.params
        return heads_forward(x + w["pos_embed"][: x.shape[1]], w["wq"], w["wk"], w["wv"], w["wo"], self.config.n_heads)

    def backward(self, dout, cache, g):
        dx, *gradients = heads_backward(dout, cache)
        with g.adding_to("pos_embed") as total:
            total[: dx.shape[1]] += dx.sum(0)
        return added(g, ("wq", "wk", "wv", "wo"), gradients, dx)


def heads_forward(x: Array, wq: Array, wk: Array, wv: Array, wo: Array, n_heads: int) -> tuple[Array, tuple]:
    """wo · attention(wq · x, wk · x, wv · x), the width split into heads."""
    maps = [ops.linear_forward(x, w) for w in (wq, wk, wv)]            # (B, T, C) each
    heads = (split_heads(out, n_heads) for out, _ in maps)             # (B, H, T, D) each
    mixed, attention_cache = ops.flash_attention_forward(*heads)
    out, out_cache = ops.linear_forward(merge_heads(mixed), wo)        # (B, T, C)
    return out, ([cache for _, cache in maps], attention_cache, out_cache, n_heads)


def heads_backward(dout: Array, cache: tuple) -> tuple[Array, ...]:
    """dx, dwq, dwk, dwv, dwo."""
    map_caches, attention_cache, out_cache, n_heads = cache
    dmixed, dwo = ops.linear_backward(dout, out_cache)
    dmaps = ops.flash_attention_backward(split_heads(dmixed, n_heads), attention_cache)
    back = [ops.linear_backward(merge_heads(d), cache) for d, cache in zip(dmaps, map_caches, strict=True)]
    return sum(dx for dx, _ in back), *(dw for _, dw in back), dwo


def added(g, names, gradients, dx):
    """Each gradient added to its buffer; dx."""
    for name, gradient in zip(names, gradients, strict=True):
        g.add(name, gradient)
    return dx


# ------------------------------------------------------------------------------------------------ the ladder


@dataclass(frozen=True)
class Rung:
    """One step up the ladder: the change, described and as configuration; other settings stay as on the rung below."""

    name: str
    changed: str
    model: type
    config: dict[str, Any]
    width: str                                                         # the field that is adjusted to equalise parameters


RUNGS = [
    Rung("bigram", "the next token from this one alone", Bigram, {}, "dim"),
    Rung("rnn", "a state carries what came before: Elman's recurrent network",
         Rnn, {}, "dim"),
    Rung("head", "in its place one causal attention head, which looks back itself; "
         "learned positions", Heads, {}, "dim"),
    Rung("heads", "four heads share that width", Heads, dict(n_heads=4), "dim"),
    Rung("block", "a GPT-2 block: residual stream, LayerNorm, feed-forward with GELU",
         nl.Transformer, dict(dim=192), "ffn_dim"),
    Rung("gpt2", "four such blocks, each half as wide: a GPT-2",
         nl.Transformer, dict(dim=96, n_layers=4), "ffn_dim"),
    Rung("rmsnorm", "RMSNorm in place of LayerNorm: no mean, no bias",
         nl.Transformer, dict(norm="rmsnorm"), "ffn_dim"),
    Rung("rope", "RoPE in place of learned positions",
         nl.Transformer, dict(positions="rope"), "ffn_dim"),
    Rung("swiglu", "SwiGLU in place of GELU: a Llama 2",
         nl.Transformer, dict(ffn="swiglu"), "ffn_dim"),
    Rung("gqa", "two query heads share keys and values: a Llama 3",
         nl.Transformer, dict(n_kv_heads=2), "ffn_dim"),
    Rung("qk-norm", "RMSNorm of queries and keys: a Qwen 3",
         nl.Transformer, dict(qk_norm="rms"), "ffn_dim"),
]
START = dict(
    dim=4, n_layers=1, n_heads=1, norm="layernorm", positions="learned", ffn="gelu", max_seq_len=SEQ_LEN, init_std=0.05
)  # fmt: skip


def config_of(rung: Rung, vocab_size: int) -> nl.ModelConfig:
    """All changes up to a rung, and the width (a multiple of 4, for the heads) that comes closest to PARAMETERS."""
    fields = dict(START, vocab_size=vocab_size)
    for below in RUNGS[: RUNGS.index(rung) + 1]:
        fields |= below.config

    def with_width(width: int) -> nl.ModelConfig:
        return nl.ModelConfig(**fields | {rung.width: width})

    def surplus(width: int) -> int:
        return count_parameters(rung, with_width(width)) - PARAMETERS

    widths = range(4, PARAMETERS, 4)
    i = bisect_left(widths, 0, key=surplus)                            # the first with too many parameters
    return with_width(min(widths[max(0, i - 1) : i + 1], key=lambda width: abs(surplus(width))))


def count_parameters(rung: Rung, config: nl.ModelConfig) -> int:
    if rung.model is nl.Transformer:
        return nl.count_parameters(config)
    return sum(int(np.prod(shape)) for shape in rung.model.shapes(config).values())


def cache_bytes(rung: Rung, config: nl.ModelConfig) -> int:
    """Bytes that generation caches per token, in float32: a key and a value in every layer. A recurrent state does not grow."""
    attends = rung.model in (Heads, nl.Transformer)
    return attends * 2 * config.n_layers * config.n_kv_heads * config.head_dim * 4


# ------------------------------------------------------------------------------------------------ training


def train(rung: Rung, data: nl.Dataset, settings: nl.TrainConfig, device: str) -> dict[str, Any]:
    """Train one rung with one seed."""
    start = time.perf_counter()
    model = rung.model(config_of(rung, data.vocab_size), seed=settings.seed, device=device)
    trainer = nl.Trainer(model, data, settings)
    try:
        reports = list(trainer)
        loss = trainer.evaluate()
    finally:
        trainer.close()
    return {
        "seed": settings.seed,
        "validation_loss": loss,
        "seconds": round(time.perf_counter() - start, 1),
        "tokens_per_second": statistics.median(report.tokens_per_second for report in reports),
        "curve": [[report.step, round(report.val_loss, 4)] for report in reports if report.val_loss is not None],
    }


def about(rung: Rung, vocab_size: int) -> dict[str, Any]:
    """A rung's sizes, without results yet."""
    config = config_of(rung, vocab_size)
    sizes = {"parameters": count_parameters(rung, config), "cache_bytes": cache_bytes(rung, config)}
    return {"name": rung.name, "changed": rung.changed, **sizes, rung.width: getattr(config, rung.width), "runs": []}


def table(rungs: list[dict]) -> str:
    """A Markdown table with a row per rung; ± is the standard deviation over seeds."""
    head = "| rung | parameters | cache, bytes/token | validation loss | tokens/s | what changed |"
    lines = [head, "|---|--:|--:|--:|--:|---|"]
    for rung in rungs:
        losses = [run["validation_loss"] for run in rung["runs"]]
        spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
        speed = statistics.median(run["tokens_per_second"] for run in rung["runs"])
        cells = f"{rung['parameters']:,}", f"{rung['cache_bytes']:,}", f"{statistics.mean(losses):.3f}{spread}", f"{speed:,.0f}"
        lines.append(f"| {rung['name']} | {' | '.join(cells)} | {rung['changed']} |")
    return "\n".join(lines)


def minutes(rungs: list[dict]) -> float:
    """Minutes to train all rungs with one seed, averaged over seeds."""
    return sum(statistics.mean(run["seconds"] for run in rung["runs"]) for rung in rungs) / 60


def draw(rungs: list[dict]) -> Any:
    """A matplotlib figure: each rung's mean validation loss over training, with a band for its seeds."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for rung, color in zip(rungs, colormaps["turbo"](np.linspace(0.05, 0.95, len(rungs))), strict=True):
        steps = [step for step, _ in rung["runs"][0]["curve"]]
        losses = np.array([[loss for _, loss in run["curve"]] for run in rung["runs"]])
        axes.plot(steps, losses.mean(0), color=color, linewidth=1.3, label=rung["name"])
        axes.fill_between(steps, losses.min(0), losses.max(0), color=color, alpha=0.25, linewidth=0)
    axes.set(xlabel="step", ylabel="validation loss (nats per character)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def climb(names: list[str], data: nl.Dataset, seeds: list[int], settings: dict[str, Any], device: str, out: Path) -> list[dict]:
    """Train the rungs, seed by seed; each result is written to disk immediately."""
    configs = [nl.TrainConfig(**settings, seed=seed) for seed in seeds]
    array_module(device)                                               # check both before writing anything
    chosen = [rung for rung in RUNGS if rung.name in names]
    results = [about(rung, data.vocab_size) for rung in chosen]
    if (out / "ladder.json").exists():
        raise ValueError(f"{out} already holds results: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    for config in configs:
        for rung, result in zip(chosen, results, strict=True):
            run = train(rung, data, config, device)
            result["runs"].append(run)
            print(f"{rung.name}, seed {config.seed}: {run['validation_loss']:.4f}", flush=True)
            whole = {"data": data.name, "settings": settings, "rungs": [one for one in results if one["runs"]]}
            write_text(out / "ladder.json", json.dumps(whole) + "\n")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [rung.name for rung in RUNGS]
    parser.add_argument("--data", type=Path, help="a text file; default tinyshakespeare, cached or downloaded")
    parser.add_argument("--rungs", nargs="+", choices=names, default=names, help="default all")
    parser.add_argument("--steps", type=int, default=2000, help=f"steps of {BATCH_SIZE} x {SEQ_LEN} tokens; default 2000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default 0")
    parser.add_argument("--lr", type=float, default=LEARNING_RATE, help=f"maximum learning rate; default {LEARNING_RATE}")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"), help="default runs/ladder")
    args = parser.parse_args()
    settings = dict(
        steps=args.steps, batch_size=BATCH_SIZE, lr=args.lr, min_lr=0.0, warmup_steps=min(100, max(0, args.steps) // 10),
        eval_every=max(1, args.steps // 20), eval_batches=8, compute_dtype="float32",
    )  # fmt: skip
    try:
        nl.TrainConfig(**settings)
        data, line = (nl.load_dataset(args.data), f"DATA: {args.data}") if args.data else shakespeare_dataset()
        print(line, flush=True)
        results = climb(args.rungs, data, args.seeds, settings, args.device, args.out)
    except (nl.NumllamaError, ValueError, OSError) as error:
        print(f"llamafy.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(table(results), f"One seed took {minutes(results):.1f} minutes.", sep="\n\n")
    try:
        draw(results).savefig(args.out / "ladder.png")
    except ImportError:
        print(f"no plot: it needs {install_command('plot')}")


if __name__ == "__main__":
    main()
