"""The exercises that are a plain function: each file is the exercise with its solution, and the test that students run."""
