"""`python -m fedpgp` is the command `fedpgp`."""

from fedpgp.cli import main

if __name__ == "__main__":
    main()
