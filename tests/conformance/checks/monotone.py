"""The error of each unit falls with every rank that a search may try, down from that of the smallest."""

from itertools import pairwise

from compress import methods
from compress.fitting.decide import artefact_of
from conformance.case import Case
from conformance.elsewhere import Elsewhere
from conformance.made import Made

SECONDS = 0.1


def exempt(case: Case) -> str | None:
    if case.what == "kind":
        return "nothing is fitted"
    return None if methods.load(case.name).has_ranks else "has no ranks to search"


def check(made: Made, elsewhere: Elsewhere) -> None:
    assert made.folder.is_dir()  # fitted: its units are there
    row = made.job.model.architecture
    for unit in made.job.variants["compressed"]:
        artefact = artefact_of(made.job, unit, made.source_hash)
        ranks = unit.method.ranks(unit.group, artefact)
        assert ranks is not None, "has_ranks, but offers none"
        assert len(ranks.candidates) > 1, unit.group.name
        replaced = [ranks.at(rank).replace(unit.group, artefact, row) for rank in ranks.candidates]
        errors = [made.report[0]["relative_error"] for made in replaced]
        assert all(a > b >= 0 for a, b in pairwise(errors)), (
            f"{unit.group.name}: {dict(zip(ranks.candidates, errors, strict=True))}"
        )
        stored = [sum(t.numel() for t in made.tensors.values()) for made in replaced]
        assert all(a < b for a, b in pairwise(stored)), f"{unit.group.name}: more rank stores less: {stored}"
