"""Where compress is not installed and nothing is trusted, loading stops with a size mismatch: no weight is made up.

A dense linear in the shape of the one it replaces is no other tensor: there the load is right, bit for bit.
"""

from conformance.checks._digest import digest
from conformance.elsewhere import Elsewhere
from conformance.made import Made

SECONDS = 0.15


def check(made: Made, elsewhere: Elsewhere) -> None:
    found = elsewhere.load("plain", made.folder)
    if "error" not in found:
        assert found["sha256"] == digest(made.logits), "loaded: random weights, or weights that mean something else"
        return
    assert "size mismatch" in found["error"] or "mismatched" in found["error"], found["error"]
