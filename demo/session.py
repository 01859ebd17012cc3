"""The state of all pages: the service, its last known models, and the banner while it does not answer."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any, cast

import streamlit as st
from client import Model, Service, ServiceError, from_environment
from escaping import as_markdown

LOOK_SECONDS = 2.0  # between looks at a service that does not answer
LISTEN_SECONDS = 5.0  # between looks at one that answers
HASH = {Service: lambda service: service.endpoint, Model: lambda model: model.root}


def service() -> Service:
    return _connect(*from_environment())


def known_models() -> list[Model]:
    """The served models. While the service does not answer, the last known ones, below a banner that disappears by itself."""
    try:
        st.session_state.models = _models(service())
    except ServiceError as error:
        if not st.session_state.get("models"):
            raise
        wait(error)
    else:
        _listen(st.session_state.models)
    return cast(list[Model], st.session_state.models)


def wait(error: ServiceError) -> None:
    """Show the error, and reload the page as soon as the service answers."""
    if error.retry_seconds is None:
        st.error(as_markdown(str(error)), icon=":material/block:")
    else:
        _look_again(str(error), time.monotonic())


def run_of(model: Model) -> dict[str, Any]:
    return _run(service(), model.root)


def report_of(model: Model) -> dict[str, Any]:
    return _report(service(), model.root)


def unlearned(models: Sequence[Model]) -> list[Model]:
    """Unlearned models, those that an alias points to first."""
    return sorted((model for model in models if model.kind == "unlearned"), key=lambda model: model.is_version)


def keep(key: str, first: Any, options: Sequence[Any] | None = None) -> str:
    """The key of a widget that keeps its value while another page is shown. Streamlit forgets the values of widgets that a page does not draw.

    Args:
        first: the value at the start. It is also used if the last value was removed from the options.
    """
    state = st.session_state
    kept = state.setdefault("kept", {})
    if key not in state:
        state[key] = kept.get(key, first)
    if options is not None and state[key] not in options:
        state[key] = first
    kept[key] = state[key]
    return key


def kept_value(key: str, first: float) -> Any:
    """The initial value of a keyed number in a popover, so that it keeps its value as with `keep`.

    Streamlit does not pass a value in the session's state to a widget that is not open: the number would be reset to its minimum.
    """
    state = st.session_state
    kept, started = state.setdefault("kept", {}), state.setdefault("started", {})
    if key in state:
        kept[key] = state[key]
    else:
        started[key] = kept.get(key, first)
    return started[key]


def choose_run(models: Sequence[Model]) -> Model:
    """The unlearned model whose run a page shows. It is the same on all pages."""
    by_id = {model.id: model for model in unlearned(models)}
    if not by_id:
        st.info("No unlearned model is served yet: publish one with `unlearn-ray publish RUN`.", icon=":material/info:")
        st.stop()
    ids = list(by_id)
    return by_id[st.selectbox("Unlearned model", ids, key=keep("run", ids[0], ids))]


@st.fragment(run_every=LOOK_SECONDS)
def _look_again(message: str, since: float) -> None:
    st.warning(f"{as_markdown(message)} Looking again every {LOOK_SECONDS:.0f} seconds.", icon=":material/cloud_off:")
    if time.monotonic() - since < LOOK_SECONDS / 2:
        return  # the page itself, which has just looked, draws the banner
    try:
        _models(service())
    except ServiceError:
        return
    st.rerun()


@st.fragment(run_every=LISTEN_SECONDS)
def _listen(models: list[Model]) -> None:
    """Reload the page when the service stops answering, or its models change, also if the reader clicks nothing."""
    with contextlib.suppress(ServiceError):  # the reloaded page shows the error
        if _models(service()) == models:
            return
    st.rerun()


@st.cache_resource
def _connect(endpoint: str, key: str) -> Service:
    return Service(endpoint, key)


@st.cache_data(ttl=3, show_spinner=False, hash_funcs=HASH)
def _models(service: Service) -> list[Model]:
    return service.models()


# Cached by version, because a version never changes.
@st.cache_data(ttl=3600, max_entries=50, show_spinner="Reading the run", hash_funcs=HASH)
def _run(service: Service, version: str) -> dict[str, Any]:
    return service.run(version)


@st.cache_data(ttl=3600, max_entries=50, show_spinner="Reading the report", hash_funcs=HASH)
def _report(service: Service, version: str) -> dict[str, Any]:
    return service.report(version)
