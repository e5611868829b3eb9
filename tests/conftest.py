"""Fixtures of several files."""

import os
import sys

import pytest
from recipes_for_tests import tiny_folder

from compress.cli import main

# No test here ends in a power cut, and waiting for the disk is a fifth of a small fit's time. That everything is synced, and in
# which order, is seen in the operations that `compress.checkpoint.disk` tells.
os.fsync = lambda _: None


@pytest.fixture
def compress(monkeypatch, capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["compress", *map(str, arguments)])
        code = 0
        try:
            main.main()
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folder of a tiny random model by model type; only to be read."""
    made = {}

    def get(model_type):
        if model_type not in made:
            made[model_type] = tiny_folder(tmp_path_factory.mktemp(model_type), model_type)
        return made[model_type]

    return get
