"""What the tests of the Python interface read."""

import pytest
from recipes_for_tests import STEP, evaluated_recipe, symbolic_step, tiny_folder

import compress


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A checkpoint with a low-rank layer and a symbolic MLP; only to be read."""
    root = tmp_path_factory.mktemp("fitted")
    folder = tiny_folder(root / "model", "llama")
    return compress.fit(evaluated_recipe(folder, root / "out", STEP, symbolic_step(outputs=2, terms=3)))
