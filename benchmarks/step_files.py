"""How many files of the package does one training step on a CPU run, not counting imports?

    python benchmarks/step_files.py            # --most 22: fail if there are more
"""

import argparse
import sys
import threading
from contextlib import closing
from pathlib import Path

import numllama as nl
from numllama.training import text_dataset

PACKAGE = Path(nl.__file__).parent


def files_of_a_step() -> list[str]:
    """The files of the package in which a function is called between two reports of a run."""
    found: set[str] = set()

    def look(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in path.parents and frame.f_code.co_name != "<module>":
            found.add(path.relative_to(PACKAGE).as_posix())

    data = text_dataset("To be, or not to be, that is the question. " * 200, "a line")
    config = nl.ModelConfig(data.vocab_size, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=64)
    settings = nl.TrainConfig(steps=4, batch_size=8, seq_len=64, warmup_steps=1, eval_every=4)
    threading.setprofile(look)  # for workers, whose threads start with the first step
    with closing(nl.Trainer(nl.Transformer(config), data, settings)) as trainer:
        run = iter(trainer)
        next(run)
        found.clear()
        sys.setprofile(look)
        next(run)
        sys.setprofile(None)
        threading.setprofile(None)
        return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int)
    args = parser.parse_args()
    found = files_of_a_step()
    print("\n".join(found))
    print(f"{len(found)} files")
    if args.most is not None and len(found) > args.most:
        raise SystemExit(f"more than {args.most}")


if __name__ == "__main__":
    main()
