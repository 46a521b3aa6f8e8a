"""llama.cpp, from the wheels of `xllamacpp`: a server in this process, asked over HTTP."""

import ctypes
import json
import urllib.request

import numpy as np
import pytest

xllamacpp = pytest.importorskip("xllamacpp")


class LlamaCpp:
    """A model that llama.cpp has opened.

    Parameters
    ----------
    path : path
        A GGUF file.
    context : int
        The tokens for which memory is reserved.
    """

    def __init__(self, path, threads=1, context=512):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, False, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16
        self.server = xllamacpp.Server(params)

    def ask(self, route, **values):
        """The answer of one of its routes."""
        content = json.dumps(values).encode()
        request = urllib.request.Request(self.server.listening_address + route, content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def encode(self, text):
        """The ids of a text; special tokens in it are tokens."""
        return self.ask("/tokenize", content=text, parse_special=True, add_special=False)["tokens"]

    def greedy(self, ids, n):
        """The ids that follow, the likeliest each up to an end token, which is among them."""
        return self.ask("/completion", prompt=ids, n_predict=n, temperature=0, return_tokens=True, cache_prompt=False)["tokens"]

    def likeliest(self, ids, n, never):
        """The logarithms of the probabilities of the n likeliest tokens after these ids, by their ids.

        They are not sent for a token that ends within a character: those in `never` are not drawn, but their probabilities are
        among the others.
        """
        asked = dict(n_predict=1, temperature=0, n_probs=n, cache_prompt=False, logit_bias=[[i, False] for i in never])
        answer = self.ask("/completion", prompt=ids, **asked)
        return {each["id"]: each["logprob"] for each in answer["completion_probabilities"][0]["top_logprobs"]}


def quantised(matrix, kind, row_bytes):
    """The bytes of one or several float32 matrices, as llama.cpp rounds them to a type: what llama-quantize does to a tensor."""
    function = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    rows = np.ascontiguousarray(matrix, "float32").reshape(-1, matrix.shape[-1])
    out = np.empty((len(rows), row_bytes), np.uint8)
    assert function(kind, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None) == out.nbytes
    return out.reshape(*matrix.shape[:-1], row_bytes)
