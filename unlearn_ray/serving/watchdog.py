"""A process beside a replica that ends the replica's streams with an error, should the replica be killed.

Who is killed writes no last event, and HAProxy can add none to an answer that it passes on. So the watchdog holds the replica's connections
too: it is handed the descriptor of one when a stream begins (SCM_RIGHTS, see unix(7)), and told when the stream has ended. The events
themselves never pass through it; a stream costs two short messages.

This file is the watchdog's program as well: with nothing but the standard library it starts in 20 ms and takes 10 MiB.
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
    """The replica's side. The process starts with the first stream, and again should it be lost.

    Args:
        last: the event with which a stream ends that its replica can't end.
    """

    def __init__(self, last: bytes) -> None:
        # HTTP/1.1's chunked coding (RFC 9112, 7.1), as the replica's server writes events: one chunk, and the last one.
        self._last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last)
        self._numbers = itertools.count(1)
        self._descriptors: dict[Address, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def watch(self, client: Address | None) -> int | None:
        """Watch a stream that has begun on the connection to `client` (host, port).

        Returns:
            What `unwatch` wants once it has ended; None where it can't be watched, and would break off as every connection of a lost process.
        """
        descriptor = self._descriptor(client) if client else None
        if descriptor is None:
            return None
        number = next(self._numbers)
        return number if self._tell(number, descriptor) else None

    def unwatch(self, number: int | None) -> None:
        """The stream has ended, or its client left."""
        if number is not None and self._socket is not None:
            self._tell(number)

    def close(self) -> None:
        """End the process; streams that it watches are not ended."""
        if self._process is not None and self._socket is not None:
            self._process.kill()  # before its socket closes, which says that the replica is gone
            self._process.wait()
            self._socket.close()
        self._process = self._socket = None

    def _tell(self, number: int, *descriptors: int) -> bool:
        """Never waits. One that was lost, or is so far behind that it takes no message, is given up with all that it watches."""
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
                start_new_session=True,  # what ends the replica's process group leaves it
            )
        return ours

    def _descriptor(self, client: Address) -> int | None:
        """ASGI names a connection by its client alone. Proxies keep connections, so that looking through all descriptors is rare."""
        found = self._descriptors.get(client)
        if found is None or _client_of(found) != client:
            with os.scandir("/proc/self/fd") as entries:
                clients = {_client_of(descriptor): descriptor for descriptor in (int(entry.name) for entry in entries)}
            self._descriptors = {client: descriptor for client, descriptor in clients.items() if client}
            found = self._descriptors.get(client)
        return found


def _client_of(descriptor: int) -> Address | None:
    """Whom this descriptor is connected to, by TCP."""
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
        connection.detach()  # which is the replica's


def stand_by(replica: socket.socket) -> None:
    """The watchdog's work: until the replica is gone; then the last words to whom it left in the middle of a stream."""
    last = replica.recv(_MAX_LAST_BYTES)
    replica.setblocking(False)
    watched: dict[bytes, int] = {}
    poll = select.poll()
    poll.register(replica, select.POLLIN)
    # A child that the replica forked would keep its end of the socket open. Linux before 5.3, and a Python
    # that was built there, know no descriptors of processes.
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
        # A client that reads too slowly has no room for it: its stream breaks off.
        with contextlib.suppress(OSError):
            os.write(descriptor, last)


if __name__ == "__main__":
    stand_by(socket.socket(fileno=int(sys.argv[1])))
