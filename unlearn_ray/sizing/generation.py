"""The cost of the stages that generate text: requests and tokens from the config, seconds from the model's shape and the device.

All counts are expected values, based on runs with the pocket model and SmolLM2 and on the prompts file. Overrides per topic are included.
"""

from dataclasses import dataclass

from unlearn_ray.config import FleetSettings, RunConfig
from unlearn_ray.sizing.gpus import Device
from unlearn_ray.sizing.shapes import Shape
from unlearn_ray.sizing.training import FRAME_TOKENS, QUESTION_TOKENS, answer_tokens

KEPT = 0.6  # share of the written questions; duplicates and surplus are dropped (pocket: 200 of 304)
REASKED = 0.2  # additional guarded answers, as a share of the first ones
LIST_TOKENS = 120  # prompt of a request for questions
PREFIX_TOKENS = 120  # of a guardrail; cached after a topic's first row
CHECK_TOKENS = 250  # scored per question, for its topic and for others
WORDINGS = 3  # probes per fact
SCORED = 4  # scored answers per probe for choice, the true one included
PROBES = 200  # per group, if the probes are in a file
PREFILL_SHARE, DECODE_SHARE = 0.4, 0.6  # of peak arithmetic and of bandwidth, as vLLM reaches on dense models


@dataclass(frozen=True, slots=True)
class Asked:
    """The requests of a stage, over all topics and models."""

    stage: str
    rows: int
    requests: float = 0.0
    prompt_tokens: float = 0.0  # computed ones, without those from the prefix cache
    output_tokens: float = 0.0

    def __add__(self, other: "Asked") -> "Asked":
        return Asked(
            self.stage,
            self.rows + other.rows,
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
        )


def asked_by(config: RunConfig) -> list[Asked]:
    """The requests of each stage."""
    topics = [config.of_topic(topic) for topic in config.topics]
    questions = sum((_questions(own) for own in topics), Asked("questions", 0))
    answers = sum((_answers(own) for own in topics), Asked("answers", 0))
    dataset = sum(
        (
            _retained("dataset", own, (len(topic.neighbours) or own.dataset.retain.num_neighbours), near=True)
            + _probes("dataset", own, own.dataset.probes.num_forget + own.dataset.probes.num_near)
            for topic, own in zip(config.topics, topics, strict=True)
        ),
        Asked("dataset", 0),
    )
    retain = config.dataset.retain
    dataset += _retained("dataset", config, len(retain.general) or retain.num_general, near=False)
    dataset += _probes("dataset", config, config.dataset.probes.num_far)
    return [questions, answers, dataset, _evaluated(config)]


def _listed(stage: str, config: RunConfig, number: float) -> Asked:
    """Requests for lists of questions, until `number` questions are kept."""
    own = config.questions
    requests = number / KEPT / own.per_request
    written = min(own.max_tokens, own.per_request * QUESTION_TOKENS)
    return Asked(stage, 0, requests, requests * LIST_TOKENS, requests * written)


def _questions(config: RunConfig) -> Asked:
    number = config.questions.num_questions
    found = _listed("questions", config, number) + Asked("questions", number)
    if config.questions.check_topic:
        found += Asked("questions", 0, number / KEPT, number / KEPT * CHECK_TOKENS)
    return found


def _answers(config: RunConfig) -> Asked:
    expected, _ = answer_tokens(config)
    number, own = config.questions.num_questions, config.answers
    guarded = number * own.num_samples * (1 + (REASKED if own.max_reasks else 0))
    unguarded = number * own.num_unguarded
    judged = guarded * (FRAME_TOKENS + QUESTION_TOKENS + 2 * expected) if own.judge_leaks else 0.0
    prompts = (number + number) * (FRAME_TOKENS + QUESTION_TOKENS)  # the samples of a question share its prompt
    total = guarded + unguarded
    return Asked("answers", number * own.num_samples, total, prompts + judged, total * expected)


def _retained(stage: str, config: RunConfig, num_subjects: int, *, near: bool) -> Asked:
    retain = config.dataset.retain
    if retain.file is not None:
        return Asked(stage, 0)
    number = num_subjects * (retain.questions_per_neighbour if near else retain.questions_per_general)
    expected, _ = answer_tokens(config)
    asked = Asked(stage, number, number, number * (FRAME_TOKENS + QUESTION_TOKENS), number * expected)
    return asked + _listed(stage, config, number) + Asked(stage, 0, number, number / KEPT * CHECK_TOKENS)


def _probes(stage: str, config: RunConfig, num_facts: int) -> Asked:
    asked = num_facts * WORDINGS * (1 + config.dataset.probes.num_samples)
    return Asked(stage, 0, asked, asked * (FRAME_TOKENS + QUESTION_TOKENS), asked * 16)


def _evaluated(config: RunConfig) -> Asked:
    """For base, base + prefix and unlearned: a greedy answer and scored answers to each probe, and sampled answers to forget probes."""
    num_models = len(config.topics) if config.finetune.adapters == "per_topic" else 1
    own, probes, expected = config.evaluate, config.dataset.probes, answer_tokens(config)[0]
    made = (probes.num_forget, probes.num_near, probes.num_far)
    groups = [min(own.max_probes or 10**9, PROBES if own.probes is not None else number * WORDINGS) for number in made]
    out = min(expected, own.max_tokens or expected)
    one = FRAME_TOKENS + QUESTION_TOKENS
    greedy, sampled = 3 * sum(groups), 3 * groups[0] * own.num_samples
    scored = greedy * SCORED
    asked = Asked(
        "evaluate",
        greedy,
        greedy + sampled + scored,
        (greedy + sampled) * one + scored * (one + expected),
        (greedy + sampled) * out,
    )
    return sum((asked for _ in range(num_models - 1)), asked)


def num_sequences(shape: Shape, engines: FleetSettings, device: Device, length: float) -> int:
    """Rows that an engine decodes together: `max_num_seqs`, or fewer if its cache holds fewer; 0 if the weights leave no room."""
    if not device.memory:
        room = engines.kv_cache_gib * 2**30
    else:
        taken = shape.parameters * 2 + engines.num_gpus * 2 * 2**30  # plus vLLM's activations and CUDA graphs
        room = device.memory * engines.num_gpus * engines.gpu_memory_utilization - taken
    return max(0, min(engines.max_num_seqs, int(room // (shape.kv_bytes * max(1.0, length)))))


def asking_seconds(
    shape: Shape, asked: Asked, engines: FleetSettings, num_engines: int, device: Device, cores: float
) -> float:
    """The time of the engines. Prompts take 2 N' operations per token (arXiv 2001.08361). For each token of the rows that are decoded together, all
    weights and the cache are read once (Pope et al. 2022, arXiv 2211.05102, section 2.1).

    Args:
        cores: per engine on a CPU; 1 on GPUs.
    """
    if not asked.requests:
        return 0.0
    length = (asked.prompt_tokens + asked.output_tokens) / asked.requests + PREFIX_TOKENS
    together = max(1, min(num_sequences(shape, engines, device, length), int(asked.requests / num_engines)))
    rate = device.flops * engines.num_gpus * cores * PREFILL_SHARE * num_engines
    bandwidth = device.bandwidth * engines.num_gpus * cores * DECODE_SHARE * num_engines
    arithmetic = 2 * shape.matrix_parameters * (asked.prompt_tokens + asked.output_tokens)
    read = asked.output_tokens / together * (2 * shape.parameters + together * shape.kv_bytes * length)
    return float(arithmetic / rate + read / bandwidth)
