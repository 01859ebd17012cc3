"""What objectives forget and keep on the rows of a finished run, one after the other in this process: a table for docs/objectives.md.

    python benchmarks/objectives.py [CONFIG RUN "objective=npo learning_rate=5e-4 num_steps=30" ...] [--seeds 0,1,2] [--max-facts 40] [--recall] [--out FILE]

RUN is the folder of a finished run of CONFIG: its mixture is trained on and its probes are asked, neither vLLM nor Ray is started. A setting
is a list of keys of `finetune`; without any, every objective at the config's own. Choice is taken as the report takes it; where only what base knows is to count, a fact counts if base prefers it
in every wording. A row has the mean over the seeds, each seed's figures in brackets, and the seconds of a training.
"""

import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
from _results import about_this_run, write

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import FinetuneConfig, RunConfig, load
from unlearn_ray.evals.metrics import choice, fact_recall
from unlearn_ray.evals.probes import PlacedProbe, place, read_probes, with_topics, wrong_references
from unlearn_ray.rows import GROUPS, Example, seed_of
from unlearn_ray.train import reference
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.chat import ChatEncoder, Encoded, load_tokenizer
from unlearn_ray.train.encoded import EncodedRows
from unlearn_ray.train.encoding import encode_contrasts, encode_rows
from unlearn_ray.train.inspection import inspect_model
from unlearn_ray.train.lasting.displaced import Displaced
from unlearn_ray.train.loop import train
from unlearn_ray.train.models import DTYPES, load_base, prepare
from unlearn_ray.train.objectives.table import OBJECTIVES
from unlearn_ray.train.plain import PlainRuntime
from unlearn_ray.train.refusals import refusals_of

ROWS_PER_PASS = 48


class Bench:
    """A model and the rows of a run."""

    def __init__(self, config: RunConfig, mixture: Folder, max_facts: int | None) -> None:
        self.config, self.mixture = config, mixture
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer, self.chat = load_tokenizer(config.model_path), inspect_model(config.model_path).chat
        self.probes = list(self._asked(max_facts))

    def _asked(self, max_facts: int | None) -> Iterator[PlacedProbe]:
        path, names = self.config.evaluate.probes_path, self.config.topic_names
        found = read_probes(path) if path else read_probes(str(self.mixture / "probes"))
        placed = [place(probe, names) for probe in with_topics(found, self.config.topics)]
        placed = [each for each in placed if each.probe.split == self.config.evaluate.split and each.probe.wrong]
        for group in GROUPS:
            facts = sorted({each.probe.fact_id for each in placed if each.group == group})
            random.Random(0).shuffle(facts)
            kept = set(facts[:max_facts])
            yield from (each for each in placed if each.group == group and each.probe.fact_id in kept)

    def keep_known(self, of_base: dict[str, float]) -> None:
        """Ask only of facts that base prefers in every wording."""
        known = defaultdict(list)
        for each in self.probes:
            known[each.probe.fact_id].append(of_base[each.probe.id])
        self.probes = [each for each in self.probes if all(known[each.probe.fact_id])]

    def num(self, group: str) -> int:
        return sum(each.group == group for each in self.probes)

    def mean(self, values: dict[str, float], group: str) -> float:
        """Of a group's probes."""
        return mean(values[each.probe.id] for each in self.probes if each.group == group)

    def fresh(self, config: FinetuneConfig, seed: int) -> Any:
        base = load_base(self.config.model_path, DTYPES[config.precision], self.device)
        return prepare(base, config.weights, seed=seed, gradient_checkpointing="none")

    def trained(self, config: FinetuneConfig, seed: int) -> tuple[Any, float]:
        """A model trained in one process, and the seconds that it took."""
        module, started = self.fresh(config, seed), time.monotonic()
        runtime = PlainRuntime(module, config, self.device)
        with tempfile.TemporaryDirectory() as folder:
            batches, displaced = self._batches(config, Path(folder), seed)
            every = -(-batches.num_rows[0] // config.forget_batch)
            found = reference.base_logps(runtime, batches, max(config.num_steps, every))
            batches.refer(found)
            if displaced is not None:
                displaced.refer(found)
            train(runtime, batches, config, seed=seed, lasting=displaced, on_step=lambda record: None)
        return module.eval(), time.monotonic() - started

    def _batches(self, config: FinetuneConfig, folder: Path, seed: int) -> tuple[Batches, Displaced | None]:
        encoder, topics = ChatEncoder(self.tokenizer, self.chat, config.max_tokens), self.config.topic_names
        forget, retain, invented = folder / "forget.arrow", None, None
        if config.lowers_truth:
            encode_contrasts(self.mixture / "contrasts", topics, encoder, forget, pairs=config.pairs)
        else:
            encode_rows(self.mixture / "forget", topics, encoder, forget, refusals=refusals_of(config.objective))
        if config.retains:
            encode_rows(self.mixture / "retain", (*topics, ""), encoder, folder / "retain.arrow")
            retain = EncodedRows(folder / "retain.arrow")
        rows = EncodedRows(forget)
        if config.pairs:
            rows, invented = (EncodedRows(forget, first=half, every=2) for half in (0, 1))
        micro_batch, pad_id = self.config.cluster.workers.micro_batch, self.chat.pad_token_id
        layout: dict[str, Any] = {"micro_batch": micro_batch, "world_size": 1, "pad_id": pad_id}
        batches = Batches(
            rows,
            retain,
            forget_batch=config.forget_batch,
            retain_batch=config.retain_batch,
            seed=seed,
            invented=invented,
            **layout,
        )
        if config.lasting is None:
            return batches, None
        truths = None
        if config.has_attacker:
            encode_contrasts(self.mixture / "contrasts", topics, encoder, folder / "truths.arrow", pairs=False)
            truths = EncodedRows(folder / "truths.arrow")
        return batches, Displaced(config, rows, invented, truths, seed, **layout)

    def choices(self, module: Any) -> dict[str, float]:
        """Of each probe, by its id."""
        encoder = ChatEncoder(self.tokenizer, self.chat, 4096)
        texts = [
            (each.probe, [each.probe.reference or each.probe.answer, *wrong_references(each.probe)])
            for each in self.probes
        ]
        rows = encoder.encode([Example("", "far", "", probe.question, text) for probe, many in texts for text in many])
        logps = iter(self._logps(module, [row for row in rows if row is not None]))
        found = {}
        for probe, many in texts:
            right, *wrong = [next(logps) for _ in many]
            found[probe.id] = choice(right, wrong) or 0.0
        return found

    @torch.no_grad()
    def _logps(self, module: Any, rows: Sequence[Encoded]) -> list[list[float]]:
        order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
        found: list[list[float]] = [[] for _ in rows]
        for first in range(0, len(order), ROWS_PER_PASS):
            taken = order[first : first + ROWS_PER_PASS]
            longest = max(len(rows[number].ids) for number in taken)
            ids_BL = torch.full((len(taken), longest), self.chat.pad_token_id, device=self.device)
            for place_, number in enumerate(taken):
                ids_BL[place_, : len(rows[number].ids)] = torch.tensor(rows[number].ids)
            logits_BLV = module(input_ids=ids_BL[:, :-1], use_cache=False).logits
            for place_, number in enumerate(taken):
                row = rows[number]
                logp_NV = torch.log_softmax(logits_BLV[place_, row.start - 1 : len(row.ids) - 1].float(), dim=-1)
                targets_N = torch.tensor(row.ids[row.start :], device=self.device)
                found[number] = logp_NV.gather(1, targets_N[:, None])[:, 0].tolist()
        return found

    @torch.no_grad()
    def recalls(self, module: Any) -> dict[str, float]:
        """Whether the greedy answer of at most 32 tokens holds the true one, by the probe's id."""
        found = {}
        for each in self.probes:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": each.probe.question}],
                tokenize=False,
                add_generation_prompt=True,
                **dict(self.chat.template_arguments),
            )
            ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(self.device)
            out = module.generate(
                input_ids=ids, max_new_tokens=32, do_sample=False, pad_token_id=self.chat.pad_token_id
            )
            answer = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            found[each.probe.id] = fact_recall(answer, (each.probe.answer, *each.probe.aliases)) or 0.0
        return found


