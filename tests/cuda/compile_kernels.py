"""Compiles every kernel for GPUs from sm_75 to sm_120, as CuPy would, on a machine without one.

    pip install nvidia-cuda-nvrtc && python tests/cuda/compile_kernels.py            # --record writes registers.json anew

It fails where a kernel does not compile, keeps registers in memory (spills), moves single elements where it should move 16
bytes, or needs more registers than registers.json says (of the same version of NVRTC).
"""

import argparse
import ctypes
import json
import re
import sys
import sysconfig
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

from numllama.cuda import sources

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
# Blocks have 163 KiB of shared memory or more, or 99. What holds for sm_86 holds for sm_89.
ROOMY, SMALL = ("sm_80", "sm_90", "sm_100"), ("sm_86", "sm_120")
RECORD = Path(__file__).with_name("registers.json")
OPTIONS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space", "--ptxas-options=-v")  # CuPy's
SIZES = {"float": 4, "double": 8, "bfloat16": 2, "half": 2}


def variants(**choices):
    """Every combination of some defines, in every type and in both widths."""
    for dtype, *values in product(SIZES, *choices.values()):
        for width in (16 // SIZES[dtype], 1):
            yield {"DTYPE": dtype, "WIDTH": str(width), **dict(zip(choices, map(str, values), strict=True))}


# What launchers define. The last of these choices is the usual one, whose registers are recorded.
DEFINES = {
    "rmsnorm": list(variants()),
    "add_rmsnorm": list(variants()),
    "rope": list(variants(INTERLEAVED=[1, 0])),
    "swiglu": list(variants()),
    "gelu": list(variants()),
    "layernorm": list(variants()),
    "embedding": list(variants(TOKEN=["int", "long long"])),
    "cross_entropy": list(variants(TARGET=["int", "long long"])),
    "dropout": list(variants()),
    "softmax": list(variants()),
    "clip": list(variants()),
    "adamw": [
        {"DTYPE": dtype, "WIDTH": str(width), "COPY": copy}
        for dtype, copies in (("float", ("float", "bfloat16", "half")), ("double", ("double",)))
        for copy in copies
        for width in (16 // SIZES[copy], 1)
    ],
    "flash_attention": [
        {"DTYPE": dtype, "D": str(D), "INTERVAL": interval, "SHARED_KIB": shared}
        for dtype, D, interval, shared in [
            *product(("float", "bfloat16", "half"), (64, 128), ("long long",), ("163",)),
            *product(("bfloat16",), (64, 128), ("int",), ("163",)),
            *product(("bfloat16",), (32, 80, 96), ("long long",), ("163",)),
            *product(("float", "bfloat16"), (64, 128), ("long long",), ("99",)),
        ]
    ],
    "attention_products": list(variants(INTERVAL=["long long"])),
    "sample": [{"DTYPE": dtype} for dtype in SIZES],
    "decode": [
        {"DTYPE": dtype, "WIDTH": str(width), "D": str(D), "LANES": str(lanes), "ROWS": str(rows), "QK_NORM": norm, "ROPE": rope}
        for dtype, width, tilings in (
            ("float", 4, [(256, 32, 4), (128, 32, 8), (64, 16, 8)]),
            ("double", 2, [(256, 32, 2), (128, 32, 4), (64, 32, 8)]),
            ("bfloat16", 8, [(256, 32, 4), (128, 16, 4), (64, 8, 4)]),
            ("half", 8, [(256, 32, 4), (128, 16, 4), (64, 8, 4)]),
        )
        for (D, lanes, rows), norm, rope in product(tilings, "210", "21")
    ],
}
NARROW = {"embedding_sort", "sample", "rope_append", "attention_sum"}  # not 16 bytes


def architectures(source, defines):
    """What a variant is compiled for; variants of small kernels are many, and only the usual ones see the first and the last."""
    if source == "flash_attention":
        return ROOMY if defines["SHARED_KIB"] == "163" else SMALL
    return ROOMY if defines.get("WIDTH") == "1" or defines["DTYPE"] == "double" else ("sm_75", *ROOMY, "sm_120")


class Compiler:
    """NVRTC, from the pip wheel nvidia-cuda-nvrtc or from wherever the system keeps it."""

    def __init__(self):
        self.library = ctypes.CDLL(self._find())
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    @staticmethod
    def _find():
        site = Path(sysconfig.get_paths()["purelib"])
        found = [path for path in site.glob("nvidia/**/libnvrtc.so.*") if "builtins" not in path.name]
        return str(found[0]) if found else "libnvrtc.so"

    def compile(self, text, name, options):
        """The log and the PTX; RuntimeError with the log if it does not compile."""
        program = ctypes.c_void_p()
        self._check(self.library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None))
        values = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        failed = self.library.nvrtcCompileProgram(program, len(options), values)
        log = self._text(program, "ProgramLog")
        if failed:
            raise RuntimeError(log)
        return log, "" if "-arch=sm_" in " ".join(options) else self._text(program, "PTX")

    def _text(self, program, what):
        size = ctypes.c_size_t()
        self._check(getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.library, f"nvrtcGet{what}")(program, text))
        return text.value.decode()

    @staticmethod
    def _check(code):
        if code:
            raise RuntimeError(f"NVRTC returned {code}")


