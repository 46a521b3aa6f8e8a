"""Mistakes in `numllama/parallel/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "a first shard that adds to what the step before has left",
        "parallel/ordered_sum.py", "            total[...] = gradient\n", "            total += gradient\n",
        "parallel/test_shards.py::test_nothing_of_one_batch_is_left_in_the_gradients_of_the_next",
    ),
    Mistake(
        "weights and gradients in the same memory",
        "parallel/shared_memory.py", "[memory[at : at + n] for at, n in", "[memory[:n] for at, n in",
        "parallel/test_shared_memory.py::test_processes_give_the_same_bits_as_one_worker",
    ),
    Mistake(
        "shards that add in whatever order they end",
        "parallel/ordered_sum.py", "while self._state[i] < index and", "while False and",
        "parallel/test_shards.py::test_shards_add_in_index_order_however_long_each_takes",
    ),
    Mistake(
        "every rank reading the rows of all",
        "parallel/ranks.py", "plan.slices()[self.rank :: self.size])])", "plan.slices())])",
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
        "parallel/ranks.py", "self._ready[0].layer >= layer", "self._ready[0].layer >= layer - 1",
        "parallel/test_ranks.py::test_a_bucket_is_sent_as_soon_as_backward_is_done_with_it_and_no_sooner",
    ),
    Mistake(
        "each rank clipping by the norm of its own gradients",
        "parallel/ranks.py", "norm=self._norm(grads) if self.sharded else None", "norm=None",
        "parallel/test_ranks.py::test_any_number_of_ranks_gives_the_bits_of_one_process[2-5-True]",
    ),
    Mistake(
        "targets counted by the size of the batch",
        "data/batches.py", "return Batch(tokens, targets, segments, int((targets != IGNORE).sum()))",
        "return Batch(tokens, targets, segments, targets.size)",
        "parallel/test_ranks.py::test_ignored_targets_count_nowhere_whoever_runs_the_shards[2]",
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
        "ranks that train on different data, and nobody told",
        "parallel/ranks.py", "if digest != expected", "if False",
        "parallel/test_ranks.py::test_a_rank_that_would_do_something_else_ends_the_job_before_the_first_step[data-changes2]",
    ),
]  # fmt: skip
