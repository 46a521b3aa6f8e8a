"""The model: tokens -> embedding -> layers -> norm -> logits -> loss, and back."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest
from os import PathLike
from typing import Any

import numpy as np

from numllama import ops
from numllama.backend import BFLOAT16, INT8, TWO_BYTES, Array, array_module, as_array, model_dtypes, real_dtype, to_numpy
from numllama.checks import check_ids, check_shape, checked_ids
from numllama.cuda.launch import runs_here
from numllama.errors import shown
from numllama.model.block import layer_again, layer_backward, layer_entry, layer_forward
from numllama.model.config import ModelConfig
from numllama.model.context import Context, RopeTables, layers_of_their_own, windowed
from numllama.model.experts import with_balance
from numllama.model.lora import Adapter, LoraConfig, initial_adapter
from numllama.model.parameters import Gradients, LayerGradients, Parameters, initial_parameters
from numllama.model.rounding import rounded
from numllama.model.stages import ADD_NORM, capped_backward, capped_forward, scaled
from numllama.ops.intervals import segment_starts
from numllama.system.blas import few_threads, with_few_threads

# Head and loss run in chunks of rows of at most this many logits (32 MiB of float32): (N, V) never exists whole. A GPU needs
# larger ones to be busy (512 MiB of bfloat16).
CHUNK_LOGITS, CHUNK_LOGITS_GPU = 2**23, 2**28


class Transformer:
    """A Llama, or one of its relatives back to GPT-2, as its configuration says.

    Parameters
    ----------
    config : ModelConfig
    seed : int
        Seed of the initial parameters.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    dtype : str, optional
        dtype of the weights: ``"float32"`` (default), ``"float64"`` for checking; ``"bfloat16"`` cannot be trained.
    compute_dtype : str, optional
        dtype of matrix products and activations. ``"bfloat16"`` or ``"float16"`` with float32 weights is mixed precision:
        parameters, gradients, statistics and losses stay in float32. Default that of the weights; float32 for two bytes on a CPU.
    params : Parameters, optional
        Weights to use in place of new ones.

    Attributes
    ----------
    params : Parameters
        All weights by name, as views of one flat buffer.
    weights : Parameters
        What is computed with: `params`, or in mixed precision their copy in two bytes. An optimizer keeps it up to date;
        other code that writes to `params` calls ``params.sync_low_precision()``.
    activation_dtype : dtype
        dtype of activations: `compute_dtype`, but float32 where a CPU rounds only the operands of products to bfloat16.
    adapter : Adapter, optional
        Low-rank updates: see :meth:`add_adapter`.
    generation_config : dict
        What the checkpoint says about generation, as Hugging Face's ``generation_config.json``; saved with the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        device: str = "cpu",
        dtype: str | np.dtype | None = None,
        compute_dtype: str | np.dtype | None = None,
        params: Parameters | None = None,
    ) -> None:
        self.config, self.device, self.xp = config, device, array_module(device)
        kept = params.flat.dtype if params is not None and dtype is None else dtype
        kept, self.compute_dtype = model_dtypes(kept, compute_dtype, on_cpu=self.xp is np)
        self.params = initial_parameters(config, seed, kept, self.xp) if params is None else params
        if self.dtype != kept:
            raise ValueError(f"dtype is {shown(kept.name)}, but params are {self.dtype}")
        on_cpu = not runs_here((self.params.flat,))
        self.activation_dtype = np.dtype("f4") if on_cpu and self.compute_dtype == BFLOAT16 else self.compute_dtype
        self.weights = self.params
        if self.compute_dtype in TWO_BYTES:
            self.weights = self.params.low_precision or self.params.in_low_precision(self.compute_dtype)
        self.adapter: Adapter | None = None
        self.generation_config: dict[str, Any] = {}
        self.rope = RopeTables(config, self.xp, real_dtype(self.compute_dtype)) if config.positions == "rope" else None

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the weights."""
        return self.params.flat.dtype

    # -------------------------------------------------------------------------------------------- public

    def __call__(self, tokens: Array, **options: Any) -> Array:
        """See :meth:`forward`."""
        return self.forward(tokens, **options)

    def forward(
        self, tokens: Array, *, positions: Array | None = None, kv_cache: Any = None, n_last: int | None = None
    ) -> Array:
        """Logits of the next token at every place, without caches for backward.

        Parameters
        ----------
        tokens : integer array, shape (B, T)
        positions : integer array, shape (T,) or (B, T), optional
            Default 0, 1, 2, ..., or on from where `kv_cache` ends.
        kv_cache : KVCache, optional
            Keys and values of the tokens before these, which these then see; their own are added to it.
        n_last : int, optional
            Return logits for the last n tokens only; sampling needs 1.

        Returns
        -------
        logits : array, shape (B, T, V), or (B, n_last, V)
        """
        tokens = self._check_tokens(tokens)
        if kv_cache is not None:
            kv_cache.reserve(*tokens.shape)
        context = self._context(tokens, positions=positions, kv_cache=kv_cache)
        with few_threads(self, tokens) if kv_cache is None else nullcontext():  # generation sets its own threads
            x, branch = self._hidden(tokens, context, n_last)
            if kv_cache is not None:
                kv_cache.advance(to_numpy(tokens))
            if n_last is not None:
                x, branch = (each[:, max(0, each.shape[1] - n_last) :] for each in (x, branch))
            (_, n), _ = self._norm(x, branch, context)
            return self._logits(n)[0]

    @with_few_threads
    def loss(self, tokens: Array, targets: Array, *, count: int | None = None, segments: Array | None = None) -> Array:
        """Mean negative log-likelihood of the targets, in nats, without dropout; arguments as :meth:`loss_and_grads`."""
        tokens = self._check_tokens(tokens)
        targets = self._check_targets(targets, tokens)
        context = self._context(tokens, segments=segments)
        (_, n), _ = self._norm(*self._hidden(tokens, context), context)
        return with_balance(self._head_loss(n, targets, count), context, targets, count)

    @with_few_threads
    def loss_and_grads(
        self,
        tokens: Array,
        targets: Array,
        *,
        grads: Gradients | None = None,
        count: "int | Array | None" = None,
        segments: Array | None = None,
        key: tuple[int, ...] | None = None,
        recompute: bool = False,
        scale: float = 1.0,
    ) -> tuple[Array, Any]:
        """The loss, and its gradient with respect to every trainable parameter.

        Parameters
        ----------
        tokens : integer array, shape (B, T)
        targets : integer array, shape (B, T)
            The token that follows each token; -100 is ignored.
        grads : FlatTensors or other Gradients, optional
            The gradients are *added* here; default, new zeros. Each tensor is added to once, so filling one buffer from several
            batches gives the same bits as adding up their gradients.
        count : int, or scalar array on a GPU, optional
            What the summed loss is divided by: the number of counted targets in the whole batch, if this is a part of one.
            Default, those given here.
        segments : integer array, shape (B, T), optional
            Document of each token, where documents are packed into one row: a token sees only its own document, and
            positions start over in each.
        key : tuple of int, optional
            Names the dropout masks, such as (seed, step); default no dropout.
        recompute : bool
            Keep only each layer's input and run it forward again in backward: less memory, about a quarter more time.
        scale : float
            Factor of all gradients throughout backward: in float16 small ones would be lost.

        Returns
        -------
        loss : scalar array
        grads : FlatTensors
            With the names of ``params``; with an adapter, of ``adapter.params``, because everything else is frozen.
        """
        tokens = self._check_tokens(tokens)
        targets = self._check_targets(targets, tokens)
        if self.dtype == INT8 or self.trainable.flat.dtype != real_dtype(self.compute_dtype):
            raise ValueError(f"weights kept in {self.dtype} cannot be trained: load the model with dtype='float32'")
        grads = self.trainable.zeros_like() if grads is None else grads
        self.trainable.check_layout("grads", grads)
        context = self._context(tokens, segments=segments, key=key)

        x, (branch, embed_cache) = None, self._embed_forward(tokens, context)           # (B, T, C)
        caches, blocks = [], self._blocks()
        for i, w in enumerate(blocks):
            (x, branch), cache = layer_forward(x, branch, w, context, i)
            caches.append(layer_entry(cache) if recompute else cache)
            del cache
        (x, n), norm_cache = self._norm(x, branch, context)
        loss, dn, dhead = self._head_loss_and_grads(n, targets, count, scale, grads)
        loss = with_balance(loss, context, targets, count, scale)

        dx, dbranch = ADD_NORM[self.config.norm].backward(None, dn, norm_cache, grads, "norm")
        del x, branch, n, norm_cache, dn                               # memory falls from here on
        for i in reversed(range(self.config.n_layers)):
            cache = caches.pop()
            if recompute:
                cache = layer_again(cache, blocks[i], context, i)
            dx, dbranch = layer_backward(dx, dbranch, cache, LayerGradients(grads, i))
            grads.layer_done(i)
            del cache
        if "embed" in grads:
            self._embed_backward(dbranch, embed_cache, grads, dhead)
        return loss, grads

    # -------------------------------------------------------------------------------------------- adapters

    @property
    def trainable(self) -> Parameters:
        """The parameters that have gradients: all, or with an adapter only its own."""
        return self.params if self.adapter is None else self.adapter.params

    def add_adapter(self, config: LoraConfig, *, seed: int = 0, params: Parameters | None = None) -> None:
        """Freeze the model, and train low-rank updates, and copies of ``config.modules_to_save``, instead.

        Parameters
        ----------
        config : LoraConfig
        seed : int
            Seed of their initial values, which change nothing yet.
        params : Parameters, optional
            Values to use in place of new ones.
        """
        if self.adapter is not None:
            raise ValueError("the model has an adapter already: merge_adapter() makes it part of the weights")
        if params is None:
            params = initial_adapter(self.config, config, seed, real_dtype(self.compute_dtype), self.params)
        self.adapter = Adapter(config, params, self.compute_dtype)

    def merge_adapter(self) -> None:
        """Make the adapter part of the weights and remove it: W + scale · b · a, and its own embedding and head."""
        if self.adapter is None:
            raise ValueError("the model has no adapter to merge")
        self.adapter.merge_into(self.params)
        self.params.sync_low_precision()
        self.adapter = None

    def _blocks(self) -> list[dict[str, Array]]:
        """What each layer computes with."""
        if self.adapter is None:
            return self.weights.blocks
        parts = zip_longest(self.weights.blocks, self.adapter.weights.blocks, self.adapter.scales, fillvalue={})
        return [{**w, **update, **scales} for w, update, scales in parts]

    def _ends(self) -> dict[str, Array]:
        """What the embedding, the last norm and the head compute with."""
        return self.weights.ends if self.adapter is None else {**self.weights.ends, **self.adapter.weights.ends}

    # -------------------------------------------------------------------------------------------- on disk

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, as ``generation_config`` says, without ids that no token has, such as -1."""
        ids = self.generation_config.get("eos_token_id")
        ids = ids if isinstance(ids, list | tuple) else [ids]
        return tuple(i for i in ids if type(i) is int and 0 <= i < self.config.vocab_size)

    def save(self, path: str | PathLike, tokenizer: Any = None) -> None:
        """Write the model as others read it: see :func:`numllama.interop.save`."""
        from numllama.interop import save  # interop knows the model, not the other way round

        save(self, path, tokenizer)

    def save_adapter(self, path: str | PathLike, *, base: str | PathLike | None = None) -> None:
        """Write the adapter alone, as `peft` reads it: see :func:`numllama.interop.peft.save_adapter`."""
        from numllama.interop import save_adapter

        save_adapter(self, path, base=base)

    # -------------------------------------------------------------------------------------------- the ends

    def _embed_forward(self, tokens: Array, context: Context) -> tuple[Array, tuple]:
        with checked_ids():
            x, embed_cache = ops.embedding_forward(tokens, self._ends()["embed"])
        x = scaled(rounded(x, self.activation_dtype), self.config.embed_scale)           # rows of weights kept in two bytes
        pos_cache = None
        if self.config.positions == "learned":
            pos, pos_cache = ops.embedding_forward(context.positions, self.weights["pos_embed"])
            x += pos                                                   # (B, T, C) + (T, C) or (B, T, C)
        return x, (embed_cache, pos_cache)

    def _embed_backward(self, dx: Array, cache: tuple, grads: Gradients, dhead: Array | None) -> None:
        embed_cache, pos_cache = cache
        if "pos_embed" in grads:
            shared = pos_cache.tokens.ndim == 1                        # positions collect from all sequences then
            dpos = dx.sum(0, dtype=real_dtype(dx.dtype)) if shared else dx
            with grads.adding_to("pos_embed") as total:
                ops.embedding_backward(dpos, pos_cache, into=total)
        dx = scaled(dx, self.config.embed_scale)
        if self.config.tie_embeddings:
            grads.add("embed", ops.embedding_backward(dx, embed_cache, into=dhead))
        else:
            with grads.adding_to("embed") as total:
                ops.embedding_backward(dx, embed_cache, into=total)

    def _hidden(self, tokens: Array, context: Context, n_last: int | None = None) -> tuple[Array, Array]:
        """The stream and the last layer's branch: of all tokens, or of the last `n_last`, but at least one."""
        x, (branch, _) = None, self._embed_forward(tokens, context)
        for i, w in enumerate(self._blocks()):
            if n_last is not None and i == self.config.n_layers - 1:
                context = replace(context, n_last=max(1, n_last))
            (x, branch), _ = layer_forward(x, branch, w, context, i)
        return x, branch

    def _norm(self, x: Array, branch: Array, context: Context) -> tuple[tuple[Array, Array], tuple]:
        """The stream after all layers, and its norm."""
        return ADD_NORM[self.config.norm].forward(x, branch, self.weights, "norm", context, 2 * self.config.n_layers)

    def _head(self, params: Mapping[str, Array]) -> Array:
        return params["embed" if self.config.tie_embeddings else "head"]

    def _logits(self, n: Array) -> tuple[Array, tuple]:
        """The logits of normalised rows (..., C), and the caches of the head and of the soft cap."""
        logits, head_cache = ops.linear_forward(n, self._head(self._ends()))
        logits, cap_cache = capped_forward(logits, self.config.logit_softcap)
        return logits, (head_cache, cap_cache)

    def _chunks(self, n: Array, targets: Array, count: int | None) -> tuple[list, int]:
        """Chunks of rows of (n, targets), as large as CHUNK_LOGITS allows, and the count."""
        n, targets = n.reshape(-1, n.shape[-1]), targets.reshape(-1)
        rows = max(1, (CHUNK_LOGITS if self.xp is np else CHUNK_LOGITS_GPU) // self.config.vocab_size)
        if count is None:
            count = max(1, int((targets != ops.IGNORE).sum()))
        elif not hasattr(count, "shape") and not count > 0:            # a GPU's is not read
            raise ValueError(f"count is {count}, but must be positive")
        return [(n[i : i + rows], targets[i : i + rows]) for i in range(0, len(targets), rows)], count

    def _head_loss(self, n: Array, targets: Array, count: int | None) -> Array:
        chunks, count = self._chunks(n, targets, count)
        parts = []
        for rows, row_targets in chunks:
            logits, _ = self._logits(rows)
            with checked_ids():
                parts.append(ops.cross_entropy_forward(logits, row_targets, count=count)[0])
        return sum(parts[1:], parts[0])

    def _head_loss_and_grads(
        self, n: Array, targets: Array, count: "int | Array | None", scale: float, grads: Gradients
    ) -> tuple[Array, Array, Array | None]:
        """Loss, dn and the head's gradient, forward and backward together for each chunk of rows.

        An untied head's gradient is added to `grads` here, and None is returned for it.
        """
        chunks, count = self._chunks(n, targets, count)
        is_one, trains, tied = len(chunks) == 1, self.adapter is None or "head" in grads, self.config.tie_embeddings
        dn: Array = None if is_one else self.xp.zeros_like(n.reshape(-1, n.shape[-1]))
        drows: Array = None
        buffer = grads.buffer("head") if is_one and trains and not tied else None
        parts, dhead = [], buffer
        if trains and buffer is None and self.compute_dtype in TWO_BYTES:  # a gradient in float32 for a matrix in two bytes
            dhead = self.xp.zeros_like(self._head(self.trainable))
        for i, (rows, row_targets) in enumerate(chunks):
            logits, (head_cache, cap_cache) = self._logits(rows)                         # (rows, V)
            with checked_ids():
                part, loss_cache = ops.cross_entropy_forward(logits, row_targets, count=count)
            dlogits = capped_backward(ops.cross_entropy_backward(scale, loss_cache, out=logits), cap_cache)  # logits are gone
            drows = None if is_one else dn[i * len(chunks[0][0]) :][: len(rows)]
            if trains:
                drows, dhead = ops.linear_backward(dlogits, head_cache, into=dhead, dx=drows)
            else:
                drows = ops.linear_backward_input(dlogits, head_cache, dx=drows)
            parts.append(part)
        if trains and not tied and buffer is None:
            grads.add("head", dhead)
        return sum(parts[1:], parts[0]), (drows if is_one else dn).reshape(n.shape), dhead if tied else None

    # -------------------------------------------------------------------------------------------- inputs

    def _context(self, tokens: Array, positions=None, segments=None, key=None, kv_cache=None) -> Context:
        xp, (B, T), c = self.xp, tokens.shape, self.config
        first = last = window = None
        if segments is not None:
            segments = to_numpy(as_array(segments))
            check_shape("segments", segments, (B, T))
            first, last = xp.asarray(segment_starts(segments)), xp.arange(1, T + 1)
            positions = xp.arange(T) - first                           # (B, T)
        if kv_cache is not None:
            first, last = kv_cache.intervals(T)
        if c.sliding_window is not None:
            window = windowed(first, T, c.sliding_window, xp) if kv_cache is None else kv_cache.intervals(T, c.sliding_window)
        if positions is None and kv_cache is not None:
            positions = kv_cache.positions(T)
        elif positions is None:
            positions = xp.arange(T) if c.positions == "learned" else None
        else:
            positions = as_array(positions)
            check_shape("positions", positions, (T,) if positions.ndim == 1 else (B, T))
            check_ids("positions", positions, c.max_seq_len)
            positions = xp.asarray(positions)
        cos, sin = (None, None) if self.rope is None else self.rope.at(positions, T)
        low_precision = None if self.activation_dtype == self.compute_dtype else self.compute_dtype
        own = {} if c.is_uniform else layers_of_their_own(c, window, self.rope, positions, T)
        return Context(c, positions, cos, sin, first, last, key, kv_cache, low_precision, by_layer=own)

    def _check_tokens(self, tokens: Array) -> Array:
        tokens = as_array(tokens)
        check_shape("tokens", tokens, (None, None))
        if 0 in tokens.shape:
            raise ValueError(f"tokens has shape {tokens.shape}, but at least one row and one column are needed")
        if tokens.shape[1] > self.config.max_seq_len:
            raise ValueError(f"tokens are {tokens.shape[1]} long, but max_seq_len is {self.config.max_seq_len}")
        check_ids("tokens", tokens, self.config.vocab_size)
        return self.xp.asarray(tokens)

    def _check_targets(self, targets: Array, tokens: Array) -> Array:
        targets = as_array(targets)
        check_shape("targets", targets, tokens.shape)
        check_ids("targets", targets, self.config.vocab_size, ops.IGNORE)
        return self.xp.asarray(targets)
