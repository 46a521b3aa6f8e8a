"""Exercises: an op with a blank backward (or forward), a block, plain functions, mistakes to find; a check says what is right.

The files are made from the package's own sources, so the library is the solution. The check runs a file in a process of its own,
on small float64 arrays, and compares each result with the library's. All of it is in :mod:`numllama.learn.course`; these are the
names that pages and tools use.
"""

from numllama.learn.course.check import OUTCOMES, check
from numllama.learn.course.examples import cotangent, example
from numllama.learn.course.files import exercise_text, solution_text, solved_text, write_exercises
from numllama.learn.course.folded import folded, folded_steps
from numllama.learn.course.report import check_exercises, check_file, check_text, print_check
from numllama.learn.course.table import COURSE, EXERCISES, FUNCTIONS, find_exercise

__all__ = [
    "COURSE", "EXERCISES", "FUNCTIONS", "OUTCOMES",
    "check", "check_exercises", "check_file", "check_text", "cotangent", "example", "exercise_text", "find_exercise", "folded",
    "folded_steps", "print_check", "solution_text", "solved_text", "write_exercises",
]  # fmt: skip
