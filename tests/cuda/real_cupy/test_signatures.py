"""Every name of CuPy, its CUDA modules and its NCCL that the package uses is there, and takes what it is called with.

The first thing to look at after a new version of CuPy: it takes a second, and needs no kernel.
"""

import ast
import inspect
import re
from pathlib import Path

import cupy
import pytest
from cupy.cuda import nccl
from cupy_backends.cuda.libs import cublas, nvrtc

import numllama

ROOTS = {  # how the package writes them -> what they are
    "xp": cupy, "cupy": cupy, "self._cupy": cupy, "sys.modules['cupy']": cupy, "xp_of(x)": cupy,
    "cuda": cupy.cuda, "runtime": cupy.cuda.runtime,
    "nccl": nccl, "self._nccl": nccl, "self._comm": nccl.NcclCommunicator,
    "nvrtc": nvrtc, "cublas": cublas,
    "pool": cupy.cuda.MemoryPool, "self._stream": cupy.cuda.Stream,
}  # fmt: skip
ONLY_IN = {  # names that mean something else in other files
    "cuda": r"cuda/(cublas|stream|graph)\.py|parallel/nccl\.py", "runtime": r"cuda/doctor\.py", "nccl": r"parallel/nccl\.py",
    "self._comm": r"parallel/nccl\.py", "self._nccl": r"parallel/nccl\.py", "nvrtc": r"backend\.py", "cublas": "none",
    "pool": r"backend\.py", "self._stream": r"parallel/nccl\.py",
}  # fmt: skip
UFUNC = inspect.signature(lambda *args, out=None, where=None, casting=None, dtype=None: 0)  # of fewer keywords than NumPy's


def uses():
    """(where, root, chain of attributes, keywords or None) of every use."""
    package = Path(numllama.__file__).parent
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or id(node) in inner:
                continue
            chain, root = [], node
            while isinstance(root, ast.Attribute) and ast.unparse(root) not in ROOTS:
                chain.insert(0, root.attr)
                root = root.value
            name = re.sub(r"^xp_of\([^()]*\)$", "xp_of(x)", ast.unparse(root))
            if chain and name in ROOTS and re.search(ONLY_IN.get(name, ""), file):
                yield f"{file}:{node.lineno}", name, tuple(chain), called.get(id(node))


USES = list(uses())


def test_there_is_something_to_look_at():
    seen = {".".join(chain) for _, _, chain, _ in USES}
    assert {"asarray", "cuda.runtime.getDeviceCount", "NcclCommunicator", "groupStart", "cuda.get_current_stream"} <= seen


@pytest.mark.parametrize(("where", "root", "chain", "call"), USES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_name_is_there_and_takes_what_it_is_given(where, root, chain, call):
    found = ROOTS[root]
    for name in chain:
        if not hasattr(found, name) and call is None and isinstance(found, type):
            return  # an attribute of what a call has returned
        assert hasattr(found, name), f"CuPy {cupy.__version__} has no {'.'.join(chain)}"
        found = getattr(found, name)
    if call is None or any(isinstance(arg, ast.Starred) for arg in call.args) or any(k.arg is None for k in call.keywords):
        return
    signature = UFUNC if isinstance(found, cupy.ufunc) else _signature(found)
    if signature is not None:
        arguments = [object()] * (len(call.args) + (isinstance(ROOTS[root], type) and len(chain) == 1))
        signature.bind(*arguments, **{keyword.arg: object() for keyword in call.keywords})


def _signature(function):
    """Of a function in Python, or of one in Cython, whose docstring begins with it; None if neither says."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        pass
    line = (function.__doc__ or "").split("\n")[0]
    inside = re.fullmatch(r"\w+\((.*?)\)(?: ->.*)?", line)
    if not inside:
        return None
    words = [re.sub(r"^[\w ]*?(\w+)(=.*)?$", r"\1\2", part.strip()) for part in inside[1].split(",") if part.strip()]
    names = [re.sub(r"=.*", "=None", word) for word in words]
    return inspect.signature(eval(f"lambda {', '.join(names)}: 0"))
