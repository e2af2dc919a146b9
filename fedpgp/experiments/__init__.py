"""Plan, estimate, run and resume experiments; `sweeps/` runs many of them on Ray Tune."""
