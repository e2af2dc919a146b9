"""Extract the frozen features of an experiment: `python pipelines/extract_features.py CONFIG [a.b=value ...]`.

The same as `fedpgp features`.
Needs nothing but the installed package, so it runs where it is copied to: see "On a cluster" in the README.
"""

import sys

from fedpgp.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "features")
    main()
