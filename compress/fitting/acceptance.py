"""Acceptance: what each lever does to the loss on windows that nothing was fitted on, and whether it is taken at all.

The layers are streamed, so a model of any size is judged whole. Losses are kept beside the units: a run that goes on after an
interruption decides as the first one did.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress import data, kinds
from compress.checkpoint.files import hash_json, read_json, write_json
from compress.checkpoint.units import hash_tensors
from compress.fitting.assemble import storage_dtype
from compress.fitting.job import Job
from compress.fitting.look_ahead import Texts
from compress.fitting.units import evenly
from compress.loading.modules import install, within
from compress.methods.base import Replacement
from compress.parallel.world import world
from compress.plan import ModuleSpec
from compress.progress import Progress
from compress.stream.hidden import NotFiniteError
from compress.stream.model import StreamedModel

FORMAT = 1  # raise when a kept loss changes meaning


@dataclass(frozen=True)
class Outcome:
    """One lever: its name, the loss with it in nats per token, and whether it is in the checkpoint."""

    lever: str
    nll: float
    taken: bool


class Acceptance:
    """Judges levers one after another; each is measured together with those taken before it."""

    def __init__(self, job: Job, texts: Texts, progress: Progress) -> None:
        self.job, self.outcomes = job, list[Outcome]()
        self.tokens, self.held_out = texts.acceptance, texts.held_out
        self._of_original = [FORMAT, job.model.shards.fingerprint(), data.token_hash(self.tokens)]
        units = job.variants["compressed"]
        levers = [evenly(units), job.recipe.propagate_error, job.recipe.refine, job.recipe.finetune]
        levers += [unit.method.has_expressions for unit in units]
        self._tick = progress("held-out loss", 2 + sum(map(bool, levers)))  # the original and the closed form, too
        self.dense = self._nll([])

    def first(self, lever: str, made: Sequence[Replacement]) -> Sequence[Replacement]:
        """What the next levers start from; taken whatever its loss."""
        self.outcomes.append(Outcome(lever, self._nll(made), True))
        return made

    def better(self, lever: str, before: Sequence[Replacement], after: Sequence[Replacement]) -> Sequence[Replacement]:
        """`after` where its loss is lower than that of all taken so far, else `before`."""
        nll = self._nll(after)
        self.outcomes.append(Outcome(lever, nll, nll < self.nll))  # NaN is not lower
        return after if self.outcomes[-1].taken else before

    def took(self, lever: str) -> bool:
        """Whether a lever has been taken."""
        return any(outcome.taken for outcome in self.outcomes if outcome.lever == lever)

    @property
    def nll(self) -> float:
        """With all levers taken so far."""
        return [outcome.nll for outcome in self.outcomes if outcome.taken][-1]

    def report(self) -> dict[str, Any]:
        """What report.json says. Raises RuntimeError for a result that no checkpoint should be written of."""
        uniform = math.log(self.job.model.config.vocab_size)
        if not math.isfinite(self.nll) or self.dense < uniform < self.nll:
            raise RuntimeError(
                f"the result is broken: {self.nll:.4g} nats per token on {self._where}, where the original has "
                f"{self.dense:.4g} and guessing uniformly {uniform:.4g}; nothing was written. Keep more of each module, "
                "replace fewer layers, or calibrate on more text"
            )
        return {
            "text": self._where,
            "held_out": self.held_out,
            "windows": len(self.tokens),
            "length": self.tokens.shape[1],
            "dense_nll": self.dense,
            "nll": self.nll,
            "levers": [{**asdict(o), "nll": o.nll if math.isfinite(o.nll) else None} for o in self.outcomes],
        }

    @property
    def _where(self) -> str:
        return "held-out calibration text" if self.held_out else "the calibration text itself"

    def _nll(self, made: Sequence[Replacement]) -> float:
        file = self.job.work / "losses.json"
        known: dict[str, Any] = world().agreed(lambda: read_json(file) or {})
        # By what is measured, not by the recipe: files it names, other packages and verdicts of speed decide as well.
        parts = [[[spec.model_dump(mode="json") for spec in r.specs], hash_tensors(r.tensors)] for r in made]
        key = hash_json([*self._of_original, parts])
        if key not in known:
            known[key] = repr(nll(self.job.model, self.tokens, made))  # as text: JSON has no infinity
            if world().first:
                write_json(file, known)
        self._tick()
        return float(known[key])


@torch.no_grad()
def nll(model: StreamedModel, tokens: Tensor, replacements: Sequence[Replacement]) -> float:
    """Mean loss in nats per predicted token of `tokens` (windows, length), with replacements as the checkpoint holds them.

    Infinite where hidden states or logits are not finite.
    """
    specs = [spec for replacement in replacements for spec in replacement.specs]
    owners = {owner: nn.Module() for spec in specs if (owner := kinds.of(spec).reads) is not None}
    hidden = model.embed(tokens)
    try:
        for index in range(model.n_layers):
            name = model.architecture.layer(index)
            own = [spec for spec in specs if spec.module.startswith(f"{name}.")]
            with model.resident(index) as layer:
                hidden.advance(_replaced(model, layer, name, own, replacements, owners) if own else layer, index, name)
        return model.nll_at_top(hidden, tokens)
    except NotFiniteError:
        return math.inf


def _replaced(
    model: StreamedModel,
    layer: nn.Module,
    name: str,
    specs: Sequence[ModuleSpec],
    replacements: Sequence[Replacement],
    owners: dict[str, nn.Module],
) -> nn.Module:
    """A copy of the resident layer with its replacements; those that modules of later layers read are kept in `owners`."""
    student = copy.deepcopy(layer)
    inside, put = within(student, f"{name}.")

    def find(module: str) -> nn.Module:
        return inside(module) if module.startswith(f"{name}.") else owners[module]

    tensors = {key: r.tensors[key] for r in replacements for key in r.tensors if key.startswith(f"{name}.")}
    install(specs, tensors, find=find, put=put, stored_in=storage_dtype(model), computed_in=model.dtype, device=model.device)
    owners |= {spec.module: inside(spec.module) for spec in specs if spec.module in owners}
    return student
