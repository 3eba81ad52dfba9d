"""A benchmark harness for domain generalization: from one sweep to leave-one-domain-out tables."""

__version__ = "0.1.0"
