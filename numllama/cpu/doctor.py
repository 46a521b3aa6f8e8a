"""What a CPU can multiply, what is installed for it, and what would make training faster."""

import platform
from pathlib import Path

from numllama.cpu import onednn
from numllama.install import install_command

# Training `gqa` in bfloat16 by matrix units, against float32 by NumPy: benchmarks/train_step.py on an Intel Xeon with AMX.
MEASURED_FACTOR = 2.0
UNITS = {  # flags of /proc/cpuinfo, the best first
    "amx_bf16": "matrix units for bfloat16 (AMX)",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
WITH_BFLOAT16 = ("amx_bf16", "avx512_bf16")


def cpu_fields(info: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The fields of the first processor, such as ``model name`` and ``flags``; empty where the system has no such file."""
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cpu_name() -> str:
    """The CPU, and the best that it has for matrix products."""
    fields = cpu_fields()
    units = next((words for flag, words in UNITS.items() if flag in fields.get("flags", "").split()), None)
    return ", ".join(filter(None, (fields.get("model name") or platform.processor() or platform.machine(), units)))


def onednn_name() -> str:
    """Which oneDNN is in use, and the instructions that it uses."""
    library = onednn.library()
    if library is None:
        return "not in use: NumPy computes all products"
    return f"{'.'.join(map(str, library.version))}, {library.instruction_set}, {library.threads} thread(s), {library.path}"


def advice() -> str | None:
    """What would make training faster here, in one sentence; None if nothing is known to."""
    if not set(WITH_BFLOAT16) & set(cpu_fields().get("flags", "").split()):
        return None
    library = onednn.library()
    install = "" if library else f"{install_command('onednn')}, then "
    if library and not library.has_bfloat16:
        return None
    train = f"numllama train --compute-dtype bfloat16 (measured with AMX: {MEASURED_FACTOR} times)"
    return f"to train faster on this CPU: {install}{train}"


def slow_bfloat16() -> str | None:
    """One sentence if bfloat16 is slower than float32 on this CPU, as it is installed now."""
    library = onednn.library()
    if library and library.has_bfloat16:
        return None
    why = "this CPU has no units for it" if library else "oneDNN is not in use"
    return f"bfloat16 will be slower than float32: {why} (numllama doctor says more)"
