"""Mistakes in `numllama/cuda/`."""

from mistakes.mistake import Mistake

GRAPH = "cuda/real_cupy/test_graph.py::test_ten_replayed_steps_are_ten_plain_steps_bit_for_bit[float32]"

MISTAKES = [
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
        "a rotation back that turns forward",
        "cuda/rope.py", "return _turned(dout, cos, sin, layout, -1, out)", "return _turned(dout, cos, sin, layout, 1, out)",
        "cuda/test_rope.py::test_rope[(2, 3, 65, 64)-half-float32]",
    ),
    Mistake(
        "a graph whose bias correction is a step ahead",
        "cuda/graph.py", "step_numbers(optimizer.steps + 1, lr,", "step_numbers(optimizer.steps + 2, lr,",
        GRAPH,
    ),
    Mistake(
        "a graph that divides by the size of its batch",
        "cuda/graph.py", "max(1, batch.count)", "batch.targets.size",
        "cuda/real_cupy/test_graph.py::test_ignored_targets_count_nowhere[{}]",
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
        "asynchronous copies on a GPU that has none",
        "cuda/flash_attention.py", "launch.backend.compute_capability() >= FIRST_CAPABILITY", "True",
        "cuda/test_attention_products.py::test_gpus_before_ampere[75-bfloat16]",
    ),
    Mistake(
        "two arrays of different strides read with those of the first",
        "cuda/flash_attention.py", " or len({_steps(x) for x in arrays}) > 1", "",
        "cuda/test_flash_attention.py::test_what_cannot_be_read_where_it_lies_is_copied[float32]",
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
]  # fmt: skip
