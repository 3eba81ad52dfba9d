"""Everything about a single job: configuration, training loop, evaluation, checkpoints, and the saved model."""
