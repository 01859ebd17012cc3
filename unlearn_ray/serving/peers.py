"""The figures of all replicas together. A scraper reaches only the proxy, which passes each request to some single replica."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

import aiohttp

from unlearn_ray.serving.metrics import OWN, TEXT

Gather = Callable[[str], Awaitable[list[str]]]

log = logging.getLogger(__name__)
_SECONDS_TO_ANSWER = 3.0


def peers() -> Gather:
    """A function that returns the figures of every app's running replicas, given a scraper's Authorization header."""
    session: aiohttp.ClientSession | None = None

    async def gather(authorization: str) -> list[str]:
        nonlocal session
        if session is None:
            session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS_TO_ANSWER))
        headers = {"authorization": authorization} if authorization else {}
        texts = await asyncio.gather(*(_ask(session, url, headers) for url in await _replicas()))
        if num_silent := texts.count(""):
            log.warning("%d of %d replicas do not report their figures", num_silent, len(texts))
        return [text for text in texts if text]

    return gather


async def _replicas() -> Iterable[str]:
    """The URL of each replica's figures, from the list that the controller gives HAProxy."""
    import ray
    from ray._common.network_utils import build_address, get_localhost_ip
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        groups = await asyncio.wait_for(
            controller.get_target_groups.remote(from_proxy_manager=True), _SECONDS_TO_ANSWER
        )
    except (TimeoutError, ValueError, ray.exceptions.RayError) as error:
        log.warning("the controller does not list its replicas: %s", type(error).__name__)
        return []
    # HAProxy does the same: a service on loopback listens only there.
    here = {ray.util.get_node_ip_address(): get_localhost_ip()}
    return {
        f"http://{build_address(here.get(target.ip, target.ip), target.port)}{group.route_prefix.rstrip('/')}/metrics?{OWN}"
        for group in groups
        for target in group.targets
        if group.app_name and group.protocol == "HTTP"
    }


async def _ask(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> str:
    """A replica's figures. "" if it is stopping, or is not a replica."""
    try:
        async with session.get(url, headers=headers) as answer:
            return await answer.text() if answer.status == 200 and answer.content_type == TEXT else ""
    except (TimeoutError, aiohttp.ClientError):
        return ""
