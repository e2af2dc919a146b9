"""Where client work runs: in this process or on Ray actors, with equal results."""
