"""Peak memory of `compress fit` on a random 1.3 B bfloat16 Llama, above the imports.

    python tests/benchmarks/fit_memory.py [--sequences 8] [--length 128]

Writes the model (2.7 GB) and the run into a temporary folder. Linux: reads the peak resident set of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 32000,
}


def write_model(folder: Path) -> int:
    """A random model in shards, one tensor at a time; returns its number of parameters."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from compress.checkpoint.writer import write_shards
    from compress.novella import FOLDER

    config = LlamaConfig(**SHAPE, tie_word_embeddings=False, dtype="bfloat16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    total = sum(s.numel() for s in shapes.values())
    torch.manual_seed(0)
    tensors = (
        (name, torch.randn(s, dtype=torch.bfloat16) * 0.02 if len(s) > 1 else torch.ones(s, dtype=torch.bfloat16))
        for name, s in shapes.items()
    )
    write_shards(folder, tensors, 2 * total)
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    return total


def child(recipe: str) -> None:
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401 - counted among the imports
    from transformers import AutoModelForCausalLM  # noqa: F401

    from compress.clock import resident_mib
    from compress.fitting import run
    from compress.loading import remote_code  # noqa: F401
    from compress.recipe import load_recipe

    torch.set_num_threads(1)
    _, imports = resident_mib()
    started = time.perf_counter()
    run.fit(load_recipe(recipe))
    _, peak = resident_mib()
    out = {"imports_mib": imports, "peak_mib": peak, "above_mib": peak - imports}
    print(json.dumps(out | {"seconds": time.perf_counter() - started}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--roles", default="all", help="such as [v, down]: fewer linears take less time; down is the largest")
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    SHAPE["num_hidden_layers"] = options.layers
    with tempfile.TemporaryDirectory() as folder:
        total = write_model(Path(folder) / "model")
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(
            f"model: {folder}/model\n"
            f"calibration: {{text: novella, sequences: {options.sequences}, length: {options.length}}}\n"
            f"steps: [{{method: feature_space, targets: {{roles: {options.roles}}}, rank: {{keep: 0.8}}}}]\n"
            f"output: {folder}/out\n"
        )
        print(f"{total / 1e9:.3f} B parameters, {options.sequences} × {options.length} calibration tokens", flush=True)
        subprocess.run([sys.executable, __file__, "--child", str(recipe)], check=True)


if __name__ == "__main__":
    main()
