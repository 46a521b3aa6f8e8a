"""Every value inside a model of any family, and its gradient: recorded while the model's own forward and backward run.

    run = forward(model, tokens)                         # run.values["layer 0: head_outputs"], run.logits
    gradients = run.backward(dlogits)                    # by the same names

The layers of :mod:`numllama.model` call ops, and :mod:`numllama.observing` shows each of those calls: what a forward op returns
is a value, and what its backward is given first is that value's gradient. The two belong together because they share a
cache. The residual stream, which not every model computes by an op, is what goes in and out of a block. Scores and attention,
which flash attention never stores, are computed from its queries, keys and values.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from numllama import ops
from numllama.backend import Array, to_numpy, xp_of
from numllama.errors import shown
from numllama.model.block import (
    attention_block_backward,
    attention_block_forward,
    ffn_block_backward,
    ffn_block_forward,
    projection_groups,
)
from numllama.model.config import ModelConfig
from numllama.model.context import Context
from numllama.model.experts import with_balance
from numllama.model.parameters import FlatTensors, Gradients, LayerGradients
from numllama.model.stages import ADD_NORM, capped_backward
from numllama.model.transformer import Transformer
from numllama.observing import observing
from numllama.ops.intervals import fold_groups, visible_keys
from numllama.ops.softmax import SoftmaxCache

Edits = Mapping[str, Callable[[np.ndarray], np.ndarray]]


class Step(NamedTuple):
    """One op of a block: the names of what it makes, and of the inputs that no other op is seen to make."""

    outputs: tuple[str | None, ...] = ()
    inputs: tuple[str | None, ...] = ()


class Seen(NamedTuple):
    """A forward op that has run: its place, its names, its arguments and its cache, whose id is then this op's alone."""

    at: str
    step: Step
    args: tuple
    cache: Any


# ------------------------------------------------------------------------------------------------ the ops of a block


def attention_steps(context: Context) -> list[Step]:
    """The ops of an attention block in the order of forward."""
    c, has_rope = context.config, context.cos is not None
    turned = ("q_rotated", "k_rotated") if has_rope else (None, None)
    norms = [Step(("q_norm",)), Step(("k_norm",))] if c.qk_norm in ("rms", "rms_width") else []
    names = {"wq": "q", "wk": "k", "wv": "v"}
    maps = [Step(tuple(names[w] for w in group)) for group in projection_groups(context)]
    steps = [*_first_norm(c, "attn_norm"), *maps, *norms]
    steps += [Step()] if has_rope else []  # it turns some components of q and k, in place: the next op's inputs are the result
    if c.qk_norm == "l2":
        steps += [Step(("q_norm",), turned[:1]), Step(("k_norm",), turned[1:])]
        turned = (None, None)
    return [*steps, Step(("head_outputs",), turned), Step(("attn_out",)), *_last_norm(c, "attn_post_norm")]


def ffn_steps(config: ModelConfig) -> list[Step]:
    """The ops of a feed-forward block in the order of forward."""
    maps = {"gelu": ("up",), "moe": ()}.get(config.ffn, ("gate", "up"))
    steps = _first_norm(config, "ffn_norm") + ([Step(maps), Step((config.ffn,))] if maps else [])
    return [*steps, Step(("ffn_out", None) if config.ffn == "moe" else ("ffn_out",)), *_last_norm(config, "ffn_post_norm")]


def _first_norm(c: ModelConfig, name: str) -> list[Step]:
    if c.norm_placement == "after":
        return []
    return [Step((name,) if c.norm == "layernorm" else (None, name))]  # RMSNorm is one op with the sum before it


def _last_norm(c: ModelConfig, name: str) -> list[Step]:
    return [] if c.norm_placement == "before" else [Step((name,))]


# ------------------------------------------------------------------------------------------------ forward


