"""One job: its configuration, the training loop, evaluation, and the model it leaves."""
