"""What a stage may ask of an engine: a generator (rows in, rows out) and a trainer. Knows neither Ray nor vLLM."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import FinetuneConfig
from unlearn_ray.rows import Message
from unlearn_ray.words import without_thoughts

RowDict = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for a model. With `score`, nothing is sampled: the log-probabilities of that answer are returned."""

    messages: Sequence[
        Message
    ]  # a last turn of the assistant's is the answer's beginning, and goes on; with `score` there is none
    seed: int = 0
    num_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None  # None, here and below: the model's own
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int = 64
    adapter: str | None = None  # folder of a PEFT adapter on the generator's model; None: the model itself
    score: str | None = None  # an answer to score in the assistant's turn


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request. `error` is set where the engine could not answer this row, and only then."""

    texts: tuple[str, ...] = ()  # one a sample, without `<think>` blocks: they are neither questions nor answers
    truncated: tuple[bool, ...] = ()  # the sample ended at max_tokens
    logprobs: tuple[float, ...] = ()  # of the scored answer's tokens, natural logarithm
    ending: tuple[
        float, ...
    ] = ()  # the same of the end of turn after it; none where the model's chat format names none
    argmax: tuple[bool, ...] = ()  # whether each scored token was the most probable one
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str | None = None  # a rows.Drop value: "too_long" or "engine"

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(without_thoughts(text) for text in self.texts))


Render = Callable[[RowDict], Sequence[Request]]
Parse = Callable[[RowDict, Sequence[Reply]], Sequence[RowDict]]


@dataclass(frozen=True, slots=True)
class MapCounts:
    """What one `Generator.map` did."""

    num_rows_in: int
    num_rows_out: int
    num_resumed: int  # input rows that an earlier, interrupted call had finished
    num_prompt_tokens: int  # these and the next also of what an earlier call had finished
    num_output_tokens: int
    seconds: float
    num_prefix_queries: int = 0  # prompt tokens that were looked for in engines' prefix caches, once for each sample
    num_prefix_hits: int = 0  # those that were there


class Generator(Protocol):
    """Turns a folder of rows into another by asking a model: `parse(row, replies to render(row))`.

    `render` and `parse` run on workers: module-level functions, `functools.partial` of them or frozen dataclasses.
    """

    @property
    def chat(self) -> ChatFormat:
        """How its model is talked to."""
        ...

    def map(
        self,
        source: Folder,
        out: Folder,
        render: Render,
        parse: Parse,
        schema: pa.Schema,
        *,
        label: str,
        model: str | None = None,
    ) -> MapCounts:
        """Stream the Parquet rows of `source` through the model into Parquet rows of `out`.

        Args:
            source: folder whose *.parquet files hold the input rows; each row has a unique `id`.
            out: folder to write to. Rows already there, from an interrupted call, are kept and not asked again.
            render: the requests of one row; none skips the engine and `parse` gets no replies.
            parse: the output rows of one row; none is allowed.
            schema: of the output rows.
            label: what the progress line calls it.
            model: folder or hub name of another model than the generator's own (a full fine-tune).

        Raises:
            EngineError: engines kept dying on the same rows.
            ClusterError: the cluster has no room for an engine.
        """
        ...

    def each(
        self,
        task: Callable[[T], R],
        items: Sequence[T],
        take: Callable[[R], object] = lambda result: None,
        *,
        label: str,
    ) -> None:
        """Work on rows without a model: `take(task(item))` for every item. Tasks run on workers; results come back in the items' order.

        Args:
            task: picklable, and the same if it is run again: one whose worker is lost is repeated. What it reads and writes are files.
            take: gets the results, here, which are small: counts, a vocabulary.
            label: what the progress line calls it, where there are many items.

        Raises:
            Exception: what a task raised; those of others' libraries as an EngineError that names them.
        """
        ...

    def close(self) -> None:
        """Give the engines' resources back."""
        ...


MERGED = "merged"  # folder of the merged model, beside the adapter's folder, if both are exported


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One model or adapter to train."""

    name: str  # slug of the topic, or "joint"
    model: str  # folder or hub name of the base model
    chat: ChatFormat  # how it is talked to
    config: FinetuneConfig
    seed: int
    forget: Folder  # Parquet rows of rows.Example; of rows.Contrast where the objective lowers true answers
    retain: Folder
    topics: tuple[str, ...]  # forget rows of other topics are not read
    out: Folder  # the export: a model folder or a PEFT adapter; with finetune.export: both, MERGED is beside it
    checkpoints: Folder  # survives a lost driver; a rerun resumes from it. Left there: train.records.LOSSES
    record: Folder | None = None  # for metrics, the loggers' files and the log; none: `checkpoints`
    gate: Folder | None = None  # rows of rows.GateRow to score during the training; none: no gate
    truths: Folder | None = (
        None  # rows of rows.Contrast that an attacker of `finetune.lasting` trains on; none: no attacker
    )

    @property
    def watched(self) -> Folder:
        """The folder with its metrics and log."""
        return self.record or self.checkpoints


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one training did; what its manifest says."""

    name: str
    path: str
    num_steps: int
    num_forget_rows: int
    num_retain_rows: int
    final_loss: Mapping[str, float]  # forget, retain
    export_loss: Mapping[str, float]  # engine, reloaded: on the same batch
    seconds: float
    precision: str = "fp32"  # of weights and activations: fp32, bf16
    resumed_from_step: int = 0
    num_skipped_steps: int = 0  # their gradient was not finite
    num_cut: int = 0  # rows longer than max_tokens: cut in the answer
    num_too_long: int = 0  # rows dropped, because the prompt alone is longer
    exported_step: int | None = None  # steps of the exported state, if the gate chose it; none: the last
    stopped: str = ""  # why it ended before the config's `num_steps`


class Trainer(Protocol):
    """Trains jobs, side by side as the cluster allows."""

    def outcomes(self, jobs: Sequence[TrainJob]) -> dict[str, TrainResult | Exception]:
        """Train every job and export it; by their names how each ended. Each is tried, whatever becomes of the others, and another call
        trains only those that failed.

        Raises:
            ClusterError: the cluster has no room for one job's workers.
        """
        ...
