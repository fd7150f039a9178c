"""The cache of compiled kernels: what a kernel is made of decides whether it is current."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import config

from spikedriven.core import kernels

KERNEL = """
import sys
import numba
import numpy as np
from {package}.core.kernels import njit
from {package}.core.shared import AMOUNT, twice

@njit(cache=True)
def add(x):
    return twice(x) + AMOUNT

print(add(20), sum(add.stats.cache_hits.values()))
"""
SHARED = """
from numba import njit
AMOUNT = {amount}

@njit(inline="always")
def twice(x):
    return x + x
"""


class Package:
    """A package with a kernel of its own, and the means to run it in a fresh process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "planted"
        (self.folder / "core").mkdir(parents=True)
        (self.folder / "__init__.py").touch()
        (self.folder / "core/__init__.py").touch()
        shutil.copy(kernels.__file__, self.folder / "core")
        self.write("core/kernel.py", KERNEL.format(package="planted"))
        self.write("core/shared.py", SHARED.format(amount=2))
        self.write("core/other.py", "AMOUNT = 1\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def run(self, **environment: str) -> tuple[int, int]:
        """Return what the kernel computes, and how many of its versions came from the cache."""
        done = subprocess.run(
            [sys.executable, "-B", "-c", "import planted.core.kernel"],
            cwd=self.folder.parent,
            env={k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        answer, hits = map(int, done.stdout.split())
        return answer, hits


@pytest.fixture
def package(tmp_path) -> Package:
    return Package(tmp_path)


def test_a_kernel_is_current_until_what_it_is_made_of_changes(package):
    assert package.run() == (42, 0)
    package.write("core/other.py", "AMOUNT = 3\n")
    assert package.run() == (42, 1)
    package.write("core/shared.py", SHARED.format(amount=3))  # a constant, frozen in the kernel
    assert package.run() == (43, 0)
    package.write("core/shared.py", SHARED.format(amount=3).replace("x + x", "x - x"))  # inlined
    assert package.run() == (3, 0)
    assert package.run() == (3, 1)


def test_kernels_lie_where_numba_is_told_to_keep_them(package, tmp_path):
    assert package.run(NUMBA_CACHE_DIR=str(tmp_path / "named")) == (42, 0)
    assert list((tmp_path / "named").rglob("*.nbi"))
    assert not list(package.folder.rglob("*.nbi"))


def test_what_imports_import_counts_and_what_functions_or_types_import_does_not(tmp_path):
    package = Package(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_PACKAGE", package.folder.resolve())
        kernel = package.folder / "core/kernel.py"
        package.write("core/kernel.py", "from planted.core import middle\n")
        package.write(
            "core/middle.py",
            "from typing import TYPE_CHECKING\nimport planted.core.shared\n"
            "if TYPE_CHECKING:\n    from planted.core.other import AMOUNT\n"
            "def late():\n    import planted.core.other\n",
        )
        stamps = [kernels.stamp(kernel)]
        for name, is_part in (("shared", True), ("other", False), ("middle", True)):
            text = (package.folder / f"core/{name}.py").read_text()
            package.write(f"core/{name}.py", f"{text}BIT = 1\n")
            stamps.append(kernels.stamp(kernel))
            assert (stamps[-1] != stamps[-2]) == is_part, name


def test_modules_that_import_each_other_have_a_stamp(tmp_path):
    package = Package(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_PACKAGE", package.folder.resolve())
        package.write("core/shared.py", "import planted.core.other\n")
        package.write("core/other.py", "import planted.core.shared\n")
        assert kernels.stamp(package.folder / "core/shared.py")


def test_every_cached_kernel_of_the_package_has_a_stamp_of_all_its_sources():
    for file in Path(kernels.__file__).parents[1].rglob("*.py"):
        text = file.read_text()
        if "cache=True" in text and file.name != "kernels.py":
            assert "from spikedriven.core.kernels import njit" in text, file


def test_numbas_own_setting_is_given_back():
    before = config.CACHE_LOCATOR_CLASSES
    assert kernels.njit(error_model="numpy")(lambda x: x)(np.int64(3)) == 3
    assert before == config.CACHE_LOCATOR_CLASSES
