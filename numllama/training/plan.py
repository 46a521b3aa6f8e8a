"""Resources of a training run: memory by part, FLOPs, messages, time and cost, on one machine or many.

For a shard of N tokens, per layer of width C, with Q = H·D, KV = K·D, F, in elements (not bytes):
    cached for backward    N · (4C + 2Q + 2KV + 3F)        or N · C with recompute; with GELU 2F
    while a layer runs     N · max(C + 4F, 4C + 3Q + 3KV)  gradients of feed-forward or attention, on top of caches; GELU 7F
    while the head runs    3 · rows · V                    rows of logits per chunk, see transformer.CHUNK_LOGITS
A CPU that multiplies bfloat16 keeps all of these in it but the stream, 2C, and GELU's input. SwiGLU's gradients are then C + 6F,
with its inputs in float32, and attention's 4Q + 4KV, with copies in the order of tiles.
FLOPs per token, forward: 2 per weight of a matrix product, and 4·Q per key of attention (causality halves the keys);
backward: twice the products, and 5/2 of attention (Dao et al. 2022: scores are recomputed).
Messages per step, for each of n ranks: (n − 1)/n of all gradients out and as much back; ZeRO-1 sends the same.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from numllama.model import ModelConfig
from numllama.storage.fields import check, number, one_of, optional, whole
from numllama.system.processes import available_cores
from numllama.training.config import RECIPES

BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
LATENCY = 20e-6  # seconds to start a message


@dataclass(frozen=True)
class Gpu:
    """A device: dense FLOP/s, bytes of memory, bytes/s to its neighbours, and a typical price per hour in $."""

    flops: float
    memory: float
    bandwidth: float
    price: float


GPUS = {
    "rtx4090": Gpu(165e12, 24e9, 25e9, 0.5),
    "a100": Gpu(312e12, 80e9, 300e9, 1.8),
    "h100": Gpu(989e12, 80e9, 450e9, 2.5),
    "h200": Gpu(989e12, 141e9, 450e9, 3.0),
    "b200": Gpu(2250e12, 180e9, 900e9, 4.5),
}
CPU = "cpu"  # this machine's
CORE_FLOPS = 150e9  # float32 products in NumPy's OpenBLAS: 145 to 168 GFLOP/s measured per core with AVX-512
BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
TIME_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "s"), (1e-3, "ms"), (1e-6, "us"))


def device(name: str) -> Gpu:
    """A GPU by name, or this machine's CPU."""
    if name != CPU:
        return GPUS[name]
    return Gpu(CORE_FLOPS * available_cores(), machine_memory(), 1e9, 0.0)


def planned_recipe(preset: str, seq_len: int) -> dict[str, object]:
    """The settings of a plan from a preset's own recipe, if it has one."""
    if preset not in RECIPES:
        return {}
    settings, this_machine = RECIPES[preset], {"gpu": CPU} if preset.endswith("-cpu") else {}
    tokens = float(settings.steps * settings.batch_size * seq_len)
    return {"batch_size": settings.batch_size, "tokens": tokens, **this_machine}


