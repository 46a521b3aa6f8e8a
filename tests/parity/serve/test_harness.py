"""lm-evaluation-harness over HTTP: its `local-completions` client on our server, and its own `hf` model on the same folder."""

import json
import os
import warnings

import pytest
from generation.models import random_model

import numllama as nl

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")  # read on import: nothing is fetched
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lm_eval = pytest.importorskip("lm_eval")
    pytest.importorskip("lm_eval.models.openai_completions")
pytest.importorskip("tenacity")  # of its extra `api`
from serve.served import served  # noqa: E402

from numllama.serve.engine import Engine  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

WORDS = ("one", "two", "three", "four")
TASKS = [
    dict(task="choices", output_type="multiple_choice", doc_to_text="{{text}}", doc_to_choice="{{choices}}",
         doc_to_target="label", metric_list=[{"metric": "acc"}]),
    dict(task="rolling", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
         metric_list=[{"metric": "bits_per_byte"}]),
    dict(task="texts", output_type="generate_until", doc_to_text="{{text}}", doc_to_target="{{text}}",
         metric_list=[{"metric": "exact_match"}], generation_kwargs={"until": ["th"], "max_gen_toks": 12, "do_sample": False}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model and questions for it."""
    folder = tmp_path_factory.mktemp("harness")
    vocab = {i: bytes([i]) for i in range(256)} | {256: b"th", 257: b"the"}
    tokenizer = nl.Tokenizer(vocab, [(b"t", b"h"), (b"th", b"e")], ["<|end|>"])
    model = random_model("float32", vocab_size=259, max_seq_len=256)
    model.generation_config = {"eos_token_id": 258, "bos_token_id": None}
    model.save(folder / "model", tokenizer)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(about))
    lines = [dict(text=f"the {w} then", choices=[" a", " bb", "the c"], label=i % 3) for i, w in enumerate(WORDS)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def evaluated(folder, kind, **arguments):
    """What a model answered to each question of each task, and its scores."""
    files = {"data_files": {"test": str(folder / "questions.jsonl")}, "cache_dir": str(folder / "cache")}
    data = dict(dataset_path="json", dataset_kwargs=files, test_split="test")
    found = lm_eval.simple_evaluate(
        model=kind, model_args=arguments, tasks=[{**data, **task} for task in TASKS], bootstrap_iters=0, log_samples=True
    )
    answers = {task: [sample["resps"] for sample in samples] for task, samples in found["samples"].items()}
    return answers, [found["results"][task["task"]][f"{task['metric_list'][0]['metric']},none"] for task in TASKS]


def test_the_harness_measures_the_same_through_the_server(folder):
    engine = Engine(nl.load(folder / "model"), nl.Tokenizer.load(folder / "model"))
    with served(engine, "m") as url:
        about = dict(model="m", base_url=f"{url}/v1/completions", tokenizer=str(folder / "model"), max_length=256, max_retries=1)
        ours, our_scores = evaluated(folder, "local-completions", tokenizer_backend="huggingface", num_concurrent=1, **about)
    theirs, scores = evaluated(folder, "hf", pretrained=str(folder / "model"), device="cpu", dtype="float32")
    for name in ("choices", "rolling"):
        assert flat(ours[name]) == pytest.approx(flat(theirs[name]), abs=1e-3)
    assert ours["texts"] == theirs["texts"]
    assert our_scores == pytest.approx(scores, rel=1e-5)


def flat(answers) -> list[float]:
    """Log-probabilities and whether each was the greedy one, as numbers."""
    return [float(answers)] if isinstance(answers, bool | int | float) else [x for answer in answers for x in flat(answer)]
