"""Spikes through weights: a convolution that adds the rows of what fired."""
