"""Sweeps: which jobs they have, how far each job is, and the launchers that run them."""
