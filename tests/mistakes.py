"""Mistakes that are easy to make, each as an exact substitution in the code, and the test that must catch it.

`test_mistakes.py` makes every one of them in a copy of the project and sees the named test fail. If the line to be changed is
no longer there, exactly once, that is a failure too: the table follows the code.
"""

from typing import NamedTuple


class Mistake(NamedTuple):
    """What is wrong, where, the text that is replaced, by what, and the test that must fail."""

    what: str
    file: str
    right: str
    wrong: str
    test: str


MODEL = "model/test_transformer.py"
GRAPH = "cuda/real_cupy/test_graph.py::test_ten_replayed_steps_are_ten_plain_steps_bit_for_bit[float32]"

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
        "../examples/llamafy.py", "key=lambda width: abs(surplus(width))", "key=lambda width: width",
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
    Mistake(
        "a text that nobody waits for is written to its end",
        "serve/texts.py", "        self.cancelled = True", "        self.cancelled = False",
        "serve/test_engine.py::test_a_text_that_nobody_waits_for_ends_at_once",
    ),
    Mistake(
        "two texts of one prompt drawn with the same seed",
        "serve/requests.py", "None if seed is None else seed + i", "seed",
        "serve/test_api.py::test_the_client_gets_several_texts_of_several_prompts",
    ),
    Mistake(
        "a kept cache that belongs to another prompt",
        "serve/engine.py", "best is None or common(best) < WORTH_KEEPING:", "best is None:",
        "serve/test_engine.py::test_only_a_few_caches_are_kept",
    ),
    Mistake(
        "another person's page may ask",
        "serve/access.py", "_origin(origins[0]) != own:", "_origin(origins[0]) == own:",
        "serve/test_api.py::test_other_peoples_pages_are_kept_out",
    ),
    Mistake(
        "what stands before the page keeps what it read for itself",
        "serve/guard.py", '"body": content, "more_body": False', '"body": b"", "more_body": False',
        "serve/test_guard.py::test_an_event_arrives_as_it_was_sent",
    ),
    Mistake(
        "a page of another port of this machine may ask",
        "serve/access.py", "Origin(scheme, host[1], int(host[2] or PORTS.get(scheme, 0)))", "Origin(scheme, host[1], 0)",
        "serve/test_access.py::test_a_page_of_another_origin_may_ask_nothing",
    ),
    Mistake(
        "a server for other machines is asked for by any name",
        "serve/access.py", "not (name in self.hosts or _arrived_at(name, scope))", "not self.hosts",
        "serve/test_access.py::test_another_name_is_refused_whatever_address_the_server_listens_on",
    ),
    Mistake(
        "an object in place of a text, which Gradio takes for a file",
        "serve/guard.py", "return value is None or type(value) is str", "return True",
        "serve/test_guard.py::test_each_control_takes_its_own_type_and_no_other",
    ),
    Mistake(
        "an object that has a path besides what it should have",
        "serve/guard.py", "value.keys() == fields.keys()", "value.keys() >= fields.keys()",
        "serve/test_guard.py::test_each_control_takes_its_own_type_and_no_other",
    ),
    Mistake(
        "a route is open whose name only begins like one of the page's",
        "serve/guard.py", "OPEN[method].fullmatch(path)", "OPEN[method].match(path)",
        "serve/test_guard.py::test_routes_that_the_page_does_not_use_are_closed",
    ),
    Mistake(
        "True is the number of an event",
        "serve/guard.py", "type(event) is not int", "not isinstance(event, int)",
        "serve/test_guard.py::test_what_no_control_could_have_sent_is_one_sentence",
    ),
    Mistake(
        "half of a surrogate pair gets through, and no answer can hold it",
        "serve/guard.py", "allow_nan=False, ensure_ascii=False", "allow_nan=False",
        "serve/test_guard.py::test_what_no_control_could_have_sent_is_one_sentence",
    ),
    Mistake(
        "a curve's mean that begins at the first loss and leaves it slowly",
        "serve/drawing.py", "max(weight, 3 / (i + 3))", "weight",
        "serve/test_drawing.py::test_a_running_mean_is_hardly_late_where_a_curve_falls_fast",
    ),
    Mistake(
        "the last window of a text is not evaluated",
        "data/dataset.py", "if len(rest) > 1:", "if len(rest) > seq_len:",
        "test_commands.py::test_eval_is_the_mean_over_every_token_but_the_first",
    ),
    Mistake(
        "a token's text is markup",
        "serve/drawing.py", "return escape(visible(text))", "return (visible(text))",
        "serve/test_drawing.py::test_texts_stay_texts",
    ),
    Mistake(
        "the weight's gradient transposed, and reshaped until it fits",
        "ops/linear.py", "dweight = dout.T @ x.reshape(-1, I) ", "dweight = (x.reshape(-1, I).T @ dout).reshape(O, I) ",
        "ops/test_linear.py::test_gradients",
    ),
    Mistake(
        "the buffer written to instead of added to",
        "ops/linear.py", "into += dweight", "into[...] = dweight",
        "ops/test_linear.py::test_into_is_added_to_and_returned",
    ),
    Mistake(
        "+= over repeated tokens, which keeps only one of them",
        "ops/embedding.py", "dweight[tokens[starts]] += xp.add.reduceat(rows, starts, axis=0)", "dweight[tokens] += rows",
        "ops/test_embedding.py::test_a_repeated_token_collects_all_of_its_gradients",
    ),
    Mistake(
        "a check that lets the id V through",
        "checks.py", "wrong = (ids < 0) | (ids >= size)", "wrong = (ids < 0) | (ids > size)",
        "ops/test_embedding.py::test_a_token_outside_of_the_vocabulary",
    ),
    Mistake(
        "RMSNorm without the second term of its gradient",
        "ops/rmsnorm.py", "    dx -= x * (rstd**2 * row_dot(dx, x) / C)\n", "",
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
        "1.0 / xp.sqrt(row_dot(x, x) / x.shape[-1] + eps)", "1.0 / (xp.sqrt(row_dot(x, x) / x.shape[-1]) + eps)",
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
        "ops/rope.py", "other *= _join(-sin, sin, layout)", "other *= _join(sin, sin, layout)",
        "ops/test_rope.py::test_norms_stay",
    ),
    Mistake(
        "RoPE's backward turning forward",
        "ops/rope.py", "rope_forward(dout, cos, -sin, layout, out=out)[0]", "rope_forward(dout, cos, sin, layout, out=out)[0]",
        "ops/test_rope.py::test_backward_turns_back",
    ),
    Mistake(
        "RoPE one position late",
        "ops/rope.py", "angles = positions[..., None] * frequencies", "angles = (positions[..., None] + 1) * frequencies",
        "ops/test_rope.py::test_position_zero_stays",
    ),
    Mistake(
        "one layout under the name of the other",
        "ops/rope.py", "return slice(0, D // 2), slice(D // 2, D)", "return slice(0, D, 2), slice(1, D, 2)",
        "ops/test_rope.py::test_the_layouts_differ_by_a_permutation",
    ),
    Mistake(
        "frequencies a factor of two apart",
        "ops/rope.py", 'xp.arange(0, D, 2, dtype="float64") / D)', 'xp.arange(0, D // 2, dtype="float64") / D)',
        "ops/test_rope.py::test_table_by_scalars",
    ),
    Mistake(
        "Llama 3.1's scaling the wrong way round",
        "ops/rope.py",
        'return frequencies * (kept + (1 - kept) / scaling["factor"])',
        'return frequencies * (1 - kept + kept / scaling["factor"])',
        "ops/test_rope.py::test_llama_3_1_scaling_keeps_fast_divides_slow_and_blends_between",
    ),
    Mistake(
        "a finite minus infinity",
        "ops/attention.py", "-math.inf)", "-1e4)",
        "ops/test_attention.py::test_a_query_that_sees_nothing_gives_zero_and_gets_zero",
    ),
    Mistake(
        "the causal interval one key too long",
        "ops/attention.py", "(s < last[..., None])", "(s <= last[..., None])",
        "ops/test_attention.py::test_future_keys_have_no_influence_at_all",
    ),
    Mistake(
        "the first key of an interval left out",
        "ops/attention.py", "(first[..., None] <= s)", "(first[..., None] < s)",
        "ops/test_attention.py::test_forward_by_scalars",
    ),
    Mistake(
        "queries at the start of the keys, where a cache has them at the end",
        "ops/attention.py", "xp.arange(S - T + 1, S + 1)", "xp.arange(1, T + 1)",
        "ops/test_attention.py::test_by_default_the_queries_stand_at_the_end_of_the_keys",
    ),
    Mistake(
        "heads tiled instead of grouped",
        "ops/attention.py",
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
        "ops/softmax.py", "return p * (dout - row_dot(dout, p))", "return p * dout",
        "ops/test_attention.py::test_gradients",
    ),
    Mistake(
        "exp without the maximum taken off",
        "ops/softmax.py", "p = x - xp.where(top == -math.inf, 0, top)", "p = x - 0 * xp.where(top == -math.inf, 0, top)",
        "ops/test_softmax.py::test_large_numbers_do_not_overflow",
    ),
    Mistake(
        "a row that is hidden wholly, divided by its sum of zero",
        "ops/softmax.py", "p /= xp.where(total == 0, 1, total)", "p /= total",
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
        "ops/flash_attention.py", "row_dot(k, k).max() * scale**2 < SMALL_SCORE**2", "0 < SMALL_SCORE**2",
        "ops/test_flash_attention.py::test_very_large_scores_do_not_overflow",
    ),
    Mistake(
        "sums that are not rescaled when the maximum rises",
        "ops/flash_attention.py", "                o *= shrink\n", "",
        "ops/test_flash_attention.py::test_it_is_attention",
    ),
    Mistake(
        "the tile's own maximum in the place of the one so far",
        "ops/flash_attention.py", "xp.maximum(m, s.max(-1, keepdims=True))", "s.max(-1, keepdims=True)",
        "ops/test_flash_attention.py::test_very_large_scores_do_not_overflow",
    ),
    Mistake(
        "tiles of keys that are skipped although somebody sees them",
        "ops/flash_attention.py", "min(S, latest), step)", "min(S, full_to), step)",
        "ops/test_flash_attention.py::test_it_is_attention",
    ),
    Mistake(
        "flash attention's backward without delta",
        "ops/flash_attention.py", "            dp -= deltai\n", "",
        "ops/test_flash_attention.py::test_gradients",
    ),
    Mistake(
        "SiLU's derivative without the gate's own part",
        "ops/swiglu.py", "    dgate += sigma ", "    dgate *= sigma ",
        "ops/test_swiglu.py::test_gradients",
    ),
    Mistake(
        "the gate's gradient without up",
        "ops/swiglu.py", "    dgate *= up\n", "",
        "ops/test_swiglu.py::test_gradients",
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
        "top = logits.max(-1) ", "top = 0 * logits.max(-1) ",
        "ops/test_cross_entropy.py::test_very_large_logits_stay_finite",
    ),
    Mistake(
        "the target's own probability forgotten",
        "ops/cross_entropy.py", "dlogits[at_targets(targets)] -= scale.reshape(-1)", "pass",
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
        "the residual stream's gradient cut off",
        "model/block.py",
        'return ADD_NORM[c.norm][1](dx, dn, norm_cache, g, "ffn_norm")',
        'return ADD_NORM[c.norm][1](None, dn, norm_cache, g, "ffn_norm")',
        f"{MODEL}::test_every_gradient_against_differences[cpu-llama]",
    ),
    Mistake(
        "the path through the keys forgotten",
        "model/block.py", "(merge_heads(dq), merge_heads(dk), ", "(merge_heads(dq), 0 * merge_heads(dk), ",
        f"{MODEL}::test_every_gradient_against_differences[cpu-gqa]",
    ),
    Mistake(
        "heads merged without swapping time back",
        "model/block.py", "return x.swapaxes(1, 2).reshape(B, T, H * D)", "return x.reshape(B, T, H * D)",
        f"{MODEL}::test_forward_equals_plain_einsums[cpu-llama]",
    ),
    Mistake(
        "a layer run again that forgets its last bias",
        "model/block.py", 'return (x, w[name], w.get(f"{name}_bias")), lora', "return (x, w[name], None), lora",
        f"{MODEL}::test_recompute_gives_the_same_bits[cpu-plain-gpt2]",
    ),
    Mistake(
        "one dropout mask for both blocks of a layer",
        "model/block.py", '"ffn_norm", context, 2 * layer + 1)', '"ffn_norm", context, 2 * layer)',
        f"{MODEL}::test_each_place_that_drops_has_a_mask_of_its_own[cpu]",
    ),
    Mistake(
        "tied embeddings without the head's gradient",
        "model/transformer.py",
        'grads["embed"] += ops.embedding_backward(dx, embed_cache, into=dhead)',
        'ops.embedding_backward(dx, embed_cache, into=grads["embed"])',
        f"{MODEL}::test_every_gradient_against_differences[cpu-tied]",
    ),
    Mistake(
        "a position's gradient from the first sequence only",
        "model/transformer.py", "dpos = dx.sum(0, dtype=real_dtype(dx.dtype)) if shared", "dpos = dx[0] if shared",
        f"{MODEL}::test_every_gradient_against_differences[cpu-gpt2]",
    ),
    Mistake(
        "a mean of means over unequal shards",
        "model/transformer.py",
        "part, loss_cache = ops.cross_entropy_forward(logits, row_targets, count=count)",
        "part, loss_cache = ops.cross_entropy_forward(logits, row_targets)",
        f"{MODEL}::test_unequal_shards_that_share_a_count_add_up_to_the_batch[cpu-llama]",
    ),
    Mistake(
        "a packed document that cannot see its first token",
        "model/transformer.py",
        "first, last = xp.asarray(segment_starts(segments)), ", "first, last = xp.asarray(segment_starts(segments)) + 1, ",
        f"{MODEL}::test_a_packed_document_is_predicted_as_if_it_were_alone[cpu-llama]",
    ),
    Mistake(
        "float64 RoPE tables on the float32 path",
        "model/transformer.py",
        "c.rope_theta, c.rope_scaling, real_dtype(self.dtype))", 'c.rope_theta, c.rope_scaling, "float64")',
        f"{MODEL}::test_a_float32_step_meets_no_float64[cpu-llama-plain]",
    ),
    Mistake(
        "residual projections as large as the others at the start",
        "model/parameters.py", "config.init_std / sqrt(2 * config.n_layers) if", "config.init_std if",
        "model/test_parameters.py::test_matrices_start_normal_and_the_ones_that_write_to_the_residual_stream_smaller",
    ),
    Mistake(
        "weight decay on gains",
        "optim/optimizer.py",
        "pieces += [(part, 0.0) for part", "pieces += [(part, self.weight_decay) for part",
        "optim/test_adamw.py::test_only_matrices_decay",
    ),
    Mistake(
        "Adam without its bias correction",
        "optim/adamw.py",
        "d *= lr * c / (1 - beta1**t)", "d *= lr * c",
        "optim/test_adamw.py::test_the_first_step_is_lr_times_the_sign_of_the_gradient",
    ),
    Mistake(
        "decay mixed into the gradient, as in plain Adam",
        "optim/adamw.py", "    d = g - m ", "    d = g + weight_decay * w - m ",
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
        "clipping after the step",
        "training/trainer.py",
        "norm = self.workers.clip(grads, c.clip)",
        "norm = 1.0; self.workers.step(self.optimizer, grads, lr); grads.flat.fill(0)",
        "training/test_trainer.py::test_a_plain_loop_gives_the_same_parameters[adamw-1-0.05]",
    ),
    Mistake(
        "targets that are the inputs",
        "data/dataset.py", "return read[:, :-1], read[:, 1:]", "return read[:, :-1], read[:, :-1]",
        "data/test_dataset.py::test_targets_are_the_tokens_that_follow_the_inputs",
    ),
    Mistake(
        "the same batch in every step",
        "data/dataset.py", "np.random.default_rng([seed, step]).integers", "np.random.default_rng([seed]).integers",
        "data/test_dataset.py::test_a_batch_is_a_function_of_seed_and_step",
    ),
    Mistake(
        "a validation that drops the last, shorter window",
        "data/dataset.py", "if len(rest) > 1:", "if len(rest) > seq_len:",
        "data/test_dataset.py::test_windows_ask_for_every_token_but_the_first_exactly_once",
    ),
    Mistake(
        "a first shard that adds to what the step before has left",
        "parallel/turns.py", "            view[...] = x\n", "            view += x\n",
        "parallel/test_shards.py::test_nothing_of_one_batch_is_left_in_the_gradients_of_the_next",
    ),
    Mistake(
        "weights and gradients in the same memory",
        "parallel/team.py", "np.frombuffer(memory[at : at + n], self.dtype)", "np.frombuffer(memory[:n], self.dtype)",
        "parallel/test_team.py::test_processes_give_the_same_bits_as_one_worker",
    ),
    Mistake(
        "shards that add in whatever order they end",
        "parallel/turns.py", "while self._state[i] < index and", "while False and",
        "parallel/test_shards.py::test_shards_add_in_index_order_however_long_each_takes",
    ),
    Mistake(
        "the same dropout masks in every step",
        "training/trainer.py", "key=(c.seed, step)", "key=(c.seed, 0)",
        "training/test_trainer.py::test_the_dropout_masks_are_named_by_seed_and_step_and_shard",
    ),
    Mistake(
        "a resumed optimizer that counts its steps anew",
        "training/checkpoint.py", 'optimizer.steps = state["optimizer_steps"]', "optimizer.steps = 0",
        "training/test_trainer.py::test_a_run_that_was_stopped_goes_on_as_if_it_had_not",
    ),
    Mistake(
        "a checksum that is not looked at",
        "training/checkpoint.py", 'if file_checksum(path) != state["sha256"].get(name):', "if False:",
        "training/test_checkpoint.py::test_one_wrong_byte_anywhere_is_noticed_or_harmless[weights.safetensors]",
    ),
    Mistake(
        "ties of pairs that go to the beginning of the alphabet",
        "tokenizer/train_bpe.py", "bytes(max(254 - byte, 0) for byte in range(256))", "bytes(range(256))",
        "tokenizer/test_train_bpe.py::test_equally_frequent_pairs_merge_from_the_end_of_the_alphabet",
    ),
    Mistake(
        "all words looked at for each merge",
        "tokenizer/train_bpe.py", "for i in where.pop(pair):", "for i in range(len(spelled)):",
        "tokenizer/test_train_bpe.py::test_words_are_looked_at_only_when_a_merge_changes_them",
    ),
    Mistake(
        "the rest of a long text searched for special tokens at each cut",
        "tokenizer/cutting.py", "special.spans(text, seen[True], end)", "special.spans(text, seen[True])",
        "tokenizer/test_patterns.py::test_cutting_a_long_text_looks_for_special_tokens_only_where_it_cuts",
    ),
    Mistake(
        "neighbours of a merged pair that are still counted",
        "tokenizer/train_bpe.py", "                counts[second, ids[copied]] -= count\n", "",
        "tokenizer/test_train_bpe.py::test_merges_are_the_naive_ones[numbers-gpt2]",
    ),
    Mistake(
        "overlapping pairs that merge from the right",
        "tokenizer/merging.py", "i = waiting.index(rank)", "i = len(waiting) - 1 - waiting[::-1].index(rank)",
        "tokenizer/test_merging.py::test_overlapping_pairs_merge_from_the_left",
    ),
    Mistake(
        "a long word merged without a heap",
        "tokenizer/merging.py", "if len(ids) > LONG:", "if len(ids) > 10**9:",
        "tokenizer/test_merging.py::test_the_work_for_a_long_run_grows_with_its_length",
    ),
    Mistake(
        "a heap whose old entries still count",
        "tokenizer/merging.py", "if right == end or ranks.get((ids[i], ids[right])) != rank:", "if right == end:",
        "tokenizer/test_merging.py::test_merging_is_what_the_definition_says_with_and_without_a_heap",
    ),
    Mistake(
        "a text that is cut inside a run of spaces",
        "tokenizer/patterns.py", r"|(?<=\S)(?= )", r"|(?= )",
        "tokenizer/test_patterns.py::test_no_place_where_a_text_may_be_cut_changes_the_split",
    ),
    Mistake(
        "control characters that only Python's re takes for spaces",
        "tokenizer/patterns.py", "re.compile(_for_ascii(self.pattern), re.ASCII)", "re.compile(_for_ascii(self.pattern))",
        "tokenizer/test_patterns.py::test_a_text_is_split_as_its_pattern_says",
    ),
    Mistake(
        "the shortest special token first",
        "tokenizer/cutting.py", "sorted(found, reverse=True)", "sorted(found)",
        "tokenizer/test_patterns.py::test_the_longest_special_token_is_found_first",
    ),
    Mistake(
        "a stream of half characters",
        "tokenizer/bpe.py", "map(decoder.decode, self.decode_each(ids))",
        '(token.decode("utf-8", "replace") for token in self.decode_each(ids))',
        "tokenizer/test_bpe.py::test_a_streamed_character_comes_when_its_last_byte_does",
    ),
    Mistake(
        "a space in front of every part that a process encodes",
        "tokenizer/parallel.py", "begins and i == 0", "begins",
        "tokenizer/test_parallel.py::test_ids_are_those_of_one_process",
    ),
    Mistake(
        "a stopped preparation that keeps what came after its last save",
        "data/prepare.py", "self._file.truncate(written)", "written",
        "data/test_prepare.py::test_what_was_stopped_goes_on_and_ends_with_the_same_bytes",
    ),
    Mistake(
        "wk permuted with the number of query heads",
        "interop/huggingface.py", '"wk": config.n_kv_heads', '"wk": config.n_heads',
        "interop/test_huggingface.py::test_wk_is_permuted_with_its_own_number_of_heads",
    ),
    Mistake(
        "the permutation between RoPE's layouts the wrong way round",
        "interop/huggingface.py", "return _regrouped(rows, n_heads, (-1, 2))", "return _regrouped(rows, n_heads, (2, -1))",
        "interop/test_huggingface.py::test_a_llama_survives_a_save_bit_for_bit[interleaved]",
    ),
    Mistake(
        "our eps where a configuration names none",
        "interop/huggingface.py", '("rms_norm_eps", POSITIVE, 1e-6)', '("rms_norm_eps", POSITIVE, 1e-5)',
        "interop/test_huggingface.py::test_what_a_config_leaves_out_is_what_hugging_face_takes",
    ),
    Mistake(
        "a head that is not the embedding taken for it",
        "interop/huggingface.py", "if _same(files[embed][embed], files[head][head]):", "if True:",
        "interop/test_huggingface.py::test_a_tied_model_is_what_its_file_holds[llama]",
    ),
    Mistake(
        "biases that a file lacks taken for zeros, whatever the configuration says",
        "interop/huggingface.py", "if not values.get(flag, False)]", "]",
        "interop/test_huggingface.py::test_biases_in_one_half_of_a_block_alone_are_those_and_zeros[attention_bias-self_attn]",
    ),
    Mistake(
        "a tensor looked for in whatever shard has it",
        "interop/huggingface.py", "            if places.get(name) != shard:", "            if name not in places:",
        "interop/test_huggingface.py::test_a_tensor_that_stands_in_two_shards_is_named",
    ),
    Mistake(
        "tensors that share bytes",
        "storage/tensor_file.py", "            if begin != reached:", "            if begin > reached:",
        "storage/test_tensor_file.py::test_a_damaged_header_is_named[overlap]",
    ),
    Mistake(
        "a token beyond the vocabulary looked for at the beginning of a file alone",
        "data/token_files.py", "for start in range(0, len(tokens), CHECKED_AT_ONCE):", "for start in (0,):",
        "data/test_token_files.py::test_a_token_beyond_the_vocabulary_is_found_before_it_is_trained_on[11-6-<u2]",
    ),
    Mistake(
        "true taken for the number one",
        "storage/fields.py", "return isinstance(value, kind) and not isinstance(value, bool)", "return isinstance(value, kind)",
        "storage/test_fields.py::test_a_value_is_of_its_kind_or_refused_by_name[whole]",
    ),
    Mistake(
        "a stop id of config.json before that of generation_config.json",
        "interop/huggingface.py", "GENERATION if (folder / GENERATION).exists() else CONFIG", "CONFIG",
        "interop/test_huggingface.py::test_the_stop_ids_are_those_of_the_generation_config",
    ),
    Mistake(
        "a second copy of each tensor",
        "model/parameters.py",
        "view[...] = tensors[name] if xp is np else", "view[...] = tensors[name].astype(dtype) if xp is np else",
        "interop/test_huggingface.py::test_loading_takes_the_memory_of_the_model_and_nothing_else",
    ),
    Mistake(
        "all tensors in memory before the first is written",
        "storage/tensor_file.py", "    for tensor in tensors:\n", "    for tensor in list(tensors):\n",
        "storage/test_tensor_file.py::test_writing_holds_one_tensor_at_a_time",
    ),
    Mistake(
        "w1, w2 and w3 taken for gate, up and down",
        "interop/llama2c.py", '("w_gate", "w_down", "w_up")', '("w_gate", "w_up", "w_down")',
        "interop/test_llama2c.py::test_a_model_of_ours_survives_its_format_and_run_c_computes_the_same",
    ),
    Mistake(
        "a head that is tied where llama2.c says that it is not",
        "interop/llama2c.py", "vocab_size = c.vocab_size if c.tie_embeddings else -c.vocab_size", "vocab_size = c.vocab_size",
        "interop/test_llama2c.py::test_a_model_of_ours_survives_its_format_and_run_c_computes_the_same",
    ),
    Mistake(
        "a zip archive taken for a model of llama2.c's",
        "interop/pickles.py", 'start == b"PK\\x03\\x04" or', "False or",
        "interop/test_huggingface.py::test_pickles_are_refused_with_the_reason_and_never_run",
    ),
    Mistake(
        "a sandbox whose lists and dictionaries can be changed",
        "tokenizer/template_process.py",
        "class Environment(ImmutableSandboxedEnvironment):", "class Environment(jinja2.sandbox.SandboxedEnvironment):",
        "interop/test_chat_template.py::test_a_template_reaches_nothing_of_pythons_and_changes_nothing",
    ),
    Mistake(
        "the gradient along the residual stream forgotten",
        "ops/add_rmsnorm.py", "        dx += dtotal\n", "",
        "ops/test_add_rmsnorm.py::test_gradients",
    ),
    Mistake(
        "a kernel without the barrier between its warps",
        "../kernels/common.cuh", "  __syncthreads();\n  x = warp_sum(", "  x = warp_sum(",
        "cuda/test_rmsnorm.py::test_rmsnorm[(3, 4096)-float32]",
    ),
    Mistake(
        "a kernel that reads 16 bytes from any address",
        "cuda/launch.py",
        "return 1 if any(backend.address(a)", "return n if any(backend.address(a)",
        "cuda/test_rmsnorm.py::test_rows_at_any_address[float32]",
    ),
    Mistake(
        "a kernel that leaves the end of an array as it was",
        "cuda/launch.py",
        "return -(-n // block)", "return n // block",
        "cuda/test_swiglu.py::test_swiglu[(257, 7)-float32]",
    ),
    Mistake(
        "a target counted from the beginning of the row, not of its first vector",
        "../kernels/cross_entropy.cu", "Index(kept[n]) + row.skew", "Index(kept[n])",
        "cuda/test_cross_entropy.py::test_cross_entropy[(65, 65)-float32]",
    ),
    Mistake(
        "a rotation back that turns forward",
        "cuda/rope.py", "return _turned(dout, cos, sin, layout, -1, out)", "return _turned(dout, cos, sin, layout, 1, out)",
        "cuda/test_rope.py::test_rope[(2, 3, 65, 64)-half-float32]",
    ),
    Mistake(
        "bfloat16 cut off where it should be rounded",
        "../kernels/common.cuh", "(bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16", "bits >> 16",
        "cuda/test_emulator.py::test_numbers_in_two_bytes_round_to_nearest_even[bfloat16]",
    ),
    Mistake(
        "a graph whose bias correction is a step ahead",
        "cuda/graph.py", "step_numbers(optimizer.steps + 1, lr,", "step_numbers(optimizer.steps + 2, lr,",
        GRAPH,
    ),
    Mistake(
        "a graph that adds to the gradients of the step before",
        "cuda/graph.py", "        grads.flat[...] = 0\n", "",
        GRAPH,
    ),
    Mistake(
        "a graph that looks at the ids of its batch",
        "cuda/graph.py", "with self._stream.entered(), checked_ids():", "with self._stream.entered():",
        GRAPH,
    ),
    Mistake(
        "one key for all the masks of a graph",
        "model/block.py", "key = context.key[site] if", "key = context.key[0] if",
        GRAPH,
    ),
    Mistake(
        "a kernel that clips the short gradients",
        "../kernels/clip.cu", "norm > max_norm ?", "norm < max_norm ?",
        GRAPH,
    ),
    Mistake(
        "a kernel that steps although the gradients are not finite",
        "../kernels/adamw.cu", "  if (clip == 0) return;\n", "",
        "cuda/real_cupy/test_graph.py::test_nothing_changes_where_a_gradient_is_not_finite[plain]",
    ),
    Mistake(
        "a workspace that is taken away again",
        "cuda/cublas.py",
        'call("cublasSetWorkspace_v2", made, self.workspace.ptr, WORKSPACE_BYTES)',
        'call("cublasSetWorkspace_v2", made, self.workspace.ptr, WORKSPACE_BYTES); call("cublasSetStream_v2", made, None)',
        "cuda/real_cupy/test_cublas.py::test_what_cublas_is_called_with_gives_the_product[()-False-float32]",
    ),
    Mistake(
        "static shared memory left out of what a launch needs",
        "cuda/launch.py", "SHARED_BYTES - kernel.shared_size_bytes", "SHARED_BYTES",
        "cuda/real_cupy/test_launch.py::test_norms_of_every_width_ask_for_the_memory_that_they_need[4096-float32]",
    ),
    Mistake(
        "the cuBLAS of another CUDA",
        "cuda/cublas.py", "runtimeGetVersion() // 1000", "runtimeGetVersion() // 1000 * 0 + 13",
        "cuda/real_cupy/test_cublas.py::test_the_library_is_of_cupys_cuda_also_where_another_program_has_loaded_another[12]",
    ),
    Mistake(
        "a kernel of LayerNorm's gradient without the mean's part",
        "../kernels/layernorm.cu", "* w.at[i] - sum - n * dot", "* w.at[i] - n * dot",
        "cuda/test_layernorm.py::test_layernorm[(65, 8)-float32]",
    ),
    Mistake(
        "a kernel that is chosen and its refusal taken for a result",
        "dispatch.py", "if result is not NotImplemented:", "if True:",
        "cuda/test_dropout.py::test_what_the_kernel_does_not_take_runs_as_the_op_says",
    ),
    Mistake(
        "weights that the model computes with and the optimizer forgets",
        "optim/adamw.py", "copy = self.params.rounded_part(part)", "copy = None",
        "model/test_mixed_precision.py::test_an_optimizer_steps_float32_and_brings_the_copy_up_to_date[adamw-bfloat16]",
    ),
    Mistake(
        "the gradient of a tied head rounded to two bytes",
        "model/transformer.py", "dhead = self.xp.zeros_like(self._head(self.params))", "dhead = None",
        "model/test_mixed_precision.py::test_no_gradient_of_a_matrix_is_rounded_to_two_bytes[tied-bfloat16]",
    ),
    Mistake(
        "gradients that are scaled and stay so",
        "training/trainer.py", "grads.flat *= 1 / self.scale", "pass",
        "model/test_mixed_precision.py::test_what_is_reported_and_clipped_is_the_gradient_without_the_scale",
    ),
    Mistake(
        "a product that forgets what it was to be added to",
        "cuda/linear.py", "gemm(dout, weight, dx.reshape(-1, I), beta=1.0)", "gemm(dout, weight, dx.reshape(-1, I))",
        "cuda/test_gemm.py::test_gradients_of_an_input_of_several_maps_add_up_inside_the_product[bfloat16]",
    ),
    Mistake(
        "a transposed view taken for a matrix of rows",
        "cuda/gemm.py", "return Operand(x, TRANSPOSED,", "return Operand(x, NORMAL,",
        "cuda/test_gemm.py::test_every_layout_gives_the_product[(65, 96, 33)-()-float32]",
    ),
    Mistake(
        "what was summed under a lower maximum kept as it is",
        "../kernels/flash_attention.cu", "      z[m][r] *= shrink[m][r];", "     ",
        "cuda/test_flash_attention.py::test_maxima_that_rise_with_every_key_and_far_below_zero[bfloat16]",
    ),
    Mistake(
        "the key head's number taken for the query head's",
        "../kernels/flash_attention.cu", "k_head * R * q_head", "k_head * q_head",
        "cuda/test_flash_attention.py::test_grouped_queries_and_random_intervals[2-float32-64]",
    ),
    Mistake(
        "the next query head's rows read where the last head's are",
        "../kernels/flash_attention.cu", "T - step * STEP, head * q_head + ", "T - step * STEP, ",
        "cuda/test_flash_attention.py::test_grouped_queries_and_random_intervals[2-bfloat16-64]",
    ),
    Mistake(
        "a query that sees the key after its last",
        "../kernels/flash_attention.cuh", "8 * n + j >= last)", "8 * n + j > last)",
        "cuda/test_flash_attention.py::test_causal[65-65-bfloat16-128]",
    ),
    Mistake(
        "a mask that is looked at only where intervals begin",
        "../kernels/flash_attention.cuh", "inner_begin <= s0 && inner_end >= s1;", "inner_begin <= s0;",
        "cuda/test_flash_attention.py::test_causal[65-65-float32-64]",
    ),
    Mistake(
        "the gradient of scores without its row's sum",
        "../kernels/flash_attention.cu", "(ds[m][n][j] - (j % 2 ? column_delta.y : column_delta.x))", "ds[m][n][j]",
        "cuda/test_flash_attention.py::test_intervals[everything-float32]",
    ),
    Mistake(
        "a step of keys read before it has arrived",
        "../kernels/flash_attention.cu",
        "    copy_wait<0>();                                                 // for the step of keys\n", "",
        "cuda/test_flash_attention.py::test_a_length_of_257[float16]",
    ),
    Mistake(
        "sums of dq that go on from what a block never wrote, where a query does not see its first keys",
        "../kernels/flash_attention.cu", "< bounds.begin / ROWS * ROWS;", "< 0;",
        "cuda/test_flash_attention.py::test_blocks_that_share_the_keys_in_any_number[bfloat16-3-2]",
    ),
    Mistake(
        "sums of dq added up that a block has not made",
        "../kernels/flash_attention.cu", "(split + splits - first_tile % splits) % splits >= tiles", "tiles == 0",
        "cuda/test_flash_attention.py::test_blocks_that_share_the_keys_in_any_number[bfloat16-100-4]",
    ),
    Mistake(
        "columns beyond a head's size read from the next head",
        "../kernels/flash_attention.cuh", "column * PER_CHUNK < D ? there.last - first : 0", "there.last - first",
        "cuda/test_flash_attention.py::test_heads_of_other_sizes_are_read_where_they_lie[40-bfloat16]",
    ),
    Mistake(
        "asynchronous copies on a GPU that has none",
        "cuda/flash_attention.py", "launch.backend.compute_capability() >= FIRST_CAPABILITY", "True",
        "cuda/test_attention_products.py::test_gpus_before_ampere[75-bfloat16]",
    ),
    Mistake(
        "keys that are not seen counted in the sum of a softmax between products",
        "../kernels/attention_products.cu", "if (q.sees(j + i)) z += ", "z += ",
        "cuda/test_attention_products.py::test_large_scores_and_intervals_of_every_kind[float32]",
    ),
    Mistake(
        "two arrays of different strides read with those of the first",
        "cuda/flash_attention.py", " or len({_steps(x) for x in arrays}) > 1", "",
        "cuda/test_flash_attention.py::test_what_cannot_be_read_where_it_lies_is_copied[float32]",
    ),
    Mistake(
        "logits that are no numbers, drawn from",
        "generation/sampling.py", "        self.check(logits)\n", "",
        "generation/test_generate.py::test_a_parameter_that_is_not_finite_is_named",
    ),
    Mistake(
        "a slot beyond the last, seen by a token that is decoded on a GPU",
        "cuda/decode.py", "slots=np.full(len(tokens), cache.used)", "slots=np.full(len(tokens), cache.used + 1)",
        "cuda/real_cupy/test_decode.py::test_logits_are_those_of_the_whole_forward_pass[llama-float32-1e-05]",
    ),
    Mistake(
        "a graph that is replayed with the addresses of a cache that has grown since",
        "cuda/decode.py", "self._replay, self._keys, self.table = None, cache.keys, range(0)", "self._keys = cache.keys",
        "cuda/real_cupy/test_decode.py::test_a_cache_that_grows_is_recorded_again_and_a_text_of_many_parts_is_the_same",
    ),
    Mistake(
        "random numbers that are drawn ahead, and drawn again by the next to ask",
        "cuda/sample.py", "deepcopy(generator).random(AHEAD)", "generator.random(AHEAD)",
        "cuda/real_cupy/test_decode.py::test_generators_end_as_if_each_had_given_a_number_for_each_token",
    ),
    Mistake(
        "a character that the last token began, counted as begun by this one",
        "generation/text.py", "self.offset = self._length - (not self._half())", "self.offset = self._length",
        "generation/test_text.py::test_each_token_begins_where_its_first_byte_is",
    ),
    Mistake(
        "a tuned model that ends at its checkpoint's end tokens alone",
        "generation/text.py", ", *(i for i in end_ids(tokenizer) if i < model.config.vocab_size)]", "]",
        "generation/test_text.py::test_the_tokenizers_end_of_turn_ends_a_text_beside_the_checkpoints",
    ),
    Mistake(
        "do_sample: false that leaves the temperature as it is",
        "generation/config.py", "if do_sample is False:", "if do_sample is None:",
        "generation/test_text.py::test_a_checkpoints_settings_are_the_defaults_below_ones_own",
    ),
    Mistake(
        "a prompt encoded once more for each of its texts",
        "serve/engine.py", "if name not in encoded:", "if True:",
        "serve/test_engine.py::test_a_prompt_is_encoded_once_for_all_its_texts",
    ),
    Mistake(
        "of tokens of one name, the probability of the least likely",
        "serve/api.py", "top.setdefault(self.name(i), _finite(chance))", "top[self.name(i)] = _finite(chance)",
        "serve/test_api.py::test_tokens_of_one_name_keep_the_larger_probability",
    ),
    Mistake(
        "a second request on a connection that may take for ever",
        "serve/connection.py", "        self._wait()\n        super().data_received(data)", "        super().data_received(data)",
        "serve/test_connection.py::test_a_second_request_on_the_same_connection_is_bounded_too",
    ),
    Mistake(
        "the next token's position one too late",
        "generation/kv_cache.py",
        "positions = self.length + ahead + np.arange(T)", "positions = self.length + (self.length > 0) + ahead + np.arange(T)",
        "generation/test_kv_cache.py::test_logits_are_those_of_the_full_forward_at_every_position_row_and_split",
    ),
    Mistake(
        "padding in front of a shorter prompt that can be seen",
        "generation/kv_cache.py",
        "first = np.maximum(first, slots - self.window + 1) ", "first = slots - self.window + 1 + 0 * first ",
        "generation/test_kv_cache.py::test_a_window_of_ragged_sequences_hides_what_stands_before_a_beginning",
    ),
    Mistake(
        "a window that is one token too wide",
        "generation/kv_cache.py", "slots - self.window + 1)", "slots - self.window)",
        "generation/test_kv_cache.py::test_a_window_slides_over_more_than_max_seq_len",
    ),
    Mistake(
        "a common prefix that covers the whole prompt, with no token left to predict from",
        "generation/kv_cache.py", "min(self.length, tokens.shape[1] - 1) if", "min(self.length, tokens.shape[1]) if",
        "generation/test_kv_cache.py::test_the_last_token_is_computed_again_for_the_model_has_to_say_what_follows",
    ),
    Mistake(
        "the decoder's keys turned by RoPE the wrong way",
        "generation/decode.py", "np.stack([-sin, sin], axis)", "np.stack([sin, -sin], axis)",
        "generation/test_decode.py::test_each_step_is_the_full_forwards_last_place",
    ),
    Mistake(
        "neighbours multiplied as complex numbers without the conjugate",
        "generation/products.py", "np.conjugate(x, conjugate)", "np.copyto(conjugate, x)",
        "generation/test_decode.py::test_products_by_complex_numbers_are_the_same_products",
    ),
    Mistake(
        "parts of a step that do not wait for each other's branch",
        "generation/decode.py", "        meeting.wait(self.i)\n", "",
        "generation/test_decode.py::test_parts_wait_for_each_other",
    ),
    Mistake(
        "a part with the columns of another part's heads",
        "generation/decode.py", 'product(w["wo"][:, of_q], self.mixed', 'product(w["wo"][:, : len(self.mixed)], self.mixed',
        "generation/test_decode.py::test_any_number_of_cores_gives_the_same_logits",
    ),
    Mistake(
        "queries at a prompt's end turned by the angles of its beginning",
        "model/block.py", "else table[..., -n:, :]", "else table[..., :n, :]",
        "generation/test_prefill.py::test_only_the_last_tokens_logits_where_no_more_are_asked_for",
    ),
    Mistake(
        "a nucleus without the token that reaches top_p",
        "generation/sampling.py", "dropped = below <= 1 - p", "dropped = below <= 1 - p + 0.1",
        "generation/test_sampling.py::test_top_p_keeps_the_fewest_likeliest_that_sum_to_p",
    ),
    Mistake(
        "a repetition penalty that makes negative logits larger",
        "generation/sampling.py", "xp.where(logits < 0, logits * penalty, logits / penalty)", "logits / penalty",
        "generation/test_sampling.py::test_the_repetition_penalty_by_scalars",
    ),
    Mistake(
        "top-p before the temperature",
        "generation/sampling.py", "    logits = logits / config.temperature\n    for", "    for",
        "generation/test_sampling.py::test_temperature_comes_before_the_nucleus_and_top_k_before_top_p",
    ),
    Mistake(
        "all rows of a batch drawn with one seed",
        "generation/config.py", "self.seed + row) for row in range(rows)]", "self.seed) for row in range(rows)]",
        "generation/test_generate.py::test_a_row_is_drawn_as_it_would_be_alone",
    ),
    Mistake(
        "a stop string that is cut only if it comes in one piece",
        "generation/text.py", "max((overlap(held, word) for word in stop), default=0)", "0",
        "generation/test_text.py::test_a_text_ends_before_the_first_stop_string_wherever_it_is_cut",
    ),
    Mistake(
        "a text that loses the space before its first new word",
        "generation/text.py", "    for i in context:\n        decoder.push(i)\n", "",
        "generation/test_text.py::test_only_the_first_word_of_a_text_loses_its_space",
    ),
    Mistake(
        "pieces of a prompt that do not wait for the keys in front of them",
        "generation/prefill.py", "self.error or i == 0 or self.layers[i - 1] > self.layers[i]", "True",
        "generation/test_prefill.py::test_logits_and_cache_are_those_of_the_full_forward",
    ),
    Mistake(
        "a shard lost from the end of a folder that nobody misses",
        "data/prepare.py", 'more = {"shards": len(paths)} if len(paths) > 1 else {}', "more = {}",
        "data/test_prepare.py::test_a_missing_shard_is_named",
    ),
    Mistake(
        "a shard that takes what belongs to the next one",
        "data/prepare.py", "room = self._limit - written", "room = self._limit",
        "data/test_prepare.py::test_shards_of_any_size_are_the_one_file[97]",
    ),
    Mistake(
        "every rank reading the rows of all",
        "parallel/ranks.py", "*parts[self.rank :: self.comm.size]", "*parts",
        "parallel/test_ranks.py::test_each_rank_reads_the_rows_that_it_computes_and_no_others[2-rows1-random]",
    ),
    Mistake(
        "the tokens of one rank told as those of all",
        "training/trainer.py", "c.batch_size * tokens.shape[1] / seconds", "tokens.size / seconds",
        "parallel/test_ranks.py::test_each_rank_reads_the_rows_that_it_computes_and_no_others[2-rows1-random]",
    ),
    Mistake(
        "a silent rank excused by what it said of an earlier message",
        "parallel/communicator.py", "self._heard[r] < number]", "self._heard[r] < 1]",
        "parallel/test_ranks.py::test_who_does_not_wait_as_well_is_blamed_for_a_message_that_does_not_arrive",
    ),
    Mistake(
        "a rank that ends in good order while the others wait for it",
        "parallel/communicator.py", "if self.size == 1:\n", "if self.size == 1 or isinstance(error, SystemExit):\n",
        "parallel/test_ranks.py::test_a_signal_to_one_rank_where_there_is_nothing_to_save_ends_all",
    ),
    Mistake(
        "ranks' sums that begin anew with every round of shards",
        "parallel/ranks.py", "add=self._by_shard and first > 0", "add=False",
        "parallel/test_ranks.py::test_any_number_of_ranks_gives_the_bits_of_one_process[2-5-False]",
    ),
    Mistake(
        "the gradients of one round left in the buffer of the next",
        "parallel/ranks.py", "if first == 0 or self._by_shard:", "if first == 0:",
        "parallel/test_ranks.py::test_any_number_of_ranks_gives_the_bits_of_one_process[2-5-False]",
    ),
    Mistake(
        "a bucket sent while backward is still at work on its layer",
        "parallel/ranks.py", "self._ready[0].layer > layer", "self._ready[0].layer >= layer",
        "parallel/test_ranks.py::test_a_bucket_is_sent_as_soon_as_backward_is_done_with_it_and_no_sooner",
    ),
    Mistake(
        "each rank clipping by the norm of its own gradients",
        "parallel/ranks.py", "norm=self._norm(grads) if self.sharded else None", "norm=None",
        "parallel/test_ranks.py::test_any_number_of_ranks_gives_the_bits_of_one_process[2-5-True]",
    ),
    Mistake(
        "a message that does not wait for what is computed",
        "parallel/nccl.py", "self._stream.wait_event(self._cupy.cuda.get_current_stream().record())", "pass",
        "cuda/real_cupy/test_nccl.py::test_reduce_scatter_reduces_a_part_to_each_rank_once_it_is_computed[float32-True]",
    ),
    Mistake(
        "every rank keeping the moments of all",
        "parallel/ranks.py", "self._owned(model.params) if sharded else model.params", "model.params",
        "parallel/test_ranks.py::test_a_sharded_optimizer_keeps_a_part_of_the_moments[2]",
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
    Mistake(
        "an update that x gets no gradient through",
        "model/block.py",
        "dx, da, db = ops.lora_backward(dout, cache, dx=dx)", "_, da, db = ops.lora_backward(dout, cache)",
        "model/test_lora.py::test_gradients_are_those_of_the_merged_model_by_the_chain_rule",
    ),
    Mistake(
        "an adapter merged without its scale",
        "model/transformer.py", "weight + scale * update", "weight + update",
        "model/test_lora.py::test_the_merged_model_is_the_model_with_its_adapter",
    ),
    Mistake(
        "targets chosen by who says the token before",
        "data/conversations.py", "np.where(said[1:], ids[1:], IGNORE)", "np.where(said[:-1], ids[1:], IGNORE)",
        "data/test_conversations.py::test_only_the_assistants_tokens_are_targets_with_the_end_of_its_turn",
    ),
    Mistake(
        "conversations of one row that see each other",
        "data/conversations.py", "= ids[:-1], segment\n", "= ids[:-1], 0\n",
        "data/test_conversations.py::test_packed_gradients_are_the_sum_of_each_conversations_own",
    ),
    Mistake(
        "answers without the token that ends them",
        "tokenizer/chat_template.py",
        "spans.append((start, stop))", 'spans.append((start, stop - len("<|eot_id|>")))',
        "interop/test_chat_template.py::test_without_marks_an_answer_is_what_it_adds_with_its_end_of_turn",
    ),
    Mistake(
        "a conversation encoded as one text, where a token may stand on both sides of a prompt's end",
        "tokenizer/conversation.py", '"all", written.prompts, plain)', '"all", (), plain)',
        "tokenizer/test_conversation.py::test_a_token_for_a_blank_line_does_not_make_a_model_mute",
    ),
    Mistake(
        "special tokens taken from what a message says",
        "tokenizer/conversation.py", "plain = written.plain if self.sanitize else ()", "plain = ()",
        "tokenizer/test_conversation.py::test_a_message_forges_no_turn",
    ),
    Mistake(
        "a token forged of two parts of a message",
        "tokenizer/spelled.py", 'return f"{before}{marked}', 'return marked or f"{before}{marked}',
        "tokenizer/test_conversation.py::test_nor_do_parts_names_or_calls",
    ),
    Mistake(
        "a mark that a template's strip() stops at",
        "tokenizer/template_process.py", 'if name in ("strip", "lstrip", "rstrip"):', "if False:",
        "interop/test_chat_template.py::test_marks_are_followed_wherever_they_stand",
    ),
    Mistake(
        "answers of an interrupted rendering given to the next one",
        "tokenizer/renderer.py", "            process.close()\n            raise\n        if", "            pass\n        if",
        "tokenizer/test_renderer.py::test_one_that_was_interrupted_is_not_used_again",
    ),
    Mistake(
        "an interleaved model's adapter written in its own order of rows",
        "interop/peft.py", 'config.rope_layout != "interleaved"', "True",
        "interop/test_peft.py::test_rows_of_an_interleaved_model_are_written_as_hugging_face_pairs_them",
    ),
    Mistake(
        "every epoch in the same order",
        "data/conversations.py", "default_rng([seed, epoch])", "default_rng([seed])",
        "data/test_conversations.py::test_each_epoch_sees_every_row_once_in_an_order_of_its_own",
    ),
    Mistake(
        "a checkpoint that shares its memory with the steps that follow",
        "training/checkpoint.py", "flat.copy() if flat is params.flat else flat ", "flat ",
        "training/test_trainer_survives.py::test_steps_are_done_while_a_checkpoint_is_written_and_it_is_of_its_own_step",
    ),
    Mistake(
        "a save that failed on its thread, and nobody told",
        "training/trainer.py", "if self._writing and self._writing.done():", "if False:",
        "training/test_trainer_survives.py::test_a_save_that_failed_ends_the_loop_at_the_next_step_with_the_last_good_checkpoint_intact",
    ),
    Mistake(
        "a whole checkpoint that a kill left without a pointer, passed over",
        "training/trainer.py", "folders, damaged = checkpoint.step_folders(out), {}",
        "folders, damaged = [checkpoint.find_step(out)], {}",
        "training/test_trainer_survives.py::test_a_checkpoint_that_was_whole_but_not_yet_named_when_the_kill_came_is_used",
    ),
    Mistake(
        "float16's scale of gradients gone on with in another dtype",
        "training/trainer.py", 'if state["dtype"] == self.model.dtype.name:', "if True:",
        "training/test_trainer_survives.py::test_the_scale_of_gradients_is_gone_on_with_in_float16_alone[dtypes1-1]",
    ),
    Mistake(
        "a folder taken for another run's because one's own step 0 is there",
        "training/trainer.py", "if self._has_folder or self.workers.rank:", "if self.step or self.workers.rank:",
        "training/test_trainer_survives.py::test_a_run_that_was_saved_before_its_first_step_goes_on[True]",
    ),
    Mistake(
        "ranks that train on different data, and nobody told",
        "parallel/ranks.py", "if digest != expected", "if False",
        "parallel/test_ranks.py::test_a_rank_that_would_do_something_else_ends_the_job_before_the_first_step[data-changes2]",
    ),
    Mistake(
        "an adapter over a model whose weights have changed",
        "training/checkpoint.py", "and saved != below:", "and False:",
        "commands/test_finetune.py::test_an_adapter_whose_model_has_changed_below_it_is_refused",
    ),
    Mistake(
        "two processes that train in one folder",
        "commands/train.py", 'with locked(out, doing="trains"):', "with nullcontext():",
        "test_cli.py::test_a_folder_in_which_another_process_trains_is_refused_and_left_alone",
    ),
    Mistake(
        "worker processes that a signal to all ends while they start",
        "system/processes.py", "with _unheard():", "if True:",
        "system/test_processes.py::test_a_signal_to_all_is_for_the_parent_however_early_it_comes[15]",
    ),
    Mistake(
        "the memory of GELU planned as SwiGLU's",
        "training/plan.py", '"gelu": (2, 7)', '"gelu": (3, 4)',
        "training/test_plan.py::test_activations_are_within_ten_percent_of_what_a_step_measures[4-True]",
    ),
    Mistake(
        "a damaged checkpoint that stays where its step will be saved again",
        "training/trainer.py", "            checkpoint.set_aside(folder)\n", "            pass\n",
        "training/test_trainer_survives.py::test_where_all_checkpoints_are_damaged_the_run_begins_anew_and_deletes_nothing",
    ),
    Mistake(
        "a permutation that is not led back, so that a window comes twice",
        "data/epochs.py", "        wanted = result >= n\n", "        result %= n\n        wanted = result >= n\n",
        "data/test_epochs.py::test_a_permutation_leads_everywhere_once",
    ),
    Mistake(
        "the same order in every epoch",
        "data/epochs.py", "(seed, int(epoch))", "(seed, 0)",
        "training/test_trainer_survives.py::test_each_window_comes_once_in_an_epoch",
    ),
    Mistake(
        "the place in the data counted in steps, whatever their size was",
        "training/trainer.py", 'data.get("windows", self.step * self.config.batch_size)', "self.step * self.config.batch_size",
        "training/test_trainer_survives.py::test_a_run_that_goes_on_with_another_batch_size_leaves_out_no_window_and_takes_none_twice",
    ),
    Mistake(
        "processes that a scheduler's SIGTERM ends before their run has saved",
        "system/signals.py", "FOR_THE_PARENT = (signal.SIGINT, *TO_END)", "FOR_THE_PARENT = (signal.SIGINT,)",
        "commands/test_train.py::test_sigterm_to_all_processes_of_a_run_saves_and_exits_with_0",
    ),
    Mistake(
        "a run that ends when nobody reads its progress",
        "system/output.py", "            if self.needed:", "            if True:",
        "system/test_output.py::test_a_training_comes_to_the_same_end_whatever_becomes_of_its_output[err-EPIPE]",
    ),
    Mistake(
        "a half-written line of the log that is written once more",
        "training/metrics.py", "del self._waiting[:done]", "self._waiting.clear()",
        "training/test_metrics.py::test_lines_that_could_not_be_written_are_written_when_they_can_be[first-40]",
    ),
    Mistake(
        "a second signal that ends a run while it saves",
        "system/signals.py", "            if signal.getsignal(number) is not signal.SIG_IGN:", "            if True:",
        "system/test_signals.py::test_whoever_is_told_to_end_ends_and_is_deaf_from_then_on[15]",
    ),
    Mistake(
        "nohup that does not keep a run from ending with its terminal",
        "system/signals.py", "if not (n in HANG_UP and signal.getsignal(n) is signal.SIG_IGN)]", "]",
        "system/test_signals.py::test_a_process_under_nohup_stays_deaf_to_sighup",
    ),
    Mistake(
        "an interrupted run that a script takes for a finished one",
        "commands/train.py", "return exit_code(signal.SIGINT)", "return 0",
        "test_cli.py::test_ctrl_c_saves_and_resume_comes_to_the_same_end",
    ),
    Mistake(
        "a check of exercises that finds everything right",
        "learn/exercises.py", "RIGHT = 1e-9", "RIGHT = 1e9",
        "learn/test_exercises.py::test_the_check_finds_each_mistake_of_a_backward_with_a_hint[RMSNorm_without_the_second_term_of_its_gradient]",
    ),
    Mistake(
        "a device that is replaced by a file",
        "storage/files.py", "if is_device(path):", "if False:",
        "test_cli_errors.py::test_a_pipe_is_written_to_and_not_replaced",
    ),
    Mistake(
        "an exercise that is written over",
        "learn/exercises.py", """if not (folder / f"{name}.py").exists()]\n        with""", """]\n        with""",
        "learn/test_exercises.py::test_the_command_writes_all_that_are_missing_and_checks_all_that_are_there",
    ),
    Mistake(
        "an exercise that shows its solution",
        "learn/exercises.py", 'node.name == f"{op}_{blank}"', "node.name == op",
        "learn/test_exercises.py::test_a_file_has_a_blank_and_the_librarys_own_lines_fill_it[rmsnorm]",
    ),
    Mistake(
        "a trace that does not stretch RoPE",
        "learn/tracing.py", "c.rope_theta, c.rope_scaling, model.dtype)", "c.rope_theta, None, model.dtype)",
        "learn/test_tracing.py::test_a_llama_of_any_shape_is_traced_as_it_is[rope_scaling]",
    ),
    Mistake(
        "a tied embedding without the gradient of the head",
        "learn/tracing.py", 'g["embed"] = g.get("embed", 0) + ops', 'g["embed"] = ops',
        "learn/test_tracing.py::test_a_llama_of_any_shape_is_traced_as_it_is[tie_embeddings]",
    ),
    Mistake(
        "a norm of queries and keys that a trace leaves out",
        "learn/tracing.py", ', "qk_norm": None}', "}",
        "learn/test_tracing.py::test_a_model_that_is_no_plain_llama_is_refused_by_name[qk_norm-l2]",
    ),
    Mistake(
        "an adapter that a trace leaves out",
        "learn/tracing.py", "if model.adapter is not None:", "if False:",
        "learn/test_tracing.py::test_a_model_with_an_adapter_is_refused_until_it_is_merged",
    ),
    Mistake(
        "an adapter's folder that is traced without its adapter",
        "learn/trace_report.py", "        model.merge_adapter()", "        model.adapter = None",
        "learn/test_tracing.py::test_an_adapter_is_merged_before_its_model_is_traced",
    ),
    Mistake(
        "a trace whose stream forgets the branch's gradient",
        "learn/tracing.py", "return dx + through_norm", "return dx",
        "learn/test_tracing.py::test_loss_and_gradients_are_those_of_the_model",
    ),
    Mistake(
        "a trace that leaves softmax's backward out",
        "learn/tracing.py", 'd["scores"] = ops.softmax_backward(d["attention"], (p,))', 'd["scores"] = d["attention"]',
        "learn/test_tracing.py::test_the_gradients_inside_attention_belong_together[0]",
    ),
    Mistake(
        "a page with a tag left open",
        "learn/trace_report.py", "return f\"<tr>{''.join(cells)}</tr>\"", "return f\"<tr>{''.join(cells)}\"",
        "learn/test_tracing.py::test_the_page_is_well_formed_and_needs_no_other_file",
    ),
    Mistake(
        "a small model that shares its tiny products among all cores",
        "system/blas.py", "            return _one.by_one_more(_limit)", "            return nullcontext()",
        "system/test_blas.py::test_a_small_model_in_anybodys_loop_has_one_thread[loss_and_grads]",
    ),
    Mistake(
        "BLAS's threads set by a thread that threadpoolctl ignores",
        "system/blas.py", "        release(force=True)\n        library", "        library",
        "system/test_blas.py::test_a_thread_may_ask_for_what_another_puts_back",
    ),
    Mistake(
        "a possessive quantifier of Oniguruma read as Python's",
        "tokenizer/parsing.py", 'if self.oniguruma:  # what + follows', 'if False:  # what + follows',
        "tokenizer/test_tokenizer_json.py::test_a_pattern_is_read_as_oniguruma_reads_it[a{1,3}+-aaaaa-expected0]",
    ),
    Mistake(
        "a possessive quantifier that gives back",
        "tokenizer/rewriting.py", '"possessive": "+"}', '"possessive": ""}',
        "tokenizer/test_tokenizer_json.py::test_a_pattern_is_read_as_oniguruma_reads_it[a++a|a-aaaa-expected1]",
    ),
    Mistake(
        "the start of a line read as the start of the text",
        "tokenizer/parsing.py", "Sequence((AFTER_NEWLINE, Look(END, negated=True)))", "Sequence((START,))",
        "tokenizer/test_tokenizer_json.py::test_a_pattern_is_read_as_oniguruma_reads_it[^a-aa\\naa-expected2]",
    ),
    Mistake(
        "white space that an added token leaves in front of it",
        "tokenizer/added_tokens.py", 'while token.lstrip and begin > done', 'while False and begin > done',
        "tokenizer/test_tokenizer_json.py::test_flags_of_added_tokens[flags1-a \\n<x> b-expected1]",
    ),
    Mistake(
        "the beginning of a text put there twice",
        "tokenizer/post_processors.py", 'outer[0] + before, after', 'outer[0] + outer[0] + before, after',
        "tokenizer/test_tokenizer_json.py::test_what_belongs_before_a_text_stands_there_once",
    ),
    Mistake(
        "an id without a token that cannot be decoded",
        "tokenizer/bpe.py", 'yield self._token.get(i, b"")', "yield self._token[i]",
        "tokenizer/test_tokenizer_json.py::test_an_id_without_a_token_decodes_to_nothing",
    ),
]  # fmt: skip