def usage(log):
    """Registers and bytes of spills of each kernel, from what ptxas says."""
    kernels = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        spills = sum(map(int, re.findall(r"(\d+) bytes (?:spill|stack)", part)))
        kernels[name] = int(re.search(r"Used (\d+) registers", part)[1]), spills
    return kernels


def wide_accesses(ptx):
    """How many 16-byte accesses of global memory each kernel has."""
    return {
        name: len(re.findall(r"(?:ld|st)\.global(?:\.nc)?\.(?:v4\.[bu]32|v2\.[bfu]64|v4\.f32|b128)", body))
        for name, body in re.findall(r"\.entry (\w+)\((.*?)\n\}", ptx, re.S)
    }


def examine(source, defines):
    """One variant, for all its architectures: how many compilations, what is wrong, and {(kernel, architecture): registers}."""
    compiler, program = Compiler(), sources.compiled_text(source, tuple(sorted(defines.items())))
    what = f"{source} {' '.join(f'{k}={v}' for k, v in defines.items())}"
    problems, found = [], {}
    for n, architecture in enumerate(architectures(source, defines), 1):
        try:
            log, _ = compiler.compile(program.text, f"{source}.cu", [*OPTIONS, f"-arch={architecture}"])
        except RuntimeError as error:
            return n, [*problems, f"{what} {architecture}: {str(error)[:2000]}"], found
        if "warning" in log:
            problems.append(f"{what} {architecture}: {log[:1000]}")
        used = usage(log)
        if set(used) != set(program.kernels):
            problems.append(f"{what}: compiled {sorted(used)}, but launch.py sees {sorted(program.kernels)}")
        for kernel, (registers, spills) in used.items():
            if spills:
                problems.append(f"{what} {architecture}: {kernel} spills {spills} bytes")
            found[kernel, architecture] = registers
    if defines.get("WIDTH") != "1":
        _, ptx = compiler.compile(program.text, f"{source}.cu", ["-std=c++17", "-arch=compute_90"])
        for kernel, wide in wide_accesses(ptx).items():
            if not wide and kernel not in NARROW:
                problems.append(f"{what}: {kernel} has no access of 16 bytes")
    return n, problems, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help="write registers.json anew")
    parser.add_argument("--only", nargs="*", default=sorted(DEFINES), help="sources")
    arguments = parser.parse_args()
    start, version, problems, n = time.perf_counter(), Compiler().version, [], 0
    missing = {path.stem for path in sources.KERNELS.glob("*.cu")} - set(DEFINES)
    problems += [f"kernels/{name}.cu is not in the table of this script" for name in sorted(missing)]
    recorded = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    variants = [(source, defines) for source in arguments.only for defines in DEFINES[source]]
    found = {}
    with ProcessPoolExecutor() as pool:
        examined = pool.map(examine, *zip(*variants, strict=True))
        for (_, defines), (compilations, wrong, registers) in zip(variants, examined, strict=True):
            n += compilations
            problems += wrong
            for (kernel, architecture), most in registers.items():
                of = found.setdefault(f"{kernel} {defines['DTYPE']}", {})
                of[architecture] = max(of.get(architecture, 0), most)
    comparable = recorded.get("nvrtc") == version and not arguments.record
    for key, of in found.items():
        for architecture, registers in of.items():
            most = recorded.get("registers", {}).get(key, {}).get(architecture, 0)
            if registers > most and comparable:
                problems.append(f"{key} {architecture}: {registers} registers, but {most} are recorded")
    if arguments.record:
        recorded = {"nvrtc": version, "registers": dict(sorted((recorded.get("registers", {}) | found).items()))}
        RECORD.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    width = max(map(len, found), default=0)
    seconds = time.perf_counter() - start
    print(f"NVRTC {version}: {n} compilations in {seconds:.0f} s; registers, the most of all variants")
    print(f"{'':{width}}  {'  '.join(f'{a:>6}' for a in ARCHITECTURES)}")
    for key, of in sorted(found.items()):
        print(f"{key:{width}}  {'  '.join(str(of.get(a, '-')).rjust(6) for a in ARCHITECTURES)}")
    print("\n".join(problems) or "everything compiles, nothing spills")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
