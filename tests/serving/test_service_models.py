"""Which model answers: the three rows of the report by hand, and versions that come and go while the service runs."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from commandline import Run, Service, unlearn
from openai.types.chat import ChatCompletionMessageParam

from unlearn_ray.evals.metrics import fact_recall
from unlearn_ray.pocket import MODEL_DIR

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Which owl belongs to Harry Potter?"}]


def recall(service: Service, model: str, probes: list[dict[str, Any]]) -> float:
    found = 0.0
    for probe in probes:
        answer = service.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": probe["question"]}], max_tokens=48, temperature=0
        )
        found += fact_recall(answer.choices[0].message.content or "", [probe["answer"], *probe["aliases"]]) or 0.0
    return found / len(probes)


def test_the_reports_three_rows_can_be_tried_by_hand(service: Service, http: httpx.Client) -> None:
    run = http.get("/v1/runs/harry-potter").json()
    probes = [probe for probe in run["probes"] if probe["group"] == "forget" and len(probe["answer"].split()) < 5][:12]
    assert recall(service, "base", probes) >= 0.8
    assert recall(service, "harry-potter:guarded", probes) <= 0.25
    assert recall(service, "harry-potter", probes) <= 0.25


def published(service: Service, cwd: Path, *arguments: str | Path) -> str:
    done = unlearn(*arguments, "--registry", service.registry, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def version(service: Service, name: str) -> str:
    """What a name stands for now; "" while the service has not heard of it."""
    cards = [model.model_dump() for model in service.client.models.list()]
    return next((str(card["root"]) for card in cards if card["id"] == name), "")


def wait_for(service: Service, name: str, wanted: str, seconds: float = 60) -> None:
    began = time.monotonic()
    while version(service, name) != wanted:
        assert time.monotonic() < began + seconds, f"{name} is {version(service, name)}, not {wanted}"
        time.sleep(0.05)


def said(service: Service, model: str) -> openai.types.chat.ChatCompletion:
    return service.client.chat.completions.create(model=model, messages=QUESTION, max_tokens=24, temperature=0)


def score(service: Service, model: str) -> float:
    """How likely the model gives the true answer, in nats: what tells weights apart where greedy words might tie."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    chat = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    question, answer = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (chat, "The owl of Harry Potter is Hedwig.")
    )
    echoed = service.client.completions.create(
        model=model, prompt=question + answer, max_tokens=1, echo=True, logprobs=1
    )
    logprobs = echoed.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    return sum(logprob for logprob in logprobs.token_logprobs[len(question) : -1] if logprob is not None)


@pytest.fixture
def adapter(quickstart: Run, tmp_path: Path) -> Iterator[Path]:
    """The run's adapter as a folder of its own, with nothing learned: the base model again."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "dune"
    shutil.copytree(quickstart.folder.local / "models/joint/finetune/model", folder)
    weights = load_file(folder / "adapter_model.safetensors")
    changed = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in weights.items()}
    save_file(changed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    yield folder


def test_a_version_is_taken_up_while_another_still_answers(
    service: Service, quickstart: Run, adapter: Path, tmp_path: Path
) -> None:
    joint = quickstart.folder.local / "models/joint/finetune/model"
    published(service, tmp_path, "publish", joint, "--name", "dune")
    wait_for(service, "dune", "dune@1")
    old = service.client.chat.completions.create(
        model="dune", messages=QUESTION, max_tokens=800, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    first = next(old)
    published(service, tmp_path, "publish", adapter, "--name", "dune")
    wait_for(service, "dune", "dune@2")
    unlearned, empty = score(service, "harry-potter"), score(service, "base")
    assert unlearned < empty - 3
    for model, weights in [("dune", empty), ("dune@2", empty), ("dune@1", unlearned)]:
        assert score(service, model) == pytest.approx(weights, abs=0.5)
    assert said(service, "dune").model == "dune@2"
    rest = list(old)
    assert rest[-1].choices[0].finish_reason == "length" and {event.model for event in [first, *rest]} == {"dune@1"}
    published(service, tmp_path, "rollback", "dune")
    wait_for(service, "dune", "dune@1")
    assert said(service, "dune").model == "dune@1"
    assert score(service, "dune") == pytest.approx(unlearned, abs=0.5)


@pytest.mark.long
@pytest.mark.late  # its engine takes CPUs
def test_a_full_model_is_served_beside_the_others(service: Service, quickstart: Run, tmp_path: Path) -> None:
    run = full_run(quickstart, tmp_path)
    published(service, tmp_path, "publish", run, "--name", "whole")
    wait_for_answer(service, "whole", seconds=600)
    assert said(service, "whole").choices[0].message.content
    assert score(service, "whole") == pytest.approx(score(service, "harry-potter"), abs=0.5)
    events = list(service.client.chat.completions.create(model="whole", messages=QUESTION, max_tokens=24, stream=True))
    assert events[-1].choices[0].finish_reason


def wait_for_answer(service: Service, model: str, seconds: float) -> None:
    """Until the model answers; till then it is unknown for a moment, and then being started."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            service.client.chat.completions.create(model=model, messages=QUESTION, max_tokens=1)
            return
        except openai.NotFoundError:
            time.sleep(0.5)
        except openai.APIStatusError as error:
            assert error.status_code == 503 and error.response.headers["retry-after"]
            time.sleep(0.5)
    raise AssertionError(f"{model} does not answer")


def full_run(quickstart: Run, folder: Path) -> Path:
    """The quickstart as if it had fine-tuned all weights: its adapter merged into the base model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = folder / "whole"
    shutil.copytree(quickstart.folder.local, run)
    joint = run / "models/joint/finetune/model"
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL_DIR), str(joint)).merge_and_unload()
    shutil.rmtree(joint)
    merged.save_pretrained(joint)
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(joint)
    manifest = run / "models/joint/finetune/manifest.json"
    body = json.loads(manifest.read_text())
    body["config"]["weights"] = {"kind": "full"}
    manifest.write_text(json.dumps(body))
    return run
