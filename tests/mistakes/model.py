"""Mistakes in `numllama/model/`."""

from mistakes.mistake import Mistake

MODEL = "model/test_transformer.py"
GRAPH = "cuda/real_cupy/test_graph.py::test_ten_replayed_steps_are_ten_plain_steps_bit_for_bit[float32]"

MISTAKES = [
    Mistake(
        "the residual stream's gradient cut off",
        "model/block.py",
        'backward(dx, dn, cache.norm, g, "ffn_norm")',
        'backward(None, dn, cache.norm, g, "ffn_norm")',
        f"{MODEL}::test_every_gradient_against_differences[cpu-llama]",
    ),
    Mistake(
        "the path through the keys forgotten",
        "model/block.py", "merge_heads(dq), merge_heads(dk), ", "merge_heads(dq), 0 * merge_heads(dk), ",
        f"{MODEL}::test_every_gradient_against_differences[cpu-gqa]",
    ),
    Mistake(
        "heads merged without swapping time back",
        "model/stages.py", "return x.swapaxes(1, 2).reshape(B, T, H * D)", "return x.reshape(B, T, H * D)",
        f"{MODEL}::test_forward_equals_plain_einsums[cpu-llama]",
    ),
    Mistake(
        "a load-balancing loss that the router does not feel",
        "model/experts.py", "douts = dout, balance.dprobs", "douts = dout, None",
        "model/test_experts.py::test_every_gradient_against_differences[balanced]",
    ),
    Mistake(
        "the load-balancing loss of the last layer alone",
        "model/experts.py", "xp.concatenate(self.probs), xp.concatenate(self.chosen)", "self.probs[-1], self.chosen[-1]",
        "model/test_experts.py::test_the_load_balancing_loss_counts_all_layers_together",
    ),
    Mistake(
        "a part of a batch that brings the whole load-balancing loss",
        "model/experts.py", "context.balance.loss(c.router_aux_loss_coef * part, scale)",
        "context.balance.loss(c.router_aux_loss_coef, scale)",
        "model/test_experts.py::test_parts_of_a_batch_add_their_load_balancing_losses_by_their_targets",
    ),
    Mistake(
        "one scale for the updates of all matrices",
        "model/lora.py", "self.alphas.get(name, self.alpha) / self.rank_of(name)", "self.alpha / self.rank",
        "model/test_lora.py::test_single_matrices_act_with_their_own_scale_and_merge[cpu]",
    ),
    Mistake(
        "a layer run again that forgets its last bias",
        "model/stages.py", 'LinearCache(x, w[name], w.get(f"{name}_bias"))', "LinearCache(x, w[name], None)",
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
        'grads.add("embed", ops.embedding_backward(dx, embed_cache, into=dhead))',
        'grads.add("embed", ops.embedding_backward(dx, embed_cache))',
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
        "model/context.py",
        "or c.head_dim, theta, scaling, self.dtype)", 'or c.head_dim, theta, scaling, "float64")',
        f"{MODEL}::test_a_float32_step_meets_no_float64[cpu-llama-plain]",
    ),
    Mistake(
        "residual projections as large as the others at the start",
        "model/parameters.py", "config.init_std / sqrt(2 * config.n_layers) if", "config.init_std if",
        "model/test_parameters.py::test_matrices_start_normal_and_the_ones_that_write_to_the_residual_stream_smaller",
    ),
    Mistake(
        "joined matrices in int8 with the scales of the first",
        "model/parameters.py", "names.index(last) + 1]]", "names.index(first) + 1]] * 3",
        "cpu/test_int8.py::test_joined_matrices_are_the_rows_of_each",
    ),
    Mistake(
        "a second copy of each tensor",
        "model/parameters.py",
        "view[rows] = tensor[rows] if xp is np else", "view[rows] = tensors[name][:].astype(dtype)[rows] if xp is np else",
        "interop/test_huggingface.py::test_loading_takes_the_memory_of_the_model_and_nothing_else",
    ),
    Mistake(
        "one key for all the masks of a graph",
        "model/stages.py", "key = context.key[site] if", "key = context.key[0] if",
        GRAPH,
    ),
    Mistake(
        "the gradient of a tied head rounded to two bytes",
        "model/transformer.py", "dhead = self.xp.zeros_like(self._head(self.trainable))", "dhead = None",
        "model/test_mixed_precision.py::test_no_gradient_of_a_matrix_is_rounded_to_two_bytes[tied-float16]",
    ),
    Mistake(
        "queries at a prompt's end turned by the angles of its beginning",
        "model/context.py", "else table[..., -n:, :]", "else table[..., :n, :]",
        "generation/test_prefill.py::test_only_the_last_tokens_logits_where_no_more_are_asked_for",
    ),
    Mistake(
        "an update that x gets no gradient through",
        "model/stages.py",
        "dx, da, db = ops.lora_backward(dout, cache, dx=dx)", "_, da, db = ops.lora_backward(dout, cache)",
        "model/test_lora.py::test_gradients_are_those_of_the_merged_model_by_the_chain_rule",
    ),
    Mistake(
        "an adapter's own head that nothing computes with",
        "model/transformer.py", "{**self.weights.ends, **self.adapter.weights.ends}", "self.weights.ends",
        "model/test_lora.py::test_whole_matrices_begin_as_the_models_and_are_trained_beside_them[cpu-llama]",
    ),
    Mistake(
        "an adapter merged without its own head",
        "model/lora.py", "elif name in self.params:", "elif False:",
        "model/test_lora.py::test_generation_with_whole_matrices_is_that_of_the_merged_model",
    ),
    Mistake(
        "an adapter merged without its scale",
        "model/lora.py", "weight + self.config.scale_of(name) * update", "weight + update",
        "model/test_lora.py::test_the_merged_model_is_the_model_with_its_adapter",
    ),
    Mistake(
        "a sliding window that is one token too wide in training",
        "model/context.py", "t - size + 1)", "t - size)",
        f"{MODEL}::test_forward_equals_plain_einsums[cpu-window]",
    ),
    Mistake(
        "RoPE in the layers that have none",
        "model/context.py", 'own[i] |= {"cos": None, "sin": None}', "own[i] |= {}",
        f"{MODEL}::test_forward_equals_plain_einsums[cpu-a_layer_without_rope]",
    ),
    Mistake(
        "a norm after the branch whose gradient is forgotten",
        "model/block.py", 'dbranch = norms.last[c.norm].backward(dbranch, parts.last_norm, g, "attn_post_norm")', "",
        f"{MODEL}::test_every_gradient_against_differences[cpu-norms_after]",
    ),
    Mistake(
        "the gradient of the load-balancing loss without the loss scale",
        "model/experts.py", "load_balancing_backward(factor * scale, cache)", "load_balancing_backward(factor, cache)",
        "model/test_experts.py::test_a_scale_multiplies_every_gradient",
    ),
    Mistake(
        "the whole load-balancing loss in each part of a batch",
        "model/experts.py", "part = 1.0 if count is None else", "part = 1.0 if True else",
        "model/test_experts.py::test_parts_of_a_batch_add_their_load_balancing_losses_by_their_targets",
    ),
]  # fmt: skip
