"""ModelConfig: the shape of a model, a reason for each field, and the presets."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, fields
from typing import Any

from numllama.errors import shown
from numllama.rope_types import ROPE_LISTS, ROPE_SCALING
from numllama.storage.fields import (
    FLAG,
    OBJECT,
    POSITIVE,
    TEXT,
    Kind,
    check,
    number,
    one_of,
    optional,
    refuse_unknown,
    require,
    whole,
)  # fmt: skip

CHOICES = {
    "rope_layout": ("half", "interleaved"),
    "qk_norm": (None, "rms", "rms_width", "l2"),
    "norm": ("rmsnorm", "rmsnorm1p", "layernorm"),
    "norm_placement": ("before", "after", "both"),
    "positions": ("rope", "learned", "none"),
    "ffn": ("swiglu", "geglu", "gelu", "moe"),
    "router_score": ("softmax", "sigmoid"),
    "bias": (False, True, "qkv", "attention", "ffn"),
    "init": ("normal", "truncated_normal"),
}
SIZES = ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "max_seq_len", "head_dim")
DERIVED = ("n_kv_heads", "ffn_dim", "head_dim")  # None: derived from other fields
FROM_OTHERS: Any = None  # Any, so that the fields are ints to type checkers, as after __post_init__
NUMBERS = ("norm_eps", "rope_theta", "init_std", "dropout", "embed_scale", "router_aux_loss_coef")
OPTIONAL_NUMBERS = ("local_rope_theta", "attn_scale", "attn_softcap", "logit_softcap")
LAYERS = ("window_layers", "rope_layers")
SOME_LAYERS = Kind(
    lambda value: isinstance(value, list | tuple) and bool(value) and all(map(whole().fits, value)), "must be a list of layers"
)
NOT_NEGATIVE = number(lambda value: value >= 0, "must not be negative")
KINDS = {
    **{name: one_of(*choices) for name, choices in CHOICES.items()},
    **{name: optional(whole(1)) if name in DERIVED else whole(1) for name in SIZES},
    **dict.fromkeys(("n_experts", "n_experts_per_token"), optional(whole(1))),
    **dict.fromkeys(("tie_embeddings", "router_normalised", "router_aux_loss"), FLAG),
    **dict.fromkeys(NUMBERS, POSITIVE),
    **dict.fromkeys(OPTIONAL_NUMBERS, optional(POSITIVE)),
    **dict.fromkeys(LAYERS, optional(SOME_LAYERS)),
    **dict.fromkeys(("sliding_window", "rotary_dim"), optional(whole(1))),
    "dropout": number(lambda value: 0 <= value < 1, "must lie in [0, 1)"),
    "router_aux_loss_coef": NOT_NEGATIVE,
    "rope_scaling": optional(OBJECT),
    "family": optional(TEXT),
}
CLASSIC = {
    **dict.fromkeys((*LAYERS, *OPTIONAL_NUMBERS, "sliding_window", "rotary_dim"), (None,)),
    "embed_scale": (1.0,),
    "norm_placement": ("before",),
    "norm": ("rmsnorm", "layernorm"),
    "ffn": ("swiglu", "gelu"),
    "qk_norm": (None, "rms", "l2"),
}
ROPE_LIST = Kind(
    lambda value: isinstance(value, list | tuple) and all(map(POSITIVE.fits, value)), "must be a list of positive numbers"
)
ROPE_KINDS = {  # the others are positive numbers
    **dict.fromkeys(ROPE_LISTS, ROPE_LIST),
    **dict.fromkeys(("mscale", "mscale_all_dim"), NOT_NEGATIVE),
    "original_max_position_embeddings": number(lambda value: value > 1, "must be larger than 1"),
    "truncate": FLAG,
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Validated on construction: a ValueError names the field.

    Attributes
    ----------
    vocab_size : int
        V, the number of tokens.
    dim : int
        C, the width of the residual stream.
    n_layers : int
        L, the number of blocks, each of attention and feed-forward.
    n_heads : int
        H, the number of query heads.
    n_kv_heads : int
        K, the number of key/value heads, each shared by H/K query heads, which shrinks the KV cache by that factor. Default H.
    ffn_dim : int
        F, the hidden width of the feed-forward. Default 4C for GELU; 8/3 C for SwiGLU, rounded up to a multiple of 8, so that its
        three matrices have as many parameters as two of width 4C.
    max_seq_len : int
        The longest sequence that the model supports.
    head_dim : int
        D, the width of a head. Default C/H.
    norm_eps : float
        Added inside the root of a norm; 1e-5 in Llama 2 and 3, 1e-6 in others.
    rope_theta : float
        Base of RoPE's frequencies; larger for longer contexts (Llama 3: 500000).
    rope_scaling : dict
        Context extension of RoPE, by ``rope_type``: ``linear``, ``dynamic``, ``llama3``, ``yarn`` or ``longrope``, with the
        fields of a config.json (``numllama.rope_types.ROPE_SCALING``); see :func:`numllama.ops.rope_table`. Default none.
    rope_layout : str
        Which components RoPE pairs: ``half`` as in Hugging Face, ``interleaved`` as in Meta's code and llama2.c.
    tie_embeddings : bool
        Use the embedding, transposed, as the head: fewer parameters, better for small models.
    rope_layers : tuple of int
        The layers with RoPE, counted from 0; the others have no positions (SmolLM3). Default all.
    rotary_dim : int
        RoPE turns the first `rotary_dim` components of a head (Phi-3). Default `head_dim`.
    local_rope_theta : float
        Base of RoPE in the layers with a sliding window, without scaling (Gemma 3). Default as in the other layers.
    sliding_window : int
        A token sees this many tokens, itself included (Mistral). Default all earlier ones.
    window_layers : tuple of int
        The layers with that window, counted from 0 (Gemma 2 and 3). Default all.
    qk_norm : str
        Normalise queries and keys: ``rms`` with a gain before RoPE (Qwen3), ``rms_width`` the same over all heads together
        (OLMo 2), ``l2`` without a gain after RoPE (Llama 4).
    attn_scale : float
        Factor of the attention scores. Default ``1/sqrt(head_dim)``.
    attn_softcap, logit_softcap : float
        Keep attention scores, or logits, x within a cap, ``cap * tanh(x / cap)`` (Gemma 2). Default no cap.
    norm : str
        ``rmsnorm``, ``rmsnorm1p`` whose gain is 1 + weight (Gemma), or ``layernorm`` as in GPT-2.
    norm_placement : str
        A block's norm is ``before`` its maps, ``after`` them (OLMo 2), or ``both`` (Gemma 2).
    embed_scale : float
        Factor of the embedding: ``sqrt(dim)`` in Gemma.
    positions : str
        ``rope``, ``learned`` as in GPT-2, or ``none``.
    ffn : str
        ``swiglu``, ``geglu`` (Gemma), ``gelu`` as in GPT-2, or ``moe``: a mixture of experts, SwiGLUs of width `ffn_dim`.
    n_experts, n_experts_per_token : int
        E, the number of experts, and how many of them each token passes through. Default 8 and 2 for ``moe``, as in Mixtral; else
        there are none.
    router_score : str
        The router's probabilities: ``softmax`` over the experts, or ``sigmoid`` of each.
    router_normalised : bool
        Divide the weights of a token's experts by their sum, as Mixtral does.
    router_aux_loss : bool
        Add the load-balancing loss to the model's loss: transformers' ``output_router_logits``.
    router_aux_loss_coef : float
        The factor of the load-balancing loss.
    bias : bool or str
        Biases in the linear layers of the blocks: all as in GPT-2, none as in Llama, or those of ``qkv`` (Qwen2),
        ``attention`` or ``ffn`` alone. Experts have none.
    dropout : float
        Dropout probability for the embedding and each block's output, in training only.
    init_std : float
        Standard deviation of the initial weights.
    init : str
        ``normal`` or ``truncated_normal`` (cut at three standard deviations).
    family : str
        The ``model_type`` of Hugging Face as which the model is saved, if several compute the same. Default the first of them.
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    _: KW_ONLY
    n_kv_heads: int = FROM_OTHERS
    ffn_dim: int = FROM_OTHERS
    max_seq_len: int = 1024
    head_dim: int = FROM_OTHERS
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    rope_layout: str = "half"
    rope_layers: tuple[int, ...] | None = None
    rotary_dim: int | None = None
    local_rope_theta: float | None = None
    sliding_window: int | None = None
    window_layers: tuple[int, ...] | None = None
    tie_embeddings: bool = False
    qk_norm: str | None = None
    attn_scale: float | None = None
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    norm: str = "rmsnorm"
    norm_placement: str = "before"
    embed_scale: float = 1.0
    positions: str = "rope"
    ffn: str = "swiglu"
    n_experts: int = FROM_OTHERS
    n_experts_per_token: int = FROM_OTHERS
    router_score: str = "softmax"
    router_normalised: bool = True
    router_aux_loss: bool = False
    router_aux_loss_coef: float = 0.001
    bias: bool | str = False
    dropout: float = 0.0
    init_std: float = 0.02
    init: str = "normal"
    family: str | None = None

    def __post_init__(self) -> None:
        check(vars(self), KINDS)
        scaling = normalise_rope_scaling(self.rope_scaling)
        if "rope_theta" in scaling:  # from rope_parameters
            object.__setattr__(self, "rope_theta", scaling.pop("rope_theta"))
        object.__setattr__(self, "rope_scaling", scaling if scaling else None)
        for name in NUMBERS + OPTIONAL_NUMBERS:
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))
        if self.head_dim is None and self.dim % self.n_heads:
            raise ValueError(f"dim is {self.dim} and n_heads is {self.n_heads}, but the first must be a multiple of the second")
        defaults = {
            "n_kv_heads": self.n_heads,
            "head_dim": self.dim // self.n_heads,
            "ffn_dim": 4 * self.dim if self.ffn == "gelu" else -(-8 * self.dim // 24) * 8,
        }
        for name in SIZES:
            value = getattr(self, name)
            object.__setattr__(self, name, int(defaults[name] if value is None else value))
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads is {self.n_heads} and n_kv_heads is {self.n_kv_heads}, but the first must be a multiple of the second"
            )
        self._check_experts()
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, but RoPE turns pairs of components and needs an even one")
        self._check_layers()

    def _check_layers(self) -> None:
        """Check what some layers have and others not; what all have is None."""
        if self.rotary_dim is not None and (self.rotary_dim % 2 or self.rotary_dim > self.head_dim):
            raise ValueError(f"rotary_dim is {self.rotary_dim}, but must be even and at most head_dim, which is {self.head_dim}")
        for name in ("window_layers", "local_rope_theta") if self.sliding_window is None else ():
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is {shown(getattr(self, name))}, but without a sliding_window no layer has one")
        for name in ("rope_layers", "local_rope_theta", "rotary_dim") if self.positions != "rope" else ():
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is {shown(getattr(self, name))}, but positions is {self.positions!r}, without RoPE")
        for name in LAYERS:
            layers = tuple(sorted(set(getattr(self, name) or ())))
            if layers and layers[-1] >= self.n_layers:
                raise ValueError(f"{name} holds {layers[-1]}, but the layers are 0..{self.n_layers - 1}")
            object.__setattr__(self, name, layers if 0 < len(layers) < self.n_layers else None)
        object.__setattr__(self, "rotary_dim", None if self.rotary_dim == self.head_dim else self.rotary_dim)
        pairs = (self.rotary_dim or self.head_dim) // 2
        for name, values in (self.rope_scaling or {}).items():
            if name in ROPE_LISTS and len(values) != pairs:
                raise ValueError(f"rope_scaling's {name} has {len(values)} numbers, but RoPE turns {pairs} pairs of components")

    @property
    def is_uniform(self) -> bool:
        """Whether all layers see the same keys at the same positions, without a sliding window."""
        return self.sliding_window is None and self.rope_layers is None

    @property
    def is_classic(self) -> bool:
        """Whether the model has no option but those of Llama and GPT-2, which faster paths for whole models know."""
        return all(getattr(self, name) in choices for name, choices in CLASSIC.items())

    def _check_experts(self) -> None:
        E, k, ffn = self.n_experts, self.n_experts_per_token, shown(self.ffn)
        if self.ffn != "moe":
            if E is not None or k is not None:
                raise ValueError(f"n_experts is {E} and n_experts_per_token is {k}, but ffn={ffn} has no experts")
            if self.router_aux_loss:
                raise ValueError(f"router_aux_loss is True, but ffn={ffn} has no experts")
            return
        E = 8 if E is None else E
        k = min(2, E) if k is None else k
        object.__setattr__(self, "n_experts", int(E))
        object.__setattr__(self, "n_experts_per_token", int(k))
        if k > E:
            raise ValueError(f"n_experts is {E} and n_experts_per_token is {k}, but the first must be at least the second")
        if self.bias in (True, "ffn"):
            raise ValueError(f"bias is {shown(self.bias)}, but experts have no biases")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ModelConfig":
        """A named configuration, with some fields changed."""
        if name not in _PRESET_FIELDS:
            raise ValueError(f"preset is {shown(name)}, but must be one of {', '.join(_PRESET_FIELDS)}")
        return cls(**{**_PRESET_FIELDS[name], **changes})  # derived sizes follow the changes

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of :meth:`to_dict`; an unknown key is a ValueError, because ignoring it would change the model."""
        refuse_unknown(values, (field.name for field in fields(cls)), "unknown configuration key(s)")
        require(values, ("vocab_size", "dim", "n_layers", "n_heads"), "the configuration")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def normalise_rope_scaling(value: Mapping | None) -> dict:
    """Normalise RoPE scaling from any spelling used in checkpoints; an empty dictionary means none.

    Accepts ``rope_scaling`` with ``rope_type`` or the older ``type``, or the newer ``rope_parameters``, which also holds
    ``rope_theta``. Unknown types and keys are refused: ignoring them would give wrong positions.
    """
    if value is None:
        return {}
    kind = value.get("rope_type", value.get("type", "llama3"))
    if not isinstance(kind, str) or kind not in ROPE_SCALING:
        known = ", ".join(map(repr, ROPE_SCALING))
        raise ValueError(f"rope_scaling is of type {shown(kind)}, but only {known} are known")
    value = {key: each for key, each in value.items() if each is not None}  # None is a default in checkpoints
    needed, others = ROPE_SCALING[kind]
    keys = (*needed, *others)
    require(value, needed, "rope_scaling")
    refuse_unknown(value, (*keys, "rope_type", "type", "rope_theta"), f"rope_scaling of type {kind!r} has unknown key(s)")
    check(value, {key: ROPE_KINDS.get(key, POSITIVE) for key in (*keys, "rope_theta")}, prefix="rope_scaling's ")
    if kind == "llama3" and not value["high_freq_factor"] > value["low_freq_factor"]:
        raise ValueError("rope_scaling's high_freq_factor must be larger than its low_freq_factor")
    theta = {"rope_theta": float(value["rope_theta"])} if "rope_theta" in value else {}
    changes = kind != "default" and not (kind == "linear" and value["factor"] == 1)
    lists = {key: list(value[key]) for key in ROPE_LISTS if key in keys}
    return ({"rope_type": kind, **{key: value[key] for key in keys if key in value}, **lists} if changes else {}) | theta


