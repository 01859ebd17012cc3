"""A run's report: scores, plots, the worst leaks, and the rows of training and evaluation."""

from typing import Any

import charts
import streamlit as st
from charts import GROUPS, LABELS
from client import Model, Refused, Service
from escaping import as_html, as_markdown
from figures import DOUBT_LEGEND, alarm, leaks_found, num_forget_answers, scores, verdict
from session import HASH, choose_run, keep, known_models, report_of, run_of, service

from unlearn_ray.words import marked

_PAGE_ROWS = 25
_MAX_LEAKS = 20
_LEAK_PAGE_ROWS = 500  # the service's limit per request
_MAX_LEAK_PAGES = 8
_FIRST_COLUMNS = ("topic", "model", "group", "question", "truth", "answer", "drop", "leaked_terms")
_TABLES = {
    "forget": "Forget: trained replacement answers",
    "retain": "Retain: answers that training keeps",
    "answers": "Guarded answers, kept and dropped",
    "evaluation": "Evaluation: probes and answers",
}


def page() -> None:
    model = choose_run(known_models())
    run = run_of(model)
    try:
        report = report_of(model)
    except Refused as error:
        st.info(as_markdown(str(error)), icon=":material/info:")
        return
    topics = ", ".join(report["topics"])
    st.subheader(as_markdown(f"What {model.id} forgot of {topics}"), anchor=False)
    if said := alarm(report):
        st.warning(as_markdown(said), icon=":material/warning:")
    st.markdown(verdict(report))
    about = f"Run {report['run']}, version {run['version']} of {run['created'][:10]}, base model {report['model']}."
    st.caption(as_markdown(about))
    for note in report["notes"]:
        st.caption(f":material/info: {as_markdown(note)}")
    _scores(report)
    _plots(report)
    _worst_leaks(model, report)
    _rows(model, run, report)


def _scores(report: dict[str, Any]) -> None:
    st.markdown("#### Scores")
    for tab, group in zip(st.tabs([title.capitalize() for title in GROUPS.values()]), GROUPS, strict=True):
        with tab:
            head = "".join(f"<th>{as_html([(title, False)])}</th>" for title in ("", "n", *LABELS.values()))
            rows = "".join(
                f"<tr>{''.join(f'<td>{as_html([(cell, False)])}</td>' for cell in row)}</tr>"
                for row in scores(report, group)
            )
            st.html(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>')
    st.caption(
        "In brackets: 95 % intervals. Worst wording: a fact counts when any wording still brings it out. Choice: the true answer is likelier"
        f" than each wrong one. {as_markdown(DOUBT_LEGEND)}."
    )


def _plots(report: dict[str, Any]) -> None:
    plots = {
        "Forgotten (recall; further left is better)": charts.forgotten(report),
        "Kept (recall; base and unlearned should meet)": charts.kept(report),
        "Probability of the true answer": charts.truth_probability(report),
        "Loss": charts.losses(report),
    }
    drawn = [(title, chart) for title, chart in plots.items() if chart is not None]
    for start in range(0, len(drawn), 2):
        for column, (title, chart) in zip(st.columns(2, gap="medium"), drawn[start : start + 2], strict=False):
            with column:
                st.markdown(f"**{title}**")
                st.altair_chart(chart, width="stretch")


def _worst_leaks(model: Model, report: dict[str, Any]) -> None:
    st.markdown("#### Worst leaks")
    leaking, num_read = leaking_rows(service(), model)
    num_answers = num_forget_answers(report)
    found = leaks_found(len(leaking), num_read, num_answers)
    if not leaking and num_read >= num_answers > 0:
        st.success(f"{found}.", icon=":material/check:")
        return
    more = f", the worst {_MAX_LEAKS} shown" if len(leaking) > _MAX_LEAKS else ""
    st.caption(f"{found}{more}.")
    for row in leaking[:_MAX_LEAKS]:
        with st.container(border=True):
            st.html(
                f'<div class="asked">{as_html([(row["question"], False)])}</div>'
                f'<div class="answer">{as_html(marked(row["answer"], row["leaked_terms"]))}</div>'
                f'<span class="by">truth: {as_html([(row["truth"], False)])}</span>'
            )


@st.cache_data(ttl=3600, max_entries=20, show_spinner="Looking for leaks", hash_funcs=HASH)
def leaking_rows(service: Service, model: Model) -> tuple[list[dict[str, Any]], int]:
    """Answers of the unlearned model with a leaked term in their own text, worst first, and the number of answers read."""
    found: list[dict[str, Any]] = []
    num_read = 0
    wanted = {"model": "unlearned", "group": "forget", "reason": "kept"}
    for _ in range(_MAX_LEAK_PAGES):
        page = service.rows(model.root, "evaluation", offset=num_read, limit=_LEAK_PAGE_ROWS, **wanted)
        for row in page["rows"]:
            if num := sum(is_term for _, is_term in marked(row["answer"] or "", row["leaked_terms"] or ())):
                found.append(row | {"num_marked": num})
        num_read += len(page["rows"])
        if num_read >= page["total"]:
            break
    worst = sorted(found, key=lambda row: (-(row.get("fact_recall") or 0), -row["num_marked"], row["question"]))
    return worst, num_read


def _rows(model: Model, run: dict[str, Any], report: dict[str, Any]) -> None:
    """The rows of a table, filtered and paged by the service."""
    st.markdown("#### Rows")
    first, second = st.columns(2)
    table = first.selectbox("Table", list(_TABLES), format_func=_TABLES.__getitem__, key=keep("table", "forget"))
    contains = second.text_input("Text contains", key=keep("contains", ""), placeholder="in question or answer")
    topics = ["", *(topic["name"] for topic in run["topics"])]
    topic = first.selectbox("Topic", topics, format_func=lambda name: name or "all", key=keep("topic", "", topics))
    drops = {
        "answers": set(report["stages"].get("answers", {}).get("drops", {})),
        "evaluation": {reason for reasons in report["unanswered"].values() for reason in reasons},
    }
    has_reasons = table in drops
    reasons = ["", "kept", *sorted(drops[table])] if has_reasons else [""]
    reason = second.selectbox(
        "Verdict",
        reasons,
        format_func=lambda name: {"": "all", "kept": "kept"}.get(name, f"dropped: {name}"),
        key=keep("reason", "", reasons),
        disabled=not has_reasons,
    )
    filters = {"topic": topic, "contains": contains, "reason": reason}
    # One key per filter: a new filter starts at its first page.
    number = st.session_state.get(key := f"page {table} {sorted(filters.items())}", 1)
    found = service().rows(model.root, table, offset=(number - 1) * _PAGE_ROWS, limit=_PAGE_ROWS, **filters)
    num_pages = max(1, -(-found["total"] // _PAGE_ROWS))
    rows = "1 row" if found["total"] == 1 else f"{found['total']:,} rows"
    st.caption(f"{rows}, page {number} of {num_pages}")
    columns = [name for name in _FIRST_COLUMNS if name in found["columns"]]
    columns += [name for name in found["columns"] if name not in columns and name != "id"]
    listed = [{name: _plain(row.get(name)) for name in columns} for row in found["rows"]]
    st.dataframe(listed, width="stretch", hide_index=True, column_order=columns)
    if num_pages > 1:
        st.number_input("Page", 1, num_pages, key=key)


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
