"""A run that is interrupted after its first unit, and run again, ends with the same bytes; between them nothing loads."""

from pathlib import Path

import pytest

from compress.fitting import run
from compress.progress import Tick
from conformance.case import Case
from conformance.elsewhere import Elsewhere
from conformance.made import Made

SECONDS = 0.5
FILES = ("model.safetensors", "config.json", "modeling_compress.py", "tokenizer.json")


class Interrupted(BaseException):
    """As KeyboardInterrupt: no Exception, so that nobody handles it on the way."""


def exempt(case: Case) -> str | None:
    return "nothing is fitted" if case.what == "kind" else None


def check(made: Made, elsewhere: Elsewhere) -> None:
    whole, broken = made.folder, made.root / "broken"
    recipe = made.recipe("broken")
    with pytest.raises(Interrupted):
        run.fit(recipe, progress=lambda description, total: _dying(broken))
    assert len(_units(broken)) == 1
    assert not (broken / "config.json").exists(), "half a checkpoint would load"
    run.fit(recipe)
    for name in FILES:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), f"{name} differs"


def _units(output: Path) -> list[Path]:
    return list((output.with_name(f"{output.name}.work") / "units").glob("*.safetensors"))


def _dying(output: Path) -> Tick:
    def tick(note: str = "", done: int = 1) -> None:
        if _units(output):
            raise Interrupted

    return tick
