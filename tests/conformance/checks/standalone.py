"""The standalone torch file, run where neither compress nor transformers can be imported, agrees, with its cache too."""

import torch

from conformance.elsewhere import Elsewhere
from conformance.made import Made, Refused, assert_close
from exporters.torch.source import export_torch

SECONDS = 0.3
TOLERANCE = 1e-4


def check(made: Made, elsewhere: Elsewhere) -> None:
    out = made.root / "torch"
    try:
        export_torch(made.folder, out, verify=False)
    except NotImplementedError as error:
        raise Refused(str(error)) from error
    found = elsewhere.load("standalone", out)
    assert "error" not in found, found["error"]
    for logits in torch.load(out / "logits.pt", weights_only=True):  # in one pass, and on the cache of a first one
        assert_close(logits, made.logits, TOLERANCE)
