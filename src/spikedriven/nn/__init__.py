"""Layers shared by models: parameters around core functions, and the probe that watches spikes.

Invariant: no layer has arithmetic of its own, and none keeps anything between two calls.
"""
