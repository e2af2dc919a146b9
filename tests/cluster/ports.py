"""Free ports for the services of tests."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_ports(count):
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
