"""Attention maps: the attention weights of a layer, to be shown."""

from collections.abc import Sequence

import numpy as np

from numllama import ops
from numllama.backend import to_numpy
from numllama.errors import shown
from numllama.model import Transformer
from numllama.model.block import layer_forward
from numllama.ops.flash_attention import FlashAttentionCache


def attention_weights(model: Transformer, ids: Sequence[int], layer: int) -> np.ndarray:
    """How much each token attends to itself and to each earlier token, in one layer.

    Flash attention never stores this matrix. So the layers are run as in training, where each keeps its queries and keys for
    backward, and :func:`numllama.ops.attention_forward`, the definition, computes the weights.

    Parameters
    ----------
    model : Transformer
    ids : sequence of T ints
        At most the model's max_seq_len.
    layer : int
        Counted from 0.

    Returns
    -------
    array, shape (H, T, T)
        Row t of a head is the distribution of token t over itself and the tokens before it.
    """
    if not 0 <= layer < model.config.n_layers:
        raise ValueError(f"layer is {shown(layer)}, but must lie in 0..{model.config.n_layers - 1}")
    tokens = model._check_tokens(np.asarray([ids]))
    context = model._context(tokens)
    x, (branch, _) = None, model._embed_forward(tokens, context)
    for i, w in enumerate(model._blocks()[: layer + 1]):
        (x, branch), cache = layer_forward(x, branch, w, context, i)
    kept = cache.attention.parts.attention
    if isinstance(kept, FlashAttentionCache):
        kept = ops.attention_forward(kept.q, kept.k, kept.v, kept.first, kept.last, scale=kept.scale)[1]
    p = kept.p                                                         # (1, H, T, T)
    return to_numpy(p[0]).astype("float32")
