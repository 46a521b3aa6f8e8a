"""Mistakes in `numllama/training/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "clipping after the step",
        "training/trainer.py",
        "norm = self.workers.clip(grads, c.clip)",
        "norm = 1.0; self.workers.step(self.optimizer, grads, lr); grads.flat.fill(0)",
        "training/test_trainer.py::test_a_plain_loop_gives_the_same_parameters[adamw-1-0.05]",
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
        "gradients that are scaled and stay so",
        "training/trainer.py", "grads.flat *= 1 / scale", "pass",
        "model/test_mixed_precision.py::test_what_is_reported_and_clipped_is_the_gradient_without_the_scale",
    ),
    Mistake(
        "the tokens of one rank told as those of all",
        "training/trainer.py", "c.batch_size * batch.tokens.shape[1] / seconds", "batch.tokens.size / seconds",
        "parallel/test_ranks.py::test_each_rank_reads_the_rows_that_it_computes_and_no_others[2-rows1-random]",
    ),
    Mistake(
        "a checkpoint that shares its memory with the steps that follow",
        "training/checkpoint.py", "flat.copy() if flat is params.flat else flat ", "flat ",
        "training/test_trainer_survives.py::test_steps_are_done_while_a_checkpoint_is_written_and_it_is_of_its_own_step",
    ),
    Mistake(
        "a save that failed on its thread, and nobody told",
        "training/trainer.py", "if self.out and writer.is_done():", "if False:",
        "training/test_trainer_survives.py::test_a_save_that_failed_ends_the_loop_at_the_next_step_with_the_last_good_checkpoint_intact",
    ),
    Mistake(
        "a whole checkpoint that a kill left without a pointer, passed over",
        "training/checkpoint_writer.py", "folders, damaged = checkpoint.step_folders(out), {}",
        "folders, damaged = [checkpoint.find_step(out)], {}",
        "training/test_trainer_survives.py::test_a_checkpoint_that_was_whole_but_not_yet_named_when_the_kill_came_is_used",
    ),
    Mistake(
        "float16's scale of gradients gone on with in another dtype",
        "training/trainer.py", 'if state["dtype"] == self.model.compute_dtype.name and "scale" in state:', 'if "scale" in state:',
        "training/test_trainer_survives.py::test_the_scale_of_gradients_is_gone_on_with_in_float16_alone[dtypes1-1]",
    ),
    Mistake(
        "a folder taken for another run's because one's own step 0 is there",
        "training/checkpoint_writer.py", "if self._has_folder or not self.is_writer:", "if not self.is_writer:",
        "training/test_trainer_survives.py::test_a_run_that_was_saved_before_its_first_step_goes_on[True]",
    ),
    Mistake(
        "an adapter over a model whose weights have changed",
        "training/checkpoint.py", "and saved != below:", "and False:",
        "commands/test_finetune.py::test_an_adapter_whose_model_has_changed_below_it_is_refused",
    ),
    Mistake(
        "the memory of GELU planned as SwiGLU's",
        "training/plan.py", '"gelu": (size + of.operand, 7)', '"gelu": (3 * of.low_precision, of.wide)',
        "training/test_plan.py::test_activations_are_within_ten_percent_of_what_a_step_measures[4-True-float32]",
    ),
    Mistake(
        "a damaged checkpoint that stays where its step will be saved again",
        "training/checkpoint_writer.py", "                checkpoint.quarantine(folder)\n", "                pass\n",
        "training/test_trainer_survives.py::test_where_all_checkpoints_are_damaged_the_run_begins_anew_and_deletes_nothing",
    ),
    Mistake(
        "the place in the data counted in steps, whatever their size was",
        "training/trainer.py",
        'state["data"].get("windows", self.step * self.config.batch_size)', "self.step * self.config.batch_size",
        "training/test_trainer_survives.py::test_a_run_that_goes_on_with_another_batch_size_leaves_out_no_window_and_takes_none_twice",
    ),
    Mistake(
        "a half-written line of the log that is written once more",
        "training/metrics.py", "del self._waiting[:done]", "self._waiting.clear()",
        "training/test_metrics.py::test_lines_that_could_not_be_written_are_written_when_they_can_be[first-40]",
    ),
]  # fmt: skip