def machine_memory() -> float:
    """Bytes of memory of this machine; infinite if the system does not report it."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")


def in_units(value: float, units: Sequence[tuple[float, str]]) -> str:
    """A value in the largest unit not larger than it."""
    size, unit = next((each for each in units if value >= each[0]), units[-1])
    return f"{value / size:,.2f} {unit}"


def flops_per_token(config: ModelConfig, seq_len: int, recompute: bool = False) -> dict[str, float]:
    """FLOPs of the matrix products per token, by ``forward``, ``backward`` and ``recompute``."""
    from numllama.cpu.flash_attention import QUERY_TILE
    from numllama.model.parameters import block_shapes  # here, because the fields of a plan are the command line's flags

    c = config
    met = (c.n_experts_per_token or 1) / (c.n_experts or 1)  # the part of stacked experts that a token meets
    blocks = c.n_layers * sum(prod(shape) * (met if len(shape) == 3 else 1) for shape in block_shapes(c)[0].values())
    head = c.vocab_size * c.dim
    keys = (seq_len + min(seq_len, QUERY_TILE)) / 2  # whole tiles are computed
    attention = 4 * c.n_layers * c.n_heads * c.head_dim * keys
    down = 0 if c.ffn == "moe" else c.n_layers * c.ffn_dim * c.dim  # a layer's last product is not recomputed
    again = 2 * (blocks - down) + attention if recompute else 0
    return {"forward": 2 * (blocks + head) + attention, "backward": 4 * (blocks + head) + 2.5 * attention, "recompute": again}


def activation_bytes(
    config: ModelConfig, rows: int, seq_len: int, recompute: bool, compute_dtype: str = "float32", on_gpu: bool = False
) -> int:
    """Peak memory that forward and backward of a shard hold, excluding weights and gradients."""
    from numllama.model.transformer import CHUNK_LOGITS, CHUNK_LOGITS_GPU

    c, tokens = config, rows * seq_len
    of = element_bytes(compute_dtype, on_gpu)
    size, Q, KV = of.activation, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    # Bytes kept per hidden unit, for backward, and arrays while a layer runs: GELU recomputes its parts.
    gated = 3 * of.low_precision
    kinds = {"swiglu": (gated, of.wide), "geglu": (gated, of.wide + 7), "gelu": (size + of.operand, 7)}
    per_unit, done_wide = (kinds | {"moe": (3 * size, of.wide)})[c.ffn]
    units = c.ffn_dim * (c.n_experts_per_token or 1)  # of those experts that a token passes through
    layer = tokens * (size * 2 * c.dim + of.operand * (2 * c.dim + 2 * Q) + of.low_precision * 2 * KV + per_unit * units)
    kept = c.n_layers * (tokens * c.dim * size if recompute else layer)
    widest = max(c.dim + done_wide * units, 4 * c.dim + of.queries * Q + of.keys * KV)
    doing_layer = size * (tokens * widest + c.ffn_dim * c.dim) + (layer if recompute else 0)
    logits, head = min(tokens * c.vocab_size, CHUNK_LOGITS_GPU if on_gpu else CHUNK_LOGITS), c.vocab_size * c.dim
    doing_head = size * (max(2 * logits, logits + head) + 2 * tokens * c.dim)
    return kept + max(doing_layer + size * head, doing_head)  # the head's gradient waits for the embedding's


class ElementBytes(NamedTuple):
    """Sizes of one number, and how many arrays of float32 a layer's backward has at once.

    Attributes
    ----------
    activation, operand, low_precision : int
        Bytes: of the stream; of an operand of a product; of keys, values and SwiGLU's arrays, which mixed precision rounds.
    wide, queries, keys : int
        Arrays of the width of SwiGLU's, of the queries, and of the keys.
    """

    activation: int
    operand: int
    low_precision: int
    wide: int = 4
    queries: int = 3
    keys: int = 3


def element_bytes(compute_dtype: str, on_gpu: bool) -> ElementBytes:
    """Those of a step. A CPU in bfloat16 needs float32 copies of SwiGLU's inputs; its attention copies tiles, or keys."""
    from numllama.cpu.products import multiplies_bfloat16

    size = BYTES[compute_dtype]
    if on_gpu or compute_dtype != "bfloat16":
        return ElementBytes(size, size, size)
    return ElementBytes(4, 2, 2, 6, 4, 4) if multiplies_bfloat16() else ElementBytes(4, 4, 2, 6, 3, 5)


def memory(
    config: ModelConfig,
    rows: int,
    seq_len: int,
    compute_dtype: str = "float32",
    gpus: int = 1,
    shard_optimizer: bool = False,
    recompute: bool = False,
    on_gpu: bool = True,
) -> dict[str, float]:
    """Bytes by part, per rank, with `rows` sequences at once. ``cache`` is for generation, not training."""
    from numllama.model import count_parameters

    n, size = count_parameters(config), BYTES[compute_dtype]
    whole = max(4, size)  # weights, gradients and moments stay float32 when products are in two bytes
    owned = n / gpus
    parts = {
        "weights": n * whole + (n * size if size < whole else 0),
        "gradients": (n + (owned if gpus > 1 else 0)) * whole,
        "moments": 2 * (owned if shard_optimizer else n) * whole + (owned * whole if shard_optimizer else 0),
        "activations": activation_bytes(config, rows, seq_len, recompute, compute_dtype, on_gpu),
    }
    cache = 2 * config.n_layers * config.n_kv_heads * config.head_dim * seq_len * size
    return {**parts, "all of it": sum(parts.values()), "cache": cache}


