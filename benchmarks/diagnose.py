"""How many mistakes of a Llama in PyTorch numllama.diagnose names, and how long it takes: the subject of tests/parity/learn.

    python benchmarks/diagnose.py
"""

import argparse
import statistics
import sys
import time
from pathlib import Path


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import torch
    from parity.learn.named import NAMED
    from parity.learn.subject import run
    from parity.learn.test_compare_torch import in_torch
    from parity.learn.test_diagnose_torch import MODEL, first_place, said

    import numllama as nl
    from numllama.learn.vectors import standard_vectors

    torch.set_num_threads(1)
    vectors, seconds, first, listed, none = {}, [], 0, 0, 0
    for mistake in MODEL:
        name = first_place(mistake)
        vectors.setdefault(name, standard_vectors(name))
        dump = run(in_torch(vectors[name], "float32"), mistake.key)
        before = time.perf_counter()
        found = nl.diagnose(vectors[name], dump).explanations
        seconds.append(time.perf_counter() - before)
        names = [said(each) for each in found]
        right = NAMED.get(mistake.key)
        first += any(right == each[0] for each in names)
        listed += any(right in each[1:] for each in names)
        none += not found
    print(f"{len(MODEL)} mistakes, float32: {first} named, {listed} more in a list of those that give the same numbers,")
    print(f"{none} without an explanation; {statistics.median(seconds):.2f} s each (median), {max(seconds):.2f} s at most.")


if __name__ == "__main__":
    main()
