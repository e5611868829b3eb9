"""`AutoModelForCausalLM.from_pretrained`, in a program that never imports compress, gives the same logits bit for bit."""

from conformance.checks._digest import digest
from conformance.elsewhere import Elsewhere
from conformance.made import Made

SECONDS = 0.15


def check(made: Made, elsewhere: Elsewhere) -> None:
    found = elsewhere.load("stock", made.folder)
    assert found.get("sha256") == digest(made.logits), found
    assert not found["class"].startswith("Compressed"), "the checkpoint's own code was run without trust"
