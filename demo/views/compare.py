"""Asks two or three models the same question, and shows their streaming answers side by side, with the topic's real knowledge marked."""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import streamlit as st
from asking import Answers, Question, Reply
from client import Model, Sampling, ServiceError
from conversation import Turn, as_document, as_json, meter, relevant_runs
from escaping import as_html, as_markdown
from session import keep, kept_value, known_models, run_of, service, unlearned
from streamlit.delta_generator import DeltaGenerator

from unlearn_ray.words import marked, telling

_WATCH_SECONDS = 0.05
_DRAW_SECONDS = 0.25
_NUM_SUGGESTED = 3


def page() -> None:
    state = st.session_state
    for name, value in (("turns", []), ("going", None), ("shuffle", 0)):
        state.setdefault(name, value)
    models = known_models()
    _toolbar()
    lead = st.empty()
    columns = st.columns(state.num_panes, gap="medium")
    chosen = [_choose(pane, column, models) for pane, column in enumerate(columns)]
    state.chosen = [model.id for model in chosen]
    terms, names, probes = _knowledge(chosen, models)
    if names:
        about = as_html([(", ".join(names.splitlines()), False)])
        lead.html(f'<div class="lead">One question, every model. <mark>Marked</mark>: real knowledge of {about}.</div>')
    slots: list[DeltaGenerator] = []
    for pane, column in enumerate(columns):
        with column:
            slots.append(_show_pane(pane, chosen[pane], terms, names))
    _suggest(probes)
    st.chat_input("Ask all models", key="prompt", on_submit=_submit, disabled=state.going is not None)
    if state.going is not None:
        _follow(state.going, slots, terms, names)


def _toolbar() -> None:
    state = st.session_state
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.popover("Sampling", icon=":material/tune:"):
            temperature = st.slider(
                "Temperature",
                0.0,
                2.0,
                kept_value("temperature", 0.0),
                0.05,
                key="temperature",
                help="0: always the most likely word",
            )
            top_p = st.slider("Top-p", 0.05, 1.0, kept_value("top_p", 1.0), 0.05, key="top_p")
            max_tokens = st.number_input("Max tokens", 1, 4096, kept_value("max_tokens", 256), 16, key="max_tokens")
            state.sampling = Sampling(temperature, top_p, max_tokens)
        has_third = st.toggle("Third model", key=keep("third", False), disabled=state.going is not None)
        state.num_panes = 3 if has_third else 2
        st.button("Clear", icon=":material/delete:", on_click=_clear, disabled=not state.turns)
        with st.popover("Export", icon=":material/download:", disabled=not state.turns):
            st.download_button(
                "JSON", as_json(state.turns, asdict(state.sampling)), "conversation.json", on_click="ignore"
            )
            st.download_button("Markdown", as_document(state.turns), "conversation.md", on_click="ignore")
        if state.going is not None:
            st.button("Stop", icon=":material/stop_circle:", type="primary", on_click=_stop)


def _choose(pane: int, column: DeltaGenerator, models: Sequence[Model]) -> Model:
    """The pane's model. Initially the base model, the first unlearned one, and one behind its guardrail prefix."""
    ids = [model.id for model in models]
    kind = ("base", "unlearned", "guarded")[pane]
    first = next((model.id for model in models if model.kind == kind), ids[min(pane, len(ids) - 1)])
    with column:
        picked = st.selectbox(f"Model {pane + 1}", ids, key=keep(f"model{pane}", first, ids))
    return models[ids.index(picked)]


def _knowledge(chosen: Sequence[Model], models: Sequence[Model]) -> tuple[list[str], str, list[dict[str, Any]]]:
    """Leak terms, the topics' own names, and probes of the chosen models' runs."""
    terms: dict[str, None] = {}
    names: list[str] = []
    probes: list[dict[str, Any]] = []
    for model in relevant_runs(chosen, unlearned(models)):
        try:
            run = run_of(model)
        except ServiceError as error:
            st.caption(as_markdown(f"Nothing is marked for {model.id}: {error}"))
            continue
        for topic in run["topics"]:
            terms |= dict.fromkeys(topic["terms"])
            names += [topic["name"], *topic.get("aliases", ())]
        probes += run["probes"]
    return list(terms), "\n".join(names), probes


