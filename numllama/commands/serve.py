"""`numllama serve`."""

from pathlib import Path

from numllama.commands.flags import FilePath, command
from numllama.commands.options import ModelSource

RUNS = Path("runs")


@command(output_optional=True)
def serve(
    source: ModelSource,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    allow_host: tuple[str, ...] = (),
    token: bool | str = False,
    runs: FilePath = RUNS,
    page: bool = True,
    prompt_tokens: int = 4096,
    new_tokens: int = 1024,
    running: int = 8,
    waiting: int = 32,
) -> int:
    """Serve a page to generate, chat, look inside the model and watch training, and OpenAI's routes. Ctrl-C ends it.

    Only this machine can reach it, and it sends nothing anywhere.

    Example: numllama serve runs/shakespeare-cpu

    Parameters
    ----------
    host
        Address to listen on. 0.0.0.0 lets other machines in; use --token with it.
    port
        Port of the page and of /v1; 0 picks a free one.
    allow_host
        Another host name of this server, such as a proxy's. Repeatable.
    token
        Require a token: a new one, printed at the start, or the one given (--token SECRET). Programs send it as their API key;
        the printed link opens the page.
    runs
        Folder of the training runs that the page shows.
    page
        Serve the page too, which needs Gradio.
    prompt_tokens
        Maximum length of a prompt, in tokens.
    new_tokens
        Maximum number of tokens to generate for a request.
    running
        Number of texts generated at the same time.
    waiting
        Number of texts that may wait in line; further requests are refused.
    """
    from numllama.serve.engine import Limits
    from numllama.serve.server import serve_run

    limits = Limits(prompt_tokens, new_tokens, running, waiting)
    opened = source.model, source.tokenizer, source.device, source.dtype, source.store_as
    return serve_run(*opened, host, port, runs, page, limits, allow_host, token)
