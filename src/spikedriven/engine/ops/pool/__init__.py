"""Spikes and membranes pooled over 3x3 windows."""
