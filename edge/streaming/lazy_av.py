"""Import aiortc without PyAV, which is loaded when something first uses it.

aiortc imports PyAV, and with it FFmpeg, for its encoders and decoders, which costs 20 MB. The daemon sends access units
that the camera process has encoded, and so never needs it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def av_on_demand() -> Iterator[None]:
    """While this is entered, modules import stand-ins for PyAV's classes.

    A stand-in loads PyAV when it is called or asked for an attribute. Afterwards, `import av` imports PyAV as usual.
    A module that has imported `av` then finds PyAV's own classes in it, because `except` clauses accept no stand-in.
    Where PyAV is loaded already, this does nothing.
    """
    if "av" in sys.modules:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _of_av(name)]:
            del sys.modules[name]


class _StandIn(type):
    """The class of stand-ins: classes that act as a class of PyAV."""

    module: str

    def __call__(cls, *args: object, **kwargs: object) -> object:
        return cls._real()(*args, **kwargs)

    def __getattr__(cls, name: str) -> object:
        return getattr(cls._real(), name)

    def __instancecheck__(cls, instance: object) -> bool:
        return "av" in sys.modules and isinstance(instance, cls._real())

    def _real(cls) -> type:
        real: type = getattr(importlib.import_module(cls.module), cls.__name__)
        return real


class _Module(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is not self:  # it is used, after the imports
            return getattr(importlib.import_module(self.__name__), name)
        if not name[0].isupper():
            raise AttributeError(name)  # so that a submodule is imported
        stand_in = _StandIn(name, (), {"module": self.__name__})
        setattr(self, name, stand_in)
        return stand_in


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if _of_av(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to execute."""


def _of_av(name: str) -> bool:
    return name == "av" or name.startswith("av.")
