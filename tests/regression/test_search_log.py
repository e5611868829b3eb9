"""Finished searches are kept: an interrupted one goes on with the next output, another one starts anew."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compress.progress import Log
from compress.regression.front import Front
from compress.regression.options import EngineOptions
from compress.regression.regress import regress_each

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(600, 3))
TARGET = 0.7 * Z[:, 0] * Z[:, 1] - 1.3 * Z[:, 2] + 0.2
SPARSE = EngineOptions(name="sparse", terms=8)
OPERON = EngineOptions(evaluations=6000, population=300, terms=0, max_length=20)


def text(front: Front) -> str:
    return json.dumps(front.to_json(), allow_nan=False)


class Kept(Log):
    """A log in memory that fails when it has kept `most` searches, as a killed process would."""

    def __init__(self, most: int = 100) -> None:
        self.found, self.told, self.most = {}, [], most

    def read(self, key):
        return self.found.get(key)

    def write(self, key, found):
        if len(self.found) == self.most:
            raise KeyboardInterrupt
        self.found[key] = json.loads(json.dumps(found))

    def tell(self, text):
        self.told.append(text)


def test_an_interrupted_search_goes_on_with_the_next_output_and_ends_the_same():
    y = np.stack([TARGET, Z[:, 0] ** 2, Z[:, 1] * Z[:, 2]], axis=1)
    log = Kept(most=2)
    with pytest.raises(KeyboardInterrupt):
        regress_each(Z, y, OPERON, log=log)
    log.most, log.told = 100, []
    resumed = regress_each(Z, y, OPERON, log=log)
    assert [line.split(",")[0] for line in log.told] == ["3 of 3 outputs"]
    one = regress_each(Z, y, OPERON.model_copy(update={"threads": 1}))
    assert [text(front) for front in resumed] == [text(front) for front in one]
    damaged = next(iter(log.found))
    log.found[damaged] = {"candidates": [{}]}
    assert [text(front) for front in regress_each(Z, y, OPERON, log=log)] == [text(front) for front in one]


def test_a_kept_search_of_other_rows_or_options_is_not_taken():
    log = Kept()
    for z, y, options, seed in [
        (Z, TARGET, SPARSE, 0),
        (Z, TARGET + 1, SPARSE, 0),
        (Z + 1, TARGET, SPARSE, 0),
        (Z, TARGET, SPARSE.model_copy(update={"terms": 4}), 0),
        (Z, TARGET, SPARSE, 1),
    ]:
        regress_each(z, y[:, None], options, seed, log=log)
    assert len(log.found) == 5