def forward(
    model: Transformer, tokens: Array, *, only: Callable[[str], bool] | None = None, edits: Edits | None = None
) -> "Run":
    """Run tokens through a model and keep what is computed on the way.

    Parameters
    ----------
    model : Transformer
        Of any family, without an adapter.
    tokens : integer array, shape (B, T)
    only : callable, optional
        Whether to keep the value of this name; default all.
    edits : mapping of str to callable, optional
        What to do to a value before the model goes on with it: ``{"layer 1: head_outputs": lambda value: 0 * value}``. All values
        but scores, attention and the router's may be edited. Such a run has no backward.

    Returns
    -------
    Run
    """
    check_no_adapter(model)
    run = Run(model, model._check_tokens(tokens), only or (lambda name: True), dict(edits or {}))
    run._forward()
    return run


def check_no_adapter(model: Transformer) -> None:
    """Raise ValueError for a model with an adapter."""
    if model.adapter is not None:
        raise ValueError("the model has an adapter, whose values have no names: call merge_adapter() first")


class Run:
    """A model's run: see :func:`forward`.

    Attributes
    ----------
    values : dict of str to array
        In the order of forward: ``embedding``, ``layer 0: attn_norm``, ..., ``norm``, ``logits``. Hidden keys' scores are zeros.
    logits : array, shape (B, T, V)
    """

    def __init__(self, model: Transformer, tokens: Array, only: Callable[[str], bool], edits: Edits) -> None:
        self.model, self.tokens, self.values, self.gradients = model, tokens, {}, {}
        self.context = model._context(tokens)
        self._only, self._edits, self._unused = only, edits, set(edits)
        self._seen: dict[int, Seen] = {}                               # by the id of the cache
        self._caches: list[tuple[Any, Any]] = []                       # of each layer: attention, feed-forward
        self._at, self._steps = "", iter(())

    # -------------------------------------------------------------------------------------------- forward

    def _forward(self) -> None:
        model, last = self.model, self.model.config.n_layers - 1
        x, (branch, self._embed_cache) = None, model._embed_forward(self.tokens, self.context)     # (B, T, C)
        x, branch = self._stream("embedding", x, branch)
        for i, w in enumerate(model._blocks()):
            at = f"layer {i}: "
            with self._block(at, attention_steps(self.context.for_layer(i))):
                (x, branch), attention_cache = attention_block_forward(x, branch, w, self.context, i)
            x, branch = self._stream(f"{at}after_attention", x, branch)
            with self._block(at, ffn_steps(model.config)):
                (x, branch), ffn_cache = ffn_block_forward(x, branch, w, self.context, i)
            x, branch = self._stream(f"{at}after_ffn", x, branch)
            self._caches.append((attention_cache, ffn_cache))
        (_, n), self._norm_cache = model._norm(x, branch, self.context)
        self._keep("norm", n)
        self.logits, self._head_caches = model._logits(n)              # (B, T, V)
        self._keep("logits", self.logits)
        if self._unused:
            raise ValueError(f"{shown(min(self._unused))} is no value that can be edited in this model of {last + 1} layers")

    def _stream(self, name: str, x: Array | None, branch: Array) -> tuple[Array | None, Array]:
        """Keep the sum, which the next block computes first; an edited one begins the stream again."""
        if name not in self._edits:
            if self._only(name):
                self.values[name] = _copied(branch if x is None else x + branch)
            return x, branch
        total = branch.copy() if x is None else x + branch
        self._keep(name, total)
        return None, total

    def _keep(self, name: str, value: Array) -> None:
        """Edit a value in place, and keep it."""
        if name in self._edits:
            value[...] = xp_of(value).asarray(self._edits[name](_copied(value)))
            self._unused.discard(name)
        if self._only(name):
            self.values[name] = _copied(value)

    # -------------------------------------------------------------------------------------------- ops, as they run

    def _block(self, at: str, steps: list[Step]) -> Any:
        self._at, self._steps = at, iter(steps)
        return observing(self._observe_forward)

    def _observe_forward(self, op: Callable, args: tuple, kwargs: dict) -> Any:
        if not op.__module__.startswith(ops.__name__):                 # rounding
            return _unobserved(op, args, kwargs)
        at, step = self._at, next(self._steps)
        is_attention, is_mixture = "head_outputs" in step.outputs, op is ops.mixture_of_experts_forward
        with observing(self._observe_router if is_mixture else None):
            for name, value in _named(step.inputs, args):
                self._keep(at + name, value)
            if is_attention:
                self._keep_attention(at, _dense_arguments(op, args))
            result, cache = op(*args, **kwargs)
        for name, value in _named(step.outputs, result):
            self._keep(at + name, value)
        self._seen[id(cache)] = Seen(at, step, _dense_arguments(op, args) if is_attention else args, cache)
        return result, cache

    def _observe_backward(self, op: Callable, args: tuple, kwargs: dict) -> Any:
        if not op.__module__.startswith(ops.__name__):
            return _unobserved(op, args, kwargs)
        at, step, forward_args, _ = self._seen[id(args[1])]
        self._at = at
        with observing(self._observe_router if op is ops.mixture_of_experts_backward else None):
            self.gradients |= {at + name: _copied(dout) for name, dout in _named(step.outputs, args[0])}
            if "head_outputs" in step.outputs:
                self._keep_attention_gradients(at, args[0], forward_args)
            result = op(*args, **kwargs)
        self.gradients |= {at + name: _copied(dx) for name, dx in _named(step.inputs, result)}
        return result

    def _observe_router(self, op: Callable, args: tuple, kwargs: dict) -> Any:
        """Of the ops inside of a mixture, the router's: the experts' own have only some of the tokens."""
        if op in (ops.mixture_of_experts_forward, ops.mixture_of_experts_backward):
            return vars(op)["reference"](*args, **kwargs)              # whose ops come here too
        result, shape = _unobserved(op, args, kwargs), (*self.tokens.shape, -1)
        if op is ops.router_forward:
            values = {f"{self._at}router": args[0], f"{self._at}expert_weights": result[0][0]}
            self.values |= {name: _copied(x).reshape(shape) for name, x in values.items() if self._only(name)}
        if op is ops.router_backward:
            values = {"router": result, "expert_weights": args[0][0]}
            self.gradients |= {self._at + name: _copied(x).reshape(shape) for name, x in values.items()}
        return result

    def _keep_attention(self, at: str, args: tuple) -> None:
        if not (self._only(f"{at}attention") or self._only(f"{at}scores")):
            return
        visible, scores, capped, p = dense_attention(*args)
        capped = {} if capped is None else {"capped_scores": xp_of(p).where(visible, capped, 0)}
        values = {"scores": xp_of(p).where(visible, scores, 0), **capped, "attention": p}
        self.values |= {at + name: _copied(value) for name, value in values.items() if self._only(at + name)}

    def _keep_attention_gradients(self, at: str, dout: Array, args: tuple) -> None:
        v, (visible, scores, capped, p) = args[2], dense_attention(*args)
        K = v.shape[1]
        dp = (fold_groups(dout, K) @ v.swapaxes(-1, -2)).reshape(p.shape)                      # (B, H, T, S)
        ds = ops.softmax_backward(dp, SoftmaxCache(p))
        if capped is not None:
            self.gradients[f"{at}capped_scores"] = _copied(ds)
            ds = ops.softcap_backward(ds, ops.softcap_forward(scores, args[7])[1])
        self.gradients[f"{at}scores"], self.gradients[f"{at}attention"] = _copied(ds), _copied(xp_of(p).where(visible, dp, 0))

    # -------------------------------------------------------------------------------------------- backward

    def loss_and_grads(self, targets: Array) -> tuple[float, FlatTensors, dict[str, np.ndarray]]:
        """The loss, and its gradients with respect to the parameters and to the values."""
        targets = self.model._check_targets(targets, self.tokens)
        loss, cache = ops.cross_entropy_forward(self.logits, targets)
        loss = with_balance(loss, self.context, targets)
        grads = self.model.params.zeros_like()
        return float(loss), grads, self.backward(ops.cross_entropy_backward(1.0, cache), grads)

    def backward(self, dlogits: Array, grads: Gradients | None = None) -> dict[str, np.ndarray]:
        """The gradient of a number with respect to every value, from its gradient with respect to the logits (B, T, V).

        Parameters
        ----------
        dlogits : array, shape (B, T, V)
        grads : Gradients, optional
            Where the parameters' gradients are added; default nowhere, which takes half the time.

        Returns
        -------
        dict of str to array
            By the names of ``values``.
        """
        if self._edits:
            raise ValueError("values of this run were edited: it has no backward")
        model, c, self.gradients = self.model, self.model.config, {"logits": _copied(dlogits)}
        grads = FlatTensors({}, self.logits[:0].reshape(-1)) if grads is None else grads
        head_cache, cap_cache = self._head_caches
        dlogits, dhead = capped_backward(dlogits, cap_cache), None
        if "embed" in grads or "head" in grads:
            dn, dhead = ops.linear_backward(dlogits, head_cache)
        else:
            dn = ops.linear_backward_input(dlogits, head_cache)
        self.gradients["norm"] = _copied(dn)
        if "head" in grads:
            grads.add("head", dhead)
        dx, dbranch = ADD_NORM[c.norm].backward(None, dn, self._norm_cache, grads, "norm")
        for i, (attention_cache, ffn_cache) in reversed(list(enumerate(self._caches))):
            layer_grads = LayerGradients(grads, i)
            self.gradients[f"layer {i}: after_ffn"] = _copied(dbranch)  # of the sum: an addition copies
            with observing(self._observe_backward):
                dx, dbranch = ffn_block_backward(dx, dbranch, ffn_cache, layer_grads)
            self.gradients[f"layer {i}: after_attention"] = _copied(dbranch)
            with observing(self._observe_backward):
                dx, dbranch = attention_block_backward(dx, dbranch, attention_cache, layer_grads)
        self.gradients["embedding"] = _copied(dbranch)
        if "embed" in grads:
            model._embed_backward(dbranch, self._embed_cache, grads, dhead if c.tie_embeddings else None)
        return {name: self.gradients[name] for name in self.values}


