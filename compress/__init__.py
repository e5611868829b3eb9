"""compress: low-rank decompositions and symbolic surrogates for HuggingFace transformers.

Importing this package is cheap: torch and transformers are imported by the functions that need them.
"""

from __future__ import annotations

from typing import Any

from compress.loading.hook import install as _install
from compress.version import __version__

_PUBLIC = {
    "fit": "compress.fitting.run",
    "load_recipe": "compress.recipe",
    "from_pretrained": "compress.loading.quantizer",
    "distill": "compress.explaining.distillation",  # not a file of its own name: importing that would hide the function
}
__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - the lazy names are real, see __getattr__

_install()


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'compress' has no attribute {name!r}")
