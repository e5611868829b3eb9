"""Killed at any operation on the disk, or at any time, and run again, every command ends with the bytes of an undisturbed run.

A seeded slice; COMPRESS_LONG=1 takes every point, and `python -m reliability` in tests/ prints them as they come.
"""

import os
import random

import pytest
from long import LONG

from reliability.commands import COMMANDS
from reliability.trial import Trial

POINTS = 1  # per command
SLOW = ("export onnx", "export torch", "bench", "report", "layers", "sweep")  # in the long form only: a second a run or more

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


@pytest.mark.parametrize("name", [name for name in COMMANDS if LONG or name not in SLOW])
def test_killed_anywhere_and_run_again_the_bytes_are_the_same(name, tmp_path):
    trial = Trial(COMMANDS[name], tmp_path)
    points = range(len(trial.events))
    chosen = points if LONG else random.Random(name).sample(points, POINTS)
    for point in chosen:
        assert trial.kill_at(point)
    # And a chain: killed again on the way back.
    trial.kill_at(*random.Random(name).choices(points, k=2))
