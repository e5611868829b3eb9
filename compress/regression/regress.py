"""Symbolic regression behind one function: rows z, targets y → a front of expressions from simple to accurate.

Engines propose; everything that is promised is done here, for all of them alike: inputs and targets are standardised, every
proposal is evaluated in float64, simplified, certified finite over the range of the inputs, and scored on rows it never saw.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed

from compress.numerics.lapack import least_squares
from compress.progress import Log
from compress.regression.engines import Proposal
from compress.regression.front import Front, choose
from compress.regression.options import HELD_OUT, EngineOptions
from compress.regression.scoring import Judge, Rows, Scaling


def regress(
    z: Any, y: Any, engine: EngineOptions, seed: int = 0, held_out: tuple[Any, Any] | None = None, *, clamp: bool = False
) -> Front:
    """Front of expressions y ≈ f(z) for z (n, I), y (n,); `held_out` as another such pair, else the last fifth of the rows.

    `clamp` holds held-out inputs within the range of the training ones, as a runtime that clamps does. Raises ValueError for
    values that are not finite, constant inputs, and fewer rows than inputs.

    >>> z = np.random.default_rng(0).normal(size=(200, 2))
    >>> front = regress(z, 3 * z[:, 0] * z[:, 1], EngineOptions(name="sparse"))
    >>> [(c.complexity, c.source, round(c.held_out_loss, 6)) for c in front.candidates[-1:]]
    [(5, 'sparse', 0.0)]
    """
    pair = None if held_out is None else (held_out[0], np.asarray(held_out[1])[:, None])
    return regress_each(z, np.asarray(y)[:, None], engine, seed, pair, clamp=clamp)[0]


def regress_each(
    z: Any,
    y: Any,
    engine: EngineOptions,
    seed: int = 0,
    held_out: tuple[Any, Any] | None = None,
    *,
    clamp: bool = False,
    log: Log | None = None,
) -> list[Front]:
    """One front per column of y (n, O), over the same inputs; each output's search has a seed of its own.

    Outputs are searched in parallel. `log` keeps every finished one, and gives it back when the same search is asked for again.
    """
    rows = _check(z, y, held_out)
    if clamp:
        rows = replace(rows, z_held=rows.z_held.clip(rows.z.min(axis=0), rows.z.max(axis=0)))
    mean, scale = _standard(rows.z)
    standard = (rows.z - mean) / scale
    engine, notes = available(engine)
    # The sparse path takes a second, and its expressions compete with Operon's in one front.
    names = ["sparse", "operon"] if engine.name == "operon" and engine.terms else [engine.name]
    searches = [import_module(f"compress.regression.engines.{name}").prepare(standard, engine) for name in names]
    # One seed per output, whatever order the threads take: any number of them gives the same fronts.
    seeds = np.random.SeedSequence(seed).generate_state(rows.y.shape[1])
    y_mean, y_scale = _standard(rows.y)
    targets = (rows.y - y_mean) / y_scale

    log = log or Log()
    keys = [_key(rows, k, engine, int(seeds[k])) for k in range(rows.y.shape[1])]
    fronts = {k: front for k, key in enumerate(keys) if (front := _kept(log.read(key))) is not None}
    waiting = [k for k in range(len(keys)) if k not in fronts]

    def search(k: int) -> list[tuple[list[Proposal], list[str]]]:
        # A constant output is its mean: nothing to search.
        return [run(targets[:, k], int(seeds[k])) for run in searches] if np.ptp(rows.y[:, k]) else []

    threads = engine.threads or cpu_count()
    # A generator: each front is judged and kept as soon as its search is done, and Ctrl-C loses no finished one.
    found: Any = Parallel(n_jobs=threads, prefer="threads", return_as="generator")(delayed(search)(k) for k in waiting)
    for k, results in zip(waiting, found, strict=True):
        # The mean is always finite, so no front is empty.
        proposals: list[Proposal] = [(["param", 0], [float(targets[:, k].mean())], "mean")]
        if results:
            proposals.append(_affine(standard, targets[:, k]))
        proposals += [p for part, _ in results for p in part]
        judge = Judge(rows, k, Scaling(mean, scale, float(y_mean[k]), float(y_scale[k])), engine.certify, engine.complexities)
        extra = [note for _, part in results for note in part] if results else [f"output {k} is constant"]
        fronts[k] = judge.front(proposals, [*notes, *extra])
        log.write(keys[k], fronts[k].to_json())
        log.tell(f"{len(fronts)} of {len(keys)} outputs, R² {_r2(fronts[k]):.2f} (output {k})")
    return [fronts[k] for k in range(len(keys))]


def _key(rows: Rows, k: int, engine: EngineOptions, seed: int) -> str:
    """Hash of everything one output's front depends on."""
    # The dump leaves out `threads`, which changes no result.
    digest = hashlib.sha256(repr((engine.model_dump(mode="json"), k, seed)).encode())
    for part in (rows.z, rows.y[:, k], rows.z_held, rows.y_held[:, k]):
        # Shapes as well: (2, 3) and (3, 2) can be the same bytes.
        digest.update(repr(part.shape).encode() + np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def _kept(found: Any) -> Front | None:
    """The front that was kept; None where there is none or it is damaged."""
    try:
        return None if found is None else Front.from_json(found)
    except (KeyError, TypeError, AttributeError):
        return None


def _r2(front: Front) -> float:
    """Of the most accurate candidate, on held-out rows where there are any."""
    best = front.candidates[choose(front)]
    return 1 - (best.train_loss if best.held_out_loss is None else best.held_out_loss)


def _check(z: Any, y: Any, held_out: tuple[Any, Any] | None) -> Rows:
    z, y = np.asarray(z, np.float64), np.asarray(y, np.float64)
    if z.ndim != 2 or y.ndim != 2 or len(z) != len(y):
        raise ValueError(f"expected z (n, inputs) and y (n, outputs) with the same n, got {z.shape} and {y.shape}")
    if held_out is None:
        cut = len(z) - int(len(z) * HELD_OUT)
        z, z_held, y, y_held = z[:cut], z[cut:], y[:cut], y[cut:]
    else:
        z_held, y_held = np.asarray(held_out[0], np.float64), np.asarray(held_out[1], np.float64)
    for name, part in (("input", z), ("output", y), ("held-out input", z_held), ("held-out output", y_held)):
        if bad := np.flatnonzero(~np.isfinite(part).all(axis=0)).tolist():
            raise ValueError(
                f"{name} {bad[0]} has NaN or infinite values (of {part.shape[1]} columns: {bad[:8]}); drop those rows"
            )
    # An affine map has one number more than there are inputs, and at least one row must be left to contradict it.
    if len(z) < z.shape[1] + 2:
        raise ValueError(f"{len(z)} training rows for {z.shape[1]} inputs; give at least {z.shape[1] + 2}, or fewer inputs")
    if constant := np.flatnonzero(np.ptp(z, axis=0) == 0).tolist():
        raise ValueError(
            f"input {constant[0]} is constant (of {z.shape[1]}: {constant[:8]}); an expression cannot use it, drop it"
        )
    return Rows(z, y, z_held, y_held)


def _standard(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(shift, scale) per column that an engine in single precision needs: none where the numbers are of ordinary size already.

    What is shifted or scaled comes back as constants in the expressions, so columns within a factor of ten stay as they are.
    """
    mean, scale = values.mean(axis=0), values.std(axis=0)
    # A column with no scale at all, a constant output, keeps scale 1.
    return np.where(np.abs(mean) > 2 * scale, mean, 0.0), np.where((scale > 10) | ((scale < 0.1) & (scale > 0)), scale, 1.0)


def available(engine: EngineOptions) -> tuple[EngineOptions, list[str]]:
    """(engine, notes): sparse regression where pyoperon has no build for this machine. Raises ValueError for a missing PySR."""
    # An engine without `missing` has nothing that could be.
    check = getattr(import_module(f"compress.regression.engines.{engine.name}"), "missing", lambda: None)
    reason = check()
    if reason is None:
        return engine, []
    if engine.name != "operon":
        raise ValueError(reason)
    note = f"{reason}; sparse regression was used instead"
    warnings.warn(note, stacklevel=3)
    # An operon recipe may switch the sparse path off (0 terms); here it is all there is.
    return engine.model_copy(update={"name": "sparse", "terms": engine.terms or 32}), [note]


def _affine(z: np.ndarray, y: np.ndarray) -> Proposal:
    """Least squares through the same inputs: the control of every search."""
    weights = least_squares(np.column_stack([np.ones(len(z)), z]), y)
    terms = [["mul", ["param", i + 1], ["var", i]] for i in range(z.shape[1])]
    return ["add", ["param", 0], *terms], [float(w) for w in weights], "affine"
