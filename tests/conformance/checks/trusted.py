"""Where compress is not installed, `trust_remote_code=True` gives the same logits bit for bit."""

from conformance.checks._digest import digest
from conformance.elsewhere import Elsewhere
from conformance.made import Made

SECONDS = 0.15


def check(made: Made, elsewhere: Elsewhere) -> None:
    found = elsewhere.load("trusting", made.folder)
    assert found == {"class": "CompressedForCausalLM", "sha256": digest(made.logits)}, found
