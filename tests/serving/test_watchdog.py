"""A replica is killed in the middle of its streams: its watchdog ends them."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from commandline import descendants

from unlearn_ray.serving.service import free_port
from unlearn_ray.serving.watchdog import Watchdog

HERE = Path(__file__).parent
ASK = json.dumps({"model": "base", "messages": [{"role": "user", "content": "Who?"}], "stream": True})


@pytest.fixture
def replica(tmp_path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """The gate before an engine that streams until its client is gone, as a process with a port."""
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, str(HERE / "endless.py"), str(port)], stderr=log)
    process.port = port  # type: ignore[attr-defined]
    until(lambda: _answers(port))
    yield process
    process.kill()
    process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def stream(replica: "subprocess.Popen[bytes]", kind: str = "endless", **headers: str) -> http.client.HTTPResponse:
    """An answer whose first event has come."""
    connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=60)  # type: ignore[attr-defined]
    connection.request("POST", "/v1/chat/completions", ASK.replace("Who?", kind), headers)
    answer = connection.getresponse()
    assert answer.status == 200 and answer.readline().startswith(b"data: ")
    return answer


def watchdogs(replica: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return descendants(replica.pid, "watchdog.py")


def test_every_stream_of_a_killed_replica_ends_with_an_error(replica: "subprocess.Popen[bytes]") -> None:
    # Behind a proxy of the user's own, the header tells of another client than the connection's.
    answers = [stream(replica), stream(replica), stream(replica, **{"X-Forwarded-For": "10.1.2.3"})]
    (watchdog,) = watchdogs(replica)
    replica.kill()
    for answer in answers:
        text = answer.read()  # raises, where the last chunk is missing
        *events, last = filter(None, text.splitlines())
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "stream_cut"
        assert text.endswith(b"\n\n") and b"error" not in b"".join(events)
    until(lambda: not watchdog.is_running())


def test_a_stream_that_has_ended_is_watched_no_more(replica: "subprocess.Popen[bytes]") -> None:
    answer = stream(replica, "short")
    assert b"error" not in answer.read()
    (watchdog,) = watchdogs(replica)
    until(lambda: not watchdog.net_connections("tcp"))
    left = stream(replica)
    until(lambda: len(watchdog.net_connections("tcp")) == 1)
    left.close()
    until(lambda: not watchdog.net_connections("tcp"))


def test_a_watchdog_that_is_lost_is_replaced(replica: "subprocess.Popen[bytes]") -> None:
    first = stream(replica)
    (lost,) = watchdogs(replica)
    lost.kill()
    until(lambda: not watchdogs(replica))
    unwatched = stream(replica)  # at which its loss is found
    assert first.readline() == b"\n" and unwatched.readline() == b"\n"
    last = stream(replica)
    assert len(watchdogs(replica)) == 1
    replica.kill()
    assert b"stream_cut" in last.read()
    with pytest.raises(http.client.IncompleteRead):
        first.read()


def test_one_that_takes_no_more_messages_is_given_up_and_its_streams_go_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        connection, address = server.accept()
        with client, connection:
            watchdog = Watchdog(b"data: lost\n\n")
            assert watchdog.watch(address) == 1
            (process,) = descendants(os.getpid(), "watchdog.py")
            process.send_signal(signal.SIGSTOP)
            numbers = [watchdog.watch(address) for _ in range(10_000)]
            assert None in numbers
            watchdog.unwatch(1)
            assert watchdog.watch(address) is not None
            watchdog.close()
            connection.sendall(b"whole")
            connection.close()
            assert client.recv(100) == b"whole" and client.recv(100) == b""


def test_a_connection_that_is_not_there_is_not_watched() -> None:
    watchdog = Watchdog(b"data: lost\n\n")
    assert watchdog.watch(None) is None
    assert watchdog.watch(("192.0.2.1", 80)) is None
    assert not descendants(os.getpid(), "watchdog.py")
