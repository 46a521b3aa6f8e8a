"""A thread pool for chat templates, so that slow templates do not hold up other requests."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numllama.tokenizer.renderer import PROCESSES

_threads = ThreadPoolExecutor(PROCESSES, "numllama chat")


async def in_chat_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in the pool, like :func:`asyncio.to_thread`."""
    return await asyncio.get_running_loop().run_in_executor(_threads, function, *arguments)
