"""The demo: what a model knew and what it forgot, side by side, its report, and live probes. Start: `streamlit run demo/app.py`.

It talks to the service over HTTP only. UNLEARN_RAY_ENDPOINT is the service's address, and UNLEARN_RAY_API_KEY its key, if it needs one.
"""

from collections.abc import Callable
from pathlib import Path

import streamlit as st
from client import ServiceError
from session import wait
from views import compare, probe, report


def guarded(page: Callable[[], None]) -> Callable[[], None]:
    """The page, with errors of the service shown instead of raised."""

    def shown() -> None:
        try:
            page()
        except ServiceError as error:
            wait(error)

    return shown


def main() -> None:
    st.set_page_config(page_title="unlearn-ray", page_icon=":material/psychology_alt:", layout="wide")
    st.html(Path(__file__).with_name("style.css"))
    pages = [
        st.Page(guarded(compare.page), title="Compare", icon=":material/compare:", url_path="compare", default=True),
        st.Page(guarded(report.page), title="Report", icon=":material/monitoring:", url_path="report"),
        st.Page(guarded(probe.page), title="Probe", icon=":material/experiment:", url_path="probe"),
    ]
    st.navigation(pages, position="top").run()


main()
