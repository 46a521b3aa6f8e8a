"""Mistakes in `kernels/`."""

from mistakes.mistake import Mistake

GRAPH = "cuda/real_cupy/test_graph.py::test_ten_replayed_steps_are_ten_plain_steps_bit_for_bit[float32]"

MISTAKES = [
    Mistake(
        "a kernel without the barrier between its warps",
        "../kernels/common.cuh", "  __syncthreads();\n  x = warp_sum(", "  x = warp_sum(",
        "cuda/test_rmsnorm.py::test_rmsnorm[(3, 4096)-float32]",
    ),
    Mistake(
        "a target counted from the beginning of the row, not of its first vector",
        "../kernels/cross_entropy.cu", "Index(kept[n]) + row.skew", "Index(kept[n])",
        "cuda/test_cross_entropy.py::test_cross_entropy[(65, 65)-float32]",
    ),
    Mistake(
        "bfloat16 cut off where it should be rounded",
        "../kernels/common.cuh", "(bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16", "bits >> 16",
        "cuda/test_emulator.py::test_numbers_in_two_bytes_round_to_nearest_even[bfloat16]",
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
        "a kernel of LayerNorm's gradient without the mean's part",
        "../kernels/layernorm.cu", "* w.at[i] - sum - n * dot", "* w.at[i] - n * dot",
        "cuda/test_layernorm.py::test_layernorm[(65, 8)-float32]",
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
        "keys that are not seen counted in the sum of a softmax between products",
        "../kernels/attention_products.cu", "if (q.sees(j + i)) z += ", "z += ",
        "cuda/test_attention_products.py::test_large_scores_and_intervals_of_every_kind[float32]",
    ),
]  # fmt: skip