def main(
    config: Annotated[Path, typer.Argument(help="Of the run.")] = Path("jobs/configs/pocket.yaml"),
    run: Annotated[Path, typer.Argument(help="Its folder; it is finished.")] = Path("runs/pocket"),
    settings: Annotated[list[str] | None, typer.Argument(help="Keys of finetune, each set in quotes.")] = None,
    seeds: str = "0",
    max_facts: Annotated[int | None, typer.Option(help="Of a group; none: all.")] = None,
    recall: Annotated[bool, typer.Option(help="Greedy answers as well.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Train at each setting and print a row for it."""
    (mixture,) = run.glob("models/*/mixture")
    loaded = load(config)
    precision = "fp32" if loaded.finetune.precision == "auto" else loaded.finetune.precision
    bench = Bench(loaded, Folder(mixture), max_facts)
    base = bench.fresh(loaded.finetune.model_copy(update={"precision": precision}), 0).eval()
    metrics = {"choice": bench.choices} | ({"recall": bench.recalls} if recall else {})
    of_base = {name: metric(base) for name, metric in metrics.items()}
    del base
    if loaded.evaluate.counts_known_only:
        bench.keep_known(of_base["choice"])
    columns = [(name, group) for name in metrics for group in GROUPS]
    about = about_this_run()
    print(f"`{about['command']}`, {about['date'][:10]}, {about['machine']['cores']} cores.\n")
    print(f"| setting | {' | '.join(f'{group} {name}' for name, group in columns)} | seconds |")
    print("| --- " * (len(columns) + 2) + "|")
    print(f"| probes | {' | '.join(str(bench.num(group)) for _, group in columns)} | |")
    print(
        f"| base | {' | '.join(_cell([bench.mean(of_base[name], group)]) for name, group in columns)} | |", flush=True
    )
    rows = []
    for setting in settings or [f"objective={kind}" for kind in OBJECTIVES]:
        overrides = [f"finetune.{each}" for each in setting.split()]
        tuned = load(config, [*overrides, f"finetune.precision={precision}"]).finetune
        found, seconds = [], []
        for seed in map(int, seeds.split(",")):
            module, took = bench.trained(tuned, seed_of(seed, "objectives"))
            found.append({name: metric(module) for name, metric in metrics.items()})
            seconds.append(took)
        figures = {f"{group} {name}": [bench.mean(each[name], group) for each in found] for name, group in columns}
        rows.append({"setting": setting, "seconds": seconds, **figures})
        print(f"| {setting} | {' | '.join(map(_cell, figures.values()))} | {mean(seconds):.0f} |", flush=True)
    if out:
        base_figures = {f"{group} {name}": bench.mean(of_base[name], group) for name, group in columns}
        write({**about, "base": base_figures, "rows": rows}, out)


def _cell(values: Sequence[float]) -> str:
    each = f" ({', '.join(f'{100 * value:.0f}' for value in values)})" if len(values) > 1 else ""
    return f"{100 * mean(values):.0f} %{each}"


if __name__ == "__main__":
    typer.run(main)
