"""Leaky integrate-and-fire neurons in whole numbers."""
