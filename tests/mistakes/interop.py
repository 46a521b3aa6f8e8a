"""Mistakes in `numllama/interop/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "layers_to_transform left unread",
        "interop/peft.py", "_is_named(module, targets) and _is_in_layers(module, values)", "_is_named(module, targets)",
        "interop/test_peft.py::test_tensors_that_the_configuration_does_not_name_are_refused[changes1]",
    ),
    Mistake(
        "the experts of a gap stacked closer together",
        "interop/mixtures.py", "sorted(parts) == list(range(len(parts)))", "True",
        "interop/test_mixtures.py::test_an_expert_that_is_missing_is_named[a gap]",
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
        "interop/families.py", '("rms_norm_eps", POSITIVE, 1e-6)', '("rms_norm_eps", POSITIVE, 1e-5)',
        "interop/test_huggingface.py::test_what_a_config_leaves_out_is_what_hugging_face_takes",
    ),
    Mistake(
        "a head that is not the embedding taken for it",
        "interop/huggingface.py", "if _same(files[embed][embed], files[head][head]):", "if True:",
        "interop/test_huggingface.py::test_a_tied_model_is_what_its_file_holds[llama]",
    ),
    Mistake(
        "biases of the feed-forward wherever attention has them",
        "interop/traits.py", '(True, False): "attention"', "(True, False): True",
        "interop/test_huggingface.py::test_biases_in_one_half_of_a_block_alone[attention_bias-self_attn]",
    ),
    Mistake(
        "a tensor looked for in whatever shard has it",
        "interop/huggingface.py", "            if places.get(name) != shard:", "            if name not in places:",
        "interop/test_huggingface.py::test_a_tensor_that_stands_in_two_shards_is_named",
    ),
    Mistake(
        "a stop id of config.json before that of generation_config.json",
        "interop/huggingface.py", "GENERATION if (folder / GENERATION).exists() else CONFIG", "CONFIG",
        "interop/test_huggingface.py::test_the_stop_ids_are_those_of_the_generation_config",
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
        "an interleaved model's adapter written in its own order of rows",
        "interop/peft.py", 'config.rope_layout != "interleaved"', "True",
        "interop/test_peft.py::test_rows_of_an_interleaved_model_are_written_as_hugging_face_pairs_them",
    ),
    Mistake(
        "stacked matrices that all begin at the first row",
        "interop/huggingface.py", "start += shapes[name][0]", "start += 0",
        "interop/test_families.py::test_a_model_survives_a_save_bit_for_bit_as_its_family[phi3]",
    ),
    Mistake(
        "experts in the order of their names, 10 before 2",
        "interop/mixtures.py", "for e in sorted(parts)])", "for e in sorted(parts, key=str)])",
        "interop/test_families.py::test_a_model_survives_a_save_bit_for_bit_as_its_family[mixtral many]",
    ),
    Mistake(
        "Gemma's gains stored in GGUF without the 1",
        "interop/gguf_architectures.py", 'config.norm == "rmsnorm1p" and name.endswith("norm")', "False",
        "interop/test_gguf_architectures.py::test_rows_and_gains_are_stored_as_llama_cpp_computes_with_them[gemma-plain]",
    ),
    Mistake(
        "a SmolLM 3 stored in GGUF with halves",
        "interop/gguf_architectures.py", "traits=(NO_ROPE_LAYERS,), turns_neighbours=True", "traits=(NO_ROPE_LAYERS,)",
        "interop/test_gguf_architectures.py::test_rows_and_gains_are_stored_as_llama_cpp_computes_with_them[smollm3-plain]",
    ),
    Mistake(
        "all parts of a stacked tensor read from its first rows",
        "interop/gguf.py", "place, self._stored[name] = place._replace(begin=part.end), part", "self._stored[name] = part",
        "interop/test_gguf_architectures.py::test_a_round_trip_changes_no_bit[phi3-plain]",
    ),
    Mistake(
        "a router rounded like a matrix",
        "interop/gguf_write.py", 'len(shape) > 1 and not stored.endswith("ffn_gate_inp.weight")', "len(shape) > 1",
        "interop/test_gguf_architectures.py::test_other_types_are_read_in_blocks_of_rows[llama-experts-q8_0]",
    ),
    Mistake(
        "the first of the layers without a window instead of the last",
        "interop/gguf_architectures.py", "layer % period < period - 1", "layer % period > 0",
        "interop/test_gguf_architectures.py::test_values_of_published_files[gemma-3-27b]",
    ),
    Mistake(
        "the width of a dense layer taken for that of an expert",
        "interop/gguf_architectures.py",
        '{"ffn_dim": values["expert_feed_forward_length"]}', '{"ffn_dim": values["feed_forward_length"]}',
        "interop/test_gguf_architectures.py::test_values_of_published_files[qwen3-30b-a3b]",
    ),
    Mistake(
        "what a GGUF file cannot say left out",
        "interop/gguf_architectures.py", "if not same and each.name not in UNSAID:", "if False:",
        "interop/test_gguf_architectures.py::test_what_no_architecture_holds_is_refused_by_name"
        "[llama-plain-changes0-sliding_window is 5, but in llama it is None]",
    ),
    Mistake(
        "the attention factor of longrope left unread",
        "interop/gguf_rope.py", "return scaling if is_usual else", "return scaling if True else",
        "interop/test_gguf_architectures.py::test_a_round_trip_changes_no_bit[phi3-longrope]",
    ),
]  # fmt: skip
