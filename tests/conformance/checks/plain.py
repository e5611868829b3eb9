"""Where compress is not installed and nothing is trusted, loading stops with a size mismatch: no weight is made up."""

from conformance.elsewhere import Elsewhere
from conformance.made import Made

SECONDS = 0.15


def check(made: Made, elsewhere: Elsewhere) -> None:
    found = elsewhere.load("plain", made.folder)
    assert "error" in found, "loaded: random weights, or weights that mean something else"
    assert "size mismatch" in found["error"] or "mismatched" in found["error"], found["error"]
