"""A look before work begins: at the installation, the machine, what lies on disk, and what an experiment would need."""