KINDS = {
    "gpu": one_of(*GPUS, CPU),
    "compute_dtype": optional(one_of(*BYTES)),
    "rows": optional(whole(1)),
    **dict.fromkeys(("gpus", "per_machine", "batch_size", "seq_len"), whole(1)),
    **dict.fromkeys(("tokens", "network"), number(lambda value: value > 0, "must be positive and finite")),
    "price": optional(number(lambda value: value >= 0, "must not be negative")),
    "mfu": number(lambda value: 0 < value <= 1, "must lie in (0, 1]"),
}


@dataclass(frozen=True)
class Plan:
    """A planned run.

    Attributes
    ----------
    config : ModelConfig
    gpus : int
        Total number of GPUs.
    gpu : str
        rtx4090, a100, h100, h200 or b200; or cpu, this machine's.
    per_machine : int
        GPUs per machine.
    batch_size : int
        Sequences per step, over all GPUs.
    rows : int, optional
        Sequences that a GPU runs at once; gradients accumulate over its part of the batch. Default 1; on a CPU, one shard of
        the batch per core, as in `train`.
    seq_len : int
        Tokens per sequence.
    tokens : float
        Total training tokens.
    compute_dtype : str, optional
        dtype of matrix products and activations: float32, float64, bfloat16 or float16. Default bfloat16; float32 on a CPU.
    shard_optimizer : bool
        Each GPU keeps the moments of only its part of the parameters (ZeRO-1).
    recompute : bool
        Cache less for backward and recompute it.
    mfu : float
        Model FLOPs utilisation: the fraction of a GPU's peak FLOP/s reached while it computes.
    network : float
        Bytes/s between machines, per GPU.
    price : float, optional
        Price per GPU hour; default: a typical rental price.
    """

    config: ModelConfig
    gpus: int = 1
    gpu: str = "h100"
    per_machine: int = 8
    batch_size: int = 512
    rows: int | None = None
    seq_len: int = 2048
    tokens: float = 20e9
    compute_dtype: str | None = None
    shard_optimizer: bool = False
    recompute: bool = False
    mfu: float = 0.4
    network: float = 50e9
    price: float | None = None

    def __post_init__(self) -> None:
        check(vars(self), KINDS)
        if self.seq_len > self.config.max_seq_len:
            raise ValueError(f"seq_len is {self.seq_len}, but the model's max_seq_len is {self.config.max_seq_len}")
        if self.batch_size < self.gpus:
            raise ValueError(f"batch_size is {self.batch_size}, but {self.gpus} GPUs need a sequence each")
        if self.gpu == CPU and self.gpus > 1:
            raise ValueError(f"gpus is {self.gpus}, but cpu is this machine's, and there is only one")
        if self.compute_dtype is None:
            object.__setattr__(self, "compute_dtype", "float32" if self.gpu == CPU else "bfloat16")
        if self.rows is None:
            object.__setattr__(self, "rows", self._shards_at_once() if self.gpu == CPU else 1)

    def _shards_at_once(self) -> int:
        """Number of sequences in the shards that a CPU's cores run at once."""
        from numllama.parallel.shards import shard_count, shard_rows

        shards = shard_count(self.batch_size, self.seq_len)
        return min(available_cores(), shards) * shard_rows(self.batch_size, shards)

    def figures(self) -> dict[str, float]:
        """The derived figures, in FLOPs, bytes, seconds and $."""
        from numllama.model import count_parameters

        kind, flops = device(self.gpu), flops_per_token(self.config, self.seq_len, self.recompute)
        needed, done = flops["forward"] + flops["backward"], sum(flops.values())
        per_step = self.batch_size * self.seq_len
        sequences = -(-self.batch_size // self.gpus)  # of the GPU with the most
        computing = sequences * self.seq_len * done / (kind.flops * self.mfu)
        gradients = 4 * count_parameters(self.config)
        sent = 2 * gradients * (self.gpus - 1) / self.gpus
        bandwidth = kind.bandwidth if self.gpus <= self.per_machine else min(kind.bandwidth, self.network)
        sending = sent / bandwidth + (2 * (self.gpus - 1) * LATENCY if self.gpus > 1 else 0)
        hidden = min(sending / 2, computing * flops["backward"] / done * min(sequences, self.rows or 1) / sequences)
        step = computing + sending - hidden
        steps = -(-self.tokens // per_step)
        price = kind.price if self.price is None else self.price
        return {
            "flops per token": needed, "flops per token, done": done, "computing": computing, "sent": sent, "sending": sending,
            "hidden": hidden, "step": step, "steps": steps, "seconds": steps * step, "tokens per second": per_step / step,
            "cost": steps * step / 3600 * self.gpus * price,
        }  # fmt: skip

    def memory(self) -> dict[str, float]:
        """Bytes per GPU, by part."""
        assert self.rows is not None and self.compute_dtype is not None  # chosen on construction
        how = self.compute_dtype, self.gpus, self.shard_optimizer, self.recompute
        return memory(self.config, self.rows, self.seq_len, *how, on_gpu=self.gpu != CPU)

    def values(self) -> dict[str, object]:
        """All figures, machine-readable."""
        figures = {name.replace(", ", "_").replace(" ", "_"): value for name, value in self.figures().items()}
        return {"memory": {name.replace(" ", "_"): value for name, value in self.memory().items()}, **figures}

    def text(self) -> str:
        """All figures, as text."""
        from numllama.model import count_parameters

        f, kind, parts = self.figures(), device(self.gpu), self.memory()
        fits = "fits" if parts["all of it"] <= kind.memory else f"DOES NOT FIT: {self._advice()}"
        computing, sending, hidden, step = (in_units(f[name], TIME_UNITS) for name in ("computing", "sending", "hidden", "step"))
        many = self.gpus > 1
        lines = [
            f"{count_parameters(self.config):,} parameters, {f['flops per token']:.3g} FLOPs per token"
            + (f" ({f['flops per token, done']:.3g} with recomputation)" if self.recompute else ""),
            f"{self._devices()}: {self.batch_size} x {self.seq_len} tokens a step, {self.compute_dtype}",
            "",
            f"memory of {'this machine' if self.gpu == CPU else 'each GPU'}",
            *(f"  {name:12}{in_units(value, BYTE_UNITS):>14}" for name, value in parts.items() if name != "cache"),
            f"  of {in_units(kind.memory, BYTE_UNITS)}: {fits}",
            f"  (a cache to generate {self.seq_len} tokens: {in_units(parts['cache'], BYTE_UNITS)})",
            "",
            f"a step: {step}" + (f" = computing {computing} + sending {sending} - hidden {hidden}" if many else ""),
            f"  {f['tokens per second']:,.0f} tokens/s in all"
            + (f"; each GPU sends {in_units(f['sent'], BYTE_UNITS)}" if many else ""),
            f"{self.tokens:.3g} tokens: {f['steps']:,.0f} steps, {in_units(f['seconds'], TIME_UNITS)}"
            + (f", about ${f['cost']:,.0f}" if self.gpu != CPU or self.price else ""),
            f"estimated: {self._estimated()}; parameters, FLOPs and memory are counted",
        ]
        return "\n".join(lines)

    def _devices(self) -> str:
        if self.gpu == CPU:
            return f"this machine's CPU, {available_cores()} core(s)"
        return f"{self.gpus} x {self.gpu} on {-(-self.gpus // self.per_machine)} machine(s)"

    def _advice(self) -> str:
        """The unused flags that would save memory."""
        flags = {
            "--shard-optimizer": self.gpus > 1 and not self.shard_optimizer,
            "--recompute": not self.recompute,
            "fewer --rows": (self.rows or 1) > 1,
            "more --gpus": self.shard_optimizer and self.gpus < self.batch_size,
            "--gpus with --shard-optimizer": self.gpus == 1 < self.batch_size and self.gpu != CPU,
        }
        helpful = [flag for flag, helps in flags.items() if helps]
        return f"see {', '.join(helpful)}" if helpful else "it takes a smaller model, or a shorter --seq-len"

    def _estimated(self) -> str:
        """Which figures are estimates, and from what."""
        if self.gpu == CPU:
            return (
                f"time, from {CORE_FLOPS / 1e9:.0f} GFLOP/s of a core (OpenBLAS on AVX-512 in float32; others are slower) "
                f"and the {self.mfu:.0%} of them that --mfu says"
            )
        flops = f"{device(self.gpu).flops / 1e12:,.0f} TFLOP/s"
        return f"time, from the maker's {flops} and the {self.mfu:.0%} of them that --mfu says"
