"""A process beside a replica. If the replica is killed, it ends the replica's streams with an error event.

A killed process sends no final event, and HAProxy can't add one to an answer that it passes on. So the watchdog also holds the replica's
connections. It gets a connection's file descriptor when a stream begins (SCM_RIGHTS, see unix(7)), and a message when the stream ends.
The stream's events never pass through it: a stream costs two short messages.

This file is also the watchdog's program. It imports only the standard library, so it starts in 20 ms and takes 10 MiB.
"""

import contextlib
import itertools
import os
import select
import socket
import subprocess
import sys

Address = tuple[str, int]
_NUMBER_BYTES = 8
_MAX_LAST_BYTES = 1 << 16


class Watchdog:
    """The replica's side. The process starts with the first stream, and restarts if it is lost.

    Args:
        last: the final event for streams whose replica was killed.
    """

    def __init__(self, last: bytes) -> None:
        # HTTP/1.1's chunked coding (RFC 9112, 7.1), in which the replica's server writes events: one chunk, then the empty last chunk.
        self._last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last)
        self._numbers = itertools.count(1)
        self._descriptors: dict[Address, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def watch(self, client: Address | None) -> int | None:
        """Watch a stream that has begun on the connection to `client` (host, port).

        Returns:
            A number for `unwatch`. None if the stream can't be watched: it then breaks off without an event if the replica is killed.
        """
        descriptor = self._descriptor(client) if client else None
        if descriptor is None:
            return None
        number = next(self._numbers)
        return number if self._tell(number, descriptor) else None

    def unwatch(self, number: int | None) -> None:
        """Stop watching a stream that has ended, or whose client has disconnected."""
        if number is not None and self._socket is not None:
            self._tell(number)

    def close(self) -> None:
        """End the watchdog's process. The streams that it watches go on."""
        if self._process is not None and self._socket is not None:
            self._process.kill()  # before its socket closes: the watchdog takes a closed socket for a lost replica
            self._process.wait()
            self._socket.close()
        self._process = self._socket = None

    def _tell(self, number: int, *descriptors: int) -> bool:
        """Send a message without waiting. A watchdog that is lost, or too far behind to take it, is ended with all that it watches."""
        try:
            if self._socket is None:
                self._socket = self._start()
            socket.send_fds(self._socket, [number.to_bytes(_NUMBER_BYTES, "little")], descriptors)
            return True
        except OSError:
            self.close()
            return False

    def _start(self) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            ours.setblocking(False)
            ours.send(self._last)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(its.fileno())],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a signal to the replica's process group must not reach it
            )
        return ours

    def _descriptor(self, client: Address) -> int | None:
        """The file descriptor of the connection to a client. ASGI gives only the client's address, so all descriptors are searched.
        Proxies keep their connections open, so a search is rare.
        """
        found = self._descriptors.get(client)
        if found is None or _client_of(found) != client:
            with os.scandir("/proc/self/fd") as entries:
                clients = {_client_of(descriptor): descriptor for descriptor in (int(entry.name) for entry in entries)}
            self._descriptors = {client: descriptor for client, descriptor in clients.items() if client}
            found = self._descriptors.get(client)
        return found


def _client_of(descriptor: int) -> Address | None:
    """The address at the other end of a descriptor's TCP connection. None if it is not one."""
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        name = connection.getpeername()
        return (name[0], name[1]) if connection.family in (socket.AF_INET, socket.AF_INET6) else None
    except OSError:
        return None
    finally:
        connection.detach()  # the descriptor belongs to the replica and must stay open


def stand_by(replica: socket.socket) -> None:
    """The watchdog's main loop. Wait until the replica is gone, then send the final event to each unfinished stream."""
    last = replica.recv(_MAX_LAST_BYTES)
    replica.setblocking(False)
    watched: dict[bytes, int] = {}
    poll = select.poll()
    poll.register(replica, select.POLLIN)
    # A closed socket is not enough: a child that the replica forked keeps the socket open. Linux before 5.3, and a Python that was
    # built there, have no process descriptors.
    with contextlib.suppress(OSError, AttributeError):
        poll.register(os.pidfd_open(os.getppid()), select.POLLIN)
    is_there = True
    while is_there:
        is_there = all(descriptor == replica.fileno() for descriptor, _ in poll.poll())
        with contextlib.suppress(BlockingIOError):
            while True:
                number, descriptors, _, _ = socket.recv_fds(replica, _NUMBER_BYTES, 1)
                if not number:
                    is_there = False
                    break
                if descriptors:
                    watched[number] = descriptors[0]
                elif number in watched:
                    os.close(watched.pop(number))
    for descriptor in watched.values():
        # The buffer of a client that reads too slowly has no room for the event: its stream breaks off.
        with contextlib.suppress(OSError):
            os.write(descriptor, last)


if __name__ == "__main__":
    stand_by(socket.socket(fileno=int(sys.argv[1])))
