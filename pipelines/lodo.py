"""Hold each domain out once: `python pipelines/lodo.py CONFIG [a.b=value ...]`, the same as `fedpgp lodo`.

Needs only the installed package, so a copy runs anywhere: see "On a cluster" in the README.
"""

import sys

from fedpgp.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "lodo")
    main()
