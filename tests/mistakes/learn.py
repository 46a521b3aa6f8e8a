"""Mistakes in `numllama/learn/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "a check of exercises that finds everything right",
        "learn/course/comparison.py", "RIGHT = 1e-9", "RIGHT = 1e9",
        "learn/course/test_check.py::test_the_check_finds_each_mistake_of_a_backward_with_a_hint[RMSNorm_without_the_second_term_of_its_gradient]",
    ),
    Mistake(
        "an exercise that is written over",
        "learn/course/files.py", """if not (folder / f"{name}.py").exists()]\n        with""", """]\n        with""",
        "learn/course/test_files.py::test_all_are_written_that_are_missing_and_none_is_overwritten",
    ),
    Mistake(
        "an exercise that shows its solution",
        "learn/course/files.py", 'else node.name == blank', 'else node.name == "blank"',
        "learn/course/test_files.py::test_the_functions_of_the_solution_are_blank_or_missing_in_the_file[rmsnorm]",
    ),
    Mistake(
        "an exercise that is right although it writes into its input",
        "learn/course/check.py", "    if answer.changed:", "    if False:",
        "learn/course/test_check.py::test_a_forward_that_writes_into_its_input_is_wrong",
    ),
    Mistake(
        "a gradient of the block that is given to its own function",
        "learn/course/check.py", 'before = ["after_ffn"]', 'before = ["after_ffn", "ffn_out"]',
        "learn/course/test_block.py::test_a_gradient_is_not_given_itself_or_what_comes_after_it",
    ),
    Mistake(
        "a mistake to find that is told by the check",
        "learn/course/naming.py", 'if exercise.kind == "bug" and is_alike(', "if False and is_alike(",
        "learn/test_wrong_repairs.py::test_the_planted_mistake_is_not_told_but_said_to_be_there[1]",
    ),
    Mistake(
        "infinite numbers that equal any others",
        "learn/wrong_answers/explain.py", "tolerance * np.linalg.norm(wrong) < np.inf)", "tolerance * np.linalg.norm(wrong))",
        "learn/test_wrong_functions.py::test_numbers_that_are_infinite_equal_no_others",
    ),
    Mistake(
        "a plain function that is right as soon as it is right in one case",
        "learn/course/check.py", 'key=lambda each: each[0].verdict == "right")', 'key=lambda each: each[0].verdict != "right")',
        "learn/course/test_functions.py::test_a_verdict_says_in_which_case_and_a_result_counts_only_if_all_cases_are_right",
    ),
    Mistake(
        "an exercise whose solution stands in its file",
        "learn/course/files.py", "if blank and isinstance(node,", "if not blank and isinstance(node,",
        "learn/course/test_files.py::test_the_functions_of_the_solution_are_blank_or_missing_in_the_file[adamw]",
    ),
    Mistake(
        "a known mistake that is named for any one array that fits",
        "learn/wrong_answers/explain.py", "if same[0] and 2 * sum(same) >= len(same):", "if same[0]:",
        "learn/test_wrong_functions.py::test_a_mistake_beside_another_one_is_named_if_it_gives_most_of_the_numbers",
    ),
    Mistake(
        "a result that is kept although the file has changed",
        "learn/course/progress.py", 'entry.get("file") == _digest(path)', 'entry.get("file") != ""',
        "learn/course/test_progress.py::test_an_exercise_goes_from_not_started_to_right",
    ),
    Mistake(
        "a finite number where an infinity is right",
        "learn/course/comparison.py", "np.isfinite(actual) & np.isfinite(expected) | same", "np.isfinite(actual) | same",
        "learn/course/test_check.py::test_equal_arrays_are_right_whatever_their_infinities_and_nothing_else_is",
    ),
    Mistake(
        "an exercise that reads its solution in the package",
        "learn/child.py", 'if below and folder not in ("..", "__pycache__"):', "if False:",
        "learn/test_child.py::test_no_way_leads_to_a_solution",
    ),
    Mistake(
        "a trace that does not stretch RoPE",
        "learn/plain_llama.py", "c.rope_theta, c.rope_scaling,", "c.rope_theta, None,",
        "learn/test_tracing.py::test_a_llama_of_any_shape_is_traced_as_it_is[rope_scaling]",
    ),
    Mistake(
        "a tied embedding without the gradient of the head",
        "learn/plain_llama.py", 'grads["embed"] + dembed if c.tie_embeddings else dembed', "dembed",
        "learn/test_tracing.py::test_a_llama_of_any_shape_is_traced_as_it_is[tie_embeddings]",
    ),
    Mistake(
        "a norm of queries and keys that a trace leaves out",
        "learn/tracing.py", '    "qk_norm": (None, "rms"),\n', "",
        "learn/test_tracing.py::test_a_model_that_is_no_plain_llama_is_no_reference_and_is_told_why[qk_norm-l2]",
    ),
    Mistake(
        "an adapter that a trace leaves out",
        "learn/intermediates.py", "if model.adapter is not None:", "if False:",
        "learn/test_tracing.py::test_a_model_with_an_adapter_is_refused_until_it_is_merged",
    ),
    Mistake(
        "an adapter's folder that is traced without its adapter",
        "learn/trace_report.py", "        model.merge_adapter()", "        model.adapter = None",
        "learn/test_tracing.py::test_an_adapter_is_merged_before_its_model_is_traced",
    ),
    Mistake(
        "a trace whose stream forgets the branch's gradient",
        "learn/plain_llama.py", "Backward(d.after_attention + from_norm,", "Backward(d.after_attention,",
        "learn/test_tracing.py::test_loss_and_gradients_are_those_of_the_model",
    ),
    Mistake(
        "a trace that leaves softmax's backward out",
        "learn/plain_llama.py", "ops.softmax_backward(d.attention, cache.attention)", "d.attention",
        "learn/test_tracing.py::test_the_gradients_inside_attention_belong_together[0]",
    ),
    Mistake(
        "a recorded router whose gradient is that of its weights",
        "learn/intermediates.py", '{"router": result, "expert_weights": args[0][0]}',
        '{"router": args[0][0], "expert_weights": result}',
        "learn/test_intermediates.py::test_the_gradient_of_a_routers_logits_gives_that_of_its_matrix[mixtral]",
    ),
    Mistake(
        "an induction score of the token itself, and not of the one after it",
        "learn/heads.py", "np.diagonal(attention, 1 - period, -2, -1)", "np.diagonal(attention, -period, -2, -1)",
        "learn/test_heads.py::test_a_head_with_one_habit_has_one_score",
    ),
    Mistake(
        "attribution patching by the clean run's gradients",
        "learn/patching.py", "runs[1].backward(", "runs[0].backward(",
        "learn/test_patching.py::test_the_estimate_is_the_derivative_of_patching[gemma]",
    ),
    Mistake(
        "a lens without the last norm",
        "learn/lens.py", "model._logits(n)[0]", "model._logits(x)[0]",
        "learn/test_lens.py::test_the_last_level_is_the_model[gemma]",
    ),
    Mistake(
        "a second forward that is recorded over the first",
        "learn/record.py", "        if key in self.dump:\n            return\n", "",
        "learn/test_record.py::test_the_first_call_counts_in_each_of_several_recordings",
    ),
    Mistake(
        "a recording that changes with the array",
        "learn/record.py", "np.asarray(tensor).copy()", "np.asarray(tensor)",
        "learn/test_record.py::test_a_call_returns_its_array_and_does_nothing_else_outside_of_a_recording",
    ),
    Mistake(
        "a mask that is recorded as a score",
        "learn/record.py", "LEAST_SCORE = -3e4", "LEAST_SCORE = -1e30",
        "learn/test_record.py::test_scores_of_hidden_keys_are_zeros_whatever_the_mask_adds[-1000000000.0]",
    ),
    Mistake(
        "a page with a tag left open",
        "learn/trace_report.py", "{''.join(cells)}</tr>\"", "{''.join(cells)}\"",
        "learn/test_tracing.py::test_the_page_is_well_formed_and_needs_no_other_file",
    ),
    Mistake(
        "a judge that does not notice an op's code in a copy",
        "learn/judge_guard.py", 'if event == "call" and', 'if event == "never" and',
        "learn/test_judge.py::test_a_fake_is_caught[rmsnorm-an_op's_code]",
    ),
    Mistake(
        "a judge that lets ops be called in threads",
        "learn/judge_guard.py", "function.__code__ = refusing", "pass",
        "learn/test_judge.py::test_a_fake_is_caught[rmsnorm-an_op_in_an_old_thread]",
    ),
    Mistake(
        "a judge that compares an argument with itself",
        "learn/judge_memory.py", "Framework(library.array, as_numpy)", "Framework(library.asarray, as_numpy)",
        "learn/test_judge.py::test_a_fake_is_caught[rmsnorm-results_in_the_place_of_an_argument]",
    ),
    Mistake(
        "a judge that calls a kernel in one memory only",
        "learn/judge_bench.py",
        "c = a.overwritten(*self._draw(case, rng))", "c = Call(*self._draw(case, rng), case.layout, self.framework)",
        "learn/test_judge.py::test_a_fake_is_caught[embedding-a_view_of_an_argument]",
    ),
    Mistake(
        "a bound that is infinite where no key is seen",
        "learn/error_bounds.py", "choices = args[1:] if function is np.where else ()", "choices = ()",
        "learn/test_judge.py::test_a_fake_is_caught[attention-a_mean_where_no_key_is_seen]",
    ),
    Mistake(
        "a product's bound without one operand's error",
        "learn/error_bounds.py", "abs(a) * db + abs(b) * da + da * db", "abs(b) * da",
        "learn/test_judge.py::test_the_error_of_float32_is_below_its_bound_and_not_far[<lambda>2]",
    ),
    Mistake(
        "points for zeros, from which anything follows",
        "learn/grade.py", "says = (judged.theirs[finite] != 0).any()", "says = True",
        "learn/test_grade.py::test_nothing_is_earned_by_numbers_from_which_anything_follows[0.0]",
    ),
    Mistake(
        "a point for what is right in one configuration only",
        "learn/grade.py", "for name, (_, nodes) in groups.items() for node in nodes if faults[name].of[node]]",
        "for name, (_, nodes) in list(groups.items())[:1] for node in nodes if faults[name].of[node]]",
        "learn/test_grade.py::test_a_mistake_that_one_configuration_shows_is_found_there",
    ),
    Mistake(
        "a file that is graded with the solutions at hand",
        "learn/child.py", 'if fullname.partition(".")[0] == self.package:', "if False:",
        "learn/test_grade.py::test_a_file_cannot_import_the_solutions",
    ),
    Mistake(
        "an exercise that calls its solution",
        "learn/child.py", "for each in (value, getattr(value, \"reference\", None)):", "for each in (value,):",
        "learn/test_child.py::test_no_way_leads_to_a_solution",
    ),
    Mistake(
        "a template that is written over a file",
        "learn/grade_report.py", 'open(path, "x", encoding="utf-8")', 'open(path, "w", encoding="utf-8")',
        "learn/test_grade.py::test_the_template_earns_its_first_point_and_is_never_written_over_a_file",
    ),
]  # fmt: skip
