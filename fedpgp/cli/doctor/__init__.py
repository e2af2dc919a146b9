"""The command `fedpgp doctor`: checks of the installation, the machine, the storage root, and an experiment's needs."""
