"""What a benchmark compares: the compressed checkpoint, its baseline, and the baseline without the same layers' MLPs.

Every variant is a model folder, so that each can be loaded, exported and measured in a process of its own. The skip variants
are written once into a work folder, under a name that carries the hash of all they depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from compress import data, kinds
from compress.architecture import Architecture, architecture
from compress.checkpoint.files import hash_json, read_json
from compress.checkpoint.locate import locate
from compress.checkpoint.shards import Shards
from compress.checkpoint.swap import replacing
from compress.checkpoint.writer import copy_tokenizer
from compress.evaluating.controls import mlp_means, skip_layers
from compress.evaluating.origin import record
from compress.loading.quantizer import check_folder, from_pretrained
from compress.plan import Plan, read_plan

Kind = Literal["baseline", "skip-identity", "skip-zero", "skip-mean", "compressed"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Variant:
    """One competitor: a model folder, what it is, and the label of the baseline it is compared with."""

    label: str
    kind: Kind
    folder: Path
    baseline: str


def collect(paths: Sequence[Path], kinds: Sequence[str], work: Path, baseline: Path | None = None) -> list[Variant]:
    """The variants of every checkpoint, baselines first; one baseline serves all checkpoints made from it.

    A plain model folder is a baseline of its own. Without `baseline` the model that a checkpoint's recipe.yaml names is taken.
    Raises ValueError for an unknown kind or a folder beyond the limits of what is read, FileNotFoundError where a folder or a
    baseline is not there.
    """
    wanted = check_kinds(kinds)
    paths = list(dict.fromkeys(locate(data.resolve_model(str(path))) for path in paths))
    names = _distinct_names(paths)
    plans = {path: read_plan(path) for path in paths}
    origins = {path: path if not plans[path].modules else origin(path, baseline) for path in paths}
    for folder in dict.fromkeys([*paths, *origins.values()]):
        check_folder(folder)
    bases = {folder.resolve(): folder for folder in origins.values()}
    base_labels = dict(zip(bases, _distinct_names(list(bases)).values(), strict=True))
    if len(bases) == 1 and any(plan.modules for plan in plans.values()):
        base_labels = dict.fromkeys(bases, "baseline")
    out = [Variant(base_labels[key], "baseline", folder, base_labels[key]) for key, folder in bases.items()]
    for path in paths:
        if not plans[path].modules:
            continue
        against = base_labels[origins[path].resolve()]
        for kind in wanted:
            if kind == "compressed":
                folder = path
            elif kind != "baseline":
                folder = write_skip(path, origins[path], kind, work)
            else:
                continue
            label = kind if len(paths) == 1 else names[path] if kind == "compressed" else f"{names[path]} {kind}"
            out.append(Variant(label, kind, folder, against))
    return out


def check_kinds(kinds: Sequence[str]) -> list[Kind]:
    """The kinds in the order of `KINDS`. Raises ValueError for one that is not there."""
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"unknown variant {kind!r}; allowed: {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in kinds]


def origin(checkpoint: Path, baseline: Path | None = None) -> Path:
    """The folder of the model a checkpoint was made from. Raises FileNotFoundError saying how to give it."""
    if baseline is not None:
        return locate(data.resolve_model(str(baseline)))
    try:
        return record(checkpoint).model
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{checkpoint}: no baseline ({error}); give the original model as baseline") from None


def control_layers(plan: Plan, row: Architecture) -> list[int]:
    """The decoder layers whose MLPs the skip controls leave out, sorted.

    Those whose whole MLP the plan replaces; in a plan that replaces no MLP, every layer it touches.
    """
    inside = [spec for spec in plan.modules if spec.module.startswith(row.layers + ".")]
    chosen = [spec for spec in inside if kinds.load(spec.kind).replaces == "mlp"] or inside
    return sorted({int(spec.module.removeprefix(row.layers + ".").partition(".")[0]) for spec in chosen})


def write_skip(checkpoint: Path, base: Path, kind: Kind, work: Path) -> Path:
    """The baseline with the MLPs of the control layers left out; returns its folder.

    Raises ValueError where the checkpoint touches no layer.
    """
    row = architecture((read_json(base / "config.json") or {})["model_type"])
    layers = control_layers(read_plan(checkpoint), row)
    if not layers:
        raise ValueError(f"{checkpoint} replaces nothing inside a decoder layer: there is no MLP to skip; leave {kind} out")
    tokens = _calibration(checkpoint, base) if kind == "skip-mean" else None
    depends = [Shards(base).fingerprint(), kind, layers, None if tokens is None else data.token_hash(tokens)]  # pyright: ignore[reportArgumentType]
    folder = work / "variants" / f"{kind}.{hash_json(depends)[:12]}"
    if (folder / "config.json").is_file():
        return folder
    means = None if tokens is None else mlp_means(from_pretrained(base, dtype=torch.float32).eval(), tokens, layers)
    model = from_pretrained(base, dtype="auto")
    skip_layers(model, row, layers, kind, means)
    with replacing(folder, "variant") as stage:
        model.save_pretrained(stage)
        copy_tokenizer(base, stage)
    return folder


def _calibration(checkpoint: Path, base: Path) -> Tensor:
    try:
        source = record(checkpoint).calibration
    except FileNotFoundError as error:
        raise FileNotFoundError(f"skip-mean needs the calibration text: {error}; leave skip-mean out") from None
    return data.calibration_tokens(source, data.load_tokenizer(str(base)))


def _distinct_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The shortest tail of each path that tells it from the others."""
    resolved = {path: path.resolve().parts for path in paths}
    out = {}
    for path, parts in resolved.items():
        others = [p for other, p in resolved.items() if other != path]
        depth = next((n for n in range(1, len(parts)) if all(p[-n:] != parts[-n:] for p in others)), len(parts))
        out[path] = "/".join(parts[-depth:])
    return out
