"""Generation: from a model to text."""

from numllama.lazy import lazy

__all__ = ["KVCache", "SamplingConfig", "generate", "stream", "complete", "stream_text"]

lazy(__name__, {
    "numllama.generation.generate": "generate stream",
    "numllama.generation.kv_cache": "KVCache",
    "numllama.generation.config": "SamplingConfig",
    "numllama.generation.text": "complete stream_text",
})  # fmt: skip
