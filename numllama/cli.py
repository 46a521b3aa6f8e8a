"""The command line, its commands in the order of their use:
    numllama train | generate | chat | serve | eval | prepare | finetune | inspect | convert | bench | plan | doctor |
             exercises | trace

Every field of ModelConfig, TrainConfig and SamplingConfig is a flag. Each command imports what it needs itself, so that help is
there at once. Exit codes:
    0       done; and of `train` and `finetune`, saved, where a scheduler ended them by SIGTERM or SIGUSR1
    1       a mistake of ours, with a traceback
    2       one sentence says what the user can fix
    129     SIGHUP, when a terminal is gone, after saving; 130: Ctrl-C, after saving
    141     whoever read the output, which is the command's result, has gone
"""

if __name__ == "__main__":
    import numllama.quiet  # noqa: F401  Ctrl-C, while the rest is imported

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from numllama.commands.flags import Defaults, as_flags, flowing, given, no_empty_path, typed_text
from numllama.errors import explained
from numllama.generation import SamplingConfig
from numllama.model import PRESETS, ModelConfig
from numllama.system.output import BROKEN_PIPE, Output, OutputError, goes_on_without_output, standard_streams
from numllama.system.signals import FOR_THE_PARENT, INTERRUPTED, ignore, quiet_program, restored
from numllama.training import TrainConfig
from numllama.training.config import recipe, tuning_defaults
from numllama.training.plan import Plan, planned_recipe
from numllama.version import __version__

ABOUT = "A Llama language model in pure NumPy, every gradient by hand."
ORDER = (
    "train", "generate", "chat", "serve", "eval", "prepare", "finetune", "inspect", "convert", "bench", "plan", "doctor",
    "exercises", "trace",
)  # fmt: skip
app = App(
    name="numllama", version=__version__, help=ABOUT, help_format="plaintext", result_action="return_value",
    suppress_keyboard_interrupt=False,
)  # fmt: skip


def _command(name: str, goes_on: bool = False) -> Callable[[Callable], Callable]:
    """Register a command, described by its docstring; one that leaves its result on the disk `goes_on` without output."""

    def register(function: Callable) -> Callable:
        function.__doc__ = flowing(function.__doc__)
        function.__annotations__ = {name: no_empty_path(kind) for name, kind in function.__annotations__.items()}
        return app.command(goes_on_without_output()(function) if goes_on else function, name=name, sort_key=ORDER.index(name))

    return register


def _model(arguments: Mapping[str, str]) -> dict[str, Any]:
    """The model settings of `train` and `plan` beside these arguments."""
    return ModelConfig.preset(_preset(arguments), vocab_size=1000).to_dict()


def _preset(arguments: Mapping[str, str]) -> str:
    """The preset that `train` starts from."""
    named = arguments.get("preset")
    return named if named in PRESETS else "shakespeare" if arguments.get("device", "cpu") != "cpu" else "shakespeare-cpu"


ModelFlags = as_flags(ModelConfig, ("vocab_size", "rope_scaling"), Defaults(_model))
TrainFlags = as_flags(TrainConfig, defaults=Defaults(lambda arguments: recipe(_preset(arguments)).to_dict()))
TuneFlags = as_flags(TrainConfig, defaults=Defaults(lambda arguments: tuning_defaults("full" in arguments)))
SamplingFlags = as_flags(SamplingConfig, leave_out=("seed", "stop_ids"))
NO_MODEL_FLAGS, NO_TRAIN_FLAGS, NO_TUNE_FLAGS, NO_SAMPLING_FLAGS = ModelFlags(), TrainFlags(), TuneFlags(), SamplingFlags()
Sampling = Annotated[SamplingFlags, Parameter(name="*", group="Sampling")]
JsonFlag = Annotated[bool, Parameter(name="--json", negative=())]


