"""Hints and solutions as a page shows them: folded, and as they are."""

import re

import pytest

from numllama.learn.course.files import solution_text
from numllama.learn.course.folded import folded
from numllama.learn.course.table import COURSE


@pytest.mark.parametrize("name", [name for name in COURSE if name != "llama"])
def test_each_exercise_has_three_hints_and_a_solution_in_parts_that_open_one_by_one(name):
    text = folded(name)
    summaries = re.findall(r"<summary>(.*)</summary>", text)
    assert [summary.partition(":")[0] for summary in summaries[1:]] == ["Hint 1", "Hint 2", "Hint 3", "Solution"]
    assert summaries[0].startswith(f"<code>{name}</code>")
    assert text.count("<details>") == text.count("</details>") == 5 and "open" not in re.findall(r"<details[^>]*>", text)
    assert f"\n{solution_text(name)}\n```" in text
    for steps in COURSE[name].hints.values():
        plain = text.replace("\\", "")
        assert all(step in plain for step in steps)
    prose = re.sub(r"```.*?```|<summary>.*?</summary>|<code>.*?</code>|</?details>", "", text, flags=re.S)
    assert not re.search(r"(?<!\\)[*_`<$|]", prose)  # nothing that Markdown reads