def _llama31(factor: float) -> dict:
    return dict(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


_LLAMA_3 = dict(vocab_size=128256, dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, ffn_dim=14336, rope_theta=500000.0)
_STORIES = dict(tie_embeddings=True, rope_layout="interleaved")

_PRESET_FIELDS = {
    # tinyshakespeare has 65 characters; training on other data changes vocab_size
    "shakespeare-cpu": dict(vocab_size=65, dim=128, n_layers=4, n_heads=4, ffn_dim=344, max_seq_len=64, init_std=0.05),
    "shakespeare": dict(vocab_size=65, dim=384, n_layers=6, n_heads=6, ffn_dim=1024, max_seq_len=256, dropout=0.2),
    "50m": dict(vocab_size=32000, dim=512, n_layers=8, n_heads=8),
    "117m": dict(vocab_size=50257, dim=768, n_layers=12, n_heads=12, tie_embeddings=True),
    "345m": dict(vocab_size=50257, dim=1024, n_layers=24, n_heads=16, ffn_dim=2736, tie_embeddings=True),
    # llama2.c's models, trained on TinyStories
    "stories260k": dict(vocab_size=512, dim=64, n_layers=5, n_heads=8, n_kv_heads=4, ffn_dim=172, max_seq_len=512, **_STORIES),
    "stories15m": dict(vocab_size=32000, dim=288, n_layers=6, n_heads=6, ffn_dim=768, max_seq_len=256, **_STORIES),
    "llama-2-7b": dict(vocab_size=32000, dim=4096, n_layers=32, n_heads=32, ffn_dim=11008, max_seq_len=4096),
    "llama-3-8b": dict(**_LLAMA_3, max_seq_len=8192),
    "llama-3.1-8b": dict(**_LLAMA_3, max_seq_len=131072, rope_scaling=_llama31(8.0)),
    "llama-3.2-1b": _LLAMA_3
    | dict(dim=2048, n_layers=16, ffn_dim=8192, max_seq_len=131072, rope_scaling=_llama31(32.0), tie_embeddings=True),
}
PRESETS = {name: ModelConfig(**values) for name, values in _PRESET_FIELDS.items()}