@_command("train", goes_on=True)
def train(
    *,
    data: Path | None = None,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    preset: str | None = None,
    device: str = "cpu",
    out: Path | None = None,
    resume: bool | Literal["auto"] = False,
    model: Annotated[ModelFlags, Parameter(name="*", group="Model (defaults: the preset's)")] = NO_MODEL_FLAGS,
    training: Annotated[TrainFlags, Parameter(name="*", group="Training (defaults: the preset's)")] = NO_TRAIN_FLAGS,
) -> int:
    """Train a model: on Shakespeare, or on any text or prepared tokens.

    Example: numllama train --data book.txt --steps 3000 --out runs/book

    Parameters
    ----------
    data
        A text file, a token file (.bin, .npy), a folder with train and val token files, or stand-in: a play that is
        written on the spot. Default tinyshakespeare.
    tokenizer
        How a text becomes tokens: char, bpe (trained on the text), or the path of a tokenizer. Default char.
    vocab_size
        Train a byte-level BPE tokenizer of this size on the text. Default 1024 with --tokenizer bpe.
    preset
        Model and training settings to start from. Default shakespeare-cpu, or shakespeare on a GPU.
    device
        cpu, cuda, or cuda:N.
    out
        Folder of the run. Default a new one under runs/.
    resume
        Go on with the run in --out, or with the newest one. auto: begin if there is none, and if the newest checkpoint is
        damaged go on from the one before it; settings may be given again.
    """
    from numllama.commands.train_run import train_run

    if tokenizer == "":
        raise ValueError("tokenizer is empty, but must be char, bpe or the path of a tokenizer")
    return train_run(data, preset, device, out, resume, given(model), given(training), tokenizer, vocab_size)


PLANNED = "llama-3-8b"


def _planned_model(arguments: Mapping[str, str]) -> dict[str, Any]:
    return _model({"preset": PLANNED, **arguments})


def _plan(arguments: Mapping[str, str]) -> dict[str, Any]:
    longest = min(Plan.seq_len, _planned_model(arguments)["max_seq_len"])
    preset = arguments.get("preset", PLANNED)
    return {field.name: field.default for field in fields(Plan)} | planned_recipe(preset, longest) | {"seq_len": longest}


PlannedFlags = as_flags(ModelConfig, ("vocab_size", "rope_scaling"), Defaults(_planned_model))
PlanFlags = as_flags(Plan, ("config",), Defaults(_plan))
NO_PLANNED_FLAGS, NO_PLAN_FLAGS = PlannedFlags(), PlanFlags()


@_command("plan")
def plan(
    *,
    preset: str = PLANNED,
    as_json: JsonFlag = False,
    model: Annotated[PlannedFlags, Parameter(name="*", group="Model (defaults: the preset's)")] = NO_PLANNED_FLAGS,
    run: Annotated[PlanFlags, Parameter(name="*", group="Run")] = NO_PLAN_FLAGS,
) -> int:
    """Say what a training run will take: memory by part, FLOPs, messages, time and cost.

    Example: numllama plan --preset llama-3-8b --gpus 64 --tokens 160e9 --shard-optimizer --recompute

    Parameters
    ----------
    preset
        The model; of shakespeare-cpu and shakespeare, the run that `train` makes of them.
    as_json
        Print JSON, for a program to read.
    """
    config = ModelConfig.preset(preset, **given(model))
    longest = min(Plan.seq_len, config.max_seq_len)
    found = Plan(config, **{"seq_len": longest, **planned_recipe(preset, longest), **given(run)})
    _print(found.values(), found.text(), as_json)
    return 0


@_command("prepare", goes_on=True)
def prepare(
    *texts: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    out: Path,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
    pattern: str | None = None,
    documents: bool = False,
    errors: Literal["strict", "replace"] = "strict",
    workers: int | None = None,
    shard_tokens: int = 100_000_000,
    special_token: tuple[str, ...] = (),
    special: tuple[str, ...] = (),
) -> int:
    """Turn texts into token files that `train --data` reads. Run again, it continues where it was stopped.

    Example: numllama prepare book.txt --vocab-size 4096 --out tokens

    Parameters
    ----------
    texts
        UTF-8 text files or pipes, or - for standard input. The last tenth of their characters is the validation split.
    out
        Folder for train.bin, val.bin and tokenizer.json; a split of several files has train-00000.bin and so on.
    vocab_size
        Learn a byte-level BPE of this size from the texts.
    tokenizer
        Use this one instead: a folder or file that Tokenizer.load reads.
    pattern
        How a text is split before it is learnt from: gpt2 (the default), cl100k, llama3, qwen2, or a regular expression. Or how
        a rank file's text is split, if it is not one of the well-known ones.
    documents
        Each file is a document, and so is each part of it that ends with the end-of-text token: keep the boundaries.
    errors
        What to do with bytes that are not UTF-8: strict stops and says where, replace puts U+FFFD.
    workers
        Processes. Default one for each core if there is much to do.
    shard_tokens
        A split of more tokens than this is cut into files of so many tokens each.
    special_token
        A special token, such as <|user|>: where it stands in a text, it is one token. May be given several times.
    special
        A special token of a rank file and its id, such as '<|endoftext|>=50256', or none. May be given several times.
    """
    from numllama.data.prepare import STANDARD_INPUT, prepare_texts

    if unknown := [text for text in texts if str(text).startswith("-") and text != STANDARD_INPUT]:
        raise ValueError(f"there is no option {unknown[0]}; a file of that name is ./{unknown[0]}")
    return prepare_texts(
        list(texts), out, vocab_size, tokenizer, pattern, documents, errors, workers, shard_tokens, special_token, special
    )


