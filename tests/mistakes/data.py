"""Mistakes in `numllama/data/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "the last window of a text is not evaluated",
        "data/batches.py", "if len(rest) > 1:", "if len(rest) > seq_len:",
        "test_commands.py::test_eval_is_the_mean_over_every_token_but_the_first",
    ),
    Mistake(
        "targets that are the inputs",
        "data/batches.py", "return read[:, :-1], read[:, 1:]", "return read[:, :-1], read[:, :-1]",
        "data/test_dataset.py::test_targets_are_the_tokens_that_follow_the_inputs",
    ),
    Mistake(
        "the same batch in every step",
        "data/batches.py", "np.random.default_rng([seed, step]).integers", "np.random.default_rng([seed]).integers",
        "data/test_dataset.py::test_a_batch_is_a_function_of_seed_and_step",
    ),
    Mistake(
        "a validation that drops the last, shorter window",
        "data/batches.py", "if len(rest) > 1:", "if len(rest) > seq_len:",
        "data/test_dataset.py::test_windows_ask_for_every_token_but_the_first_exactly_once",
    ),
    Mistake(
        "a stopped preparation that keeps what came after its last save",
        "data/token_writer.py", "self._file.truncate(written)", "written",
        "data/test_prepare.py::test_what_was_stopped_goes_on_and_ends_with_the_same_bytes",
    ),
    Mistake(
        "a token beyond the vocabulary looked for at the beginning of a file alone",
        "data/token_files.py", "for start in range(0, len(tokens), CHECKED_AT_ONCE):", "for start in (0,):",
        "data/test_token_files.py::test_a_token_beyond_the_vocabulary_is_found_before_it_is_trained_on[11-6-<u2]",
    ),
    Mistake(
        "a shard lost from the end of a folder that nobody misses",
        "data/token_writer.py", 'more = {"shards": len(paths)} if len(paths) > 1 else {}', "more = {}",
        "data/test_prepare.py::test_a_missing_shard_is_named",
    ),
    Mistake(
        "a shard that takes what belongs to the next one",
        "data/token_writer.py", "room = self._limit - written", "room = self._limit",
        "data/test_prepare.py::test_shards_of_any_size_are_the_one_file[97]",
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
        "every epoch in the same order",
        "data/conversations.py", "default_rng([self.seed, epoch])", "default_rng([self.seed])",
        "data/test_conversations.py::test_each_epoch_sees_every_row_once_in_an_order_of_its_own",
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
]  # fmt: skip
