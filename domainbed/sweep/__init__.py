"""Many jobs: which ones there are, how far each is, and who runs them."""
