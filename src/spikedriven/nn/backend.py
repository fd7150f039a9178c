"""Asking for an implementation: the same one in every layer of a model."""

from torch import nn

from spikedriven.core.backend import check_name


def use_backend(model: nn.Module, backend: str) -> None:
    """Ask every layer of a model for one implementation, from its next call on.

    Args:
        model: Any model built from this package's layers; fresh ones are set to `auto`.
        backend: `auto` takes the fused kernels of the tensors' device where there are some and says
            once, on the log `spikedriven.core.backend`, what it took; `reference` the definitions;
            `triton` the fused kernels of the GPU, and a call that cannot have them raises
            `BackendError`.

    Raises:
        BackendError: There is no such backend.
    """
    check_name(backend)
    for module in model.modules():
        if isinstance(getattr(module, "backend", None), str):
            setattr(module, "backend", backend)  # noqa: B010 - modules of several classes