def _show_pane(pane: int, model: Model, terms: Sequence[str], names: str) -> DeltaGenerator:
    """Draw the pane's meter and conversation. Returns the place for its running answer."""
    turns: list[Turn] = st.session_state.turns
    st.html(_meter(model.kind, *meter(turns, pane, model.id, terms, names)))
    slot = st.empty()
    for index, turn in enumerate(turns):
        reply = turn.reply(pane)
        if reply is None:
            continue
        with st.container(border=True):
            st.html(f'<div class="asked">{as_html([(turn.question, False)])}</div>')
            slot = st.empty()
            slot.html(_answer(reply, telling(terms, "\n".join((names, *turn.said)))))
            if index == len(turns) - 1 and reply.state in ("cut", "failed"):
                st.button("Ask again", key=f"again{pane}", icon=":material/replay:", on_click=_again)
    return slot


def _meter(kind: str, num_leaking: int, num_answers: int) -> str:
    share = round(100 * num_leaking / num_answers) if num_answers else 0
    answers = "1 answer leaks" if num_answers == 1 else f"{num_answers} answers leak"
    told = f"{num_leaking} of {answers} ({share} %)" if num_answers else "No answers yet"
    bar = f'<div><i style="width: {share}%"></i></div>'
    return f'<div class="meter"><span class="key {as_html([(kind, False)])}"></span>{told}{bar}</div>'


def _answer(reply: Reply, terms: Sequence[str]) -> str:
    note = reply.note
    if silent := reply.silent_seconds:
        note = f"The service is slow: no token for {silent:.0f} s."
    parts = [
        f'<span class="by">{as_html([(reply.model, False)])}</span>',
        f'<div class="answer{" running" if reply.is_running else ""}">{as_html(marked(reply.text, terms))}</div>',
        f'<span class="note" role="status">{as_html([(note, False)])}</span>' if note else "",
    ]
    return "".join(parts)


def _suggest(probes: Sequence[dict[str, Any]]) -> None:
    """Draw buttons with held-out probes and neighbours as questions."""
    state = st.session_state
    if not probes:
        return
    titles = {"forget": "To be forgotten", "near": "To be kept"}
    with st.expander("Suggested questions", expanded=True, icon=":material/lightbulb:"):
        for group, title in titles.items():
            questions = sorted({probe["question"] for probe in probes if probe["group"] == group})
            if not questions:
                continue
            with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
                st.caption(title)
                if group == "forget":
                    st.button("Others", icon=":material/shuffle:", type="tertiary", on_click=_shuffle)
            picked = random.Random(state.shuffle).sample(questions, min(_NUM_SUGGESTED, len(questions)))
            with st.container(horizontal=True, key=f"suggested-{group}"):
                for index, question in enumerate(picked):
                    st.button(
                        as_markdown(question),
                        key=f"{group}{index}",
                        on_click=_ask,
                        args=(question,),
                        disabled=state.going is not None,
                    )


def _follow(going: Answers, slots: Sequence[DeltaGenerator], terms: Sequence[str], names: str) -> None:
    """Show the answers as they stream, until all have ended."""
    turn: Turn = st.session_state.turns[-1]
    new = telling(terms, "\n".join((names, *turn.said)))
    shown, drawn = [""] * len(slots), 0.0
    while going.is_running:
        going.watch(_WATCH_SECONDS)
        # Streamlit can only interrupt a script that draws: for Stop, and when the reader leaves.
        is_due = time.monotonic() - drawn > _DRAW_SECONDS
        for pane, slot in enumerate(slots):
            reply = turn.reply(pane)
            if reply is not None and ((now := _answer(reply, new)) != shown[pane] or is_due):
                slot.html(now)
                shown[pane], drawn = now, time.monotonic()
    st.session_state.going = None
    st.rerun()


def _submit() -> None:
    _ask(st.session_state.prompt or "")


def _ask(question: str) -> None:
    """Ask every pane's model a question, each with its own conversation."""
    state = st.session_state
    question = question.strip()
    if not question or state.going is not None:
        return
    turns: list[Turn] = state.turns
    asked = [
        Question(model, [*_history(turns, pane, model), {"role": "user", "content": question}], replace(state.sampling))
        for pane, model in enumerate(state.chosen)
    ]
    state.going = Answers(service(), asked)
    turns.append(Turn(question, (*(turn.question for turn in turns), question), state.going.replies))


def _history(turns: Sequence[Turn], pane: int, model: str) -> list[dict[str, str]]:
    return [message for turn in turns for message in turn.messages(pane, model)]


def _again() -> None:
    _ask(st.session_state.turns.pop().question)


def _stop() -> None:
    if st.session_state.going is not None:
        st.session_state.going.stop()


def _clear() -> None:
    _stop()
    st.session_state.turns, st.session_state.going = [], None


def _shuffle() -> None:
    st.session_state.shuffle += 1
