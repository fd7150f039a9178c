"""Verbs: parse, compose the rooms below, print.

Invariant: only this room prints, and its parser imports neither torch nor Lightning.
"""
