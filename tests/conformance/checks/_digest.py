"""What interpreters tell each other of logits."""

import hashlib

from torch import Tensor


def digest(logits: Tensor) -> str:
    return hashlib.sha256(logits.contiguous().numpy().tobytes()).hexdigest()
