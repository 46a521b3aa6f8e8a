"""Compile a program of CUDA for the emulator:   python emulate.py PROGRAM.cu LIBRARY.so

Programs of this project are compiled as emulator.py does it; those that CuPy writes find its headers, and `prelude.h` in place of
what NVRTC knows by itself. In either library each kernel has a function invoke_NAME that takes addresses of its arguments.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
EMULATOR = HERE.parent / "emulator"
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\(')
INVOKERS = """
template <int...> struct Places {};
template <class T> struct Value { typedef T type; };
template <class T> struct Value<T&> { typedef T type; };
template <class T> struct Value<const T> { typedef T type; };
template <class... A, int... I> void invoke_with(void (*kernel)(A...), void** a, Places<I...>) {
  kernel(*(typename Value<A>::type*)a[I]...);
}
template <class... A> void invoke(void (*kernel)(A...), void** a) {
  invoke_with(kernel, a, Places<__integer_pack(sizeof...(A))...>{});
}
"""
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-w", "-fpermissive"]
if os.environ.get("NUMLLAMA_EMULATOR_ASAN"):
    FLAGS += ["-fsanitize=address", "-g"]


def main(program: str, library: str) -> None:
    text = Path(program).read_text()
    is_ours = '#line 1 "common.cuh"' in text
    invoker = 'extern "C" void invoke_{0}(void** a) {{ invoke(&{0}, a); }}\n'
    invokers = INVOKERS + "".join(map(invoker.format, KERNEL.findall(text)))
    if is_ours:
        main, flags = f'#include "cuda_on_cpu.h"\nnamespace {{\n{text}\n}}\n', ["-fsanitize=alignment"]
    else:
        dynamic = r"extern __shared__ (?:__align__\(\w+\) )?([\w ]+?)\s+(\w+)\[\];"
        text = re.sub(dynamic, r"\1* const \2 = (\1*)emulator::dynamic_shared;", text)
        folders = HERE / "include", Path(os.environ["CUDA_ON_CPU_CUPY"]) / "cupy" / "_core" / "include"
        main, flags = f'#include "prelude.h"\n{text}\n', [*(f"-I{folder}" for folder in folders), "-DLEAVERS_DO_NOT_COUNT"]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    part = f"{library}.{os.getpid()}"
    compiler = [os.environ.get("CXX", "g++"), *FLAGS, f"-I{EMULATOR}"]
    kernels = [*compiler, *flags, "-c", "-x", "c++", "-", "-o", f"{part}.kernels.o"]
    subprocess.run(kernels, input=main + invokers, text=True, check=True, env=environment)
    scheduler = [*compiler, *flags[-1:], "-c", str(EMULATOR / "runtime.cc"), "-o", f"{part}.runtime.o"]
    subprocess.run(scheduler, check=True, env=environment)
    objects = [f"{part}.kernels.o", f"{part}.runtime.o"]
    subprocess.run([*compiler, "-shared", "-Wl,-Bsymbolic", *objects, "-o", part], check=True, env=environment)
    for made in objects:
        os.unlink(made)
    os.replace(part, library)


if __name__ == "__main__":
    main(*sys.argv[1:])
