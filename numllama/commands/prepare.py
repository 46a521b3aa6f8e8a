"""`numllama prepare`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from numllama.commands.flags import FilePath, command


@command(output_optional=True)
def prepare(
    *texts: Annotated[FilePath, Parameter(allow_leading_hyphen=True)],
    out: FilePath,
    vocab_size: int | None = None,
    tokenizer: FilePath | None = None,
    pattern: str | None = None,
    documents: bool = False,
    errors: Literal["strict", "replace"] = "strict",
    workers: int | None = None,
    shard_tokens: int = 100_000_000,
    special_token: tuple[str, ...] = (),
    special: tuple[str, ...] = (),
) -> int:
    """Turn texts into token files for `train --data`. If interrupted, run it again to continue.

    Example: numllama prepare book.txt --vocab-size 4096 --out tokens

    Parameters
    ----------
    texts
        UTF-8 text files or pipes, or - for standard input. The last tenth of their characters is the validation split.
    out
        Folder for train.bin, val.bin and tokenizer.json. Large splits are written as train-00000.bin and so on.
    vocab_size
        Train a byte-level BPE tokenizer of this size on the texts.
    tokenizer
        Use this tokenizer instead: any file or folder that Tokenizer.load reads.
    pattern
        How to split text before merging: gpt2 (the default), cl100k, llama3, qwen2, or a regular expression. Also needed for a
        rank file that is not one of the well-known ones.
    documents
        Keep document boundaries: each file is a document, and so is each part that ends with the end-of-text token.
    errors
        What to do with bytes that are not UTF-8: strict stops and says where, replace writes U+FFFD.
    workers
        Number of processes. Default: one per core, or one for small texts.
    shard_tokens
        Cut a split into files of at most this many tokens.
    special_token
        A special token, such as <|user|>, that becomes one token wherever it occurs. Repeatable.
    special
        A special token of a rank file with its id, such as '<|endoftext|>=50256', or none. Repeatable.
    """
    from numllama.data.prepare import STANDARD_INPUT, prepare_texts

    if unknown := [text for text in texts if str(text).startswith("-") and text != STANDARD_INPUT]:
        raise ValueError(f"there is no option {unknown[0]}; to name a file, write ./{unknown[0]}")
    return prepare_texts(
        list(texts), out, vocab_size, tokenizer, pattern, documents, errors, workers, shard_tokens, special_token, special
    )
