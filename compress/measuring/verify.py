"""Measure again, on this machine, what a checkpoint's report.json says of it.

Files by their sha256, parameters from the stored shapes, the calibration tokens by their hash, perplexities by evaluating. What
needs the fit itself (the error per module, the PCA control) is not measured again, and said to be so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from compress import data, methods
from compress.architecture import Architecture, architecture
from compress.checkpoint.files import hash_file, read_json
from compress.checkpoint.shards import Shards
from compress.evaluating.controls import mlp_means, skip_layers
from compress.evaluating.origin import Record, record
from compress.evaluating.perplexity import perplexity
from compress.loading.quantizer import check_folder, from_pretrained
from compress.progress import Progress, silent
from compress.reading import yaml_text
from compress.validation import explain

Verdict = Literal["same", "differs", "not measured"]

# Another processor sums in another order: float32 perplexities of one checkpoint agree to about 1e-6.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Finding:
    """One number of the report beside the one measured now."""

    what: str
    recorded: Any
    measured: Any
    verdict: Verdict
    note: str = ""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Measured(_Part):
    """What a report says of one text."""

    perplexity: float
    tokens: int | None = None


class _Module(_Part):
    """What a report says of one module; methods say more."""

    module: str
    layer: int
    method: str
    parameters: int | None = None


class Report(_Part):
    """The parts of a report.json that are measured again."""

    files: dict[str, str] = {}
    calibration: dict[str, str] = {}
    parameters: dict[str, int] = {}
    modules: list[_Module] = []
    evaluation: dict[str, dict[str, _Measured]] = {}


def verify(
    folder: Path, tolerance: float = TOLERANCE, progress: Progress | None = None, device: torch.device | None = None
) -> list[Finding]:
    """Every number of `folder`/report.json that can be measured again, in the report's order.

    `tolerance` is relative, of perplexities, measured on `device`; everything else must be equal. Raises FileNotFoundError
    without a report, ValueError for one that `compress fit` did not write.
    """
    report = read_json(folder / "report.json")
    if report is None or not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint with a readable report.json; give a folder that compress fit wrote")
    try:
        Report.model_validate(report)
    except ValidationError as error:
        lines = (f"{folder / 'report.json'}: {line}" for line in explain(error, Report))
        raise ValueError("\n".join(lines)) from None
    origin: Record | str
    try:
        origin = record(folder)
        check_folder(origin.model)
    except FileNotFoundError as error:
        origin = f"the original model is not here: {error}"
    findings = [*_files(folder, report), *_calibration(report, origin), *_parameters(folder, report, origin)]
    return [*findings, *_evaluation(folder, report, origin, tolerance, progress or silent, device)]


def differences(findings: list[Finding]) -> list[Finding]:
    """Only what is not as the report says."""
    return [finding for finding in findings if finding.verdict == "differs"]


def _equal(what: str, recorded: Any, measured: Any) -> Finding:
    return Finding(what, recorded, measured, "same" if recorded == measured else "differs")


def _files(folder: Path, report: Mapping[str, Any]) -> Iterator[Finding]:
    for name, recorded in report.get("files", {}).items():
        path = folder / name
        yield _equal(f"sha256 of {name}", recorded, hash_file(path) if path.is_file() else "missing")


def _calibration(report: Mapping[str, Any], origin: Record | str) -> Iterator[Finding]:
    what, recorded = "calibration tokens", report.get("calibration", {}).get("tokens_sha256")
    if recorded is None:
        return
    if isinstance(origin, str):
        yield Finding(what, recorded, None, "not measured", origin)
        return
    try:
        tokens = data.calibration_tokens(origin.calibration, data.load_tokenizer(str(origin.model)))
    except (FileNotFoundError, ValueError) as error:
        yield Finding(what, recorded, None, "not measured", str(error))
    else:
        yield _equal(what, recorded, data.token_hash(tokens))


def _parameters(folder: Path, report: Mapping[str, Any], origin: Record | str) -> Iterator[Finding]:
    recorded = report.get("parameters", {})
    if "baseline" in recorded:
        what = "parameters of the baseline"
        if isinstance(origin, str):
            yield Finding(what, recorded["baseline"], None, "not measured", origin)
        else:
            yield _equal(what, recorded["baseline"], _stored(Shards(origin.model)))
    shards = Shards(folder)
    if "compressed" in recorded:
        yield _equal("parameters", recorded["compressed"], _stored(shards))
    row = _architecture(folder)
    for module in report.get("modules", []):
        if "parameters" not in module:
            continue
        counts = list(_counts(shards, row, module["module"]))
        measured = module["parameters"] if module["parameters"] in counts else counts[0]
        yield _equal(f"parameters of {module['module']}", module["parameters"], measured)


def _counts(shards: Shards, row: Architecture, module: str) -> Iterator[int]:
    """What a method may have counted of a module, or of several joined by " + ": its matrices, or everything it stored."""
    names = module.split(" + ")
    layer, _, last = names[-1].rpartition(".")
    chain = [f"{layer}.{name}" for name in row.mlp] if last == row.mlp[-1] else []  # an inline MLP goes by its last module
    for group in (names, chain):
        inside = [s for n, s in shards.shapes.items() if n.startswith(tuple(f"{g}." for g in group))]
        yield sum(torch.Size(shape).numel() for shape in inside if len(shape) == 2)
        yield sum(torch.Size(shape).numel() for shape in inside)


def _architecture(folder: Path) -> Architecture:
    return architecture((read_json(folder / "config.json") or {})["model_type"])


def _stored(shards: Shards) -> int:
    return sum(torch.Size(shape).numel() for shape in shards.shapes.values())


def _evaluation(
    folder: Path,
    report: Mapping[str, Any],
    origin: Record | str,
    tolerance: float,
    progress: Progress,
    device: torch.device | None,
) -> Iterator[Finding]:
    recorded: Mapping[str, Mapping[str, Any]] = report.get("evaluation", {})
    tick = progress("verify", sum(len(texts) for texts in recorded.values()))
    for variant, texts in recorded.items():
        load = origin if isinstance(origin, str) else _loader(folder, variant, origin)
        model = None  # loaded for the first text that is here
        for name, said in texts.items():
            what = f"perplexity of {variant} on {name}"
            tokens = load if isinstance(load, str) or isinstance(origin, str) else _windows(origin, name)
            if isinstance(tokens, Tensor) and not isinstance(load, str):
                model = model or load().to(device)
                yield _close(what, said, perplexity(model, tokens), tolerance)
            else:
                yield Finding(what, said["perplexity"], None, "not measured", str(tokens))
            tick()


def _windows(origin: Record, name: str) -> Tensor | str:
    """The windows of a recipe's text, or why they cannot be had."""
    try:
        return data.evaluation_tokens(origin.evaluation.source(name), data.load_tokenizer(str(origin.model)))
    except (FileNotFoundError, ValueError, KeyError) as error:
        return f"the text is not here: {error}"


