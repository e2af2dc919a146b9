"""The command `fedpgp`, also as `python -m fedpgp`: runs the command line in a process of its own."""

import atexit
import os
import sys
from contextlib import suppress

from fedpgp import cli


def main() -> None:
    """Run the command line, and end the process without taking apart what it has imported, which takes a second.

    Before that threads are joined and functions of `atexit` are called as usual, such as Ray's.
    """
    status = 1  # of an exception that nobody expected

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(status)

    atexit.register(leave)  # the first to be registered is the last to be called
    try:
        cli.main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise


if __name__ == "__main__":
    main()
