"""Mistakes in `numllama/serve/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "a text that nobody waits for is written to its end",
        "serve/job.py", "        self.cancelled = True", "        self.cancelled = False",
        "serve/test_engine.py::test_a_text_that_nobody_waits_for_ends_at_once",
    ),
    Mistake(
        "two texts of one prompt drawn with the same seed",
        "serve/requests.py", "None if seed is None else seed + i", "seed",
        "serve/test_api.py::test_the_client_gets_several_texts_of_several_prompts",
    ),
    Mistake(
        "a kept cache that belongs to another prompt",
        "serve/engine.py", "best is None or common(best) < WORTH_KEEPING:", "best is None:",
        "serve/test_engine.py::test_only_a_few_caches_are_kept",
    ),
    Mistake(
        "another person's page may ask",
        "serve/access.py", "_origin(origins[0]) != own:", "_origin(origins[0]) == own:",
        "serve/test_api.py::test_other_peoples_pages_are_kept_out",
    ),
    Mistake(
        "what stands before the page keeps what it read for itself",
        "serve/guard.py", '"body": content, "more_body": False', '"body": b"", "more_body": False',
        "serve/test_guard.py::test_an_event_arrives_as_it_was_sent",
    ),
    Mistake(
        "a page of another port of this machine may ask",
        "serve/access.py", "Origin(scheme, host[1], int(host[2] or PORTS.get(scheme, 0)))", "Origin(scheme, host[1], 0)",
        "serve/test_access.py::test_a_page_of_another_origin_may_ask_nothing",
    ),
    Mistake(
        "a server for other machines is asked for by any name",
        "serve/access.py", "not (name in self.hosts or _arrived_at(name, scope))", "not self.hosts",
        "serve/test_access.py::test_another_name_is_refused_whatever_address_the_server_listens_on",
    ),
    Mistake(
        "an object in place of a text, which Gradio takes for a file",
        "serve/guard.py", "return value is None or type(value) is str", "return True",
        "serve/test_guard.py::test_each_control_takes_its_own_type_and_no_other",
    ),
    Mistake(
        "an object that has a path besides what it should have",
        "serve/guard.py", "value.keys() == fields.keys()", "value.keys() >= fields.keys()",
        "serve/test_guard.py::test_each_control_takes_its_own_type_and_no_other",
    ),
    Mistake(
        "a route is open whose name only begins like one of the page's",
        "serve/guard.py", "OPEN[method].fullmatch(path)", "OPEN[method].match(path)",
        "serve/test_guard.py::test_routes_that_the_page_does_not_use_are_closed",
    ),
    Mistake(
        "True is the number of an event",
        "serve/guard.py", "type(event) is not int", "not isinstance(event, int)",
        "serve/test_guard.py::test_what_no_control_could_have_sent_is_one_sentence",
    ),
    Mistake(
        "half of a surrogate pair gets through, and no answer can hold it",
        "serve/guard.py", "allow_nan=False, ensure_ascii=False", "allow_nan=False",
        "serve/test_guard.py::test_what_no_control_could_have_sent_is_one_sentence",
    ),
    Mistake(
        "a curve's mean that begins at the first loss and leaves it slowly",
        "serve/drawing.py", "max(weight, 3 / (i + 3))", "weight",
        "serve/test_drawing.py::test_a_running_mean_is_hardly_late_where_a_curve_falls_fast",
    ),
    Mistake(
        "a token's text is markup",
        "serve/drawing.py", "return escape(visible(text))", "return (visible(text))",
        "serve/test_drawing.py::test_texts_stay_texts",
    ),
    Mistake(
        "a prompt encoded once more for each of its texts",
        "serve/engine.py", "if name not in encoded:", "if True:",
        "serve/test_engine.py::test_a_prompt_is_encoded_once_for_all_its_texts",
    ),
    Mistake(
        "of tokens of one name, the probability of the least likely",
        "serve/api.py", "top.setdefault(self.name(i), _finite(logprob))", "top[self.name(i)] = _finite(logprob)",
        "serve/test_api.py::test_tokens_of_one_name_keep_the_larger_probability",
    ),
    Mistake(
        "a second request on a connection that may take for ever",
        "serve/connection.py", "        self._wait()\n        super().data_received(data)", "        super().data_received(data)",
        "serve/test_connection.py::test_a_second_request_on_the_same_connection_is_bounded_too",
    ),
]  # fmt: skip
