"""Mistakes in `numllama/generation/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "logits that are no numbers, drawn from",
        "generation/sampling.py", "        self.check(logits)\n", "",
        "generation/test_generate.py::test_a_parameter_that_is_not_finite_is_named",
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
        "the next token's position one too late",
        "generation/kv_cache.py",
        "positions = self.length + ahead + np.arange(T)", "positions = self.length + (self.length > 0) + ahead + np.arange(T)",
        "generation/test_kv_cache.py::test_logits_are_those_of_the_full_forward_at_every_position_row_and_split",
    ),
    Mistake(
        "padding in front of a shorter prompt that can be seen",
        "generation/kv_cache.py",
        "first = np.maximum(first, slots - window + 1) ", "first = slots - window + 1 + 0 * first ",
        "generation/test_kv_cache.py::test_a_window_of_ragged_sequences_hides_what_stands_before_a_beginning",
    ),
    Mistake(
        "a window that is one token too wide",
        "generation/kv_cache.py", "slots - window + 1)", "slots - window)",
        "generation/test_kv_cache.py::test_a_window_slides_over_more_than_max_seq_len",
    ),
    Mistake(
        "keys of longrope's list for short texts in a long one",
        "generation/kv_cache.py", "return self._is_long != self._would_be_long(self.length + 1, self.starts)", "return False",
        "generation/test_generate.py::test_keys_are_computed_again_where_longrope_goes_from_one_list_to_the_other",
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
        "generation/gemv.py", "np.conjugate(x, conjugate)", "np.copyto(conjugate, x)",
        "generation/test_decode.py::test_products_by_complex_numbers_are_the_same_products",
    ),
    Mistake(
        "the shift to unsigned numbers that is not taken back",
        "generation/gemv.py", "biases = -128 *", "biases = -127 *",
        "generation/test_decode.py::test_weights_in_fewer_bytes_are_decoded_by_onednn_as_the_model_computes_them",
    ),
    Mistake(
        "shards of a step that do not wait for each other's branch",
        "generation/decode.py", "            barrier.wait(self.i)\n", "            pass\n",
        "generation/test_decode.py::test_shards_wait_for_each_other",
    ),
    Mistake(
        "a shard with the columns of another shard's heads",
        "generation/decode.py", 'part(w["wo"], (slice(None), of_q))', 'part(w["wo"], (slice(None), slice(len(self.mixed))))',
        "generation/test_decode.py::test_any_number_of_cores_gives_the_same_logits",
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
        "generation/sampling.py", "    logits = logits / config.temperature\n    if config.top_k", "    if config.top_k",
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
        "slices of a prompt that do not wait for the keys of earlier ones",
        "generation/prefill.py", "self.error or i == 0 or self.layers[i - 1] > self.layers[i]", "True",
        "generation/test_prefill.py::test_logits_and_cache_are_those_of_the_full_forward",
    ),
]  # fmt: skip