def _close(what: str, said: Mapping[str, Any], found: Mapping[str, Any], tolerance: float) -> Finding:
    close = abs(found["perplexity"] - said["perplexity"]) <= tolerance * said["perplexity"]
    if said.get("tokens", found["tokens"]) != found["tokens"]:
        note = f"{said['tokens']} predictions then, {found['tokens']} now: another text or tokenizer"
        return Finding(what, said["perplexity"], found["perplexity"], "differs", note)
    return Finding(what, said["perplexity"], found["perplexity"], "same" if close else "differs")


def _loader(folder: Path, variant: str, origin: Record) -> Callable[[], Any] | str:
    """How to get a variant's model, or why it cannot be had."""
    if variant == "baseline":
        return lambda: _load(origin.model)
    if variant == "compressed":
        return lambda: _load(folder)
    if variant not in ("identity", "zero", "mean"):
        return "this control is fitted, not derived: run fit again"
    recipe = yaml_text.read(folder / "recipe.yaml")
    if any(recipe.get(key) for key in ("propagate_error", "refine", "finetune")):
        return "the other modules were fitted on the surrogates' outputs, so that this control has others: run fit again"
    return lambda: _control(folder, variant, origin)


def _control(folder: Path, variant: str, origin: Record) -> Any:
    """The checkpoint with its MLP replacements, but not its linears, exchanged for a control on the same layers."""
    model, row = _load(folder), _architecture(folder)
    layers = mlp_layers(read_json(folder / "report.json"))
    means = None
    if variant == "mean":
        tokens = data.calibration_tokens(origin.calibration, data.load_tokenizer(str(origin.model)))
        means = mlp_means(_load(origin.model), tokens, layers)
    skip_layers(model, row, layers, f"skip-{variant}", means)
    return model


def mlp_layers(report: Mapping[str, Any]) -> list[int]:
    """Layers whose whole MLP a method of the report replaced."""
    known = [module for module in report["modules"] if module.get("method") in methods.names()]
    return sorted({module["layer"] for module in known if methods.load(module["method"]).replaces == "mlp"})


def _load(folder: Path) -> Any:
    return from_pretrained(folder, dtype=torch.float32).eval()
