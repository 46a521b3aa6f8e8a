"""The course: exercises from one gradient to a whole Llama, their checks, points, hints and solutions."""
