"""TrainConfig: how a model is trained; and the recipes of the presets."""

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any

from numllama.storage.fields import FLAG, POSITIVE, Kind, check, number, one_of, optional, whole

if TYPE_CHECKING:
    from numllama.model import Parameters, Transformer
    from numllama.optim.optimizer import Optimizer
    from numllama.parallel.group import WorkerGroup

CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "compute_dtype": ("float32", "float64", "bfloat16", "float16"),
    "parallel": ("threads", "mpi", "nccl"),
    "sum_by": ("shard", "rank"),
    "sampling": ("random", "epochs"),
}
OPTIONAL = ("seq_len", "min_lr", "shards", "workers", "compute_dtype", "sum_by", "sampling")
COUNTS = ("steps", "batch_size", "seq_len", "shards", "workers", "eval_every", "eval_batches", "keep")
WHOLE = (*COUNTS, "warmup_steps", "seed")
UNLIMITED = ("clip", "timeout")  # may be infinite, for which None stands in JSON
KINDS = {
    **{name: one_of(*choices) for name, choices in CHOICES.items()},
    **dict.fromkeys(COUNTS, whole(1)),
    **dict.fromkeys(("warmup_steps", "seed"), whole()),
    "lr": POSITIVE,
    **dict.fromkeys(UNLIMITED, Kind(lambda value: POSITIVE.fits(value) or value == inf, POSITIVE.words)),
    **dict.fromkeys(("min_lr", "weight_decay"), number(lambda value: value >= 0, "must be a number that is not negative")),
    **dict.fromkeys(("beta1", "beta2"), number(lambda value: 0 <= value < 1, "must be a number in [0, 1)")),
    **dict.fromkeys(("shard_optimizer", "recompute", "graph", "final_eval"), FLAG),
}
KINDS |= {name: optional(KINDS[name]) for name in OPTIONAL}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. Validated on construction.

    Attributes
    ----------
    steps : int
        Total number of optimizer steps.
    batch_size : int
        Sequences per step.
    seq_len : int
        Tokens per sequence. Default the model's max_seq_len.
    optimizer : str
        ``adamw`` or ``sgd``.
    lr : float
        The highest learning rate, reached after the warm-up.
    min_lr : float
        The learning rate at the end of the cosine. Default a tenth of lr.
    warmup_steps : int
        Steps in which the learning rate rises from zero.
    weight_decay : float
        Decay of matrices towards zero; gains and biases do not decay.
    beta1 : float
        AdamW's memory of gradients; SGD's momentum.
    beta2 : float
        AdamW's memory of squared gradients.
    clip : float
        Gradients are scaled down to this global norm; ``inf`` or None: no clipping.
    shards : int
        Parts that a batch is cut into; they run in parallel on a CPU. It affects the last bits of the result, so it is saved
        with a checkpoint. Default from the batch's shape.
    workers : int
        Threads that run the shards; does not change the result. Default one per core.
    parallel : str
        What runs the shards: ``threads``; ``mpi`` ranks, started by mpirun or srun; or ``nccl``, such ranks with a GPU each.
    shard_optimizer : bool
        Each rank steps its part of the parameters and keeps the moments of that part only (ZeRO-1).
    sum_by : str
        Ranks sum gradients by ``shard``, in the order of a single process and to the same bits, or by ``rank``: each rank sums
        its own shards first, and sends once per step. Default shard; rank with nccl.
    timeout : float
        Seconds that ranks wait for one another; then the job ends, and names the rank that has not answered.
    recompute : bool
        Store less for backward and recompute it: less memory, more time.
    graph : bool
        On a GPU, record a step as a CUDA graph and replay it: less overhead on the host, the same losses.
    eval_every : int
        Steps between evaluations on the validation split, each followed by a checkpoint.
    eval_batches : int
        Batches per such estimate.
    final_eval : bool
        Evaluate on the whole validation split at the end.
    seed : int
        Seed of the initial weights, the batches and dropout.
    compute_dtype : str
        dtype of matrix products and activations: float32, float64, or mixed precision: bfloat16 or float16, with weights,
        gradients and sums in float32; on a CPU bfloat16, if it has units for it (`numllama doctor`). Default bfloat16 on a GPU
        from Ampere (2020) on, else float32.
    sampling : str
        How windows are chosen: at ``random`` places, or in ``epochs``, each window once per epoch. Default ``epochs`` for data of
        several files, else ``random``.
    keep : int
        Number of recent checkpoints to keep, besides the best one. With 2 or more, a damaged newest one can be replaced.
    """

    steps: int = 2000
    batch_size: int = 12
    seq_len: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    min_lr: float | None = None
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 1.0
    shards: int | None = None
    workers: int | None = None
    parallel: str = "threads"
    shard_optimizer: bool = False
    sum_by: str | None = None
    timeout: float = 600.0
    recompute: bool = False
    graph: bool = True
    eval_every: int = 250
    eval_batches: int = 20
    final_eval: bool = True
    seed: int = 0
    compute_dtype: str | None = None
    sampling: str | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        for name in UNLIMITED:
            if getattr(self, name) is None:
                object.__setattr__(self, name, inf)
        check(vars(self), KINDS)
        for name, value in list(vars(self).items()):  # JSON knows no NumPy
            if value is not None and name in KINDS and name not in CHOICES and KINDS[name] is not FLAG:
                object.__setattr__(self, name, int(value) if name in WHOLE else float(value))
        if self.parallel == "threads" and (self.shard_optimizer or self.sum_by):
            raise ValueError("shard_optimizer and sum_by are for ranks: parallel must be mpi or nccl, but is 'threads'")
        if self.parallel != "threads" and self.workers not in (None, 1):
            raise ValueError(f"workers is {self.workers}, but each rank is one worker: start more ranks instead")

    def check_seq_len(self, most: int) -> None:
        """ValueError if sequences are longer than the model's max_seq_len."""
        if self.seq_len is not None and self.seq_len > most:
            raise ValueError(f"seq_len is {self.seq_len}, but the model's max_seq_len is {most}")

    def learning_rate(self, step: int) -> float:
        """The rate of a step, from 1."""
        from numllama.optim import cosine_schedule  # settings alone need no NumPy

        min_lr = self.lr / 10 if self.min_lr is None else self.min_lr
        return cosine_schedule(step, self.lr, min_lr, self.warmup_steps, self.steps)

    def make_optimizer(self, params: "Parameters") -> "Optimizer":
        """The optimizer that these settings describe."""
        from numllama.optim import SGD, AdamW

        if self.optimizer == "sgd":
            return SGD(params, self.lr, momentum=self.beta1, weight_decay=self.weight_decay)
        return AdamW(params, self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay)

    def make_workers(self, model: "Transformer") -> "WorkerGroup":
        """The threads, processes or ranks that these settings describe."""
        from numllama.parallel.launched import make_workers

        return make_workers(model, self.parallel, self.workers, self.shard_optimizer, self.sum_by, self.timeout)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


