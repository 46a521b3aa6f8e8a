"""What a CPU can multiply, what is installed for it, and what would make training faster."""

import platform
from pathlib import Path
from typing import NamedTuple

from numllama.cpu import onednn
from numllama.install import install_command


class Units(NamedTuple):
    """What a CPU has for matrix products.

    `factor` is how much faster `gqa` trains in bfloat16 by oneDNN than in float32 by NumPy (benchmarks/train_step.py, on an Intel
    Xeon with AMX and an AMD EPYC of the fifth generation); None without bfloat16.
    """

    words: str
    factor: float | None = None


UNITS = {  # by flags of /proc/cpuinfo, the best first
    "amx_bf16": Units("matrix units for bfloat16 (AMX)", 2.0),
    "avx512_bf16": Units("AVX-512 with bfloat16", 1.6),
    "avx512f": Units("AVX-512"),
    "avx2": Units("AVX2"),
}


def cpu_fields(info: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The fields of the first processor, such as ``model name`` and ``flags``; empty where the system has no such file."""
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def best_units() -> Units | None:
    """The best that the CPU has for matrix products; None if that is unknown."""
    flags = cpu_fields().get("flags", "").split()
    return next((units for flag, units in UNITS.items() if flag in flags), None)


def cpu_name() -> str:
    """The CPU, and the best that it has for matrix products."""
    best = best_units()
    name = cpu_fields().get("model name") or platform.processor() or platform.machine()
    return ", ".join(filter(None, (name, best and best.words)))


def onednn_name() -> str:
    """Which oneDNN is in use, and the instructions that it uses."""
    library = onednn.library()
    if library is None:
        return "not in use: NumPy computes all products"
    return f"{'.'.join(map(str, library.version))}, {library.instruction_set}, {library.threads} thread(s), {library.path}"


def advice() -> str | None:
    """What would make training faster here, in one sentence; None if nothing is known to."""
    best, library = best_units(), onednn.library()
    if best is None or best.factor is None or (library and not library.has_bfloat16):
        return None
    install = "" if library else f"{install_command('onednn')}, then "
    train = f"numllama train --compute-dtype bfloat16 (measured with {best.words}: {best.factor} times)"
    return f"to train faster on this CPU: {install}{train}"


def slow_bfloat16() -> str | None:
    """One sentence if bfloat16 is slower than float32 on this CPU, as it is installed now."""
    library = onednn.library()
    if library and library.has_bfloat16:
        return None
    why = "this CPU has no units for it" if library else "oneDNN is not in use"
    return f"bfloat16 will be slower than float32: {why} (numllama doctor says more)"
