"""What the tests let ranks do: 50 steps of the default schedule, in both dtypes, in every way; or something that fails.

    mpirun -n 3 python runs.py equal      prints what `one_process` gives elsewhere, as JSON
    mpirun -n 3 python runs.py raise      rank 1 raises after some steps
    mpirun -n 3 python runs.py go-on F T  steps for a minute, with a timeout of T; each rank leaves its process id in the folder F
    mpirun -n 3 python runs.py train ...  as from the command line
"""

import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numllama as nl
from numllama import blocks, cli
from numllama.data.dataset import text_dataset
from numllama.parallel import ranks
from numllama.parallel.launched import communicator

STEPS, T = 50, 8
DATA = text_dataset("the quick brown fox jumps over the lazy dog. " * 60, "a fox")
WAYS = [dict(dtype=d, shard_optimizer=z) for d in ("float64", "float32") for z in (False, True)]


def trainer(dtype="float32", steps=2000, **changes):
    """With the default schedule: 2000 steps, of which 100 warm up."""
    shape = dict(dim=16, n_layers=1, n_heads=4, n_kv_heads=2, max_seq_len=T, dropout=0.1)
    model = nl.Transformer(nl.ModelConfig(DATA.vocab_size, **shape), seed=1, dtype=dtype)
    settings = nl.TrainConfig(steps=steps, batch_size=5, shards=4, eval_every=25, eval_batches=3, **changes)
    assert settings.warmup_steps == 100
    return nl.Trainer(model, DATA, settings)


def run(**changes):
    """Losses, norms, estimates, and a digest of the parameters, after 50 steps."""
    blocks.PIECE_ELEMENTS, ranks.BUCKET_PIECES = 200, 6
    t = trainer(**changes)
    reports = [(r.loss, r.grad_norm, r.val_loss) for r in itertools.islice(t, STEPS)]
    digest = hashlib.sha256(t.model.params.flat).hexdigest()
    t.close()
    return {"reports": reports, "digest": digest}


def main(what, folder=None, timeout=600, *arguments):
    if what == "train":
        sys.modules["matplotlib"] = None  # a run that draws nothing ends a second sooner
        cli.main(sys.argv[1:])
    comm = communicator("mpi")
    if what == "equal":
        ways = [*WAYS, dict(dtype="float64", sum_by="rank"), dict(dtype="float32", sum_by="rank", shard_optimizer=True)]
        results = [run(parallel="mpi", **way) for way in ways]
        if comm.rank == 0:
            print(json.dumps(results))
        return
    end = time.monotonic() + 60
    for report in trainer(steps=10**9, parallel="mpi", timeout=float(timeout)):
        if time.monotonic() > end:
            break
        if folder and report.step == 5:
            (Path(folder) / f"{comm.rank}-{os.getpid()}").touch()
        if what == "raise" and report.step == 5 and comm.rank == 1:
            raise RuntimeError("rank 1 has had enough")


if __name__ == "__main__":
    main(*sys.argv[1:])
