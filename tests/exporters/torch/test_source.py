"""The standalone file computes what transformers computes, where neither compress nor transformers can be imported."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES, POSITIONS, tiny_checkpoint
from interpreters import run_without
from long import LONG
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compress.architecture import architecture
from compress.loading.quantizer import register
from exporters.torch.parity import greedy_transformers, load_standalone
from exporters.torch.source import export_pt2, export_torch

KINDS: dict[str, tuple[str, ...]] = {
    "dense": (),
    "low_rank": ("low_rank_linear",),
    "pivoted and symbolic": ("pivoted_linear", "symbolic_mlp"),
    "dense of another bias, identity, mean": ("dense_linear", "identity_mlp", "mean_mlp"),
    "zero, affine": ("zero_mlp", "affine_mlp"),
    "shared within a layer": ("shared_linear",),
    "shared, pivoted": ("shared_pivoted", "zero_mlp"),
    "shared across layers": ("shared_across",),
}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
_NEOX = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
# Switches of a config that change what is computed, beyond the fixture's own.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rope linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    "rope llama3": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0} | _LLAMA3}),
    "rope yarn": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0} | _YARN}),
    "no window": ("mistral", {"sliding_window": None}),
    "window on one layer": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "untied": ("qwen3", {"tie_word_embeddings": False}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "one key and value head": ("gemma", {"num_key_value_heads": 1}),
    "normed queries": ("phi", {"qk_layernorm": True, "num_key_value_heads": 4}),
    "serial": ("gpt_neox", {"use_parallel_residual": False, "rope_parameters": _NEOX}),
    "scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": None, "activation_function": "relu"}),
    "unscaled": ("gpt2", {"scale_attn_weights": False}),
    "norm after, narrow embeddings": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "no biases": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
}
IDS = [5, 17, 3, 88, 41, 2, 60, 9, 33, 7, 71, 14, 52, 96, 1, 28, 45, 11, 80, 6, 19, 64, 23, 90]
TOKENS = 12

# Imports every file by path; logits of all positions, then greedy tokens with the cache, as JSON.
_RUN = """
import importlib.util, json, sys
import torch
torch.set_num_threads(1)
folders, ids, tokens = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
out = {}
for name, folder in folders.items():
    spec = importlib.util.spec_from_file_location("model", folder + "/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load(module.Path(folder))
    with torch.no_grad():
        logits = model(torch.tensor([ids, ids[::-1]]))[0]
    out[name] = [logits.tolist(), list(module.generate(model, ids, tokens))]
assert not {"compress", "transformers", "safetensors", "tokenizers"} & set(sys.modules)
print(json.dumps(out))
"""


def _reference(folder: Path) -> tuple[torch.Tensor, list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.tensor([IDS, IDS[::-1]])).logits
        tokens = greedy_transformers(model, torch.tensor([IDS]), TOKENS)
    return logits, tokens


Case = tuple[Path, torch.Tensor, list[int], torch.Tensor, list[int]]
# Every kind; of the other families two kinds each without the long form.
WHOLE = list(FAMILIES) if LONG else ["qwen2", "gpt2"]
PAIRS = [(f, kind) for i, f in enumerate(FAMILIES) for j, kind in enumerate(KINDS) if f in WHOLE or (i + j) % 4 == 0]
NAMES = [*(f"{family}, {kind}" for family, kind in PAIRS), *VARIANTS]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Per case: the exported folder, transformers' logits and tokens, the standalone file's logits and tokens."""
    register()
    root = tmp_path_factory.mktemp("standalone")
    cases: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
        f"{family}, {kind}": (family, KINDS[kind], {}) for family, kind in PAIRS
    }
    cases |= {name: (family, ("low_rank_linear",), overrides) for name, (family, overrides) in VARIANTS.items()}
    folders, references = {}, {}
    for number, (name, (family, kinds, overrides)) in enumerate(cases.items()):
        checkpoint = tiny_checkpoint(root / f"{number}", family, *kinds, seed=number, **overrides)
        export_torch(checkpoint, out := root / f"{number}-torch", verify=False)
        folders[name], references[name] = out, _reference(checkpoint)
    arguments = json.dumps({name: str(folder) for name, folder in folders.items()}), json.dumps(IDS), str(TOKENS)
    found = json.loads(run_without(["compress", "transformers", "safetensors", "tokenizers"], _RUN, root, *arguments))
    return {name: (folders[name], *references[name], torch.tensor(found[name][0]), found[name][1]) for name in cases}


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens_are_those_of_transformers(exported: dict[str, Case], name: str) -> None:
    _, logits, tokens, got, generated = exported[name]
    assert logits.std() > 0.3, "logits that hardly differ would prove nothing"
    assert (got - logits).abs().max() <= 1e-4 * max(1.0, float(logits.abs().max()))
    assert generated == tokens


