# pyright: strict
"""compress: low-rank decompositions and symbolic surrogates for HuggingFace transformers.

Importing this package is cheap: every name below is imported when it is first used, and torch and transformers with it.

>>> import compress
>>> {"fit", "export", "bench", "Checkpoint"} <= set(dir(compress))
True
"""

from __future__ import annotations

from compress.loading.hook import install as _install
from compress.version import __version__

TYPE_CHECKING = False  # not from typing: importing that takes longer than all of this
if TYPE_CHECKING:
    from compress import kinds, methods
    from compress.api.checkpoint import Checkpoint
    from compress.api.finished import bench, evaluate, export, report, verify
    from compress.api.fit import explain, fit, load_recipe
    from compress.api.search import layers, search, sweep
    from compress.explaining.distillation import distill
    from compress.loading.quantizer import from_pretrained

__all__ = [
    "Checkpoint",
    "__version__",
    "bench",
    "distill",
    "evaluate",
    "explain",
    "export",
    "fit",
    "from_pretrained",
    "kinds",
    "layers",
    "load_recipe",
    "methods",
    "report",
    "search",
    "sweep",
    "verify",
]

# No file or folder here has the name of a function: importing it would hide the function.
_FILES = {
    "Checkpoint": "api.checkpoint",
    "bench": "api.finished",
    "distill": "explaining.distillation",
    "evaluate": "api.finished",
    "explain": "api.fit",
    "export": "api.finished",
    "fit": "api.fit",
    "from_pretrained": "loading.quantizer",
    "layers": "api.search",
    "load_recipe": "api.fit",
    "report": "api.finished",
    "search": "api.search",
    "sweep": "api.search",
    "verify": "api.finished",
}
_ROOMS = ("kinds", "methods")

_install()


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _FILES:
        return getattr(import_module(f"compress.{_FILES[name]}"), name)
    if name in _ROOMS:
        return import_module(f"compress.{name}")
    raise AttributeError(f"module 'compress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
