"""`numllama finetune`: its flags and help. What it does is in `finetune_run.py`."""

from typing import Annotated

from cyclopts import Parameter

from numllama.commands.flags import Defaults, FilePath, as_flags, command, given
from numllama.training.config import TrainConfig, tuning_defaults

TuneFlags = as_flags(TrainConfig, defaults=Defaults(lambda arguments: tuning_defaults("full" in arguments)))
TuneOptions = Annotated[TuneFlags, Parameter(name="*", group="Training")]
NO_TUNE_FLAGS = TuneFlags()


@command(output_optional=True)
def finetune(
    model: FilePath | None = None,
    *,
    data: FilePath | None = None,
    val_data: FilePath | None = None,
    full: bool = False,
    rank: int | None = None,
    alpha: float | None = None,
    targets: tuple[str, ...] = (),
    modules_to_save: tuple[str, ...] = (),
    epochs: float | None = None,
    chat_template: FilePath | None = None,
    tokenizer: FilePath | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    out: FilePath | None = None,
    resume: bool = False,
    show: int = 0,
    training: TuneOptions = NO_TUNE_FLAGS,
) -> int:
    """Fine-tune a model on conversations: a low-rank adapter (LoRA), or with --full all weights.

    Only the assistant's messages are trained on. Afterwards chat, generate and transformers open OUT/model, and peft opens
    OUT/adapter. Ctrl-C saves.

    Example: numllama finetune path/to/Llama-3.2-1B-Instruct --data chat.jsonl --out runs/mine

    Parameters
    ----------
    model
        A Hugging Face folder, a training run, or any other model that `generate` reads.
    data
        Lines of JSON: {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    val_data
        Validation data in the same format. Default: the last tenth of the data.
    full
        Train all weights.
    rank
        Rank of the adapter. Default 8.
    alpha
        Scale of the adapter: updates are multiplied by alpha / rank. Default: twice the rank.
    targets
        A matrix to adapt: wq, wk, wv, wo, w_gate, w_up or w_down. Repeatable. Default: all.
    modules_to_save
        A matrix to train whole beside them, in a copy that is saved with the adapter: embed or head. Repeatable.
    epochs
        Passes over the data, unless --steps is given. Default 3.
    chat_template
        A Jinja file. Default: the model's own template; without one, messages become paragraphs.
    tokenizer
        Tokenizer file or folder. Default: the one next to the model.
    device
        cpu, cuda, or cuda:N.
    dtype
        dtype of the frozen weights below an adapter: float32, float64, or bfloat16 (two bytes each). Default float32; on a GPU
        that of the computation.
    out
        Folder of the run. Default: a new one under runs/.
    resume
        Resume the run in --out.
    show
        Print this many conversations as the model would see them, marking what is trained on, and stop.
    """
    from numllama.commands.finetune_run import Tuning, finetune_run, resume_run
    from numllama.model.lora import LoraConfig

    fixed = dict(model=model, data=data, val_data=val_data, full=full or None, rank=rank, alpha=alpha, targets=targets or None)
    fixed |= dict(modules_to_save=modules_to_save or None, epochs=epochs, chat_template=chat_template, tokenizer=tokenizer)
    fixed |= dict(dtype=dtype, show=show or None)
    if resume:
        if out is None:
            raise ValueError("--resume needs --out, the folder of the run")
        if changed := [name.replace("_", "-") for name, value in fixed.items() if value is not None]:
            raise ValueError(f"a resumed run keeps its settings, so {', '.join(changed)} cannot change")
        return resume_run(out, device, given(training))
    if model is None or data is None:
        raise ValueError("a model and --data are needed, or --resume with --out")
    shape = {name: fixed[name] for name in ("rank", "alpha", "targets", "modules_to_save") if fixed[name] is not None}
    if full and shape:
        flags = ", ".join(shape).replace("_", "-")
        raise ValueError(f"--full trains all weights without an adapter, so {flags} cannot be set")
    rank = 8 if rank is None else rank
    lora = None if full else LoraConfig(**{"rank": rank, "alpha": 2.0 * rank, **shape})
    tuning = Tuning(model, data, val_data, tokenizer, chat_template, lora, dtype)
    return finetune_run(tuning, out, device, epochs, given(training), show)