@pytest.mark.parametrize("name", NAMES)
def test_the_file_has_nothing_it_does_not_use_and_no_long_line(exported: dict[str, Case], name: str) -> None:
    text = (exported[name][0] / "model.py").read_text()
    assert max(map(len, text.splitlines())) <= 128
    tree = ast.parse(text)
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    constants = {
        n.id for node in tree.body if isinstance(node, ast.Assign) for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)
    }
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    # Annotations are strings at run time but names in the tree, so a type alias counts as used where it is written.
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert (defined | constants | imported) - used - {"annotations"} == set()
    assert all(
        (module or "").partition(".")[0]
        in {"__future__", "argparse", "collections", "json", "pathlib", "torch", "tokenizers", "typing"}
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for module in [node.module]
    )


def test_a_model_of_low_rank_linears_is_a_short_read(exported: dict[str, Case]) -> None:
    assert len((exported["qwen2, low_rank"][0] / "model.py").read_text().splitlines()) <= 255


@pytest.mark.parametrize("family", WHOLE)
def test_a_shared_basis_is_stored_once(exported: dict[str, Case], family: str) -> None:
    stored = {
        kind: [name for name in load_file(exported[f"{family}, {kind}"][0] / "model.safetensors") if name.endswith("basis")]
        for kind in ("shared within a layer", "shared across layers")
    }
    parted = "v" in architecture(family).roles
    across = [f"layers.0.attention.{'v' if parted else 'qkv'}.basis"]
    assert stored["shared across layers"] == across
    assert stored["shared within a layer"] == ([f"layers.{i}.attention.k.basis" for i in (0, 1)] if parted else across)


COMPILED = [(f, k) for f in ("qwen2", "gpt2") for k in ("pivoted and symbolic", "shared, pivoted", "shared across layers")]


@pytest.mark.parametrize(("family", "kind"), COMPILED)
def test_torch_compile_takes_the_forward_as_one_graph(exported: dict[str, Case], family: str, kind: str) -> None:
    _, model = load_standalone(exported[f"{family}, {kind}"][0])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    ids, cache, compiled_cache = torch.tensor([IDS]), None, None
    with torch.no_grad():
        for _ in range(3):  # the prefill, then single tokens on a growing cache
            logits, cache = model(ids, cache)
            compiled_logits, compiled_cache = compiled(ids, compiled_cache)
            assert torch.equal(compiled_logits, logits)
            ids = logits[:, -1:].argmax(dim=-1)


@pytest.mark.parametrize("name", ["qwen2, low_rank", "gpt2, shared, pivoted", "qwen2, shared across layers"])
def test_torch_export_serves_any_batch_and_length(exported: dict[str, Case], name: str) -> None:
    folder = exported[name][0]
    program = torch.export.load(export_pt2(folder)).module()
    _, model = load_standalone(folder)
    for shape in ((1, 1), (3, 40), (2, POSITIONS)):
        ids = torch.randint(90, shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(program(ids)[0], model(ids)[0], rtol=0, atol=1e-5)
