"""The math: one file per op, with its derivation, forward and backward side by side.

Each op is a pair of plain functions:  ``out, cache = op_forward(...)``  and  ``gradients = op_backward(dout, cache)``.
Shapes are written with one alphabet: B batch, T time of the queries, S time of the keys, C width, H query heads,
K key/value heads, R = H/K, D head size, F feed-forward width, V vocabulary, N = B·T.
"""

from numllama.ops.add_rmsnorm import add_rmsnorm_backward, add_rmsnorm_forward
from numllama.ops.attention import attention_backward, attention_forward
from numllama.ops.cross_entropy import IGNORE, cross_entropy_backward, cross_entropy_forward
from numllama.ops.dropout import dropout_backward, dropout_forward
from numllama.ops.embedding import embedding_backward, embedding_forward
from numllama.ops.flash_attention import flash_attention_backward, flash_attention_forward
from numllama.ops.geglu import geglu_backward, geglu_forward
from numllama.ops.gelu import gelu_backward, gelu_forward
from numllama.ops.layernorm import layernorm_backward, layernorm_forward
from numllama.ops.linear import linear_backward, linear_backward_input, linear_forward
from numllama.ops.linears import linears_backward, linears_backward_input, linears_forward
from numllama.ops.load_balancing import load_balancing_backward, load_balancing_forward
from numllama.ops.lora import lora_backward, lora_forward
from numllama.ops.mixture_of_experts import mixture_of_experts_backward, mixture_of_experts_forward
from numllama.ops.rmsnorm import rmsnorm_backward, rmsnorm_forward
from numllama.ops.rope import rope_backward, rope_forward, ropes_backward, ropes_forward
from numllama.ops.rope_table import rope_table
from numllama.ops.router import router_backward, router_forward
from numllama.ops.softcap import softcap_backward, softcap_forward
from numllama.ops.softmax import softmax_backward, softmax_forward
from numllama.ops.swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "linear_forward", "linear_backward", "linear_backward_input",
    "linears_forward", "linears_backward", "linears_backward_input",
    "lora_forward", "lora_backward",
    "embedding_forward", "embedding_backward",
    "rmsnorm_forward", "rmsnorm_backward",
    "add_rmsnorm_forward", "add_rmsnorm_backward",
    "layernorm_forward", "layernorm_backward",
    "rope_table", "rope_forward", "rope_backward", "ropes_forward", "ropes_backward",
    "softmax_forward", "softmax_backward",
    "attention_forward", "attention_backward",
    "flash_attention_forward", "flash_attention_backward",
    "swiglu_forward", "swiglu_backward",
    "gelu_forward", "gelu_backward",
    "router_forward", "router_backward",
    "load_balancing_forward", "load_balancing_backward",
    "mixture_of_experts_forward", "mixture_of_experts_backward",
    "geglu_forward", "geglu_backward",
    "softcap_forward", "softcap_backward",
    "cross_entropy_forward", "cross_entropy_backward", "IGNORE",
    "dropout_forward", "dropout_backward",
]
