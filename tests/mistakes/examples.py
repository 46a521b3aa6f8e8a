"""Mistakes in `examples/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "backward through time that stops at once",
        "../examples/llamafy.py", "dz[:, t] = (dout[:, t] + dh) *", "dz[:, t] = dout[:, t] *",
        "examples/test_llamafy.py::test_the_gradients_of_the_recurrent_network",
    ),
    Mistake(
        "the recurrent weight's gradient from the states after, not before",
        "../examples/llamafy.py", "(h[:, :-1], w_h, None)", "(h[:, 1:], w_h, None)",
        "examples/test_llamafy.py::test_the_gradients_of_the_recurrent_network",
    ),
    Mistake(
        "the input's gradient through one of three maps",
        "../examples/llamafy.py", "return sum(dx for dx, _ in back), *(", "return back[0][0], *(",
        "examples/test_llamafy.py::test_the_gradients_of_heads_alone",
    ),
    Mistake(
        "learned positions that learn from the first sequence alone",
        "../examples/llamafy.py", "+= dx.sum(0)", "+= dx[0]",
        "examples/test_llamafy.py::test_the_gradients_of_a_whole_model[Heads]",
    ),
    Mistake(
        "rungs of one width in place of one size",
        "../examples/llamafy.py", "fields | {rung.width: width}", "fields | {rung.width: 64}",
        "examples/test_llamafy.py::test_all_rungs_have_the_same_number_of_parameters_within_two_percent",
    ),
    Mistake(
        "a cache of as many heads as there are queries",
        "../examples/llamafy.py", "2 * config.n_layers * config.n_kv_heads *", "2 * config.n_layers * config.n_heads *",
        "examples/test_llamafy.py::test_the_bytes_of_the_cache_are_those_of_the_cache",
    ),
    Mistake(
        "a fit that outliers pull",
        "../examples/scaling_laws.py", "np.minimum(1, delta / np.maximum(abs(error), 1e-300))", "np.ones(len(error))",
        "examples/test_scaling_laws.py::test_two_wrong_losses_hardly_move_the_law",
    ),
    Mistake(
        "an exponent that moves the loss the wrong way",
        "../examples/scaling_laws.py", "-data * np.log(d)]", "data * np.log(d)]",
        "examples/test_scaling_laws.py::test_the_slopes_of_the_law_are_its_derivatives",
    ),
]  # fmt: skip
