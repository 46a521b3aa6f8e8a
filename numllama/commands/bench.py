"""`numllama bench`."""

from numllama.commands.flags import command
from numllama.commands.options import AS_TEXT, Output, Weights


@command()
def bench(
    weights: Weights,
    *,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    batch_size: int = 1,
    rounds: int = 3,
    output: Output = AS_TEXT,
) -> int:
    """Measure prompt and decoding speed on this machine.

    Example: numllama bench stories15M.bin --new-tokens 200

    Parameters
    ----------
    prompt_tokens
        Length of the (random) prompt. Default 64, or as many as fit the model's max_seq_len.
    new_tokens
        Tokens to generate after it. Default 64, or as many as fit.
    batch_size
        Sequences at the same time.
    rounds
        Number of rounds; medians are printed.
    """
    from numllama.generation.bench import bench as measure
    from numllama.interop.load import load

    values = measure(
        load(weights.model, device=weights.device, dtype=weights.dtype, store_as=weights.store_as),
        prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch_size=batch_size, rounds=rounds,
    )  # fmt: skip
    prompt, decoding = values["prefill_tokens_per_second"], values["decode_tokens_per_second"]
    prompt_line = f"prompt          {prompt:,.0f} tokens/s"
    output.print(values, f"{prompt_line}\nnew tokens      {decoding:,.0f} tokens/s, {values['ms_per_token']:.2f} ms each")
    return 0
