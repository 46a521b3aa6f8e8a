"""Mistakes in `numllama/tokenizer/`."""

from mistakes.mistake import Mistake

MISTAKES = [
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
        "words that meet where an unknown character is left out do not merge",
        "tokenizer/tokenizer_json.py", "if SPACE in vocab and complete and not", "if SPACE in vocab and not",
        "tokenizer/test_tokenizer_json.py::test_unknown_characters_that_are_left_out_let_words_meet",
    ),
    Mistake(
        "runs of spaces with one score that grow as their ids say",
        "tokenizer/recovered_merges.py", "key=lambda piece: (-scores[piece], -len(piece))", "key=lambda piece: -scores[piece]",
        "tokenizer/test_sentencepiece_model.py::test_runs_of_spaces_may_have_one_score_as_in_llama_2",
    ),
    Mistake(
        "a space in front of a word that belongs to the word before",
        "tokenizer/pre_tokenizers.py", "yield part, start + at, max(own, start + at)", "yield part, start + at, start + at",
        "tokenizer/test_spans.py::test_what_a_later_step_puts_in_front_of_words_belongs_to_their_first_characters",
    ),
    Mistake(
        "a special token that a text spells is a piece of Unigram",
        "tokenizer/unigram.py", "for name, i in ids.items() if i not in self._special_ids}", "for name, i in ids.items()}",
        "tokenizer/test_sentencepiece_model.py::test_a_text_does_not_become_a_special_token",
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
        "a sandbox whose lists and dictionaries can be changed",
        "tokenizer/template_process.py",
        "class Environment(ImmutableSandboxedEnvironment):", "class Environment(jinja2.sandbox.SandboxedEnvironment):",
        "interop/test_chat_template.py::test_a_template_reaches_nothing_of_pythons_and_changes_nothing",
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
