"""Asks two models held-out probes live, and shows which of them still tells the truth."""

import random
import time
from dataclasses import dataclass
from typing import Any

import charts
import streamlit as st
from asking import Answers, Question
from charts import COLOURS, GROUPS
from client import Model, Sampling
from escaping import as_markdown
from session import choose_run, keep, known_models, run_of, service

from unlearn_ray.words import tells

_NUM_AT_ONCE = 4
_WATCH_SECONDS = 0.2
_SAMPLING = Sampling(temperature=0.0, max_tokens=128)  # greedy, as in the report
_SPARE_COLOURS = ("#7a8088", "#c8520a")
_MARKS = {True: "✔ ", False: "✘ ", None: ""}


@dataclass(frozen=True, slots=True)
class Round:
    """Probes that are asked of two models."""

    probes: list[dict[str, Any]]
    models: tuple[Model, Model]
    answers: Answers  # both models' answers to the first probe, then to the second, ...
    started: float


def page() -> None:
    state = st.session_state
    models = known_models()
    run_model = choose_run(models)
    probes: list[dict[str, Any]] = run_of(run_model)["probes"]
    if not probes:
        st.info(f"{as_markdown(run_model.id)} was published without a run: it has no probes.", icon=":material/info:")
        return
    ids = [model.id for model in models]
    first, second = st.columns(2)
    left = first.selectbox("First model", ids, key=keep("left", ids[0], ids))
    right = second.selectbox("Second model", ids, key=keep("right", run_model.id, ids))
    groups = ["all", *(group for group in GROUPS if any(probe["group"] == group for probe in probes))]
    group = first.selectbox("Probes", groups, format_func=_group_title, key=keep("group", "all", groups))
    asked = [probe for probe in probes if group in ("all", probe["group"])]
    num = second.number_input(
        "Number", 1, len(asked), min(30, len(asked)), help=f"of {len(asked)}, drawn evenly by group"
    )
    going: Round | None = state.get("round")
    is_running = going is not None and going.answers.is_running
    with st.container(horizontal=True):
        pair = (models[ids.index(left)], models[ids.index(right)])
        st.button(
            "Run",
            icon=":material/play_arrow:",
            type="primary",
            on_click=_start,
            args=(draw(asked, num), pair),
            disabled=is_running,
        )
        if is_running:
            st.button("Stop", icon=":material/stop_circle:", on_click=_stop)
    st.caption("Both models are asked each probe. ✔: the answer has the true value or an alias. Lines: 95 % intervals.")
    if going is None:
        return
    progress, chart, table = st.empty(), st.empty(), st.empty()
    drawn = -1
    while True:
        going.answers.watch(_WATCH_SECONDS if is_running else 0)
        num_done = sum(not reply.is_running for reply in going.answers.replies)
        _show_progress(progress, going, num_done)
        if num_done != drawn:
            _show_results(chart, table, going)
            drawn = num_done
        if not going.answers.is_running:
            break
    if is_running:
        st.rerun()


def draw(probes: list[dict[str, Any]], num: int) -> list[dict[str, Any]]:
    """`num` probes, alternating between the groups. The same at every call."""
    shuffled = random.Random(0).sample(probes, len(probes))
    ranked = []
    for group in GROUPS:
        ranked += [(rank, probe) for rank, probe in enumerate(p for p in shuffled if p["group"] == group)]
    return [probe for _, probe in sorted(ranked, key=lambda item: item[0])[:num]]


def _start(probes: list[dict[str, Any]], models: tuple[Model, Model]) -> None:
    _stop()
    questions = [
        Question(model.id, [{"role": "user", "content": probe["question"]}], _SAMPLING)
        for probe in probes
        for model in models
    ]
    st.session_state.round = Round(probes, models, Answers(service(), questions, _NUM_AT_ONCE), time.monotonic())


def _stop() -> None:
    if (going := st.session_state.get("round")) is not None:
        going.answers.stop()


def _show_progress(slot: Any, going: Round, num_done: int) -> None:
    replies = going.answers.replies
    text = f"{num_done} of {len(replies)} answers"
    if going.answers.is_running:
        text += f", {num_done / max(0.1, time.monotonic() - going.started):.1f} per second"
        if retrying := next((reply.note for reply in replies if reply.state == "retrying"), ""):
            text += f". {retrying}"
        elif silent := max(reply.silent_seconds for reply in replies):
            text += f". The service is slow: no token for {silent:.0f} s."
    elif failed := [reply for reply in replies if reply.state in ("cut", "failed")]:
        text += f"; {len(failed)} failed: {failed[0].note}"
    elif any(reply.state == "stopped" for reply in replies):
        text = f"Stopped: {sum(reply.state == 'done' for reply in replies)} of {len(replies)} answers"
    slot.progress(num_done / len(replies), as_markdown(text))


def _show_results(chart: Any, table: Any, going: Round) -> None:
    labels, colours = _labels(going.models)
    results: list[tuple[str, str, bool]] = []
    rows: list[dict[str, str]] = []
    for index, probe in enumerate(going.probes):
        row = {"group": GROUPS[probe["group"]], "question": probe["question"], "truth": probe["answer"]}
        for label, reply in zip(labels, going.answers.replies[2 * index : 2 * index + 2], strict=True):
            is_told = tells(reply.text, (probe["answer"], *probe["aliases"])) if reply.state == "done" else None
            if is_told is not None:
                results.append((label, probe["group"], is_told))
            row[label] = _MARKS[is_told] + reply.text
        rows.append(row)
    if (drawn := charts.told(results, labels, colours)) is not None:
        chart.altair_chart(drawn, width="stretch")
    elif not going.answers.is_running:
        chart.info("Nothing to count: the truths of these probes are sentences, or no answer came.")
    # The table's columns are measured once, before the first answer comes.
    widths = {"group": 90, "question": 300, "truth": 150} | dict.fromkeys(labels, 320)
    config = {name: st.column_config.TextColumn(width=pixels) for name, pixels in widths.items()}
    table.dataframe(rows, width="stretch", hide_index=True, column_config=config)


def _labels(models: tuple[Model, Model]) -> tuple[list[str], list[str]]:
    """A name and a colour per model. They differ also for two models of one kind, or the same model twice."""
    labels = [model.id for model in models]
    if labels[0] == labels[1]:
        labels[1] += " (again)"
    kinds = [model.kind for model in models]
    return labels, [COLOURS[kind] for kind in kinds] if kinds[0] != kinds[1] else list(_SPARE_COLOURS)


def _group_title(group: str) -> str:
    return "all groups" if group == "all" else GROUPS[group]
