"""A diagnosis as text and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numllama.learn import plain_llama
from numllama.learn.compare_report import as_dict as comparison_as_dict
from numllama.learn.compare_report import read_names, verdict
from numllama.learn.diagnose import Diagnosis, Explanation, diagnose
from numllama.learn.mistakes.mistake import short_name
from numllama.learn.names import FEW, readable, some
from numllama.storage.files import strict

KINDS = {"d_values": "d", "d_weights": "g"}  # gradients of values and of weights in plain_llama.py
HELPERS = {  # how plain_llama.py writes what golden vectors have no name for
    "q_heads": "split_heads(a.q, D)", "k_heads": "split_heads(a.k, D)", "v_heads": "split_heads(a.v, D), c)",
    "k_repeated": "repeat(a.k_rotated, c)", "v_repeated": "repeat(split_heads(a.v", "merged": "merge_heads(a.head_outputs)",
    **dict.fromkeys(("positions", "visible"), "= positions_and_mask("), **dict.fromkeys(("cos", "sin"), "= ops.rope_table("),
    **dict.fromkeys(("frequencies", "angles"), "= ops.rope_table("),
}  # fmt: skip


def diagnose_run(
    reference: str, dump: Path, names: Path | None, ids: tuple[int, ...] | None, dtype: str | None, as_json_text: bool
) -> int:
    """`numllama diagnose`: print the diagnosis; returns the exit code: 0 the same, 1 different."""
    diagnosis = diagnose(reference, dump, names=read_names(names), tokens=None if ids is None else [ids], dtype=dtype)
    print(json.dumps(strict(as_dict(diagnosis)), ensure_ascii=False, indent=1) if as_json_text else as_text(diagnosis))
    return 0 if diagnosis.comparison.same else 1


def as_text(diagnosis: Diagnosis) -> str:
    """The mistakes, then what none explains."""
    lines = [*diagnosis.comparison.notes, verdict(diagnosis.comparison)]
    for i, each in enumerate(diagnosis.explanations, 1):
        lines += ["", *_explained(i, each)]
    if diagnosis.unexplained:
        lines += ["", f"No known mistake gives the numbers of {some([readable(name) for name in diagnosis.unexplained])}."]
    return "\n".join(lines)


def _explained(i: int, each: Explanation) -> list[str]:
    alike = [" ".join(each.mistakes), *each.others]
    lines = [f"{i}. {alike[0]}"] if len(alike) == 1 else [f"{i}. One of these, which give the same numbers here:"]
    lines += [f"   - {what}" for what in alike if len(alike) > 1]
    lines += [
        f"   It explains {some([readable(name) for name in each.values])}.",
        f"   Relative error {each.before:.1e} without the mistake, {each.after:.1e} with it.",
    ]
    lines += [f"   Right, in plain_llama.py: {line}" for line in right_lines(each)[:FEW]]
    return [*lines, f"   Derivation: docs/{each.page}.md"]


def right_lines(explanation: Explanation) -> list[str]:
    """The lines of plain_llama.py that compute what is mistaken: values, or gradients if the mistake is in their backward."""
    lines = Path(plain_llama.__file__).read_text(encoding="utf-8").splitlines()
    code = [line.partition("  #")[0].strip() for line in lines]
    if any(value.startswith("d_") for value in explanation.values):
        wanted = [f"{KINDS[value.partition('/')[0]]}.{short_name(value)}" for value in explanation.values]
        return [line for line in code if not set(wanted).isdisjoint(line.partition(" = ")[0].replace(",", " ").split())]
    found: dict[str, None] = {}
    for short in map(short_name, explanation.equations):
        starts = HELPERS.get(short, f"a.{short} = "), f"a.{short}, cache."
        found |= dict.fromkeys(line for line in code if any(start in line for start in starts))
    return list(found)


def as_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """Plain values for JSON."""
    explanations: Sequence[dict[str, Any]] = [vars(each) for each in diagnosis.explanations]
    comparison = comparison_as_dict(diagnosis.comparison)
    return {"explanations": explanations, "unexplained": diagnosis.unexplained, "comparison": comparison}
