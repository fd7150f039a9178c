"""Learning: recipes, Lightning's Trainer around the model, and the run folder that it leaves.

Invariant: what a run computes depends on its recipe, its data and its seed, and on nothing else.
"""
