"""Everything that can go wrong for a user, in one family.

A message is one sentence: what is, what must be, what to do. The command line prints it and exits
with code 2; nothing else in the package catches it.
"""


class SpikeDrivenError(Exception):
    """Base of every error that this package raises on purpose."""

    of_this_process = False
    """Whether, of several processes, this one alone met it; else the first speaks for all."""


class ConfigError(SpikeDrivenError):
    """A setting is unknown or has a value that cannot work."""


class ShapeError(SpikeDrivenError):
    """A tensor has the wrong rank, size or content for the place it was given to."""


class CheckpointError(SpikeDrivenError):
    """A file of weights is damaged, hostile, or belongs to another network."""


class DataError(SpikeDrivenError):
    """A dataset or an image is missing, unreadable, or contradicts its description."""


class BackendError(SpikeDrivenError):
    """A device or an optional package that was asked for is not there."""
