"""Run a sweep: `python pipelines/sweep.py CONFIG [a.b=value ...]`, the same as `fedpgp sweep`.

Needs only the installed package, so a copy runs anywhere: see "On a cluster" in the README.
"""

import sys

from fedpgp.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "sweep")
    main()
