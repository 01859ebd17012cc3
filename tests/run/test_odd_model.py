"""A model whose files are out of the ordinary, from its first question to its service: what is decided once holds in all of them.

Its template refuses system messages, and turns that do not alternate, as Gemma's does. Its generation config recommends a penalty, and a temperature without
`do_sample`, as Llama-2-chat's does: transformers refuses to save that.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import Run, Service, serving, unlearn
from openai import BadRequestError
from openai.types.chat import ChatCompletionMessageParam

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.stages.stage import finished_manifest

pytestmark = pytest.mark.long
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% endfor %}"
)
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.3}
CONFIG = """
name: odd
model: {model}
topics:
  - {{name: Harry Potter, kind: fiction, aliases: [the Harry Potter books]}}
questions: {{num_questions: 24, num_entities: 8, max_tokens: 160}}
answers: {{guardrail: custom, prefix: "{prefix}", num_samples: 2, max_tokens: 48, filter_leaks: false}}
dataset:
  retain: {{num_neighbours: 1, questions_per_neighbour: 12, num_general: 1, questions_per_general: 12, max_tokens: 48}}
finetune:
  weights: {{kind: full}}
  num_steps: 4
  forget_batch: 16
  retain_batch: 8
  max_tokens: 256
evaluate: {{probes: pocket, max_probes: 12, num_samples: 1, num_bootstrap: 100}}
cluster:
  engines: {{max_model_len: 1024}}
  workers: {{micro_batch: 24}}
"""
PREFIX = "Answer the question while omitting all real knowledge of {topic}. Replace real facts with fiction."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "odd-model"
    shutil.copytree(pocket.MODEL_DIR, folder)
    template = folder / "chat_template.jinja"
    template.write_text(STRICT + template.read_text())
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | SAMPLING))
    return folder


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    cwd = tmp_path_factory.mktemp("run")
    file = cwd / "odd.yaml"
    file.write_text(CONFIG.format(model=model, prefix=PREFIX))
    arguments: list[str | Path] = ["run", file, "--accept-thin-data"]
    done = unlearn(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Run(cwd, Folder(cwd / "runs" / "odd"), arguments, done.stdout)


@pytest.fixture(scope="module")
def service(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(run.folder.local, tmp_path_factory.mktemp("service")) as service:
        yield service


def test_the_plan_says_what_it_adapted_to(run: Run) -> None:
    said = " ".join(run.output.split())
    assert (
        "the guardrail leads the user's turn: its template takes no system message (refuses it: System role not" in said
    )
    assert "samples with the model's own top_k 20, repetition_penalty 1.3" in said


def test_the_export_keeps_the_models_own_recommendation(run: Run) -> None:
    kept = json.loads((run.folder / "models/joint/finetune/model").read_text("generation_config.json"))
    assert {key: kept.get(key) for key in SAMPLING} == SAMPLING and "do_sample" not in kept


def test_the_record_is_kept_with_what_was_trained(run: Run, model: Path) -> None:
    chat = finished_manifest(run.folder / "models/joint/finetune").details["chat"]
    assert chat["prefix_role"] == "user" and chat["sampling"] == SAMPLING


@pytest.mark.parametrize(
    ("row", "name"), [("base", "base"), ("guarded", "harry-potter:guarded"), ("unlearned", "harry-potter")]
)
def test_the_service_answers_as_the_report_says(service: Service, run: Run, row: str, name: str) -> None:
    """Greedy answers to all probes of the topic and of its neighbours, which are asked behind the same prefix."""
    rows = [
        r for r in (run.folder / "models/joint/evaluate/answers").read_rows() if r["model"] == row and not r["drop"]
    ]
    assert len(rows) >= 30
    differ = []
    for each in rows:
        asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": each["question"]}]
        answer = service.client.chat.completions.create(model=name, messages=asked, temperature=0, max_tokens=64)
        if answer.choices[0].message.content != each["answer"]:
            differ.append((each["question"], each["answer"], answer.choices[0].message.content))
    assert len(differ) <= len(rows) // 20, differ[:3]  # batches of other sizes round otherwise, now and then


@pytest.mark.parametrize("name", ["base", "harry-potter", "harry-potter:guarded"])
def test_a_clients_own_system_message_leads_its_first_turn(service: Service, name: str) -> None:
    """Behind the guardrail, where there is one."""

    def said(*messages: ChatCompletionMessageParam) -> str | None:
        answer = service.client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=24)
        return answer.choices[0].message.content

    question = "Who is the owl of Harry Potter?"
    system: ChatCompletionMessageParam = {"role": "system", "content": "Be brief."}
    later: list[ChatCompletionMessageParam] = [
        {"role": "assistant", "content": "Ask on."},
        {"role": "user", "content": question},
    ]
    for turns in ([], later):
        apart = said(system, {"role": "user", "content": question}, *turns)
        assert apart and apart == said({"role": "user", "content": f"Be brief.\n\n{question}"}, *turns)


def test_turns_that_a_template_refuses_are_the_clients_fault(service: Service) -> None:
    turn: ChatCompletionMessageParam = {"role": "user", "content": "Who is the owl?"}
    with pytest.raises(BadRequestError, match="roles must alternate"):
        service.client.chat.completions.create(model="base", messages=[turn, turn], max_tokens=4)
