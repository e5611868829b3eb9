"""What was loaded, saved by `save_pretrained` and loaded again, is the same bit for bit."""

import torch
from recipes_for_tests import logits
from transformers import AutoModelForCausalLM

from conformance.elsewhere import Elsewhere
from conformance.made import Made

SECONDS = 0.2


def check(made: Made, elsewhere: Elsewhere) -> None:
    first = AutoModelForCausalLM.from_pretrained(made.folder)
    first.save_pretrained(made.root / "again")
    second = AutoModelForCausalLM.from_pretrained(made.root / "again")
    before, after = first.state_dict(), second.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(logits(made.root / "again"), made.logits)
