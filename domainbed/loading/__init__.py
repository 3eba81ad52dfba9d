"""How images reach the network: splits, sampling, decoding, augmentation, caches, and transfer to the device."""
