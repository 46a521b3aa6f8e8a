"""Mistakes in `numllama/cpu/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "on a CPU: += over repeated tokens, which keeps only one of them",
        "cpu/embedding.py", "dweight[tokens[starts]] += np.add.reduceat(rows, starts, axis=0)", "dweight[tokens] += rows",
        "ops/test_embedding.py::test_a_repeated_token_collects_all_of_its_gradients",
    ),
    Mistake(
        "on a CPU: RMSNorm without the second term of its gradient",
        "cpu/rmsnorm.py", "    dx -= x * (rstd**2 * row_dot(dx, x) / C) ", "    dx -= 0 ",
        "ops/test_rmsnorm.py::test_gradients",
    ),
    Mistake(
        "on a CPU: eps added outside the root",
        "cpu/rmsnorm.py",
        "1.0 / np.sqrt(row_dot(x, x) / x.shape[-1] + eps)", "1.0 / (np.sqrt(row_dot(x, x) / x.shape[-1]) + eps)",
        "ops/test_rmsnorm.py::test_forward_by_scalars",
    ),
    Mistake(
        "on a CPU: RoPE with the wrong sign",
        "cpu/rope.py", "_join(-sin, sin, layout)", "_join(sin, sin, layout)",
        "ops/test_rope.py::test_norms_stay",
    ),
    Mistake(
        "on a CPU: no maximum taken off, however large the scores",
        "cpu/flash_attention.py", "row_dot(k, k).max() * scale**2 < SMALL_SCORE**2", "0 < SMALL_SCORE**2",
        "ops/test_flash_attention.py::test_very_large_scores_do_not_overflow",
    ),
    Mistake(
        "on a CPU: sums that are not rescaled when the maximum rises",
        "cpu/flash_attention.py", "                o *= shrink\n", "",
        "ops/test_flash_attention.py::test_it_is_attention",
    ),
    Mistake(
        "on a CPU: the tile's own maximum in the place of the one so far",
        "cpu/flash_attention.py", "np.maximum(m, s.max(-1, keepdims=True))", "s.max(-1, keepdims=True)",
        "ops/test_flash_attention.py::test_very_large_scores_do_not_overflow",
    ),
    Mistake(
        "on a CPU: tiles of keys that are skipped although somebody sees them",
        "cpu/flash_attention.py", "min(S, latest), step)", "min(S, full_to), step)",
        "ops/test_flash_attention.py::test_it_is_attention",
    ),
    Mistake(
        "on a CPU: flash attention's backward without delta",
        "cpu/flash_attention.py", "            dp -= deltai\n", "",
        "ops/test_flash_attention.py::test_gradients",
    ),
    Mistake(
        "on a CPU: SiLU's derivative without the gate's own part",
        "cpu/swiglu.py", "    dgate += sigma ", "    dgate *= sigma ",
        "ops/test_swiglu.py::test_gradients",
    ),
    Mistake(
        "on a CPU: the gate's gradient without up",
        "cpu/swiglu.py", "    dgate *= up\n", "",
        "ops/test_swiglu.py::test_gradients",
    ),
    Mistake(
        "on a CPU: log-sum-exp without the maximum",
        "cpu/cross_entropy.py",
        "top = logits.max(-1) ", "top = 0 * logits.max(-1) ",
        "ops/test_cross_entropy.py::test_very_large_logits_stay_finite",
    ),
    Mistake(
        "on a CPU: the target's own probability forgotten",
        "cpu/cross_entropy.py", "dlogits[at_targets(targets)] -= scale.reshape(-1)", "pass",
        "ops/test_cross_entropy.py::test_the_gradient_is_the_excess_probability",
    ),
    Mistake(
        "on a CPU: Adam without its bias correction",
        "cpu/adamw.py", "d *= lr * c / (1 - beta1**t)", "d *= lr * c",
        "optim/test_adamw.py::test_the_first_step_is_lr_times_the_sign_of_the_gradient",
    ),
    Mistake(
        "on a CPU: decay mixed into the gradient, as in plain Adam",
        "cpu/adamw.py", "    d = g - m ", "    d = g + weight_decay * w - m ",
        "optim/test_adamw.py::test_decay_does_not_enter_the_moments",
    ),
    Mistake(
        "a block of a stored weight in the place of another",
        "cpu/products.py", "converted[...] = b[:, columns]", "converted[...] = b[:, : converted.shape[1]]",
        "test_dispatch.py::test_a_weight_in_bfloat16_computes_what_its_values_do",
    ),
    Mistake(
        "a product that is written where it should be added",
        "cpu/products.py", "into.reshape(len(a), -1), add=True)", "into.reshape(len(a), -1))",
        "cpu/test_onednn.py::test_a_linear_map_of_a_weight_in_bfloat16_rounds_the_other_operand",
    ),
    Mistake(
        "an operand kept unrounded for backward",
        "cpu/linear.py", "x if in_two_bytes else operand ", "x ",
        "cpu/test_onednn.py::test_a_linear_map_of_a_weight_in_bfloat16_rounds_the_other_operand",
    ),
    Mistake(
        "queries and keys in bfloat16 because their input was rounded for them",
        "cpu/linears.py", "    dtype = dtype or x.dtype\n", "",
        "cpu/test_onednn.py::test_results_of_linear_maps_are_rounded_to_the_dtype_requested_or_to_that_of_x",
    ),
    Mistake(
        "a bias added after rounding",
        "cpu/linear.py", "weight.T, dtype if bias is None else None)", "weight.T, dtype)",
        "cpu/test_onednn.py::test_results_of_linear_maps_are_rounded_to_the_dtype_requested_or_to_that_of_x",
    ),
    Mistake(
        "SwiGLU's result left in float32",
        "cpu/swiglu.py", "return rounded(out, gate.dtype), ", "return out, ",
        "cpu/test_onednn.py::test_swiglu_of_bfloat16_is_computed_in_float32_and_rounded_once",
    ),
    Mistake(
        "a product of rows in int8 without their scales",
        "cpu/int8.py", "            out *= row_scales\n", "",
        "cpu/test_int8.py::test_a_cpu_that_multiplies_int8_rounds_the_rows_too",
    ),
    Mistake(
        "weights that are cut off to int8, not rounded",
        "cpu/int8.py", "np.rint(scratch, scratch)", "np.trunc(scratch, scratch)",
        "cpu/test_int8.py::test_no_element_moves_by_more_than_half_a_scale",
    ),
    Mistake(
        "the scale of a row that is zero",
        "cpu/int8.py", "SMALLEST = 1e-30", "SMALLEST = 0",
        "cpu/test_int8.py::test_rows_of_zeros_and_of_tiny_numbers_become_zero_and_others_that_are_not_finite_nan",
    ),
    Mistake(
        "strides that are left out of a primitive's key",
        "cpu/onednn.py", "key = a.shape, a.strides, a.dtype, b.shape, b.strides,", "key = a.shape, a.dtype, b.shape,",
        "cpu/test_onednn.py::test_a_product_of_any_strides",
    ),
    Mistake(
        "primitives that all threads share",
        "cpu/onednn.py", "class _Kept(threading.local):", "class _Kept:",
        "cpu/test_onednn.py::test_threads_of_ours_have_primitives_of_their_own_and_agree",
    ),
    Mistake(
        "attention in tiles: dq without the scale",
        "cpu/attention_tiles.py", "(dqi.reshape(dq[where].shape), scale,", "(dqi.reshape(dq[where].shape), 1,",
        "cpu/test_onednn.py::test_attention_in_tiles",
    ),
    Mistake(
        "attention in tiles: hidden keys seen",
        "cpu/attention_tiles.py", "        by_head &= bits[:, None]\n", "",
        "cpu/test_onednn.py::test_attention_in_tiles",
    ),
    Mistake(
        "attention in tiles: only the rounded part of delta",
        "cpu/attention_tiles.py", "shift - most.astype(np.float32)", "0",
        "cpu/test_onednn.py::test_the_shift_of_a_row_is_exact_to_sixteen_bits",
    ),
    Mistake(
        "attention in tiles: sums of exponentials that are too large",
        "cpu/attention_tiles.py", "LARGEST = 46.0", "LARGEST = 1e9",
        "cpu/test_onednn.py::test_attention_of_large_scores_takes_the_way_with_a_maximum",
    ),
]  # fmt: skip
