"""Extract the frozen features of an experiment: `python pipelines/extract_features.py CONFIG [a.b=value ...]`.

The same as `fedpgp features`.
Needs only the installed package, so a copy runs anywhere: see "On a cluster" in the README.
"""

import sys

from fedpgp.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "features")
    main()
