"""Run and sweep for half an hour and see what grows: `python pipelines/soak.py [--minutes 30] [--json]`.

The same as `fedpgp bench soak`. Needs nothing but the installed package, so it runs where it is copied to.
"""

import sys

from fedpgp.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "soak"]
    main()
