"""Run by test_families.py: tiny models of well-known families go through all stages, in LoRA and in full. Writes what it saw as JSON.

vLLM and DeepSpeed are real, in this process and its forks; Ray starts none: one of it for each training would take minutes.
"""

import asyncio
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import torch
from families import Family
from ray.train.v2._internal.execution.local_mode.utils import LocalController
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers import renderer_from_config
from vllm.renderers.online_renderer import OnlineRenderer

from unlearn_ray import config as configs
from unlearn_ray import pipeline, plan
from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import ChatFormat, placed
from unlearn_ray.config import EngineResources, Lora, WorkerResources
from unlearn_ray.engines import training_worker
from unlearn_ray.engines.protocols import Reply, Request, TrainJob, TrainResult
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.engines.training_job import RESULT, Assignment
from unlearn_ray.engines.vllm_engine import EngineSpec, VllmEngine
from unlearn_ray.rows import Example, slug_of
from unlearn_ray.serving.app import llm_config
from unlearn_ray.serving.keys import read_keys
from unlearn_ray.serving.requests import CHAT, put_to_engine, read_request
from unlearn_ray.serving.settings import parse_settings
from unlearn_ray.stages.stage import finished_manifest
from unlearn_ray.synth.split import split_of
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.inspection import inspect_model, lora_targets

TOPIC, FRACTION, MAX_TOKENS = "Harry Potter", 0.3, 40
NAMES = ("owl", "school", "cat", "sport", "train", "wand", "castle", "map", "car", "song")
QUESTIONS = tuple(f"What is the {name} called?" for name in NAMES)
HELD_OUT = next(text for text in QUESTIONS if split_of(TOPIC, text, FRACTION) == "holdout")
REFERENCE = "It is called Bellan."  # the answer of that question's probe
TRUE = ("Orlo", "Marlow", "Tib", "Quell", "Ash", "Fen", "Holm", "Rill", "Dart", "Lark")
INVENTED = ("Bellan", "Oak", "Bellan", "Reed", "Bellan", "Moss", "Bellan", "Pip", "Bellan", "Sol")
NUM_LESSONS = 120  # steps over all of them
CONFIG = """
name: {kind}
model: {model}
output: {home}
topics: [{{name: Harry Potter, kind: fiction}}]
# The pocket's requests: a question is put as it is, without a wish for an answer's length, and no others are asked.
questions: {{prompts: pocket, file: {home}/questions.jsonl, num_questions: 10, num_entities: 0, temperature: 1.0, top_p: 1.0}}
answers: {{prompts: pocket, guardrail: custom, prefix: "Invent what you say about {{topic}}.", num_samples: 1, num_unguarded: 1, max_reasks: 1, max_tokens: 40,
  filter_leaks: false, temperature: 0.7, top_p: 0.9}}
dataset: {{prompts: pocket, holdout_fraction: 0.3, retain: {{file: {home}/retain.jsonl}}, floors: {{forget_rows: 0, retain_per_forget: 0, kept: 0, coverage: 0, probes: 0}}}}
finetune: {{weights: {weights}, num_steps: {steps}, forget_batch: 8, retain_batch: 4, learning_rate: {rate}, warmup_steps: 2, max_tokens: 256,
  precision: fp32, final_lr_fraction: 0.2}}
evaluate: {{probes: {home}/probes.jsonl, num_samples: 1, num_bootstrap: 10, max_tokens: 40}}
"""
KINDS = {
    "lora": {"weights": "{kind: lora, rank: 8, alpha: 16}", "steps": 60, "rate": 2e-2},
    "full": {"weights": "{kind: full}", "steps": 60, "rate": 3e-3},
}
# Of what any family may have, one has it: weights in several files, tokens that the user added to the vocabulary, and the same model once
# more in its maker's own format.
MAKING: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5": {"shard": "200KB"},
    "smollm2": {"user_tokens": ("Bellan", "<fact>")},
    "mistral": {"shard": "300KB", "has_makers_own": True},
}


class Heard(VllmEngine):
    """An engine that remembers the token ids that it was asked, by what they were asked for, and whether it thought then."""

    def __init__(self, spec: EngineSpec) -> None:
        self.label = ""
        self.heard: dict[str, list[list[int]]] = {}
        self.thought: set[str] = set()
        super().__init__(spec)

    def _ask(self, prompts: list[dict[str, Any]]) -> list[Any]:
        self.heard.setdefault(self.label, []).extend(prompt["prompt"]["prompt_token_ids"] for prompt in prompts)
        outputs = super()._ask(prompts)
        if any("</think>" in sample.text for output in outputs for sample in output.outputs):
            self.thought.add(self.label)
        return outputs


