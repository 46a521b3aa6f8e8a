"""Mistakes in the modules at the top of `numllama/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "a check that lets the id V through",
        "checks.py", "wrong = (ids < 0) | (ids >= size)", "wrong = (ids < 0) | (ids > size)",
        "ops/test_embedding.py::test_a_token_outside_of_the_vocabulary",
    ),
    Mistake(
        "a weight's gradient from the last block of rows only",
        "blocks.py", "return result if value is None else value + result", "return result",
        "test_dispatch.py::test_float32_weight_gradients_agree_to_six_digits_and_stay_float32",
    ),
    Mistake(
        "a gradient check with a cotangent of ones",
        "gradcheck.py", "xp.asarray(rng.standard_normal(np.shape(o)))", "xp.ones(np.shape(o))",
        "test_gradcheck.py::test_under_a_cotangent_of_ones_a_wrong_softmax_gradient_would_pass",
    ),
    Mistake(
        "an error of gradcheck that names another argument",
        "gradcheck.py", "{_called(first.argument, names)} is wrong", "{_called(0, names)} is wrong",
        "test_gradcheck.py::test_a_transposed_gradient_of_a_square_shape",
    ),
    Mistake(
        "a gradient of each argument that is taken for another's",
        "gradcheck.py", "tuple(gradients[i] for i in wrt)", "tuple(gradients[: len(wrt)])",
        "test_gradcheck.py::test_a_backward_may_return_one_gradient_for_each_argument",
    ),
    Mistake(
        "a kernel that is chosen and its refusal taken for a result",
        "dispatch.py", "is not NotImplemented:", "is not None:",
        "cuda/test_dropout.py::test_what_the_kernel_does_not_take_runs_as_the_op_says",
    ),
]  # fmt: skip
