"""Generation: from a model to text."""

from numllama.lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:  # at run time each name is imported when it is first used
    from numllama.generation.config import SamplingConfig
    from numllama.generation.generate import generate, generate_batch, stream
    from numllama.generation.kv_cache import KVCache
    from numllama.generation.text import complete, stream_text

__all__ = ["KVCache", "SamplingConfig", "generate", "generate_batch", "stream", "complete", "stream_text"]

lazy(__name__, {
    "numllama.generation.generate": "generate generate_batch stream",
    "numllama.generation.kv_cache": "KVCache",
    "numllama.generation.config": "SamplingConfig",
    "numllama.generation.text": "complete stream_text",
})  # fmt: skip
