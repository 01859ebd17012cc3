"""Chooses the replica for a request: the one whose cache holds the conversation so far, unless it is busier than the others.

Ray's PrefixCacheAffinityRouter learns from the requests that pass through it. With direct streaming no request does. It then knows no
prompts and no loads, and sends every request to the same replica (benchmarks/soak.py, scenario `tide`).

This router learns nothing: the beginning of a conversation alone decides. Rendezvous hashing (Thaler and Ravishankar, 1998) ranks the
replicas per conversation. The first one with room takes the request, as in consistent hashing with bounded loads (Mirrokni, Thorup and
Zadimoghaddam, 2018, arXiv:1608.01350).
"""

import asyncio
import json
import math
import time
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any
from uuid import uuid4

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

_BALANCE = 1.25  # a replica's greatest load, as a multiple of the mean ...
_SLACK = 2  # ... plus so many requests, because a handful is not a load
_PROMPT_CHARS = 256  # of a completion's prompt
_SECONDS_BETWEEN_LOOKS = 0.25
_PATIENCE = 4  # doublings of the tenth of a second that Ray waits for a replica to report its load


def key_of(body: Any) -> str:
    """The part of a request that stays the same through a conversation: the model, and the messages up to the user's first one.

    Args:
        body: a request with its fields as attributes. For a completion the beginning of the prompt is used.
    """
    model, messages = getattr(body, "model", ""), getattr(body, "messages", None)
    if isinstance(messages, list):
        roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
        opening = messages[: roles.index("user") + 1] if "user" in roles else messages
        return f"{model} {json.dumps(opening, sort_keys=True, default=str)}"
    prompt = getattr(body, "prompt", None)
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, default=str)
    return f"{model} {text[:_PROMPT_CHARS]}"


def choose(key: str, loads: Mapping[str, int]) -> str:
    """The replica that answers a key.

    Args:
        loads: requests in flight per replica; at least one replica.
    """
    room = math.ceil(_BALANCE * (sum(loads.values()) + 1) / len(loads)) + _SLACK
    # surrogatepass: half a surrogate pair must not fail here. The gate refuses it.
    marks = {name: blake2b(f"{name} {key}".encode(errors="surrogatepass"), digest_size=8).digest() for name in loads}
    ranked = sorted(loads, key=marks.__getitem__)
    return next(name for name in ranked if loads[name] < room)  # one is below the mean, and so below `room`


class ConversationRouter(RequestRouter):
    """Ray Serve's interface to `choose`.

    The router sees when a request begins, but not when it ends. So it asks the replicas for their loads a few times per second while
    requests arrive, and adds the requests that it sends in between.
    """

    def initialize_state(self) -> None:
        self._loads: dict[str, int] = {}
        self._look: asyncio.Task[None] | None = None
        self._looked_at = 0.0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The chosen replica, or an empty list if there are none."""
        if not candidate_replicas:
            return []
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        self._look_at(candidate_replicas)
        self._loads = {name: self._loads.get(name, 0) for name in replicas}
        body = pending_request.args[0] if pending_request is not None and pending_request.args else None
        name = choose(key_of(body) if body is not None else uuid4().hex, self._loads)
        self._loads[name] += 1
        return [[replicas[name]]]

    def _look_at(self, replicas: list[RunningReplica]) -> None:
        if self._look is not None and not self._look.done():
            return
        if time.monotonic() > self._looked_at + _SECONDS_BETWEEN_LOOKS:
            self._looked_at = time.monotonic()
            self._look = asyncio.ensure_future(self._ask(replicas))

    async def _ask(self, replicas: list[RunningReplica]) -> None:
        for replica, load in await self._probe_queue_lens(replicas, _PATIENCE):
            if load is not None:
                self._loads[replica.replica_id.unique_id] = load