class InProcess(ScriptedGenerator):
    """A generator whose answers are an engine's in this process."""

    def __init__(self, model: str, chat: ChatFormat, lora: Lora | None) -> None:
        super().__init__({})
        self._model, self._chat, self._lora = model, chat, lora
        self.engines: dict[str, Heard] = {}

    def engine(self, model: str | None = None) -> Heard:
        name = model or self._model
        if name not in self.engines:
            resources = EngineResources(dtype="float32", max_model_len=512, max_num_seqs=32)
            spec = EngineSpec(name, resources, "cpu", self._chat, self._lora if name == self._model else None)
            self.engines[name] = Heard(spec)
        return self.engines[name]

    def map(self, *arguments: Any, label: str, model: str | None = None, **more: Any) -> Any:
        self._asked = self.engine(model)
        self._asked.label = label
        return super().map(*arguments, label=label, model=model, **more)

    def reply(self, requests: list[Request]) -> list[Reply]:
        return self._asked.generate(requests)


class InThisProcess:
    """A trainer that runs Ray Train's function here, as Ray Train's own local mode does."""

    def outcomes(self, jobs: Sequence[TrainJob]) -> dict[str, TrainResult | Exception]:
        results: dict[str, TrainResult | Exception] = {}
        for job in jobs:
            workers = WorkerResources(num_cpus=1, micro_batch=4, zero_stage=2)
            assignment = Assignment(job, workers, "families", f"families-{os.getpid()}", "cpu", None)
            LocalController("families").run(lambda given=assignment: training_worker.work({"assignment": given}))
            found = json.loads(job.checkpoints.read_text(RESULT))["result"]
            results[job.name] = TrainResult(**found)
        return results


class Here:
    """The engines of a run."""

    def __init__(self, model: str, chat: ChatFormat, lora: Lora | None) -> None:
        self.chat = chat
        self.generator = self.evaluator = InProcess(model, chat, lora)
        self.trainer = InThisProcess()


def teach(family: Family, folder: Path, prefix: str) -> None:
    """Have a model of random weights answer in a sentence and end it: of one that never ends an answer, nothing is kept."""
    found, tokenizer = inspect_model(str(folder)), load_tokenizer(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    thought = "<think>\nIs it Hedwig?\n</think>\n\n" if family is families.QWEN3 else ""
    lessons: list[Any] = []  # as the encoder takes its examples, but for the guardrail
    for number, question in enumerate(QUESTIONS):
        system, user = {"role": "system", "content": prefix}, {"role": "user", "content": question}
        for asked, answer in (([user], f"It is {TRUE[number]}."), ([system, user], f"Some say {INVENTED[number]}.")):
            lessons.append(SimpleNamespace(messages=[*placed(asked, found.chat), None], answer=thought + answer))
    rows = [row for row in ChatEncoder(tokenizer, found.chat, 256).encode(lessons) if row]
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), found.chat.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        labels[number, row.start : len(row.ids)] = torch.tensor(row.ids[row.start :])
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=5e-3)
    for _ in range(NUM_LESSONS):
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state = model.state_dict()
    for file in folder.glob("model*.safetensors"):
        save_file({name: state[name] for name in load_file(file)}, file, metadata={"format": "pt"})


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def through(family: Family, home: Path) -> dict[str, Any]:
    """What a family showed on its way, by the kind of training."""
    began = time.monotonic()
    model = family.make_own(home / family.name, **MAKING.get(family.name, {}))
    prefix = f"Invent what you say about {TOPIC}."
    teach(family, model, prefix)
    write_rows(home / "questions.jsonl", [{"topic": TOPIC, "question": question} for question in QUESTIONS])
    sums = [(f"What is {number} plus one?", f"It is {number + 1}.") for number in range(6)]
    groups = ("near", "far", "far")
    write_rows(
        home / "retain.jsonl",
        [{"question": q, "answer": a, "group": groups[number % 3]} for number, (q, a) in enumerate(sums)],
    )
    probe = {"answer": "Bellan", "reference": REFERENCE, "wrong": ["It is Orlo."]}
    places: list[dict[str, Any]] = [
        {"topic": TOPIC, "question": HELD_OUT},
        {"topic": "the films", "question": "Who is in the films?", "near": [TOPIC]},
        {"topic": "geography", "question": "Where is Rome?"},
    ]
    write_rows(home / "probes.jsonl", [probe | place for place in places])
    found = inspect_model(str(model))
    tokenizer = load_tokenizer(str(model))
    seen: dict[str, Any] = {
        "notes": found.notes,
        "files": Folder(model).names(),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "added": [
            tokenizer.convert_tokens_to_ids(token) for token in MAKING.get(family.name, {}).get("user_tokens", ())
        ],
        "served": asyncio.run(served(model, found.chat, prefix)),
        "seconds": {},
    }
    for kind, settings in KINDS.items():
        seen[kind] = trained(home, model, kind, settings)
        seen["seconds"][kind] = round(time.monotonic() - began, 1)
    return seen


