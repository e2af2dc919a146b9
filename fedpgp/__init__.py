"""fedpgp: federated prompt learning on frozen CLIP models, comparably and at cluster scale."""

__version__ = "0.1.0"
