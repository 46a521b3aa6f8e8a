"""CuPy from its own sources, built to run on a CPU: `folder()` holds it, built once and kept.

    python tests/cuda/real_cupy/cupy_on_cpu.py         # two minutes, if it is not there yet

CuPy's sources come with headers of CUDA in which every function is an empty stub; its documentation is built that way. Here the
stubs become declarations, and the library `cuda_on_cpu` (see the file of that name) has the functions. What else changes of CuPy:

- libraries that it would look for on disk (driver, runtime, NVRTC) are `cuda_on_cpu`;
- what it reads of a pointer's attributes in a build for CUDA, it reads here too (`CUPY_CUDA_VERSION` is 0 in a build with stubs);
- NCCL is 2.16, the last version whose functions take no configuration (in a build with stubs it is 0, which has no groups);
- what it says of a device, which is nothing in such a build, is `cuda_on_cpu.properties`.
"""

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

VERSION = "14.2.0"                      # the newest, and the oldest that the extras cuda12 and cuda13 allow
URL = f"https://files.pythonhosted.org/packages/dc/10/059a92d40b161ea24607c9e41a75098812ca7021f2b565524f87beba15c9/cupy-{VERSION}.tar.gz"
SHA256 = "cfed725e612178cfbdbf62f4a3a598b60edecbbca718c0d4580c21a16ae4a62c"
LIBRARY = "libcuda_on_cpu.so"           # as it is known to the dynamic linker, once it is loaded
NEEDS = ("cuda-pathfinder",)            # of what CuPy depends on, all that is not there with NumPy
NAMES = "cuda_names.txt"                # in the folder: every function of CUDA that CuPy may call


def cache() -> Path:
    """Where builds are kept."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numllama" / "cupy_on_cpu"
    return Path(os.environ.get("NUMLLAMA_CUPY_CACHE") or default)


def folder() -> Path:
    """A folder to put on ``sys.path``; built first if need be."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    made = cache() / f"{VERSION}-{sys.implementation.cache_tag}-{key}"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as temporary:
            source, target = Path(temporary) / f"cupy-{VERSION}", Path(temporary) / "site"
            _fetch(Path(temporary))
            names = _declare(source)
            _patch(source)
            _install(source, target)
            (target / NAMES).write_text("\n".join(names) + "\n")
            try:
                target.rename(made)
            except OSError:  # another process was faster
                if not made.exists():
                    raise
    return made


def _fetch(to: Path) -> None:
    with urllib.request.urlopen(URL, timeout=300) as response:
        data = response.read()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{URL} is not what it was")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(to, filter="data")


def _declare(source: Path) -> list[str]:
    """Turn the stubs of CUDA's functions into declarations; returns their names."""
    names = set()

    def declaration(found: re.Match) -> str:
        kind, name = found[1], found[2]
        if name.startswith("make_cuda"):
            return found[0]
        names.add(name)
        return f"{kind}{name}(...);"

    for header in sorted((source / "cupy_backends" / "stub").glob("*.h")):
        if header.name == "cupy_cusolver.h":  # overloads that differ in their arguments; nobody here solves anything
            continue
        text = header.read_text()
        text = re.sub(r"^((?:const )?\w+ ?\*? ?)(\w+)\(([^)]*)\)\s*\{\n(?:[^}]*)\n?\}", declaration, text, flags=re.M)
        header.write_text(text.replace("bool hip_environment = false;", "static bool hip_environment = false;"))
    return sorted(names)


def _patch(source: Path) -> None:
    backends = source / "cupy_backends"
    for name in ("cuda/api/_driver_extern.pxi", "cuda/api/_runtime_softlink.pxi", "cuda/libs/_cnvrtc.pxi"):
        one = f"    return SoftLink('{LIBRARY}', prefix, mandatory=True)"
        _replace(backends / name, r"    return SoftLink\(libname, prefix, mandatory=True[^)]*\)", one)
    _replace(backends / "stub/cupy_cuda_common.h", r"struct cudaPointerAttributes\{\n", r"\g<0>    int type;\n")
    _replace(backends / "stub/cupy_nccl.h", r"MAJOR 0\n(#define NCCL_MINOR) 0", r"MAJOR 2\n\1 16")
    _replace(backends / "stub/cupy_nccl.h", r"ncclResult_t ncclGroupStart", r"ncclResult_t ncclGetVersion(...);\n\n\g<0>")
    attributes = r"IF 0 < (CUPY_CUDA_VERSION:\s+ctypedef struct _PointerAttributes)"
    _replace(backends / "cuda/api/_runtime_typedef.pxi", attributes, r"IF 0 <= \1")
    runtime = backends / "cuda/api/runtime.pyx"
    _replace(runtime, r"IF CUPY_CUDA_VERSION > 0:(\s+return PointerAttributes\()", r"IF CUPY_CUDA_VERSION >= 0:\1")
    ours = r"\g<0>    return __import__('cuda_on_cpu').properties(device)\n"
    _replace(runtime, r"cpdef getDeviceProperties\(int device\):\n", ours)
    _replace(runtime, r"IF CUPY_CUDA_VERSION > 0 or 60000000 <= \w+:(\s+return attrs.type)", r"IF True:\1")


def _replace(path: Path, pattern: str, by: str) -> None:
    text, count = re.subn(pattern, by, path.read_text())
    if count == 0:
        raise SystemExit(f"{path.name} has changed: look at what _patch does to it")
    path.write_text(text)


def _install(source: Path, target: Path) -> None:
    env = os.environ | {"CUPY_INSTALL_USE_STUB": "1", "CUPY_NUM_BUILD_JOBS": str(os.cpu_count())}
    env |= {"CFLAGS": "-O0 -g0 -w", "CXXFLAGS": "-O0 -g0 -w"}
    env.pop("LD_PRELOAD", None)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, source, *NEEDS]
    run = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        raise SystemExit(f"CuPy could not be built:\n{run.stdout[-6000:]}")


if __name__ == "__main__":
    print(folder())
