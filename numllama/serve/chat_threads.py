"""Threads of their own for conversations: while chat templates take their time, all other requests find a thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numllama.tokenizer.renderer import PROCESSES

_threads = ThreadPoolExecutor(PROCESSES, "numllama chat")


async def in_chat_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, as :func:`asyncio.to_thread` gives it."""
    return await asyncio.get_running_loop().run_in_executor(_threads, function, *arguments)
