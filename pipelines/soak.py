"""Run and sweep for half an hour and report what grows: `python pipelines/soak.py [--minutes 30] [--json]`.

The same as `fedpgp bench soak`. Needs only the installed package, so a copy runs anywhere.
"""

import sys

from fedpgp.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "soak"]
    main()
