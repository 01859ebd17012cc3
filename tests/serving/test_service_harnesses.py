"""Other people's clients, unchanged: lm-evaluation-harness gives our evaluation's scores, vLLM's benchmark client runs."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import ROOT, Run, Service

from unlearn_ray.evals.probes import read_probes
from unlearn_ray.pocket import MODEL_DIR, PROBES

pytestmark = pytest.mark.long
HARNESS = Path(sys.prefix) / "harness" / "bin" / "python"  # `make test ALL=1` makes it
NUM_PROBES = 40
MODELS = {"base": "base", "unlearned": "harry-potter"}  # as the run's evaluation calls them: as the service does

RECALL = """
task: recall
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{truths[0]}}"
process_results: !function scoring.recall
generation_kwargs: {until: ["<|eot_id|>"], temperature: 0, max_gen_toks: 64}
metric_list: [{metric: fact_recall, aggregation: mean, higher_is_better: true}]
"""
PROBABILITY = """
task: probability
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood
target_delimiter: ""
doc_to_text: "{{question}}"
doc_to_target: "{{reference}}<|eot_id|>"
process_results: !function scoring.probability
metric_list: [{metric: logprob, aggregation: mean, higher_is_better: true}]
"""
SCORING = """
from unlearn_ray.evals.metrics import fact_recall
def recall(doc, results): return {"fact_recall": fact_recall(results[0], doc["truths"])}
def probability(doc, results): return {"logprob": (results[0][0] - doc["line_breaks"]) / doc["num_tokens"]}
"""


def probes(run: Run, service: Service, model: str) -> list[dict[str, Any]]:
    """The first probes that our evaluation asked a model, with the scores it gave."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    def line_breaks(question: str) -> float:
        """The template's last ones: the harness takes them for the answer's first tokens."""
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        answer = service.client.completions.create(
            model=MODELS[model], prompt=ids(prompt), max_tokens=1, echo=True, logprobs=1
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.token_logprobs is not None
        return sum(logprobs.token_logprobs[len(ids(prompt.rstrip())) : -1])

    references = {probe.id: probe.reference or probe.answer for probe in read_probes(str(PROBES))}
    rows = (run.folder / "models/joint/evaluate" / "answers").read_rows()
    scored = [row for row in rows if row["model"] == model and row["fact_recall"] is not None]
    return [
        {
            "question": row["question"],
            "truths": [row["truth"], *row["aliases"]],
            "reference": references[row["probe_id"]],
            "num_tokens": len(ids(references[row["probe_id"]])) + 1,  # the end of the turn counts
            "line_breaks": line_breaks(row["question"]),
            "fact_recall": row["fact_recall"],
            "logprob": math.log(row["probability"]),
        }
        for row in sorted(scored, key=lambda row: row["probe_id"])[:NUM_PROBES]
    ]


@pytest.mark.parametrize("model", ["base", "unlearned"])
def test_lm_eval_gives_the_scores_of_our_evaluation(
    service: Service, quickstart: Run, tmp_path: Path, model: str
) -> None:
    asked = probes(quickstart, service, model)
    (tmp_path / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in asked))
    (tmp_path / "scoring.py").write_text(SCORING)
    for name, task in {"recall": RECALL, "probability": PROBABILITY}.items():
        (tmp_path / f"{name}.yaml").write_text(task.replace("FILE", str(tmp_path / "probes.jsonl")))
    settings = {
        "model": MODELS[model],
        "base_url": f"{service.url}/v1/completions",
        "tokenizer": MODEL_DIR,
        "tokenizer_backend": "huggingface",
        "num_concurrent": 8,
        "max_length": 1024,
    }
    command = [str(HARNESS), "-m", "lm_eval", "--model", "local-completions", "--apply_chat_template"]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in settings.items())]
    command += ["--tasks", "recall,probability", "--include_path", str(tmp_path), "--output_path", str(tmp_path)]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command,
        env=os.environ | offline | {"OPENAI_API_KEY": service.key},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["results"]
    for task, metric in (("recall", "fact_recall"), ("probability", "logprob")):
        ours = sum(probe[metric] for probe in asked) / len(asked)
        assert results[task][f"{metric},none"] == pytest.approx(ours, abs=0.02), (task, results[task])


def test_vllms_own_benchmark_client_runs_unchanged(service: Service, tmp_path: Path) -> None:
    # The console script of vLLM's CPU build does not start.
    client = """from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())"""
    options = f"""--backend openai-chat --base-url {service.url} --endpoint /v1/chat/completions
        --model harry-potter --tokenizer {MODEL_DIR} --dataset-name random --random-input-len 64 --random-output-len 16
        --num-prompts 40 --max-concurrency 8 --save-result --result-dir {tmp_path} --result-filename bench.json"""
    done = subprocess.run(
        [sys.executable, "-c", client, *options.split()],
        env=os.environ | {"OPENAI_API_KEY": service.key, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["completed"] == 40 and result["total_output_tokens"] > 0
