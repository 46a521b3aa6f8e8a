"""Generation: from a model to text."""

from numllama.generation.generate import generate, stream
from numllama.generation.kv_cache import KVCache
from numllama.generation.sampling import SamplingConfig
from numllama.generation.text import complete, stream_text

__all__ = ["KVCache", "SamplingConfig", "generate", "stream", "complete", "stream_text"]
