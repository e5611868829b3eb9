"""What surrogates of searched expressions have in common: their sample, the choice on each front, clamping."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt

from compress.checkpoint.units import Artefact
from compress.methods.base import Expressions
from compress.methods.mlp._shared import MLPMethod
from compress.regression.front import Front, Rule, choose
from compress.regression.options import HELD_OUT


class Searched(MLPMethod):
    """An MLP replaced by expressions that a search found."""

    has_expressions = True
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

    def expressions(self, artefact: Artefact, layer: int) -> Expressions:
        """The fronts of the artefact, with the choice on each. Raises ValueError where a choice fits none of its candidates."""
        fronts = tuple(Front.from_json(front) for front in artefact.metadata["fronts"])
        return Expressions(fronts, tuple(self.choice(front, layer, output) for output, front in enumerate(fronts)))

    def choice(self, front: Front, layer: int, output: int) -> int:
        """Index of the candidate taken at one output: picked by hand, or by the rule of all."""
        rule: Rule | str = self.picks.get(layer, {}).get(output, self.choose)
        return choose(front, rule)

    def simplest(self, artefact: Artefact, layer: int) -> dict[int, int]:
        """Of each front, its first candidate."""
        found = self.expressions(artefact, layer)
        if layer in self.picks or not any(found.chosen):
            return {}
        return {output: front.candidates[0].complexity for output, front in enumerate(found.fronts)}

    def picked(self, layer: int, output: int, complexity: int) -> dict[str, Any]:
        """`picks` with one more."""
        # Copies, since the options of a method are frozen.
        picks = {at: dict(chosen) for at, chosen in self.picks.items()}
        picks.setdefault(layer, {})[output] = complexity
        return {"picks": picks}

    def check_samples(self, inputs: int) -> None:
        """Raises ValueError where the rows that are fitted are too few for that many inputs."""
        if (rows := int(self.samples * (1 - HELD_OUT))) < inputs + 2:
            raise ValueError(
                f"samples: {self.samples} leaves {rows} rows to fit {inputs} inputs; give more samples or fewer inputs"
            )
