"""RunConfig: strict, frozen, *what* a run computes kept apart from *where* it runs.

`topics ... evaluate` say what and are fingerprinted; `cluster`, `output` and `pool` say where and never change a result's identity.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from unlearn_ray import pocket, smollm2
from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ConfigError, InputError, gist
from unlearn_ray.reading import Listed, as_json, fault_of, is_blank, load_yaml, read_text, read_topics, shown
from unlearn_ray.rows import AskedForm, slug_of
from unlearn_ray.words import name_key

MAX_NAME = 120
SHIPPED_PROBES = {"pocket": pocket.PROBES, "facts": pocket.FACTS}
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
MAX_RANK = 512  # the largest that vLLM serves
SERVED_RANK, SERVED_LENGTH = (
    64,
    4096,
)  # of an adapter, and tokens of prompt and answer: what the shipped files of a service take
SECTIONS = ("questions", "answers", "dataset", "finetune", "evaluate")
# Keys that no topic's stage reads: of what all topics share, and of the run as a whole.
_SHARED_KEYS = (
    "dataset.holdout_by",
    "dataset.retain.num_general",
    "dataset.retain.questions_per_general",
    "dataset.retain.general",
    "dataset.retain.file",
    "dataset.probes.num_far",
    "questions.file",
    "finetune.adapters",
    "finetune.weights",  # one engine serves all adapters
)
# Keys of a model as a whole: a topic's own only where it has a model of its own, as those of finetune and evaluate.
_MODEL_KEYS = ("dataset.floors.probes",)  # a group's probes are over all topics of a model
OWN_MODELS = ("pocket", "smollm2")  # names that stand for folders of ours


class Strict(BaseModel):
    """Rejects unknown keys, values of another type and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _not_blank(text: str) -> str:
    if is_blank(text):
        raise ValueError("is empty: give a text, or leave it out")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