# ------------------------------------------------------------------------------------------------ what is never stored


def dense_attention(
    q: Array, k: Array, v: Array, first: Any, last: Any, mask: Any, scale: float | None, softcap: float | None
) -> tuple[Array, Array, Array | None, Array]:
    """Which keys are visible, the scores before and after a cap, and attention; each (B, H, T, S).

    The arguments are those of :func:`numllama.ops.attention_forward`.
    """
    _, cache = ops.attention_forward(q, k, v, first, last, mask, scale, softcap)
    visible = visible_keys(first, last, q, k.shape[2])[:, None]
    scores = (fold_groups(q, k.shape[1]) @ k.swapaxes(-1, -2) * cache.scale).reshape(cache.p.shape)
    return visible, scores, None if softcap is None else ops.softcap_forward(scores, softcap)[0], cache.p


def _unobserved(op: Callable, args: tuple, kwargs: dict) -> Any:
    with observing(None):
        return op(*args, **kwargs)


def _dense_arguments(op: Callable, args: tuple) -> tuple:
    """What :func:`numllama.ops.attention_forward` would be given for the same result: flash attention has no mask and no cap."""
    return args if op is ops.attention_forward else (*args[:5], None, args[5], None)


def _named(names: tuple[str | None, ...], arrays: Any) -> Iterator[tuple[str, Array]]:
    """The arrays that have names; `arrays` is one array or a tuple."""
    each = arrays if isinstance(arrays, tuple) else (arrays,)
    return ((name, array) for name, array in zip(names, each, strict=False) if name is not None)


def _copied(value: Array) -> np.ndarray:
    """Ops may write over an array later: RoPE runs in place."""
    return np.array(to_numpy(value))
