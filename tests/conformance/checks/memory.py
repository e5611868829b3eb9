"""The checkpoint that plain `from_pretrained` loads is the model in memory, bit for bit."""

import torch

from conformance.elsewhere import Elsewhere
from conformance.made import Made

SECONDS = 0.1


def check(made: Made, elsewhere: Elsewhere) -> None:
    folder = made.folder
    assert torch.equal(made.in_memory(), made.logits), f"{folder.name} is not what was in memory"
    assert torch.isfinite(made.logits).all()
