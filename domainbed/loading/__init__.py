"""From a dataset to the network: splits, sampling, decoding, augmentation, caches, transfer to the device."""
