"""What five recipes that between them use every method write: digests that a change of structure must leave as they are.

    python tests/benchmarks/digests.py before.json          # at the commit before
    python tests/benchmarks/digests.py after.json before.json   # at the commit after: prints what differs, exit code 1

Of every recipe: sha256 of model.safetensors, of the plan (keys sorted) and of onnx/model.onnx, and of the syntax trees of the
generated Python without docstrings. Only the command line is used, so that it runs on any version. Same machine, one thread.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

TEXT = {"text": "novella", "sequences": 32, "length": 128, "seed": 0}
JUDGED = {"texts": {"own": "novella"}, "length": 128, "sequences": 8}


def _recipe(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "novella", "calibration": TEXT, "steps": list(steps), "evaluation": JUDGED, **more}


RECIPES: dict[str, dict[str, Any]] = {
    "low rank, all levers": _recipe(
        {
            "method": "feature_space",
            "targets": {"layers": [0, 1]},
            "importance": "fisher",
            "form": "pivoted",
            "rank": {"budget": 0.7},
        },
        {
            "method": "shared_basis",
            "targets": {"roles": ["k", "v"], "layers": [2, 3]},
            "rank": {"keep": 0.6},
            "form": "pivoted",
        },
        {"method": "weight_svd", "targets": {"roles": ["q", "o"], "layers": [2, 3]}, "rank": {"explained_variance": 0.8}},
        {"method": "whitened_svd", "targets": {"roles": ["gate", "up", "down"], "layers": [2]}, "rank": 20},
        propagate_error=True,
        refine={"steps": 10},
    ),
    "MLPs": _recipe(
        {
            "method": "symbolic_mlp",
            "layers": [0],
            "latents": {"inputs": 12, "outputs": 3},
            "samples": 2000,
            "engine": {"name": "operon", "evaluations": 4000, "terms": 12},
        },
        {"method": "affine_mlp", "layers": [1], "rank": 12},
        {"method": "skip_mlp", "layers": [2], "output": "mean"},
        {"method": "mlp_bottleneck", "layers": [3]},
        {"method": "prune_channels", "layers": [4], "keep": 0.4, "importance": "fisher"},
        {
            "method": "residual_mlp",
            "layers": [5],
            "latents": {"kind": "gradient", "inputs": 12, "outputs": 3},
            "affine": 8,
            "samples": 2000,
        },
        evaluation={**JUDGED, "controls": ["identity", "zero", "mean", "pca", "affine"]},
    ),
    "attention": _recipe(
        {"method": "crystallized_attention", "layers": [4, 5], "rank": 4, "importance": "fisher"},
        {"method": "latent_kv", "layers": [0, 1, 2], "cache": 0.5, "importance": "fisher", "allocation": "global"},
        {"method": "skip_mlp", "layers": [1], "output": "identity"},
        {"method": "skip_mlp", "layers": [2], "output": "zero"},
        finetune={"steps": 6, "batch": 4},
    ),
    "latents apart, both ways": _recipe(
        {"method": "latent_kv", "layers": "all", "cache": 0.4, "share": "head", "metric": "weight"},
        {"method": "feature_space", "targets": {"roles": ["gate", "up", "down"]}, "rank": {"keep": 0.5}},
    ),
}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _syntax(file: Path) -> str:
    """The digest of a source's syntax tree, docstrings left out."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
    return _digest(ast.dump(tree).encode())


def digests(name: str, recipe: Path, folder: Path) -> dict[str, str]:
    """Fit, export, hash."""
    command = [sys.executable, "-m", "compress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for arguments in (
        ["fit", str(recipe), "--set", f"output={folder}"],
        ["export", str(folder), "--torch", "--onnx"],
    ):
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name}: compress {' '.join(arguments)}\n{done.stderr[-3000:]}")
    plan = json.loads((folder / "config.json").read_text())["quantization_config"]
    return {
        "model.safetensors": _digest((folder / "model.safetensors").read_bytes()),
        "plan": _digest(json.dumps(plan, sort_keys=True).encode()),
        "model.onnx": _digest((folder / "onnx" / "model.onnx").read_bytes()),
        "modeling_compress.py": _syntax(folder / "modeling_compress.py"),
        "torch/model.py": _syntax(folder / "torch" / "model.py"),
        "torch/model.safetensors": _digest((folder / "torch" / "model.safetensors").read_bytes()),
    }


def main() -> None:
    out, before = Path(sys.argv[1]), [json.loads(Path(path).read_text()) for path in sys.argv[2:3]]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        recipes = {"quickstart": Path("quickstart.yaml")}
        for position, (name, recipe) in enumerate(RECIPES.items()):
            recipes[name] = Path(place) / f"{position}.yaml"
            recipes[name].write_text(yaml.safe_dump({**recipe, "output": "unused"}, sort_keys=False))
        for position, (name, recipe) in enumerate(recipes.items()):
            found[name] = digests(name, recipe, Path(place) / f"out{position}")
            for what, digest in found[name].items():
                same = [was.get(name, {}).get(what) == digest for was in before]
                print(f"{name:<28} {what:<24} {digest[:16]} {'' if all(same) else 'DIFFERS'}", flush=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(int(bool(before) and found != before[0]))


if __name__ == "__main__":
    main()