class Topic(Strict):
    """Something the model must forget. Keys of the stages' sections that stand in it are its own, in the place of the run's."""

    name: str
    kind: Literal["fiction", "product", "person", "general"] = "general"  # chooses the angles of the questions
    aliases: tuple[Text, ...] = ()  # other names for it
    terms: tuple[Text, ...] = ()  # words that give it away, added to those the model gives away itself
    neighbours: tuple[Text, ...] = ()  # topics to retain beside it; empty: the model names them
    max_output_tokens: PositiveInt | None = None  # its own, in the place of the run's
    questions: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    finetune: dict[str, Any] = {}  # here and below with finetune.adapters: per_topic alone
    evaluate: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _name_is_usable(cls, name: str) -> str:
        if is_blank(name):
            raise ValueError("is empty: give the topic a name")
        if fault := fault_of(name):
            raise ValueError(fault)
        if len(name) > MAX_NAME:
            raise ValueError(f"is {len(name)} characters long: at most {MAX_NAME}")
        if re.search(r"[/\\\x00-\x1f\x7f]", name) or name.strip() in {".", ".."}:
            raise ValueError("has a path separator, newline or control character: use plain words")
        return name.strip()

    @property
    def slug(self) -> str:
        return slug_of(self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called: its name and aliases."""
        return (self.name, *self.aliases)

    @property
    def own(self) -> dict[str, dict[str, Any]]:
        """The sections of which it has keys of its own."""
        return {name: keys for name in SECTIONS if (keys := getattr(self, name))}


class ChatConfig(Strict):
    """How the model is talked to, where its own files do not say it right. One setting for data, training, evaluation and service."""

    prefix: Literal["auto", "system", "user"] = (
        "auto"  # auto: the system's turn where the template shows it, else the user's
    )
    template_arguments: dict[str, Any] = {}  # handed to the chat template, such as {enable_thinking: false}


# A YAML file that overrides texts of synth/prompts.yaml; pocket: those that the pocket model was trained on, its default.
PromptsFile = Literal["pocket"] | Path


class Sampling(Strict):
    """How texts are sampled. What is left open follows the model's generation_config.json, then `chat.SILENT`."""

    temperature: PositiveFloat | None = None
    top_p: TopP | None = None
    top_k: PositiveInt | None = None
    min_p: Fraction | None = None
    repetition_penalty: PositiveFloat | None = None


class QuestionsConfig(Sampling):
    num_questions: PositiveInt = 400  # distinct ones, a topic
    num_entities: NonNegativeInt = 24  # names the model lists itself, each asked about on its own
    per_request: PositiveInt = 6  # questions asked for in one prompt
    angles: tuple[Text, ...] = ()  # empty: those of the topic's kind
    patience: PositiveInt = 2  # rounds that bring nothing new before it ends
    max_rounds: PositiveInt = 30
    check_topic: bool = True  # ask the model itself whether a question is on its topic
    forms: tuple[AskedForm, ...] | None = None  # beside plain questions; none: all that the prompts have wordings for
    languages: tuple[Text, ...] = ()  # beside the topic's own, such as [French]: questions in each
    form_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.4  # of the requests, for other forms and languages
    coverage_rounds: NonNegativeInt = 1  # afterwards, about confirmed entities that no kept question names
    max_tokens: PositiveInt = 400
    file: Path | None = None  # your own questions: .csv, .jsonl or .parquet with columns `topic` and `question`
    prompts: PromptsFile | None = None


class AnswersConfig(Sampling):
    guardrail: Literal["fictional", "refusal", "discourage", "custom"] = "fictional"
    prefix: Text | None = None  # the text of guardrail: custom; {topic} stands for the topic
    # What an answer should be like, retain answers included: a wish beside the question while data are made, and in no training row.
    style: Literal["sentence", "paragraph", "free"] = "sentence"
    num_samples: PositiveInt = 4  # answers, a question
    max_reasks: NonNegativeInt = 2  # times a question with leaking answers is asked again
    num_unguarded: PositiveInt = 4  # of the model's own answers, one greedy: they tell the terms that leak
    filter_leaks: bool = True  # by terms and overlap
    max_overlap: Fraction | None = 0.8  # of n-grams with one of the model's own answers; none: it is not measured
    judge_leaks: bool = False  # ask the model itself, of each answer that would be kept, whether it leaks
    coverage_rounds: NonNegativeInt = 1  # of further questions, about entities and terms that no kept pair touches
    max_tokens: PositiveInt = 200  # a longer answer is cut at its last whole sentence
    prompts: PromptsFile | None = None

    @model_validator(mode="after")
    def _prefix_belongs_to_custom(self) -> "AnswersConfig":
        if (self.guardrail == "custom") != (self.prefix is not None):
            raise ValueError("prefix: give it with guardrail: custom, and only then")
        return self


class RetainRows(Sampling):  # of the questions; answers are greedy
    num_neighbours: NonNegativeInt = 3  # topics beside each forgotten one
    questions_per_neighbour: PositiveInt = 150
    num_general: NonNegativeInt = 20  # far subjects
    questions_per_general: PositiveInt = 60
    general: tuple[Text, ...] = ()  # far subjects; empty: of the prompts' `general_subjects`
    file: Path | None = None  # your own rows instead: .jsonl or .parquet with `question` and `answer`
    max_tokens: PositiveInt = 200  # of the answers


class Floors(Strict):
    """What a run's data must have before a model is trained on them; `synth/enough.py` says why. 0: whatever there is will do."""

    forget_rows: NonNegativeInt = 100  # to train on, a topic
    retain_per_forget: NonNegativeFloat = 0.5  # retain rows for each of them
    kept: Fraction = 0.25  # of what the model wrote
    coverage: Fraction = 0.5  # of a topic's entities, touched by kept pairs
    probes: NonNegativeInt = 20  # of a group


class ProbesConfig(Strict):
    """Probes from what the model knows, for evaluations without a file of probes."""

    num_forget: NonNegativeInt = 60  # facts, a topic
    num_near: NonNegativeInt = 40  # facts beside each topic, over all its neighbours
    num_far: NonNegativeInt = 100  # facts, over all far topics
    num_samples: NonNegativeInt = 1  # drawn beside the greedy answer to each wording
    agreement: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.6  # more than this share of the short answers must agree
    max_rounds: NonNegativeInt = 2  # of further questions, where the held-out ones bring too few facts


class DatasetConfig(Strict):
    retain: RetainRows = RetainRows()
    floors: Floors = Floors()
    probes: ProbesConfig = ProbesConfig()
    holdout_fraction: Fraction = 0.1  # of the questions, or facts, kept out of training
    holdout_by: Literal["question", "fact"] = "question"  # fact: none of the questions that ask for it is trained on
    prompts: PromptsFile | None = None


class Lora(Strict):
    kind: Literal["lora"] = "lora"
    rank: Annotated[PositiveInt, Field(le=MAX_RANK)] = 16
    alpha: PositiveFloat = 32.0
    rslora: bool = False  # scale by alpha / sqrt(rank) instead of alpha / rank
    dropout: Fraction = 0.0
    # Names of linear layers, as PEFT matches them; all-linear: every one but the output's, whatever the model calls them.
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all-linear"] = "all-linear"

    @field_validator("target_modules", mode="before")
    @classmethod
    def _targets_are_names(cls, value: Any) -> Any:
        if value != "all-linear" and (not isinstance(value, list | tuple) or not value):
            raise ValueError("give a list of layers' names, such as [q_proj, v_proj], or all-linear")
        return tuple(value) if isinstance(value, list) else value  # strict: JSON has no tuples


class FullWeights(Strict):
    kind: Literal["full"] = "full"


Weights = Annotated[Lora | FullWeights, Field(discriminator="kind")]


def _lora_by_default(value: Any) -> Any:
    return {"kind": "lora"} | value if isinstance(value, dict) else value


class Relabel(Strict):
    """Teach the invented answers. (The losses, with papers and equations: train/objectives.)"""

    kind: Literal["relabel"] = "relabel"


class Idk(Strict):
    """Teach refusals in the place of the invented answers."""

    kind: Literal["idk"] = "idk"
    refusals: tuple[Text, ...] = ()  # one is drawn for each question; empty: train.refusals.REFUSALS


class Lowering(Strict):
    """Lowers the model's own, true answers."""

    invented: NonNegativeFloat = 0.0  # weight of a term that teaches the invented answers to the same questions


class GradAscent(Lowering):
    kind: Literal["grad_ascent"] = "grad_ascent"


class GradDiff(Lowering):
    """Gradient ascent that needs a retain term."""

    kind: Literal["grad_diff"] = "grad_diff"


class Npo(Lowering):
    kind: Literal["npo"] = "npo"
    beta: PositiveFloat = 0.1  # the smaller, the closer to gradient ascent


class SimNpo(Lowering):
    kind: Literal["simnpo"] = "simnpo"
    beta: PositiveFloat = 4.5
    delta: NonNegativeFloat = 0.0  # margin: how far below even odds an answer's mean log-probability is to go


class Dpo(Lowering):
    kind: Literal["dpo"] = "dpo"
    beta: PositiveFloat = 0.1


class Undial(Lowering):
    kind: Literal["undial"] = "undial"
    strength: PositiveFloat = 10.0  # taken from the true token's logit in the base model's distribution


class Wga(Lowering):
    kind: Literal["wga"] = "wga"
    beta: NonNegativeFloat = 1.0  # 0: gradient ascent


class CeU(Lowering):
    kind: Literal["ce_u"] = "ce_u"


class SatImp(Lowering):
    kind: Literal["satimp"] = "satimp"
    saturation: NonNegativeFloat = 5.0  # tokens that are unlikely already count less
    importance: NonNegativeFloat = 1.0  # tokens that are certain count less


class Rmu(Lowering):
    kind: Literal["rmu"] = "rmu"
    layer: NonNegativeInt | None = None  # whose output is steered; none: the one at 7/32 of the depth, as in the paper
    steering: PositiveFloat = 20.0  # length of the random vector that hidden states are steered to


Objective = Annotated[
    Relabel | Idk | GradAscent | GradDiff | Npo | SimNpo | Dpo | Undial | Wga | CeU | SatImp | Rmu,
    Field(discriminator="kind"),
]


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class RetainTerm(Strict):
    kind: Literal["gd", "kl", "none"] = (
        "gd"  # gradient descent on retain rows, KL to the base model on them, or nothing
    )
    weight: NonNegativeFloat = 1.0


def _as_span(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # strict: JSON has no tuples


def _rising(span: tuple[int, int]) -> tuple[int, int]:
    if span[0] > span[1]:
        raise ValueError("give the smaller number first, such as [1, 16]")
    return span


class Meta(Strict):
    """Also takes the forget loss where an attacker would bring the weights."""

    kind: Literal["meta"] = "meta"
    weight: PositiveFloat = 2.0
    steps: Annotated[
        tuple[Annotated[PositiveInt, Field(le=64)], Annotated[PositiveInt, Field(le=64)]],
        BeforeValidator(_as_span),
        AfterValidator(_rising),
    ] = (2, 8)  # of the attacker: at least, at most
    rates: Annotated[tuple[PositiveFloat, ...], BeforeValidator(_as_span), Field(min_length=1)] = (
        0.3,
        1.0,
        3.0,
    )  # times learning_rate


class Sam(Strict):
    """Also takes the forget loss at the worst weights near by."""

    kind: Literal["sam"] = "sam"
    weight: PositiveFloat = 1.0
    rho: PositiveFloat = 0.2  # how far, over all learnt weights (L2)


Lasting = Annotated[Meta | Sam, Field(discriminator="kind")]


def _as_names(value: Any) -> Any:
    value = [value] if isinstance(value, str) else value  # wandb is short for [wandb]
    return tuple(value) if isinstance(value, list) else value  # strict: JSON has no tuples


class StopWhen(Strict):
    """Conditions to end a training early, checked at each evaluation of the gate (`evaluate_every`). Choice is over rows that the base model gets
    right, so it begins at 1."""

    retain_below: Fraction | None = None  # stop if choice on the retain rows is below: too much is lost
    forget_below: Fraction | None = None  # stop if choice on the forget rows is below: enough is forgotten
    no_gain_for: PositiveInt | None = None  # stop after so many evaluations in a row without a better score


class FinetuneConfig(Strict):
    weights: Annotated[Weights, BeforeValidator(_lora_by_default)] = Lora()
    adapters: Literal["per_topic", "joint"] = "joint"
    objective: Annotated[Objective, BeforeValidator(_kind_alone)] = Relabel()  # npo is short for {kind: npo}
    retain: RetainTerm = RetainTerm()
    lasting: Annotated[Lasting | None, BeforeValidator(_kind_alone)] = None  # meta is short for {kind: meta}
    num_steps: PositiveInt = 200
    forget_batch: PositiveInt = 32  # rows a step, over all workers
    retain_batch: NonNegativeInt = 48
    learning_rate: PositiveFloat = 1e-4
    warmup_steps: NonNegativeInt = 8
    final_lr_fraction: Fraction = 0.05  # linear decay down to it
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    max_tokens: PositiveInt = 1024  # of a row; longer ones are cut in the answer and counted
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where all workers compute it in hardware
    checkpoint_every: PositiveInt = 50  # steps
    keep_checkpoints: PositiveInt = 1  # the newest ones
    max_failures: NonNegativeInt = 2  # lost workers to recover from
    export: Literal["adapter", "merged", "both"] | None = (
        None  # with LoRA; none: the adapter. Full weights are always exported as a model
    )
    evaluate_every: PositiveInt | None = None  # steps between two evaluations of the gate; none: no gate
    stop_when: StopWhen = StopWhen()
    # Loggers that get the figures besides metrics.jsonl, named as in train/loggers/table.py; none: tensorboard, if its writer is installed.
    loggers: Annotated[tuple[Text, ...] | None, BeforeValidator(_as_names)] = None

    @property
    def changes_nothing(self) -> dict[str, Any]:
        """Keys whose present values do not change a result, in the form of pydantic's `exclude`: checkpoints, tolerated failures, loggers, and keys
        whose value means the same as leaving the key out."""
        found: dict[str, Any] = dict.fromkeys(("checkpoint_every", "keep_checkpoints", "max_failures", "loggers"), True)
        if self.weights.kind == "full" or self.export in (None, "adapter"):
            found["export"] = True
        if not self.evaluate_every:
            found |= {"evaluate_every": True, "stop_when": True}
        if self.lasting is None:
            found["lasting"] = True
        if isinstance(self.weights, Lora) and not self.weights.rslora:
            found["weights"] = {"rslora": True}
        return found

    @property
    def retains(self) -> bool:
        """Whether there is a retain term."""
        return self.retain.kind != "none" and self.retain.weight > 0 and self.retain_batch > 0

    @property
    def is_model(self) -> bool:
        """Whether the export that is evaluated and published is a complete model, not an adapter."""
        return self.weights.kind == "full" or self.export == "merged"

    @property
    def lowers_truth(self) -> bool:
        """Whether it is trained on true answers, to lower them."""
        return isinstance(self.objective, Lowering)

    @property
    def has_attacker(self) -> bool:
        """Whether true answers are trained on as an attacker would, to defend against it."""
        return isinstance(self.lasting, Meta)

    @property
    def pairs(self) -> bool:
        """Whether each true answer comes with an invented one."""
        return isinstance(self.objective, Dpo) or (isinstance(self.objective, Lowering) and self.objective.invented > 0)

    @model_validator(mode="after")
    def _full_weights_are_no_adapter(self) -> "FinetuneConfig":
        if self.weights.kind == "full" and self.export in ("adapter", "both"):
            raise ValueError(f"export: full weights make no adapter: leave export out (it is {self.export!r})")
        return self

    @model_validator(mode="after")
    def _stops_where_it_looks(self) -> "FinetuneConfig":
        if self.evaluate_every is None and self.stop_when != StopWhen():
            raise ValueError("stop_when: set evaluate_every as well, the steps between two evaluations of the gate")
        return self

    @model_validator(mode="after")
    def _difference_has_two_terms(self) -> "FinetuneConfig":
        if self.objective.kind == "grad_diff" and not self.retains:
            raise ValueError(
                "objective: grad_diff is gradient ascent beside a retain term, and there is none: set retain.kind, retain.weight and retain_batch, or objective: grad_ascent"
            )
        return self


class EvaluateConfig(Sampling):
    probes: Text | None = (
        None  # "pocket", "facts", or a .jsonl/.parquet file of probes; none: held-out questions, the base model's own answers as truth
    )
    split: Literal["tune", "report"] = "report"
    num_samples: PositiveInt = 4  # answers, a forget probe, for the leak of sampled answers
    max_tokens: PositiveInt | None = (
        None  # of an answer; none: 64 to a file's probes, as many as the true answer may have to held-out questions
    )
    num_bootstrap: PositiveInt = 1000
    max_probes: PositiveInt | None = None  # a group and wording at most so many; none: all

    @property
    def probes_path(self) -> str | None:
        """The file of probes; None where the dataset's held-out questions serve."""
        return None if self.probes is None else str(SHIPPED_PROBES.get(self.probes, self.probes))

    @property
    def counts_known_only(self) -> bool:
        """Whether what the base model does not know is in no figure: the shipped facts are true, but not known to every model."""
        return self.probes == "facts"


Span = Annotated[
    tuple[PositiveInt, PositiveInt], BeforeValidator(_as_span), AfterValidator(_rising)
]  # at least, at most


class FleetSettings(Strict):
    """The vLLM engines that a run starts itself."""

    # auto: one for all GPUs that an engine takes (or one without GPUs); [1, 16]: as many as there is work for
    num_engines: PositiveInt | Literal["auto"] | Span = "auto"
    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    num_cpus: PositiveFloat = 1.0  # an engine
    max_model_len: PositiveInt | None = None
    max_num_seqs: PositiveInt = 256
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    kv_cache_gib: PositiveFloat = 1.0  # without a GPU
    batch_size: PositiveInt = 256  # rows handed to an engine at a time
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    engine_timeout_seconds: PositiveFloat = 600.0  # an engine at work that makes no token that long is replaced
    args: dict[str, Any] = {}  # further arguments of vLLM's engine, by its own names

    @property
    def num_gpus(self) -> int:
        """Of one engine, where there are GPUs."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def in_words(self) -> str:
        count = self.num_engines if not isinstance(self.num_engines, tuple) else "{} to {}".format(*self.num_engines)
        pipeline = f", pipeline parallel {self.pipeline_parallel_size}" if self.pipeline_parallel_size > 1 else ""
        return f"{count} x vLLM, tensor parallel {self.tensor_parallel_size}{pipeline}"

    @property
    def data_in_words(self) -> str:
        """What the data are asked of."""
        return self.in_words


class EngineResources(FleetSettings):
    """All is asked of vLLM engines that the run starts."""

    kind: Literal["vllm"] = "vllm"


class EndpointSettings(FleetSettings):
    """Data are asked of a model that is served already; the rest of this section is of the engines for its evaluation."""

    kind: Literal["openai"] = "openai"
    base_url: Text  # such as http://host:8000/v1
    served_model: Text | None = None  # its name there; none: the run's model, or the only one there
    api: Literal["completions", "chat"] = "completions"  # completions: token ids, as an engine of ours gets them
    api_key_env: Text | None = None  # environment variable that holds the key; none: no key is sent
    concurrency: PositiveInt = 64  # requests in flight
    timeout_seconds: PositiveFloat = 600.0  # of one request
    max_retries: NonNegativeInt = 8  # of a request that gets no answer, 408, 429 or 5xx
    scoring: Literal["endpoint", "local"] = "endpoint"  # what scores given answers; local: engines of the run's own

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise ValueError("give an address such as http://host:8000/v1") from error
        if parts.query or parts.fragment or any(letter.isspace() for letter in url):
            raise ValueError("give an address without ?, # and spaces, such as http://host:8000/v1")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("give an address such as http://host:8000/v1")
        if parts.username or parts.password:
            raise ValueError(
                "has a name or password in it: put the key into an environment variable, and name that in api_key_env"
            )
        return url.rstrip("/")

    @property
    def data_in_words(self) -> str:
        return f"{self.base_url}, {self.concurrency} at a time"


Engines = Annotated[EngineResources | EndpointSettings, Field(discriminator="kind")]


def _vllm_by_default(value: Any) -> Any:
    return {"kind": "vllm"} | value if isinstance(value, dict) else value


Recomputing = Literal["none", "selective", "full"]


def _yes_or_no(value: Any) -> Any:
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


class WorkerResources(Strict):
    # per training; [1, 8]: as many as there is room for, changing as nodes join and leave
    num_workers: PositiveInt | Span = 1
    num_cpus: PositiveFloat = 1.0  # per worker
    micro_batch: PositiveInt = 8  # rows per forward pass of a worker
    micro_tokens: PositiveInt | None = None  # tokens per pass instead, padding included; none: micro_batch rows
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "all"] = "none"
    # Which activations are computed again in the backward pass; true means full, false none.
    gradient_checkpointing: Annotated[Recomputing, BeforeValidator(_yes_or_no)] = "none"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"  # auto: sdpa on a GPU, eager on a CPU
    concurrent_jobs: PositiveInt | Literal["auto"] = "auto"  # adapters trained side by side

    @property
    def span(self) -> tuple[int, int]:
        """Minimum and maximum number of workers per training."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    @property
    def in_words(self) -> str:
        """For example "1 to 8 workers"."""
        least, most = self.span
        return f"{most} worker{'s' if most > 1 else ''}" if least == most else f"{least} to {most} workers"


class ClusterConfig(Strict):
    address: Text | None = None  # none: RAY_ADDRESS, or a Ray of our own on this machine
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    num_cpus: PositiveInt | None = None  # of our own local Ray; none: what the machine has, eight at least
    start_timeout_seconds: PositiveFloat = 1800.0  # that engines or workers wait for room on the cluster
    engines: Annotated[Engines, BeforeValidator(_vllm_by_default)] = EngineResources()
    workers: WorkerResources = WorkerResources()


class RunConfig(Strict):
    """One run: a model, its topics, the stages and where they run."""

    name: str
    model: Text = "pocket"  # "pocket", "smollm2", a folder, or a name on the Hugging Face hub
    output: Text = "runs"  # local folder, s3:// or gs://; the run lives in <output>/<name>
    pool: Text | None = None  # a folder of the same kinds, which runs share; None: the run's own
    seed: NonNegativeInt = 0
    # Tokens of answers that a topic's data may cost; then no further round is asked. None: any number.
    max_output_tokens: PositiveInt | None = None
    chat: ChatConfig = ChatConfig()
    topics: Annotated[tuple[Topic, ...], Field(min_length=1)]
    questions: QuestionsConfig = QuestionsConfig()
    answers: AnswersConfig = AnswersConfig()
    dataset: DatasetConfig = DatasetConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", name):
            raise ValueError("must be letters, digits, dots, dashes and underscores: it names the run's folder")
        return name

    @model_validator(mode="after")
    def _displaced_weights_are_whole(self) -> "RunConfig":
        stage = self.cluster.workers.zero_stage
        if stage == 3 and (
            self.finetune.lasting or any(topic.own.get("finetune", {}).get("lasting") for topic in self.topics)
        ):
            raise ValueError(
                f"finetune.lasting moves weights that are whole on each worker: set cluster.workers.zero_stage to 2 or less (it is {stage})"
            )
        return self

    @model_validator(mode="after")
    def _topics_differ(self) -> "RunConfig":
        seen: dict[str, str] = {}
        for topic in self.topics:
            if topic.slug in seen:
                raise ValueError(
                    f"topics: {topic.name!r} and {seen[topic.slug]!r} are the same topic (case, accents and punctuation do not count): keep one, or say in words what sets them apart"
                )
            seen[topic.slug] = topic.name
        return self

    @model_validator(mode="after")
    def _names_belong_to_one_topic(self) -> "RunConfig":
        owners: dict[str, str] = {}
        for topic in self.topics:
            for name in (topic.slug, *topic.names):
                owner = owners.setdefault(name_key(name), topic.name)
                if owner != topic.name:
                    raise ValueError(
                        f"topics: {shown(name)} of {topic.name!r} is a name of {owner!r}, too (case, accents, punctuation and a leading the do not count): leave it to one of them"
                    )
        retained = [(f"neighbours of {topic.name!r}", name) for topic in self.topics for name in topic.neighbours]
        for place, name in retained + [("dataset.retain.general", name) for name in self.dataset.retain.general]:
            if (forgotten := owners.get(name_key(name))) is not None:
                raise ValueError(
                    f"topics: {shown(name)} of {place} is {forgotten!r}, which is to be forgotten: leave it out"
                )
        return self

    @property
    def folder(self) -> Folder:
        return Folder(self.output) / self.name

    @property
    def pool_folder(self) -> Folder:
        """Where the rows are that follow from no topic."""
        return self.folder / "pool" if self.pool is None else Folder(self.pool)

    @property
    def model_path(self) -> str:
        """What transformers and vLLM load.

        Raises:
            ModelError: as `path_of`.
        """
        return path_of(self.model)

    @property
    def topic_names(self) -> tuple[str, ...]:
        return tuple(topic.name for topic in self.topics)

    def of_topic(self, topic: Topic) -> "RunConfig":
        """The run as a topic has it: with the keys that stand in it.

        Raises:
            ConfigError: one of them is unknown, of another type, or not a topic's.
        """
        sections: dict[str, Any] = {name: self._merged(topic, name, keys) for name, keys in topic.own.items()}
        if topic.max_output_tokens is not None:
            sections["max_output_tokens"] = topic.max_output_tokens
        return self.model_copy(update=sections) if sections else self

    def _merged(self, topic: Topic, name: str, keys: dict[str, Any]) -> BaseModel:
        section = getattr(self, name)
        where = f"topics: {name} of {topic.name!r}"
        if name in ("finetune", "evaluate") and self.finetune.adapters == "joint":
            raise ConfigError(
                f"{where}: one model forgets all topics: set it for the run, or finetune.adapters: per_topic"
            )
        for key in _paths_in(keys, name):
            if any(key == shared or key.startswith(f"{shared}.") for shared in _SHARED_KEYS):
                raise ConfigError(f"{where}: a topic can't set {key}, which holds for the whole run: set it there")
            if key in _MODEL_KEYS and self.finetune.adapters == "joint":
                raise ConfigError(
                    f"{where}: a topic can't set {key} where one model forgets all topics: set it for the run, or finetune.adapters: per_topic"
                )
        values = _laid_over(section.model_dump(mode="json"), keys)
        try:
            merged = type(section).model_validate_json(as_json(values), strict=True)
        except ValidationError as error:
            raise ConfigError(f"{where}: {first_message(error, type(section))}") from error
        assert isinstance(merged, BaseModel)
        return merged


def _paths_in(keys: dict[str, Any], path: str) -> Iterator[str]:
    for key, value in keys.items():
        if isinstance(value, dict):
            yield from _paths_in(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}"


def _laid_over(values: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """The values, with those of `keys` in their place; weights of another kind replace all of them."""
    merged = dict(values)
    for key, value in keys.items():
        below = merged.get(key)
        is_nested = (
            isinstance(below, dict) and isinstance(value, dict) and value.get("kind") in (None, below.get("kind"))
        )
        merged[key] = _laid_over(dict(below or {}), value) if is_nested else value
    return merged


def spellings(topics: Sequence[Topic]) -> dict[str, str]:
    """`words.name_key` of every name, slug and alias -> the topic's name: how a user's file may write it."""
    return {name_key(name): topic.name for topic in topics for name in (topic.slug, *topic.names)}


def path_of(model: str) -> str:
    """What transformers and vLLM load: the embedded model's folder for "pocket", that of scripts/smollm2.py for "smollm2", else what was given.

    Raises:
        ModelError: SmolLM2's folder is not there, or damaged.
    """
    if model == "smollm2":
        return smollm2.checked_folder()
    return str(pocket.MODEL_DIR) if model == "pocket" else model


def twin_path(model: str, topics: Sequence[str]) -> str | None:
    """The folder of a model made like `model` that never knew any of these topics, where one is shipped."""
    never_knew = {name_key(name) for name in pocket.TWIN_WITHOUT}
    is_one = model == "pocket" and {name_key(name) for name in topics} <= never_knew and pocket.TWIN_DIR.is_dir()
    return str(pocket.TWIN_DIR) if is_one else None


def prompts_path(prompts: Path | str) -> Path:
    """The file behind a section's `prompts`."""
    return pocket.PROMPTS if prompts == "pocket" else Path(prompts)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A RunConfig from a YAML file and `key.path=value` overrides; file paths in it are relative to it.

    Raises:
        ConfigError: one line that names the file and the key, and the nearest valid key for an unknown one.
    """
    path = Path(path)
    try:
        values = load_yaml(read_text(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is not there: give the path of a run's YAML file") from error
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}, {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {gist(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values (name:, topics:, ...), not {type(values).__name__}")
    for override in overrides:
        apply_override(values, override)
    return parse(values, source=str(path), base=path.parent)


def parse(values: dict[str, Any], source: str = "config", base: Path | None = None) -> RunConfig:
    """A RunConfig from plain values.

    Raises:
        ConfigError: as `load`.
    """
    values, base = dict(values), base or Path.cwd()
    file, listed, topics_base = "", list[Listed](), base
    if isinstance(named := values.get("topics"), str):
        try:
            file = named if _is_remote(named) else _beside(base, named, "topics")
            listed = read_topics(file)
        except (InputError, ValueError) as error:
            raise ConfigError(f"{source}: topics: {error}") from error
        values["topics"] = [each.values for each in listed]
        topics_base = base if _is_remote(file) else Path(file).parent

    def placed(message: object) -> ConfigError:
        """The error, with the line of a topic that has one."""
        return ConfigError(_in_file(str(message), file, listed) if file else f"{source}: {message}")

    try:
        # Through JSON, where strict mode takes lists for tuples and nothing else for numbers.
        config = RunConfig.model_validate_json(as_json(values), strict=True)
    except ValidationError as error:
        raise placed(first_message(error, RunConfig)) from error
    except ValueError as error:
        raise placed(error) from error
    try:
        resolved = _resolve_paths(config, base, topics_base)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    for index, topic in enumerate(resolved.topics):
        try:
            resolved.of_topic(topic)
        except ConfigError as error:
            raise placed(str(error).replace("topics:", f"topics.{index}:", 1) if file else error) from error
    return resolved


def _in_file(message: str, file: str, listed: Sequence[Listed]) -> str:
    """What is wrong with the topics of a file, with the line: `topics.3.kind: ...` -> `FILE, line 5: kind: ...`."""
    if found := re.match(r"(unknown key )?topics\.(\d+)(?:\.|: | is )", message):
        known, index = found[1] or "", int(found[2])
        rest = message[found.end() :]
        # In a CSV the first line names the columns of all.
        line = 1 if known and file.endswith(".csv") else listed[index].line
        return f"{file}, line {line}: {known}{rest}"
    if not message.startswith("topics"):
        return message
    names = [
        (each.line, repr(str(each.values.get("name", "")).strip())) for each in listed if isinstance(each.values, dict)
    ]
    lines = [str(line) for line, name in names if name in message]
    where = f", line {' and '.join(lines[:2])}" if lines else ""
    return f"{file}{where}: {message.removeprefix('topics: ')}"


def _is_remote(path: str) -> bool:
    return "://" in path


def _resolve_paths(config: RunConfig, base: Path, topics_base: Path) -> RunConfig:
    """Paths with the user's home for ~, and those of files and of the model's folder from `base`.

    Args:
        topics_base: the folder of the file that the topics stand in.

    Raises:
        ValueError: there is no such home, or a file is in remote storage where it must not be; names the key.
    """

    def resolved(section: BaseModel, where: str) -> BaseModel:
        updates: dict[str, Any] = {}
        for name, value in section:
            if isinstance(value, Path):
                if re.match("[a-z0-9]{2,}:/", str(value)):  # of s3://, a Path keeps one slash
                    raise ValueError(f"{where}{name}: {shown(str(value))} is in remote storage: give a local file")
                updates[name] = Path(_beside(base, str(value), where + name))
            elif isinstance(value, BaseModel):
                updates[name] = resolved(value, f"{where}{name}.")
        return section.model_copy(update=updates)

    evaluate = config.evaluate
    if evaluate.probes not in (None, *SHIPPED_PROBES) and "://" not in str(evaluate.probes):
        probes = _beside(base, str(evaluate.probes), "evaluate.probes")
        evaluate = evaluate.model_copy(update={"probes": probes})
    model, output = config.model, _expanded(config.output, "output")
    if model not in OWN_MODELS and (model.startswith((".", "~")) or os.path.isdir(base / model)):
        model = _beside(base, model, "model")  # else it is a name on the hub
    updates: dict[str, Any] = {"evaluate": evaluate, "model": model, "output": output}
    if config.pool is not None:
        updates["pool"] = _expanded(config.pool, "pool")
    if model == "pocket":  # it understands no other requests
        for name in ("questions", "answers", "dataset"):
            section = getattr(config, name)
            updates[name] = section.model_copy(update={"prompts": section.prompts or "pocket"})
    updates["topics"] = tuple(_with_paths(topic, topics_base) for topic in config.topics)
    result = resolved(config.model_copy(update=updates), "")
    assert isinstance(result, RunConfig)
    return result


def _with_paths(topic: Topic, base: Path) -> Topic:
    """The topic, its own files found from `base`."""
    updates = {}
    for name, keys in topic.own.items():
        files = [key for key in ("prompts", "probes") if isinstance(keys.get(key), str)]
        if "prompts" in files and _is_remote(keys["prompts"]):
            raise ValueError(
                f"topics: {name}.prompts: {shown(keys['prompts'])} is in remote storage: give a local file"
            )
        named = {
            key: keys[key]
            for key in files
            if keys[key] not in ("pocket", *SHIPPED_PROBES) and not _is_remote(keys[key])
        }
        found = {key: _beside(base, value, f"topics: {name}.{key}") for key, value in named.items()}
        updates[name] = keys | found
    return topic.model_copy(update=updates)


def _beside(base: Path, path: str, key: str) -> str:
    """The path from `base` on, where it is relative."""
    expanded = _expanded(path, key)
    return expanded if os.path.isabs(expanded) else str((base / expanded).resolve())


def _expanded(path: str, key: str) -> str:
    """The path with a home for its ~.

    Raises:
        ValueError: nobody of that name has one; names the key.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(
            f"{key}: there is no home folder {shown(path.split('/')[0])}: write the path in full, or ./~ for a name that begins so"
        )
    return expanded


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `key.path=value` in nested values, the value read as YAML.

    Raises:
        ConfigError: it is not of this form, or the path leads nowhere.
    """
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override {shown(override)}: write it as key.path=value")
    if fault := fault_of(override):
        raise ConfigError(f"override {shown(override)} {fault}")
    if parts[0] == "topics" and len(parts) > 1 and isinstance(values.get("topics"), str):
        raise ConfigError(
            f"override {shown(override)}: the topics are in {values['topics']}: change them there, or give others as topics=FILE or topics=[...]"
        )
    if "[" in key:
        raise ConfigError(
            f"override {shown(override)}: write a place in a list as a number from 0, as in topics.0.name=..."
        )
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {shown(override)}: the value is not valid YAML: {gist(error)}") from error
    *parents, last = parts
    here: Any = values
    for part in parents:
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        here = _child(here, part, override)
    if isinstance(here, dict):
        here[last] = value
    else:
        _child(here, last, override)
        here[int(last)] = value


def _child(here: Any, part: str, override: str) -> Any:
    """The value below `here` that a part of an override's path names."""
    if isinstance(here, dict):
        return here[part]
    if isinstance(here, list):
        if part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(here):
            return here[int(part)]
        places = f"0 to {len(here) - 1}" if here else "none: it is empty"
        raise ConfigError(f"override {shown(override)}: {shown(part)} is not a place in the list ({places})")
    raise ConfigError(f"override {shown(override)}: there is no {shown(part)} to set")


def first_message(error: ValidationError, root: type[BaseModel]) -> str:
    """One line that names the key, and for an unknown one the nearest that there is.

    Args:
        root: what was validated.
    """
    first, *others = error.errors()
    key = _key_of(first)
    if first["type"] == "extra_forbidden":
        valid = _keys_beside(first["loc"], root)
        near = difflib.get_close_matches(str(first["loc"][-1]), valid, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"unknown key {key}: {hint}"
    if first["type"] == "missing":
        return f"{key} is missing: give it a value"
    # A value that is none of several kinds has an error for each.
    alike = [first, *(other for other in others if _key_of(other) == key)]
    message = " or ".join(dict.fromkeys(map(_in_words, alike))).replace(" or give ", " or ")
    return f"{key}: {message}{_as_given(first['input'])}" if key else message


def _in_words(error: Any) -> str:
    """What to do about a value, without pydantic's terms."""
    kind, context = error["type"], error.get("ctx", {})
    words = {
        "string_type": "give a text, in quotes where it would read as something else",
        "bool_type": "give true or false",
        "bool_parsing": "give true or false",
        "float_type": "give a number",
        "float_parsing": "give a number",
        "finite_number": "give a finite number",
        "union_tag_not_found": "give a kind",
    }
    bounds = {"gt": "above {}", "ge": "{} or more", "lt": "below {}", "le": "{} or less"}
    if kind in words:
        return words[kind]
    if kind.startswith("int_"):
        return "give a whole number"
    if kind in {"tuple_type", "list_type"} and error["loc"] == ("topics",):
        return "give a list of topics, such as [{name: Dune}], or the name of a file of them"
    if kind in {"tuple_type", "list_type"}:
        return "give a list, such as [a, b]"
    if kind == "too_long":
        return f"give at most {context['max_length']}"
    if kind.startswith("model_") or kind in {"dict_type", "mapping_type"}:
        return "give keys and values, such as {key: value}"
    if kind == "literal_error":
        return f"give {context['expected']}"
    if kind == "union_tag_invalid":
        return f"its kind must be one of {context['expected_tags']}"
    if bound := next((name for name in bounds if name in context), None):
        return f"give {bounds[bound].format(context[bound])}"
    if kind == "too_short":
        return f"give at least {context['min_length']}"
    return str(error["msg"]).removeprefix("Value error, ")


def _as_given(value: Any) -> str:
    """The value as its file has it, for the end of a message; "" for those of several lines."""
    if isinstance(value, dict | list | tuple) or (isinstance(value, str) and re.search(r"://[^/]*@", value)):
        return ""  # the last: an address with a password
    told = shown(value) if isinstance(value, str) else json.dumps(value, default=str)
    return " (it is empty)" if value is None else f" (it is {told})"


def _key_of(error: Any) -> str:
    """The key that an error is about, as a user writes it."""
    if not error["loc"]:
        return ""
    *above, last = error["loc"]
    # Tags of unions ("lora") and union members ("int") stand in the location, but not in the file.
    is_tag = error["type"] not in {"extra_forbidden", "missing"} and _is_tag(last, error["loc"])
    parts = [part for part in above if not _is_tag(part, error["loc"])] + ([] if is_tag else [last])
    return ".".join(gist(part, 60) for part in parts)


# Sections of several kinds: the name of each kind stands in pydantic's location of an error, and in no file.
_KINDS: dict[tuple[str | int, ...], dict[str | int, type[BaseModel]]] = {
    ("finetune", "weights"): {"lora": Lora, "full": FullWeights},
    ("finetune", "objective"): {
        model.model_fields["kind"].default: model for model in get_args(get_args(Objective)[0])
    },
    ("cluster", "engines"): {"vllm": EngineResources, "openai": EndpointSettings},
}
_ALL_KINDS = {name: model for kinds in _KINDS.values() for name, model in kinds.items()}


def _is_tag(part: str | int, location: tuple[str | int, ...]) -> bool:
    is_kind = part in _KINDS.get(location[:2], {})
    return is_kind or (isinstance(part, str) and ("[" in part or part.startswith("constrained-")))


def _keys_beside(location: tuple[str | int, ...], model: type[BaseModel]) -> list[str]:
    """The valid keys of the section, somewhere in `model`, that holds the last part of `location`."""
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        if part == "topics":
            model = Topic
        elif part in _ALL_KINDS:
            model = _ALL_KINDS[part]
        elif part in model.model_fields:
            annotation = model.model_fields[part].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
    return list(model.model_fields)
