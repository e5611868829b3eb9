"""Latency at the published shapes (Qwen2.5-1.5B: hidden 1,536, intermediate 8,960) with random weights.

    python tests/benchmarks/published_shapes.py --layers 1  --runtimes eager compile onnx     # what one surrogate costs
    python tests/benchmarks/published_shapes.py --layers 28 --runtimes eager --dtype bfloat16 --replace 7 14 21 --rounds 3

Baseline, skip (MLP(x) = x) and symbolic (I=32, O=8, expressions as fitted on the packaged model) in turns, A B C A B C, 1,024
tokens of prefill and one token with cold caches. With one layer the surrogate's share of the MLP it replaces is
(symbolic − skip) / (baseline − skip).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen2Config

from compress import kinds
from compress.architecture import architecture
from compress.clock import interleave, paired_speedup, synchronize, timed
from compress.evaluating.controls import skip_layers
from compress.fitting import run
from compress.loading.modules import apply_plan
from compress.loading.quantizer import attach_plan
from compress.measuring.runtimes import Runner, open_runner
from compress.methods.base import Group
from compress.methods.mlp._shared import mlp_chain
from compress.plan import ModuleSpec, Plan
from compress.recipe import load_recipe

SHAPE: dict[str, Any] = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
COLD_BYTES = 2**28  # more than any last-level cache


def fitted_options(folder: Path, evaluations: int) -> list[dict[str, Any]]:
    """Options of the packaged model's three symbolic surrogates, as the published recipe fits them."""
    overrides = [f"steps.0.engine.evaluations={evaluations}", f"output={folder}", "evaluation.controls=[]"]
    run.fit(load_recipe(Path(__file__).parents[2] / "recipes" / "symbolic_published.yaml", overrides))
    modules = json.loads((folder / "config.json").read_text())["quantization_config"]["modules"]
    return [spec["options"] for spec in modules if spec["kind"] == "symbolic_mlp"]


def symbolic_plan(layers: list[int], options: list[dict[str, Any]]) -> Plan:
    row = architecture("qwen2")
    specs: list[ModuleSpec] = []
    for layer, own in zip(layers, options, strict=False):
        modules = tuple(f"{row.layer(layer)}.{name}" for name in row.mlp)
        outer = ModuleSpec(module=modules[-1], kind="symbolic_mlp", options={**own, "d_model": SHAPE["hidden_size"]})
        specs += mlp_chain(Group("symbolic", 0, layer, modules), kinds.of(outer))
    return Plan(modules=tuple(specs))


def write_variants(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Three model folders with the same random weights."""
    vocabulary = 151936 if options.layers > 1 else 256
    dtype = getattr(torch, options.dtype)
    config = Qwen2Config(**SHAPE, num_hidden_layers=options.layers, vocab_size=vocabulary, tie_word_embeddings=True)
    expressions = fitted_options(folder / "fitted", options.evaluations)
    out = {}
    for variant in ("baseline", "skip", "symbolic"):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        if variant == "skip":
            skip_layers(model, architecture("qwen2"), options.replace, "skip-identity")
        if variant == "symbolic":
            plan = symbolic_plan(options.replace, expressions)
            apply_plan(model, plan)
            for spec in plan.modules:
                fill(model.get_submodule(spec.module))
            attach_plan(model, plan)
        out[variant] = folder / variant
        model.save_pretrained(out[variant])
        del model
    return out


def fill(module: torch.nn.Module) -> None:
    """Seeded values for a surrogate's parameters; latents within ±3, as calibrated ones are."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator) * (
            parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
        )
        parameter.data = values.to(parameter.dtype)
    for name, buffer in module.named_buffers():
        buffer.fill_(-3.0 if name.endswith("low") else 3.0)


def opened(folders: dict[str, Path], runtime: str, options: argparse.Namespace) -> dict[str, Runner]:
    if runtime == "onnx":
        from exporters.onnx.graph import export_onnx

        for folder in folders.values():
            if not (folder / "onnx").is_dir():
                export_onnx(folder, folder / "onnx", verify=False)
        folders = {name: folder / "onnx" for name, folder in folders.items()}
    dtype = "float32" if runtime == "onnx" else options.dtype
    return {n: open_runner(f, runtime, options.device, dtype, options.threads) for n, f in folders.items()}  # type: ignore[arg-type]


def measure(runners: dict[str, Runner], tokens: int, options: argparse.Namespace) -> dict[str, list[float]]:
    ids = np.random.default_rng(0).integers(0, 256, (1, tokens))
    flush = torch.zeros(COLD_BYTES // 4)

    def once(runner: Runner) -> float:
        if tokens == 1 and options.device == "cpu":
            flush.add_(1.0)
        synchronize(options.device)
        return timed(options.device, lambda: runner.forward(ids))[0]

    for runner in runners.values():
        once(runner)
        once(runner)
    return interleave({name: lambda r=runner: once(r) for name, runner in runners.items()}, options.rounds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--replace", type=int, nargs="+", default=[0])
    parser.add_argument("--runtimes", nargs="+", default=["eager", "compile", "onnx"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 1])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--evaluations", type=int, default=30000, help="of the search behind the expressions")
    options = parser.parse_args()
    table = Table("runtime", "tokens", "baseline ms", "skip ms", "symbolic ms", "symbolic / skip", "95 %", "of the MLP")
    with tempfile.TemporaryDirectory() as folder:
        folders = write_variants(Path(folder), options)
        for runtime in options.runtimes:
            runners = opened(folders, runtime, options)
            for tokens in options.tokens:
                times = measure(runners, tokens, options)
                base, skip, symbolic = (float(np.median(times[name])) for name in ("baseline", "skip", "symbolic"))
                ratio = paired_speedup(times["skip"], times["symbolic"])
                share = f"{(symbolic - skip) / (base - skip):.2%}" if options.layers == 1 else "–"
                interval = f"{ratio.low:.4f}–{ratio.high:.4f}" if ratio.low is not None else "–"
                cells = (f"{base:.2f}", f"{skip:.2f}", f"{symbolic:.2f}", f"{ratio.ratio:.4f}", interval, share)
                table.add_row(runtime, str(tokens), *cells)
            del runners
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