@_command("finetune", goes_on=True)
def finetune(
    model: Path | None = None,
    *,
    data: Path | None = None,
    val_data: Path | None = None,
    full: bool = False,
    rank: int | None = None,
    alpha: float | None = None,
    targets: tuple[str, ...] = (),
    epochs: float | None = None,
    chat_template: Path | None = None,
    tokenizer: Path | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    show: int = 0,
    training: Annotated[TuneFlags, Parameter(name="*", group="Training")] = NO_TUNE_FLAGS,
) -> int:
    """Fine-tune a model on conversations: a low-rank adapter (LoRA), or with --full all weights.

    It learns to say what the assistant says, and nothing else. In the end OUT/model opens with chat, generate and transformers,
    and OUT/adapter with peft. Ctrl-C saves.

    Example: numllama finetune path/to/Llama-3.2-1B-Instruct --data chat.jsonl --out runs/mine

    Parameters
    ----------
    model
        A Hugging Face folder, a training run, or whatever else `generate` reads.
    data
        Lines of JSON: {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    val_data
        The same, to validate on. Default the last tenth of the data.
    full
        Learn all weights.
    rank
        Of the adapter's updates. Default 8.
    alpha
        The updates are scaled by alpha / rank. Default twice the rank.
    targets
        The maps that are updated, of wq, wk, wv, wo, w_gate, w_up, w_down; may be given several times. Default all.
    epochs
        How often all data are seen, unless --steps is given. Default 3.
    chat_template
        A file in Jinja's language. Default the model's own; without one, messages are paragraphs.
    tokenizer
        Its file or folder. Default the one beside the model.
    device
        cpu, cuda, or cuda:N.
    dtype
        dtype of the frozen weights below an adapter: float32, float64, or bfloat16 (two bytes each). Default float32; on a GPU
        that of the computation.
    out
        Folder of the run. Default a new one under runs/.
    resume
        Go on with the run in --out.
    show
        Print so many conversations as the model would see them, with what of them is learnt, and do nothing else.
    """
    from numllama.commands.finetune_run import Tuning, finetune_run, resume_run
    from numllama.model import LoraConfig

    about = dict(model=model, data=data, val_data=val_data, full=full or None, rank=rank, alpha=alpha, targets=targets or None)
    about |= dict(epochs=epochs, chat_template=chat_template, tokenizer=tokenizer, dtype=dtype, show=show or None)
    if resume:
        if out is None:
            raise ValueError("a run to resume is named with --out")
        if known := [name.replace("_", "-") for name, value in about.items() if value is not None]:
            raise ValueError(f"a resumed run keeps what it began with, so {', '.join(known)} cannot change")
        return resume_run(out, device, given(training))
    if model is None or data is None:
        raise ValueError("a model and --data are needed, or --resume with --out")
    shape = {name: about[name] for name in ("rank", "alpha", "targets") if about[name] is not None}
    if full and shape:
        raise ValueError(f"--full learns all weights, so there is no adapter that {', '.join(shape)} could be of")
    rank = 8 if rank is None else rank
    lora = None if full else LoraConfig(**{"rank": rank, "alpha": 2.0 * rank, **shape})
    tuning = Tuning(model, data, val_data, tokenizer, chat_template, lora, dtype)
    return finetune_run(tuning, out, device, epochs, given(training), show)


