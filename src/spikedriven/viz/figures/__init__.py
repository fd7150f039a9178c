"""One file for each figure, all with the same four names.

`TITLE` in a few words; `select(records)` returns those that the figure shows, none where it cannot
be drawn; `draw(selected)` returns the figure; `caption(selected)` says in words what is to be seen.
"""
