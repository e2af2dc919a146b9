"""Connects two network interfaces, and delays or loses the packets of the first: slow_link.py FROM TO SECONDS SHARE."""

from __future__ import annotations

import random
import selectors
import socket
import sys
import time
from collections import deque

ALL_PROTOCOLS = 3
SOL_PACKET, VNET_HEADER, IGNORE_OUTGOING = 263, 15, 23
LARGEST = 70_000
"""Bytes of a packet that the kernel has not cut up yet, with its header."""


def opened(interface: str) -> socket.socket:
    """A socket that receives what arrives at the interface, with the kernel's notes on checksums still to compute."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.setsockopt(SOL_PACKET, VNET_HEADER, 1)
    found.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    found.bind((interface, ALL_PROTOCOLS))
    return found


def connect(first: str, second: str, delay: float, loss: float) -> None:
    """Pass packets on in both directions, for ever."""
    host, switch = opened(first), opened(second)
    generator, waiting = random.Random(0), deque[tuple[float, bytes]]()
    with selectors.DefaultSelector() as selector:
        selector.register(host, selectors.EVENT_READ)
        selector.register(switch, selectors.EVENT_READ)
        while True:
            pause = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
            for key, _ in selector.select(pause):
                packet = key.fileobj.recv(LARGEST)  # type: ignore[union-attr]
                if key.fileobj is switch:
                    host.send(packet)
                elif generator.random() >= loss:
                    waiting.append((time.monotonic() + delay, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                switch.send(waiting.popleft()[1])


if __name__ == "__main__":
    connect(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
