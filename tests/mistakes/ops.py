"""Mistakes in `numllama/ops/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "the weight's gradient transposed, and reshaped until it fits",
        "ops/linear.py", "add_to(into, dout.T @ x.reshape(-1, I))", "add_to(into, (x.reshape(-1, I).T @ dout).reshape(O, I))",
        "ops/test_linear.py::test_gradients",
    ),
    Mistake(
        "the buffer written to instead of added to",
        "ops/linear.py", "import Array, add_to", "import Array, write_to as add_to",
        "ops/test_linear.py::test_into_is_added_to_and_returned",
    ),
    Mistake(
        "+= over repeated tokens, which keeps only one of them",
        "ops/embedding.py", "xp.add.at(dweight, tokens, dout)", "dweight[tokens] += dout",
        "ops/test_embedding.py::test_a_repeated_token_collects_all_of_its_gradients",
    ),
    Mistake(
        "a router that does not learn from the experts",
        "ops/mixture_of_experts.py",
        "dweights[tokens, places] = (rows[tokens] * y).sum(-1)", "dweights[tokens, places] = 0",
        "ops/test_mixture_of_experts.py::test_gradients",
    ),
    Mistake(
        "the experts' gradient without their weight",
        "ops/mixture_of_experts.py", "dy = routed.weights[tokens, places, None] * rows[tokens]", "dy = rows[tokens]",
        "ops/test_mixture_of_experts.py::test_gradients",
    ),
    Mistake(
        "experts that overwrite each other's tokens",
        "ops/mixture_of_experts.py", "out[tokens] += weights", "out[tokens] = weights",
        "ops/test_mixture_of_experts.py::test_forward_is_the_dense_sum",
    ),
    Mistake(
        "router weights that do not know their sum",
        "ops/router.py", "(dweights - (dweights * weights).sum(-1, keepdims=True)) / total", "dweights / total",
        "ops/test_mixture_of_experts.py::test_gradients_of_the_router",
    ),
    Mistake(
        "a load-balancing loss that counts probabilities twice",
        "ops/load_balancing.py", "(shares * probs.mean(0)).sum()", "(probs.mean(0) ** 2).sum()",
        "ops/test_mixture_of_experts.py::test_the_load_balancing_loss_by_loops",
    ),
    Mistake(
        "RMSNorm without the second term of its gradient",
        "ops/rmsnorm.py", "rstd * (dn - n * (dn * n).mean(-1, keepdims=True))", "rstd * dn",
        "ops/test_rmsnorm.py::test_gradients",
    ),
    Mistake(
        "the stream's own gradient forgotten",
        "ops/add_rmsnorm.py", "        dx += dtotal\n", "",
        "ops/test_add_rmsnorm.py::test_gradients",
    ),
    Mistake(
        "the branch normalised instead of the sum",
        "ops/add_rmsnorm.py", "rmsnorm_forward(total, weight, eps)", "rmsnorm_forward(branch, weight, eps)",
        "ops/test_add_rmsnorm.py::test_it_is_the_sum_and_the_norm_of_the_sum",
    ),
    Mistake(
        "eps added outside the root",
        "ops/rmsnorm.py",
        "1.0 / xp.sqrt((x * x).mean(-1, keepdims=True) + eps)", "1.0 / (xp.sqrt((x * x).mean(-1, keepdims=True)) + eps)",
        "ops/test_rmsnorm.py::test_forward_by_scalars",
    ),
    Mistake(
        "LayerNorm's gradient without the mean's part",
        "ops/layernorm.py", "dx = rstd * (dn - dn.mean(-1, keepdims=True) - n", "dx = rstd * (dn - n",
        "ops/test_layernorm.py::test_gradients",
    ),
    Mistake(
        "the unbiased variance",
        "ops/layernorm.py",
        "rstd = 1.0 / xp.sqrt((centred * centred).mean(-1, keepdims=True) + eps)",
        "rstd = 1.0 / xp.sqrt((centred * centred).sum(-1, keepdims=True) / (x.shape[-1] - 1 or 1) + eps)",
        "ops/test_layernorm.py::test_forward_by_scalars",
    ),
    Mistake(
        "RoPE with the wrong sign",
        "ops/rope.py", "x1 * cos - x2 * sin", "x1 * cos + x2 * sin",
        "ops/test_rope.py::test_norms_stay",
    ),
    Mistake(
        "RoPE's backward turning forward",
        "ops/rope.py", "rope_forward(dout, cos, -sin, layout, out=out)[0]", "rope_forward(dout, cos, sin, layout, out=out)[0]",
        "ops/test_rope.py::test_backward_turns_back",
    ),
    Mistake(
        "RoPE one position late",
        "ops/rope_table.py", "angles = positions[..., None] * frequencies", "angles = (positions[..., None] + 1) * frequencies",
        "ops/test_rope.py::test_position_zero_stays",
    ),
    Mistake(
        "one layout under the name of the other",
        "ops/rope.py", "return slice(0, D // 2), slice(D // 2, D)", "return slice(0, D, 2), slice(1, D, 2)",
        "ops/test_rope.py::test_the_layouts_differ_by_a_permutation",
    ),
    Mistake(
        "frequencies a factor of two apart",
        "ops/rope_table.py", 'xp.arange(0, D, 2, dtype="float64") / D)', 'xp.arange(0, D // 2, dtype="float64") / D)',
        "ops/test_rope.py::test_table_by_scalars",
    ),
    Mistake(
        "Llama 3.1's scaling the wrong way round",
        "ops/rope_scaling.py",
        'return frequencies * (kept + (1 - kept) / scaling["factor"])',
        'return frequencies * (1 - kept + kept / scaling["factor"])',
        "ops/test_rope.py::test_llama_3_1_scaling_keeps_fast_divides_slow_and_blends_between",
    ),
    Mistake(
        "YaRN's attention factor forgotten",
        "ops/rope_scaling.py", 'if kind not in ("yarn", "longrope") or given is not None:', "if True:",
        "ops/test_rope.py::test_every_scaling_by_scalars",
    ),
    Mistake(
        "a finite minus infinity",
        "ops/attention.py", "-math.inf)", "-1e4)",
        "ops/test_attention.py::test_a_query_that_sees_nothing_gives_zero_and_gets_zero",
    ),
    Mistake(
        "the causal interval one key too long",
        "ops/intervals.py", "(s < ends[..., None])", "(s <= ends[..., None])",
        "ops/test_attention.py::test_future_keys_have_no_influence_at_all",
    ),
    Mistake(
        "the first key of an interval left out",
        "ops/intervals.py", "(starts[..., None] <= s)", "(starts[..., None] < s)",
        "ops/test_attention.py::test_forward_by_scalars",
    ),
    Mistake(
        "queries at the start of the keys, where a cache has them at the end",
        "ops/intervals.py", "xp.arange(S - T + 1, S + 1)", "xp.arange(1, T + 1)",
        "ops/test_attention.py::test_by_default_the_queries_stand_at_the_end_of_the_keys",
    ),
    Mistake(
        "heads tiled instead of grouped",
        "ops/intervals.py",
        "return x.reshape(B, K, H // K * T, D)",
        "return x.reshape(B, H // K, K, T, D).swapaxes(1, 2).reshape(B, K, H // K * T, D)",
        "ops/test_attention.py::test_grouped_queries_are_repeated_keys_and_values",
    ),
    Mistake(
        "scores divided by D instead of its root",
        "ops/attention.py", "scale = 1 / math.sqrt(D) if", "scale = 1 / D if",
        "ops/test_attention.py::test_forward_by_scalars",
    ),
    Mistake(
        "softmax's gradient without the sum",
        "ops/softmax.py", "return p * (dout - (dout * p).sum(-1, keepdims=True))", "return p * dout",
        "ops/test_attention.py::test_gradients",
    ),
    Mistake(
        "exp without the maximum taken off",
        "ops/softmax.py", "x - xp.where(top == -math.inf, 0, top)", "x - 0 * xp.where(top == -math.inf, 0, top)",
        "ops/test_softmax.py::test_large_numbers_do_not_overflow",
    ),
    Mistake(
        "a row that is hidden wholly, divided by its sum of zero",
        "ops/softmax.py", "e / xp.where(total == 0, 1, total)", "e / total",
        "ops/test_softmax.py::test_masked_places_have_no_probability_and_no_gradient",
    ),
    Mistake(
        "dk transposed, and hidden by a reshape",
        "ops/attention.py",
        "dk = ds.swapaxes(-1, -2) @ fold_groups(q, K)", "dk = (fold_groups(q, K).swapaxes(-1, -2) @ ds).reshape(k.shape)",
        "ops/test_attention.py::test_gradients",
    ),
    Mistake(
        "no maximum taken off, however large the scores",
        "ops/flash_attention.py", "return xp_of(m).where(m == -math.inf, 0, m)", "return xp_of(m).zeros_like(m)",
        "ops/test_flash_attention.py::test_very_large_scores_do_not_overflow",
    ),
    Mistake(
        "sums that are not rescaled when the maximum rises",
        "ops/flash_attention.py", "o = o * shrink + p", "o = o + p",
        "ops/test_flash_attention.py::test_it_is_attention",
    ),
    Mistake(
        "the tile's own maximum in the place of the one so far",
        "ops/flash_attention.py", "xp.maximum(m, scores.max(-1, keepdims=True))", "scores.max(-1, keepdims=True)",
        "ops/test_flash_attention.py::test_very_large_scores_do_not_overflow",
    ),
    Mistake(
        "tiles of keys that are skipped although somebody sees them",
        "ops/flash_attention.py",
        "if not seen.any():\n                continue\n            scores",
        "if not seen.all(-1).any():\n                continue\n            scores",
        "ops/test_flash_attention.py::test_it_is_attention",
    ),
    Mistake(
        "flash attention's backward without delta",
        "ops/flash_attention.py", "p * (dp - deltat)", "p * dp",
        "ops/test_flash_attention.py::test_gradients",
    ),
    Mistake(
        "SiLU's derivative without the gate's own part",
        "ops/swiglu.py", "(sigma + silu * (1 - sigma))", "(sigma * silu * (1 - sigma))",
        "ops/test_swiglu.py::test_gradients",
    ),
    Mistake(
        "the gate's gradient without up",
        "ops/swiglu.py", "dgate = dout * up * (", "dgate = dout * (",
        "ops/test_swiglu.py::test_gradients",
    ),
    Mistake(
        "the value's gradient through a gate without its GELU",
        "ops/geglu.py", "dup = dout * gelu_forward(gate)[0]", "dup = dout * gate",
        "ops/test_geglu.py::test_gradients",
    ),
    Mistake(
        "the GELU gate's gradient without up",
        "ops/geglu.py", "gelu_backward(dout * up, GELUCache", "gelu_backward(dout, GELUCache",
        "ops/test_geglu.py::test_gradients",
    ),
    Mistake(
        "a soft cap's derivative without the square",
        "ops/softcap.py", "return dout * (1 - t * t)", "return dout * (1 - t)",
        "ops/test_softcap.py::test_gradients",
    ),
    Mistake(
        "a soft cap's derivative at a value that was not divided by the cap",
        "ops/softcap.py", "t = xp_of(x).tanh(x / cap)", "t = xp_of(x).tanh(x)",
        "ops/test_softcap.py::test_gradients",
    ),
    Mistake(
        "capped attention scores whose gradient forgets the cap",
        "ops/attention.py", "softcap_backward(ds, capped)", "ds",
        "ops/test_attention.py::test_gradients_with_a_soft_cap",
    ),
    Mistake(
        "a derivative of x³ without the 3",
        "ops/gelu.py", "du = SLOPE * (1 + 3 * CUBIC * x * x)", "du = SLOPE * (1 + CUBIC * x * x)",
        "ops/test_gelu.py::test_gradients",
    ),
    Mistake(
        "tanh's derivative without the square",
        "ops/gelu.py", "(1 - tanh * tanh)", "(1 - tanh)",
        "ops/test_gelu.py::test_gradients",
    ),
    Mistake(
        "the mean over all targets instead of those that count",
        "ops/cross_entropy.py", "count = xp.maximum(counted.sum(), 1)", "count = max(targets.size, 1)",
        "ops/test_cross_entropy.py::test_forward_by_scalars",
    ),
    Mistake(
        "log-sum-exp without the maximum",
        "ops/cross_entropy.py",
        "top = logits.max(-1, ", "top = 0 * logits.max(-1, ",
        "ops/test_cross_entropy.py::test_very_large_logits_stay_finite",
    ),
    Mistake(
        "the target's own probability forgotten",
        "ops/cross_entropy.py", "(p - onehot) * scale", "p * scale",
        "ops/test_cross_entropy.py::test_the_gradient_is_the_excess_probability",
    ),
    Mistake(
        "a NumPy count that widens float32",
        "ops/cross_entropy.py", "count = xp.asarray(count, dtype=logits.dtype)", "pass",
        "ops/test_cross_entropy.py::test_keeps_float32_when_numpy_did_the_counting",
    ),
    Mistake(
        "dropout's backward with a mask of its own",
        "ops/dropout.py", "return dout * dropout_mask(dout, p, key)", "return dout * dropout_mask(dout, p, (*key, 1))",
        "ops/test_dropout.py::test_backward_uses_the_mask_of_forward",
    ),
    Mistake(
        "dropout that does not scale up the rest",
        "ops/dropout.py", "x.dtype.type(1 / (1 - p))", "x.dtype.type(1)",
        "ops/test_dropout.py::test_the_rest_is_scaled_up_so_that_the_mean_stays",
    ),
    Mistake(
        "the gradient along the residual stream forgotten",
        "ops/add_rmsnorm.py", "        dx += dtotal\n", "",
        "ops/test_add_rmsnorm.py::test_gradients",
    ),
    Mistake(
        "the gradient of an update's first matrix without the scale",
        "ops/lora.py", "dh = scale * (dout @ b) ", "dh = dout @ b ",
        "ops/test_lora.py::test_gradients",
    ),
    Mistake(
        "the gradient of an update's second matrix transposed, and reshaped until it fits",
        "ops/lora.py", "db = dout.T @ (scale * h) ", "db = ((scale * h).T @ dout).reshape(b.shape) ",
        "ops/test_lora.py::test_gradients",
    ),
]  # fmt: skip
