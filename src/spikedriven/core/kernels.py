"""Numba's `njit`, whose cache on disk knows every source that a kernel is made of.

Numba looks at the file in which a kernel stands, but a kernel also holds what that file imports:
functions that were inlined, constants that were frozen. With Numba's own stamp a changed `simd.py`
would go on running as it was, after an edit as after an upgrade.
"""

import ast
import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

_PACKAGE = Path(__file__).parents[1]
_CONFIG: Any = numba.config


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function as `numba.njit` does, and keep it on disk for as long as it is current.

    Args:
        options: Numba's.

    Returns:
        A decorator.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        before = _CONFIG.CACHE_LOCATOR_CLASSES
        _CONFIG.CACHE_LOCATOR_CLASSES = _LOCATORS
        try:  # Numba chooses where to keep a function when it is decorated
            return numba.njit(**options)(function)
        finally:
            _CONFIG.CACHE_LOCATOR_CLASSES = before

    return compiled


def stamp(file: Path) -> str:
    """Return a digest of a module of this package and of all that it imports from the package.

    What is imported inside a function, or for types alone, is not compiled and does not count.
    """
    digest = hashlib.sha256()
    for source in sorted(_sources(file.resolve())):
        digest.update(source.relative_to(_PACKAGE).as_posix().encode() + b"\0")
        digest.update(source.read_bytes() + b"\0")
    return digest.hexdigest()


def _sources(file: Path) -> set[Path]:
    found, ahead = {file}, [file]
    while ahead:
        ahead += (new := set(_imported(ahead.pop())) - found)
        found |= new
    return found


@lru_cache
def _imported(file: Path) -> tuple[Path, ...]:
    return tuple(
        source
        for name in _imported_names(ast.parse(file.read_bytes()))
        for source in _files(name)
        if source.is_file()
    )


def _imported_names(module: ast.Module) -> Iterator[str]:
    for statement in module.body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module is not None:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def _files(module: str) -> tuple[Path, ...]:
    package, *parts = module.split(".")
    if package != _PACKAGE.name or not parts:
        return ()
    place = _PACKAGE.joinpath(*parts)
    return place.with_suffix(".py"), place / "__init__.py"


class _Stamped:
    _py_file: str

    def get_source_stamp(self) -> str:
        return stamp(Path(self._py_file))


# Numba's own places, in its order: what NUMBA_CACHE_DIR names, beside the source, in the home.
class Named(_Stamped, caching.UserProvidedCacheLocator):
    """The folder that NUMBA_CACHE_DIR names."""


class Beside(_Stamped, caching.InTreeCacheLocator):
    """The source's `__pycache__`."""


class AtHome(_Stamped, caching.UserWideCacheLocator):
    """The user's cache."""


_LOCATORS = ",".join(f"{__name__}.{place.__name__}" for place in (Named, Beside, AtHome))


# ------------------------------------------------------------------ how kernels are compiled

# Doors that nobody uses would take time to compile: none for C, and none for Python where only
# compiled code calls. Nor are references counted: whoever calls a kernel holds its arrays, and each
# count, where one is handed on, is an atomic addition by a far call, in a loop a third of the time.
_ENTERED: dict[str, Any] = {
    "_nrt": False,
    "error_model": "numpy",
    "nogil": True,
    "no_cfunc_wrapper": True,
}
_INTERNAL: dict[str, Any] = {
    "_nrt": False,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
# Loops are parallel where they say so; to look for others takes time too.
_ONLY_PRANGE = dict.fromkeys(
    ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
)

INLINED: Any = _INTERNAL | {"forceinline": True}
"""Options of a function that becomes part of those that call it, for `overload`."""
kernel = njit(cache=True, **_ENTERED)
"""Compile a function that Python calls."""
parallel_kernel = njit(cache=True, parallel=_ONLY_PRANGE | {"prange": True}, **_ENTERED)
"""The same with its `prange` loops on several threads.

The index of such a loop is unsigned in the threads and signed elsewhere: give it to other functions
as np.int64(index), or they are compiled twice.
"""
called_by_kernels = njit(cache=True, **_INTERNAL)
"""Compile a function that only kernels call."""
makes_arrays = njit(cache=True, **_INTERNAL | {"_nrt": True})
"""The same for one that makes arrays: there, references are counted."""
inlined = njit(**INLINED)
"""Compile a function that becomes part of the kernels that call it."""