@_command("doctor")
def doctor(*, as_json: JsonFlag = False) -> int:
    """Say what training on a GPU needs, what of it is here, and which command mends what is not.

    Exit code 0 if a GPU can be used, else 2. Training on a CPU needs none of it.

    Example: numllama doctor --json

    Parameters
    ----------
    as_json
        Print JSON, for a program to read.
    """
    from numllama.cuda.doctor import examine, first_problem

    findings = examine()
    problem = first_problem(findings)
    verdict = f"device 'cuda' cannot be used yet, mend first: {problem.part}" if problem else "device 'cuda' can be used"
    lines = [f"{part:9} {found}" if found else f"{part:9} MISSING: {mend}" for part, found, mend in findings]
    values = {"cuda": problem is None, "findings": [finding._asdict() for finding in findings]}
    _print(values, "\n".join([*lines, "", verdict]), as_json)
    return 2 if problem else 0


@_command("generate")
def generate(
    model: Path,
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True, converter=typed_text)] = None,
    *,
    prompt_file: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    n: Annotated[int, Parameter(name=["--n", "-n"])] = 1,
    max_new_tokens: int | None = None,
    stop: tuple[str, ...] = (),
    window: int | None = None,
    seed: int | None = None,
    special: bool = True,
    skip_special_tokens: bool = True,
    as_json: JsonFlag = False,
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
        The text to continue; - reads it from standard input.
    prompt_file
        A UTF-8 file in its place, or - for standard input. The end of its last line is not part of it.
    n
        How many texts. With a seed, the next text has the next seed.
    max_new_tokens
        Default 256.
    stop
        A text that ends the new text and is not part of it; may be given several times.
    window
        Each token sees this many. Default all, or the model's max_seq_len where the text is longer than that.
    seed
        The same seed gives the same text.
    special
        Special tokens that the prompt spells, such as <|im_start|>, are those tokens, not ordinary text.
    skip_special_tokens
        Leave special tokens out of the text.
    as_json
        Print the texts as JSON, for a program to read.
    device
        cpu, cuda, or cuda:N.
    dtype
        float32, float64, or bfloat16: weights in two bytes, for a model that would not fit otherwise; slower.
    tokenizer
        Its file or folder. Default the one beside the model.
    sampling
        How the next token is drawn. Default what the checkpoint's generation_config.json says; temperature 0.8 where it says
        nothing.
    """
    from numllama.commands.generate_run import generate_run

    limits = dict(max_new_tokens=max_new_tokens, stop=stop, window=window, seed=seed)
    how = dict(special=special, skip_special_tokens=skip_special_tokens)
    opened = model, tokenizer, device, dtype
    return generate_run(*opened, prompt, prompt_file, n, as_json, **limits, **how, **given(sampling))


@_command("chat")
def chat(
    model: Path,
    *,
    system: str | None = None,
    max_new_tokens: int | None = None,
    window: int | None = None,
    seed: int | None = None,
    skip_special_tokens: bool = True,
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
    skip_special_tokens
        Leave special tokens out of the answers.
    device
        cpu, cuda, or cuda:N.
    dtype
        float32, float64, or bfloat16: weights in two bytes, for a model that would not fit otherwise; slower.
    tokenizer
        Its file or folder. Default the one beside the model.
    sampling
        How the next token is drawn. Default what the checkpoint's generation_config.json says; temperature 0.8 where it says
        nothing.
    """
    from numllama.commands.generate_run import chat_run

    limits = dict(max_new_tokens=max_new_tokens, window=window, seed=seed, skip_special_tokens=skip_special_tokens)
    return chat_run(model, tokenizer, device, dtype, system, **limits, **given(sampling))


