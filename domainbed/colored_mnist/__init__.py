"""The Colored MNIST proof of concept of IRM and Fishr: full-batch training on two environments."""
