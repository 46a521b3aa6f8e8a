"""The command line:  numllama train | prepare | generate | chat | doctor | exercises | trace

Every field of ModelConfig, TrainConfig and SamplingConfig is a flag. Exit codes: 0, 2 for what the user can mend, 130 after
Ctrl-C.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from numllama import __version__
from numllama.backend import out_of_memory
from numllama.errors import NumllamaError
from numllama.exercises import check_exercises, write_exercises
from numllama.generation import SamplingConfig
from numllama.generation.run import chat_run, generate_run
from numllama.model import ModelConfig
from numllama.trace_report import trace_run
from numllama.training.config import TrainConfig
from numllama.training.prepare import prepare_texts
from numllama.training.run import train_run

app = App(name="numllama", version=__version__, help="A Llama language model in pure NumPy, every gradient by hand.")


def _flags(config: type, leave_out: Sequence[str]) -> type:
    """The fields of a configuration as optional flags: None means "as the preset says"."""
    names = [(f.name, f.type | None, None) for f in fields(config) if f.name not in leave_out]
    made = make_dataclass(config.__name__, names, frozen=True)
    made.__doc__, made.__module__ = config.__doc__, __name__
    return made


ModelFlags = _flags(ModelConfig, leave_out=("vocab_size", "rope_scaling"))
TrainFlags = _flags(TrainConfig, leave_out=())
SamplingFlags = _flags(SamplingConfig, leave_out=("seed", "stop_ids"))
NO_MODEL_FLAGS, NO_TRAIN_FLAGS, NO_SAMPLING_FLAGS = ModelFlags(), TrainFlags(), SamplingFlags()
Sampling = Annotated[SamplingFlags, Parameter(name="*", group="Sampling")]
TEMPERATURE = 0.8  # on the command line: a text rather than a sample of the distribution


@app.command
def train(
    *,
    data: Path | None = None,
    tokenizer: str | None = None,
    preset: str | None = None,
    device: str = "cpu",
    out: Path | None = None,
    resume: bool = False,
    model: Annotated[ModelFlags, Parameter(name="*", group="Model (default: the preset's)")] = NO_MODEL_FLAGS,
    training: Annotated[TrainFlags, Parameter(name="*", group="Training (default: the preset's)")] = NO_TRAIN_FLAGS,
) -> int:
    """Train a model: on Shakespeare, or on any text or prepared tokens.

    Example: numllama train --data book.txt --steps 3000 --out runs/book

    Parameters
    ----------
    data
        A text file, a token file (.bin, .npy), a folder with train and val token files, or stand-in: a play that is
        written on the spot. Default tinyshakespeare.
    tokenizer
        How a text becomes tokens: char, bpe (learnt from the text), or the path of a tokenizer. Default char.
    preset
        Model and training settings to start from. Default shakespeare-cpu, or shakespeare on a GPU.
    device
        cpu, cuda, or cuda:N.
    out
        Folder of the run. Default a new one under runs/.
    resume
        Go on with the run in --out, or with the newest one.
    """
    return train_run(data, preset, device, out, resume, _given(model), _given(training), tokenizer)


@app.command
def prepare(
    *texts: Path,
    out: Path,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
    pattern: str = "gpt2",
    documents: bool = False,
    errors: Literal["strict", "replace"] = "strict",
    workers: int | None = None,
) -> int:
    """Turn texts into token files that `train --data` reads. Run again, it goes on where it was stopped.

    Example: numllama prepare book.txt --vocab-size 4096 --out tokens

    Parameters
    ----------
    texts
        UTF-8 text files. The last tenth of their characters is the validation split.
    out
        Folder for train.bin, val.bin and tokenizer.json.
    vocab_size
        Learn a byte-level BPE of this size from the texts.
    tokenizer
        Use this one instead: a folder or file that Tokenizer.load reads.
    pattern
        How a text is split before it is learnt from: gpt2, cl100k, llama3, or a regular expression.
    documents
        Each file is a document, and so is each part of it that ends with the end-of-text token: keep the boundaries.
    errors
        What to do with bytes that are not UTF-8: strict stops and says where, replace puts U+FFFD.
    workers
        Processes. Default one for each core if there is much to do.
    """
    return prepare_texts(list(texts), out, vocab_size, tokenizer, pattern, documents, errors, workers)


@app.command
def doctor() -> int:
    """Say what training on a GPU needs, what of it is here, and which command mends what is not.

    Exit code 0 if a GPU can be used, else 2. Training on a CPU needs none of it.
    """
    from numllama.cuda.doctor import examine, first_problem

    findings = examine()
    for part, found, mend in findings:
        print(f"{part:9} {found}" if found else f"{part:9} MISSING: {mend}")
    problem = first_problem(findings)
    print(f"\ndevice 'cuda' cannot be used yet, mend first: {problem.part}" if problem else "\ndevice 'cuda' can be used")
    return 2 if problem else 0


@app.command
def generate(
    model: Path,
    *,
    prompt: str = "",
    max_new_tokens: int | None = None,
    stop: tuple[str, ...] = (),
    window: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    tokenizer: Path | None = None,
    sampling: Sampling = NO_SAMPLING_FLAGS,
) -> int:
    """Continue a text, token by token.

    Example: numllama generate runs/shakespeare-cpu --prompt "ROMEO:" --seed 1

    Parameters
    ----------
    model
        A training run, a Hugging Face folder, a .safetensors or a llama2.c .bin.
    prompt
        The text to continue.
    max_new_tokens
        Default 256, or as many as fit the model's max_seq_len.
    stop
        A text that ends the new text and is not part of it; may be given several times.
    window
        Each token sees this many, and the text may be longer than max_seq_len.
    seed
        The same seed gives the same text.
    device
        cpu, cuda, or cuda:N.
    dtype
        float32, float64, or bfloat16: weights in two bytes, for a model that would not fit otherwise; slower.
    tokenizer
        Its file or folder. Default the one beside the model.
    sampling
        How the next token is drawn; the temperature is 0.8 by default.
    """
    settings = {"temperature": TEMPERATURE, **_given(sampling)}
    limits = dict(max_new_tokens=max_new_tokens, stop=stop, window=window, seed=seed)
    return generate_run(model, tokenizer, device, dtype, prompt, **limits, **settings)


@app.command
def chat(
    model: Path,
    *,
    system: str | None = None,
    max_new_tokens: int | None = None,
    window: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    tokenizer: Path | None = None,
    sampling: Sampling = NO_SAMPLING_FLAGS,
) -> int:
    """Talk with a model: a line for you, an answer for it. Ctrl-C ends an answer, or the conversation.

    A model without a chat template goes on with your words as a text, to the end of a paragraph.

    Example: numllama chat path/to/Llama-3.2-1B-Instruct --window 4096

    Parameters
    ----------
    model
        A Hugging Face folder with a chat template, or any other model.
    system
        What the model is told beforehand.
    max_new_tokens
        Of each answer. Default 256, or as many as fit the model's max_seq_len.
    window
        Each token sees this many, and the conversation may be longer than max_seq_len.
    seed
        The same seed and the same words give the same answers.
    device
        cpu, cuda, or cuda:N.
    dtype
        float32, float64, or bfloat16: weights in two bytes, for a model that would not fit otherwise; slower.
    tokenizer
        Its file or folder. Default the one beside the model.
    sampling
        How the next token is drawn; the temperature is 0.8 by default.
    """
    settings = {"temperature": TEMPERATURE, **_given(sampling)}
    return chat_run(model, tokenizer, device, dtype, system, max_new_tokens=max_new_tokens, window=window, seed=seed, **settings)


@app.command
def exercises(
    op: str | None = None,
    *,
    check: bool = False,
    blank: Literal["backward", "forward"] = "backward",
    out: Path = Path("exercises"),
) -> int:
    """Write an op's backward yourself: a file with a blank and a test, and a check of what you wrote.

    Example: numllama exercises rmsnorm, and then: numllama exercises --check rmsnorm

    Parameters
    ----------
    op
        The op: linear, rmsnorm, attention, ... Default all, from linear to flash_attention.
    check
        Say which results are right, and of a wrong one by how much, with a hint. Exit code 0 if all are right, else 2.
    blank
        What is left blank.
    out
        Folder of the files.
    """
    return check_exercises(op, out) if check else write_exercises(op, blank, out)


@app.command
def trace(
    *,
    text: str = "the king shall sing",
    steps: int = 0,
    seed: int = 0,
    json: Path | None = None,
    html: Path | None = None,
) -> int:
    """Show every intermediate of a small model, and its gradient: a text through two layers, and back.

    Example: numllama trace --steps 300 --html trace.html

    Parameters
    ----------
    text
        What goes through it, in characters of the play that the model is made for.
    steps
        Train the model for so many steps first.
    seed
        Of the model.
    json
        Also write all numbers to this file.
    html
        Also write a page with heat maps to this file; it needs nothing else.
    """
    return trace_run(text, steps, seed, json, html)


def _given(flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in asdict(flags).items() if value is not None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit; an error that the user can mend is one sentence on standard error."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its code instead
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(arguments))
    except (NumllamaError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"error: {out_of_memory(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at exit
        sys.exit(0)


if __name__ == "__main__":
    main()