@_command("serve", goes_on=True)
def serve(
    model: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    allow_host: tuple[str, ...] = (),
    token: bool | str = False,
    runs: Path = Path("runs"),
    page: bool = True,
    prompt_tokens: int = 4096,
    new_tokens: int = 1024,
    running: int = 8,
    waiting: int = 32,
    device: str = "cpu",
    dtype: str | None = None,
    tokenizer: Path | None = None,
) -> int:
    """Open a page to generate, chat, look inside and watch a training, with OpenAI's routes on the same port. Ctrl-C ends it.

    Only this machine can reach it, and nothing is sent anywhere.

    Example: numllama serve runs/shakespeare-cpu

    Parameters
    ----------
    model
        A training run, a Hugging Face folder, a .safetensors or a llama2.c .bin.
    host
        Address to listen on. 0.0.0.0 lets other machines in; use --token then.
    port
        Port of the page and of /v1; 0 for any free one.
    allow_host
        Another name that leads here, a proxy's for example; may be given several times.
    token
        Answer only those who show a token: a new one, printed once, or the one given (--token SECRET). Programs send it as their
        API key; the page opens with the printed link.
    runs
        Folder of the training runs that the page shows.
    page
        Serve the page too, which needs Gradio.
    prompt_tokens
        The longest prompt.
    new_tokens
        The longest text.
    running
        Texts that are written at the same time.
    waiting
        Texts that wait for their turn; more are refused.
    device
        cpu, cuda, or cuda:N.
    dtype
        float32, float64, or bfloat16: weights in two bytes.
    tokenizer
        Its file or folder. Default the one beside the model.
    """
    from numllama.serve.engine import Limits
    from numllama.serve.server import serve_run

    limits = Limits(prompt_tokens, new_tokens, running, waiting)
    return serve_run(model, tokenizer, device, dtype, host, port, runs, page, limits, allow_host, token)


@_command("eval")
def evaluate(
    model: Path,
    file: Path | None = None,
    *,
    data: Path | None = None,
    seq_len: int | None = None,
    as_json: JsonFlag = False,
    device: str = "cpu",
    dtype: str | None = None,
    tokenizer: Path | None = None,
) -> int:
    """Say how well a model predicts a text: loss, perplexity, bits for each byte.

    Example: numllama eval runs/shakespeare-cpu play.txt

    Parameters
    ----------
    model
        A training run, a Hugging Face folder, a .safetensors or a llama2.c .bin.
    file
        A UTF-8 text, or a token file (.bin, .npy).
    data
        The same, as `train` names it.
    seq_len
        Tokens in a window: each sees those before it in its own. Default the model's max_seq_len.
    as_json
        Print JSON, for a program to read.
    device
        cpu, cuda, or cuda:N.
    dtype
        float32, float64, or bfloat16: weights in two bytes.
    tokenizer
        Its file or folder. Default the one beside the model.
    """
    from numllama.interop.load import open_model
    from numllama.training.evaluate import evaluate_file

    if (file is None) == (data is None):
        raise ValueError("one file is needed to evaluate the model on, as FILE or as --data")
    file = file or data
    found = evaluate_file(*open_model(model, tokenizer, device=device, dtype=dtype), file, seq_len)
    bits = "unknown" if found["bits_per_byte"] is None else f"{found['bits_per_byte']:.4f}"
    text = f"loss            {found['loss']:.4f}\nperplexity      {found['perplexity']:.4g}\nbits per byte   {bits}"
    _print(found, f"{text}\ntokens          {found['tokens']:,}", as_json)
    return 0


@_command("inspect")
def inspect(model: Path, *, as_json: JsonFlag = False, dtype: str | None = None) -> int:
    """Say what a model is made of: its configuration, parameters part by part, dtype and size.

    Example: numllama inspect path/to/Llama-3.2-1B --json

    Parameters
    ----------
    model
        A training run, a Hugging Face folder, a .safetensors or a llama2.c .bin.
    as_json
        Print JSON, for a program to read; it lists every tensor too.
    dtype
        As what to load it: float32, float64 or bfloat16.
    """
    from numllama.interop.inspect import as_text
    from numllama.interop.inspect import inspect as look
    from numllama.interop.load import load

    found = look(load(model, dtype=dtype))
    _print(found, as_text(found), as_json)
    return 0


@_command("convert", goes_on=True)
def convert(source: Path, target: Path, *, dtype: str | None = None, tokenizer: Path | None = None) -> int:
    """Write a model as others read it: as a Hugging Face folder, or as llama2.c's .bin.

    Example: numllama convert stories15M.bin stories15M --tokenizer tokenizer.bin

    Parameters
    ----------
    source
        A training run, a Hugging Face folder, a .safetensors or a llama2.c .bin.
    target
        A new folder, or a name that ends in .bin.
    dtype
        Of the weights: float32, float64 or bfloat16.
    tokenizer
        Goes into the folder. Default the one beside the source.
    """
    from numllama.interop.convert import convert as write

    print(write(source, target, dtype=dtype, tokenizer=tokenizer))
    return 0


