"""At full rank, or at whatever options keep everything (the method's `whole`), the logits are the original's."""

from recipes_for_tests import logits

from compress import methods
from conformance.case import Case
from conformance.elsewhere import Elsewhere
from conformance.made import Made, assert_close

SECONDS = 0.4
TOLERANCE = 5e-4  # float32 factors of every linear, through two layers


def exempt(case: Case) -> str | None:
    if case.what == "kind":
        return "nothing is fitted"
    return "no options make it the original" if methods.load(case.name).whole is None else None


def check(made: Made, elsewhere: Elsewhere) -> None:
    whole = methods.load(made.case.name).whole
    assert whole is not None
    assert_close(logits(made.fit("whole", **whole)), logits(made.sources.folder(made.case)), TOLERANCE)