_DEFAULT = TrainConfig()
RECIPES = {
    "shakespeare-cpu": replace(_DEFAULT, lr=3e-3, min_lr=0.0),
    "shakespeare": replace(_DEFAULT, steps=5000, batch_size=64, lr=1e-3),
}


def recipe(preset: str) -> TrainConfig:
    """The training settings that go with a model preset."""
    return RECIPES.get(preset, _DEFAULT)


TUNING = {"seq_len": 1024, "tokens": 8192, "steps": 16, "epochs": 3.0, "warmup": 0.1, "lr": {"lora": 5e-4, "full": 5e-5}}
TUNING_VALUES = {"weight_decay": 0.0, "beta2": 0.999}  # nothing pulls a tuned model towards zero


def tuning_defaults(full: bool) -> dict[str, Any]:
    """The training settings of fine-tuning, of which some depend on the model and the data: those are given in words."""
    words = {
        "steps": "as --epochs says",
        "lr": f"{TUNING['lr']['full' if full else 'lora']:g} for a dim of 2000, more for less",
        "batch_size": f"{TUNING['tokens']:,} tokens, less where an epoch would have fewer than {TUNING['steps']} steps",
        "seq_len": f"the longest conversation, at most max_seq_len and {TUNING['seq_len']}",
        "warmup_steps": f"{TUNING['warmup']:.0%} of the steps",
        "eval_every": "once an epoch",
    }
    return {**_DEFAULT.to_dict(), **TUNING_VALUES, **words}


def tuning_lr(dim: int, full: bool) -> float:
    """The learning rate of fine-tuning: a narrow model takes larger steps, and an adapter ten times those of all weights.

    Both are what Schulman and Thinking Machines (2025), "LoRA Without Regret", found best for Llama 3, from 1B to 70B. No
    model takes larger steps than one of dim 128.
    """
    return float(f"{TUNING['lr']['full' if full else 'lora'] * (2000 / max(dim, 128)) ** 0.78:.2g}")
