"""Delays every packet of a netfilter queue: what netem does, for kernels that were built without it.

    python -I benchmarks/delay_line.py SECONDS

Runs in the network namespace of a receiver whose iptables send what arrives to queue 0; says "ready", and ends with its
process. The kernel keeps the packets and tells only their numbers, so that this costs little.
"""

import collections
import select
import socket
import struct
import sys
import time

_NETFILTER, _NO_ENOBUFS, _SOL_NETLINK, _SO_RCVBUFFORCE = 12, 5, 270, 33
_PACKET, _CONFIG, _VERDICT_BATCH = 0x300, 0x302, 0x303  # of the subsystem "queue"
_COMMAND, _PARAMETERS, _LENGTH, _MASK, _FLAGS = 1, 2, 3, 4, 5  # attributes of a configuration
_BIND, _METADATA_ONLY, _WHOLE_SEGMENTS, _ACCEPT, _VERDICT_HEADER = 1, 1, 4, 1, 2
_PACKETS_HELD, _BUFFER = 1_000_000, 2**24


def message(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    """A message to queue 0: headers of netlink and of netfilter, then attributes, each padded to four bytes."""
    body = struct.pack("!BBH", 0, 0, 0)
    for number, value in attributes:
        body += struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 1, 0, 0) + body


def open_queue() -> socket.socket:
    """The queue, bound; packets wait in it from here on."""
    queue = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
    queue.bind((0, 0))
    queue.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    queue.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
    queue.send(message(_CONFIG, (_COMMAND, struct.pack("!BBH", _BIND, 0, socket.AF_INET))))
    queue.send(message(_CONFIG, (_PARAMETERS, struct.pack("!IB", 0, _METADATA_ONLY))))
    flags = struct.pack("!I", _WHOLE_SEGMENTS)
    queue.send(message(_CONFIG, (_MASK, flags), (_FLAGS, flags)))
    queue.send(message(_CONFIG, (_LENGTH, struct.pack("!I", _PACKETS_HELD))))
    queue.setblocking(False)
    return queue


def arrived(queue: socket.socket) -> list[int]:
    """Numbers of the packets that have come."""
    found = []
    while True:
        try:
            received = queue.recv(4096)
        except BlockingIOError:
            return found
        (kind,) = struct.unpack_from("=H", received, 4)
        if kind == _PACKET:
            found.append(*struct.unpack_from("!I", received, 24))


def release(queue: socket.socket, last: int) -> None:
    """Lets all packets go up to this number."""
    queue.send(message(_VERDICT_BATCH, (_VERDICT_HEADER, struct.pack("!II", _ACCEPT, last))))


def main() -> None:
    delay, queue, waiting = float(sys.argv[1]), open_queue(), collections.deque()
    print("ready", flush=True)
    while True:
        rest = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        select.select([queue], [], [], rest)
        numbers, now, due = arrived(queue), time.monotonic(), None
        if numbers:
            waiting.append((now + delay, numbers[-1]))
        while waiting and waiting[0][0] <= now:
            due = waiting.popleft()[1]
        if due is not None:
            release(queue, due)


if __name__ == "__main__":
    main()
