"""How images reach the network: which ones are trained on, which make a batch, and where they lie."""
