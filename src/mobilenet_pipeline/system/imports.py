"""What a framework imports that the pipeline does not use."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

UNUSED = ("matplotlib", "sklearn")
"""Packages that Keras imports if they are installed, for its galleries and its scikit-learn wrappers."""


class LeanKeras(MetaPathFinder):
    """Finds Keras, and hides `UNUSED` from it while it is imported, which saves 40 % of the CPU time of that import.

    Keras 3 does without what it does not find. All other code, also that of other threads, finds these packages.
    """

    def __init__(self) -> None:
        self._importer: int | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return Keras's spec, None for another module. Raises ModuleNotFoundError for what is hidden."""
        if name in UNUSED and self._importer == threading.get_ident():
            raise ModuleNotFoundError(f"{name} is hidden from Keras", name=name)
        spec = PathFinder.find_spec(name, path, target) if name == "keras" else None
        if spec and spec.origin:
            spec.loader = _Loader(self, name, spec.origin)
        return spec

    @contextmanager
    def hiding(self) -> Iterator[None]:
        """Hide `UNUSED` from this thread during the `with` body."""
        self._importer = threading.get_ident()
        try:
            yield
        finally:
            self._importer = None


class _Loader(SourceFileLoader):
    def __init__(self, finder: LeanKeras, name: str, path: str) -> None:
        super().__init__(name, path)
        self._finder = finder

    def exec_module(self, module: ModuleType) -> None:
        with self._finder.hiding():
            super().exec_module(module)


def lean_keras() -> None:
    """Let Keras be imported without `UNUSED` from now on."""
    if not any(isinstance(finder, LeanKeras) for finder in sys.meta_path):
        sys.meta_path.insert(0, LeanKeras())