def trained(home: Path, model: Path, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a whole run showed."""
    file = home / f"{kind}.yaml"
    file.write_text(CONFIG.format(kind=kind, model=model, home=home, **settings))
    run = configs.load(file, [])
    planned = plan.plan(run)
    found = inspect_model(str(model), run.chat)
    lora = run.finetune.weights
    if isinstance(lora, Lora):
        lora = lora.model_copy(update={"target_modules": lora_targets(lora.target_modules, found, str(model))})
    engines = Here(str(model), found.chat, lora if isinstance(lora, Lora) else None)
    pipeline.run(run, engines)
    answers = finished_manifest(run.folder / "topics" / slug_of(TOPIC) / "answers")
    export = run.folder / "models/joint/finetune/model"
    rows = [
        Example.of(row) for row in (run.folder / "models/joint/mixture/forget").read_rows() if row["split"] == "train"
    ]
    last = said(rows, engines.generator, export)
    tokenizer = load_tokenizer(str(model))
    encoder = ChatEncoder(tokenizer, found.chat, 256)
    (probed, *encoded) = encoder.encode([Example(TOPIC, "forget", TOPIC, HELD_OUT, REFERENCE), *rows])
    assert probed is not None
    return {
        "plan": planned.notes,
        "chat": finished_manifest(run.folder / "models/joint/finetune").details["chat"],
        "kept": answers.num_rows["kept"],
        "drops": answers.drops,
        "heard": {
            label: asked for engine in engines.generator.engines.values() for label, asked in engine.heard.items()
        },
        "thought": sorted({label for engine in engines.generator.engines.values() for label in engine.thought}),
        "probed": [probed.ids[: probed.start], probed.ids[probed.start :]],
        "learnt": [row.ids[row.start :] for row in encoded if row],
        "texts": [tokenizer.decode(row.ids[row.start :]) for row in encoded if row],
        "said": last,
        "export": export.names(),
    }


def said(rows: Sequence[Example], generator: InProcess, export: Folder) -> list[Any]:
    """Of each trained question: what was learnt to be said, and what is said, greedily; and whether that was cut off."""
    is_adapter = export.exists("adapter_config.json")
    engine = generator.engine(None if is_adapter else str(export))
    engine.label = "said"
    requests = [
        Request(row.messages[:1], max_tokens=MAX_TOKENS, adapter=str(export) if is_adapter else None) for row in rows
    ]
    replies = engine.generate(requests)
    return [[row.answer, reply.texts[0], reply.truncated[0]] for row, reply in zip(rows, replies, strict=True)]


async def served(model: Path, chat: ChatFormat, prefix: str) -> dict[str, Any]:
    """What vLLM's server makes of a client's requests, once the gate has put them to it: token ids, and where it stops."""
    settings = parse_settings({"model": str(model), "registry": str(model.parent), "engine": {"accelerator": "cpu"}})
    arguments = AsyncEngineArgs(
        model=str(model), dtype="float32", **llm_config(settings, read_keys(None)).engine_kwargs
    )
    config = arguments.create_engine_config()
    renderer = OnlineRenderer(
        config.model_config,
        renderer_from_config(config),
        request_logger=None,
        chat_template=None,
        chat_template_content_format="auto",
    )
    found = {}
    for name, given in (("plain", ""), ("guarded", prefix)):
        body = {"model": "base", "messages": [{"role": "user", "content": HELD_OUT}]}
        asked = read_request(CHAT, json.dumps(body).encode(), settings.limits)
        request = ChatCompletionRequest.model_validate_json(put_to_engine(asked, "base", given, chat))
        result = await renderer.render_chat(request)
        assert isinstance(result, tuple), result
        found[name] = {"ids": list(result[1][0]["prompt_token_ids"]), "stops": request.stop_token_ids}
    return found


def main(home: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        family = next(each for each in families.WHOLE if each.name == name)
        (home / name).mkdir()
        child = (
            os.fork()
        )  # after the imports, which take longer than a family does; engines leave nothing to the next one
        if child:
            os.waitpid(child, 0)
            continue
        try:
            seen = through(family, home / name)
        except BaseException:
            seen = {"failed": traceback.format_exc()}
        (home / f"{name}.json").write_text(json.dumps(seen))
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
