"""Every launch of every preset, as a driver takes it, on each kind of GPU; and how many there are.

    NUMLLAMA_RECORD=1 python -m pytest tests/cuda/real_cupy/test_null.py         # writes nodes.json anew
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from null import CAPABILITIES, WHOLE

HERE = Path(__file__).parent
RECORD = HERE / "nodes.json"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_driver_takes_every_launch(capability, tmp_path):
    out = tmp_path / "rows.json"
    run = subprocess.run(
        [sys.executable, HERE / "null.py", "--capability", str(capability), "--json", out], capture_output=True, text=True
    )
    assert out.exists(), run.stderr[-3000:]
    rows = json.loads(out.read_text())
    wrong = {" ".join(row[name] for name in ("preset", "dtype", "phase")): row["problems"] for row in rows if row["problems"]}
    assert wrong == {}
    assert run.returncode == 0
    for row in rows:
        recorded = row["phase"] in ("training", "recompute", "shards") and row["dtype"] != "float16"
        if row["phase"] not in ("generate", "serve"):
            assert row["graphs"] == recorded, f"{row['preset']} {row['dtype']} {row['phase']}"
    if capability == 90:
        counts = {
            f"{row['preset']} {row['dtype']} {row['phase']}": {"nodes": row["nodes"], "all": sum(row["nodes"].values())}
            for row in rows
            if row["preset"] in WHOLE and row["nodes"]
        }
        if os.environ.get("NUMLLAMA_RECORD"):
            RECORD.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
        assert counts == json.loads(RECORD.read_text())


def test_a_step_of_shakespeare_has_at_most_170_nodes():
    assert json.loads(RECORD.read_text())["shakespeare bfloat16 training"]["all"] <= 170
