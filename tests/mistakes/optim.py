"""Mistakes in `numllama/optim/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "weight decay on gains",
        "optim/optimizer.py",
        "pieces += [(part, 0.0) for part", "pieces += [(part, self.weight_decay) for part",
        "optim/test_adamw.py::test_only_matrices_decay",
    ),
    Mistake(
        "Adam without its bias correction",
        "optim/adamw.py",
        "step = c / (1 - beta1**t) * m", "step = c * m",
        "optim/test_adamw.py::test_the_first_step_is_lr_times_the_sign_of_the_gradient",
    ),
    Mistake(
        "decay mixed into the gradient, as in plain Adam",
        "optim/adamw.py", "m[...] = beta1 * m + (1 - beta1) * g", "m[...] = beta1 * m + (1 - beta1) * (g + weight_decay * w)",
        "optim/test_adamw.py::test_decay_does_not_enter_the_moments",
    ),
    Mistake(
        "gradients always scaled to the maximal norm",
        "optim/clip.py", 'if max_norm < norm < float("inf"):', 'if norm < float("inf"):',
        "optim/test_clip.py::test_gradients_that_are_short_enough_stay_bit_for_bit",
    ),
    Mistake(
        "a warm-up that is one step ahead",
        "optim/schedule.py", "return max_lr * step / warmup_steps", "return max_lr * (step + 1) / warmup_steps",
        "optim/test_schedule.py::test_its_landmarks",
    ),
    Mistake(
        "weights that the model computes with and the optimizer forgets",
        "optim/adamw.py", "copy = self.params.low_precision_part(part)", "copy = None",
        "model/test_mixed_precision.py::test_an_optimizer_steps_float32_and_brings_the_copy_up_to_date[adamw-bfloat16]",
    ),
]  # fmt: skip