@_command("bench")
def bench(
    model: Path,
    *,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    batch_size: int = 1,
    rounds: int = 3,
    as_json: JsonFlag = False,
    device: str = "cpu",
    dtype: str | None = None,
) -> int:
    """Measure how fast a model is on this machine: the prompt, and one token after another.

    Example: numllama bench stories15M.bin --new-tokens 200

    Parameters
    ----------
    model
        A training run, a Hugging Face folder, a .safetensors or a llama2.c .bin.
    prompt_tokens
        Random ones. Default 64, or as many as fit the model's max_seq_len.
    new_tokens
        Tokens after the prompt. Default 64, or as many as fit.
    batch_size
        Sequences at the same time.
    rounds
        The medians of so many are printed.
    as_json
        Print JSON, for a program to read.
    device
        cpu, cuda, or cuda:N.
    dtype
        float32, float64, or bfloat16: weights in two bytes.
    """
    from numllama.generation.bench import bench as measure
    from numllama.interop.load import load

    found = measure(
        load(model, device=device, dtype=dtype),
        prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch_size=batch_size, rounds=rounds,
    )  # fmt: skip
    first, later = found["prefill_tokens_per_second"], found["decode_tokens_per_second"]
    text = f"prompt          {first:,.0f} tokens/s\nnew tokens      {later:,.0f} tokens/s, {found['ms_per_token']:.2f} ms each"
    _print(found, text, as_json)
    return 0


@_command("exercises", goes_on=True)
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
    from numllama.learn.exercises import check_exercises, write_exercises

    return check_exercises(op, out) if check else write_exercises(op, blank, out)


@_command("trace")
def trace(
    model: Path | None = None,
    *,
    text: str | None = None,
    ids: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    steps: int | None = None,
    seed: int | None = None,
    tokenizer: Path | None = None,
    json: Path | None = None,
    html: Path | None = None,
) -> int:
    """Show every intermediate of a Llama, and its gradient: a text through all layers, and back, in float64.

    Example: numllama trace --steps 300 --html trace.html

    Parameters
    ----------
    model
        A training run, a Hugging Face folder, a .safetensors or a llama2.c .bin. Default a small one with two layers.
    text
        What goes through it; for the small model in characters of the play that it is made for. Default "the king shall sing".
    ids
        Tokens by their ids, in place of a text: --ids 1 306 626.
    steps
        Train the small model for so many steps first. Default 0.
    seed
        Of the small model. Default 0.
    tokenizer
        Its file or folder. Default the one beside the model.
    json
        Also write all numbers to this file.
    html
        Also write a page with heat maps to this file; it needs nothing else.
    """
    from numllama.learn.trace_report import trace_run

    return trace_run(model, tokenizer, text, ids, steps, seed, json, html)


app.register_install_completion_command(help="Let this shell complete commands and flags.")


def _print(values: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(values, indent=1, ensure_ascii=False, default=str) if as_json else text)


# ------------------------------------------------------------------------------------------------ the program


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit; an error that the user can fix is one sentence on standard error.

    Without `arguments` the command is what this process is for: its signals and hooks stay as the command's end needs them.
    """
    if arguments is None:
        quiet_program()
    with nullcontext() if arguments is None else restored():
        with standard_streams() as (out, _):
            code = _run(arguments, out)
            ignore(*FOR_THE_PARENT)
        sys.exit(code)


def _run(arguments: Sequence[str] | None, out: Output) -> int:
    """The exit code of a command."""
    for name in ("COLUMNS", "LINES"):
        size = os.environ.get(name, "80")
        if not (len(size) < 5 and size.isdecimal() and 20 <= int(size) <= 1000):  # the size of no terminal
            del os.environ[name]
    Defaults.arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(arguments, exit_on_error=False)
        out.flush()
    except SystemExit as end:
        code = end.code
    except CycloptsError:  # it has been printed
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OutputError as error:
        code = error.exit_code
        if code != BROKEN_PIPE:  # else whoever read our output has seen enough
            print(f"error: {error}", file=sys.stderr)
    except Exception as error:
        sentence = explained(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        code = 2
    return code or 0


if __name__ == "__main__":
    main()
