"""What surrogates of searched expressions have in common: their sample, the choice on each front, clamping."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from compress.methods.base import Method
from compress.regression.options import HELD_OUT


class Surrogate(Method):
    """An MLP replaced by expressions that a search found."""

    replaces = "mlp"
    decided_late = frozenset({"choose", "picks"})

    samples: int = Field(8192, ge=10, description="tokens sampled for the regression; the last fifth, other text, is held out")
    choose: Literal["held_out", "knee"] | PositiveInt = Field(
        "held_out",
        description="expression taken from each front: held_out, knee, or the most accurate of at most this complexity",
    )
    picks: dict[int, dict[int, PositiveInt]] = Field(
        {}, description="layer: {output: complexity}; single expressions chosen by hand, as `compress pick` writes them"
    )
    clamp: bool = Field(True, description="hold latents within the calibrated range, where the expressions are proved finite")

    def check_samples(self, inputs: int) -> None:
        """Raises ValueError where the rows that are fitted are too few for that many inputs."""
        if (rows := int(self.samples * (1 - HELD_OUT))) < inputs + 2:
            raise ValueError(
                f"samples: {self.samples} leaves {rows} rows to fit {inputs} inputs; give more samples or fewer inputs"
            )
