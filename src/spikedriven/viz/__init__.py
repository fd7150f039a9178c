"""Pictures from records: this room reads measured numbers and knows nothing of what made them.

It imports neither torch nor any other room but `records` and `errors`.
"""
