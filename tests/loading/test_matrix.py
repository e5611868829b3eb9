"""A checkpoint moved, saved again and cut into other shards, by one program and read by another: the same numbers bit for bit.

The programs: this environment with compress; the same where compress cannot be imported; and transformers 4.57, without
compress and without accelerate, where COMPRESS_TRANSFORMERS_4 names the python of such an environment:

    python -m venv old && old/bin/pip install torch "transformers==4.57.*" safetensors
    COMPRESS_TRANSFORMERS_4=old/bin/python python -m pytest tests/loading/test_matrix.py
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from checkpoints import tiny_checkpoint
from interpreters import run_without
from transformers import AutoModelForCausalLM

from compress.loading.quantizer import register
from compress.loading.remote_code import write_remote_code

OLD = os.environ.get("COMPRESS_TRANSFORMERS_4")
ROPE = {"rope_theta": 500.0, "rope_type": "default"}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# What each one adds to the others: how its rotary positions, its heads or its names are stored.
CASES = {
    "llama, another rope_theta": ("llama", {"rope_parameters": ROPE}),
    "llama, scaled rope": ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}}),
    "phi, part of each head": ("phi", {}),
    "gpt_neox, a head that is renamed": ("gpt_neox", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}),
    "gemma3_text, two kinds of rope": ("gemma3_text", {}),
    "gpt2, no rope": ("gpt2", {}),
}
IDS = list(range(3, 40))
SHARD = "20KB"  # several shards of these models

# Reads every folder trusting its code; those of the second list are saved again under the last argument, and read from there.
_PROGRAM = f"""
import hashlib, json, pathlib, sys
import torch
from transformers import AutoModelForCausalLM
def read(folder):
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            return model, hashlib.sha256(model(torch.tensor([{IDS}])).logits.numpy().tobytes()).hexdigest()
    except Exception as error:
        return None, f"{{type(error).__name__}}: {{error}}"
folders, again, target = json.loads(sys.argv[1]), json.loads(sys.argv[2]), pathlib.Path(sys.argv[3])
out = {{folder: read(folder)[1] for folder in folders}}
for folder in again:
    model, out[folder] = read(folder)
    saved = str(target / pathlib.Path(folder).name)
    if model is not None:
        model.save_pretrained(saved, max_shard_size={SHARD!r})
    out[saved] = read(saved)[1]
print(json.dumps(out))
"""


def _digest(folder: Path, **options: bool) -> str:
    """Of the logits, with compress."""
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, **options)(torch.tensor([IDS])).logits
    return hashlib.sha256(logits.numpy().tobytes()).hexdigest()


def _read(folders: Sequence[Path], again: Sequence[Path], root: Path, python: str | None = None) -> dict[str, str]:
    """What the program found, by folder: digests, or what went wrong. `again` are saved again under `root`."""
    given = [json.dumps([str(folder) for folder in part]) for part in (folders, again)]
    return json.loads(run_without(["compress"], _PROGRAM, root.parent, *given, str(root), python=python).splitlines()[-1])


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], bool]:
    """(case, what happened to the checkpoint, who read it) → whether the logits were the same."""
    register()
    root = tmp_path_factory.mktemp("matrix")
    names = {f"case{i}": case for i, case in enumerate(CASES)}
    ways = {"as written": root / "written", "saved with compress": root / "here", "moved": root / "elsewhere" / "far"}
    expected = {}
    for name, case in names.items():
        model_type, options = CASES[case]
        kind = "pivoted_linear" if model_type == "llama" else "low_rank_linear"
        folder = tiny_checkpoint(ways["as written"] / name, model_type, kind, **options)
        write_remote_code(folder)
        expected[name] = _digest(folder)
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(ways["saved with compress"] / name, max_shard_size=SHARD)
    shutil.copytree(ways["as written"], ways["moved"])
    written = [ways["as written"] / name for name in names]

    def rest() -> list[Path]:
        return [path / name for way, path in ways.items() if way != "as written" for name in names]

    found = {"without compress": _read(rest(), written, root / "new")}
    ways["saved without compress"] = root / "new"
    if OLD:
        found["transformers 4"] = _read(rest(), written, root / "old", OLD)
        ways["saved by transformers 4"] = root / "old"
        found["without compress"] |= _read([root / "old" / name for name in names], [], root)
    # Plainly, and trusting the folder's own code.
    both = {str(folder): {_digest(folder), _digest(folder, trust_remote_code=True)} for folder in (*written, *rest())}
    found["with compress"] = {folder: digests.pop() if len(digests) == 1 else "two answers" for folder, digests in both.items()}
    cells = {
        (case, way, reader): answers[str(path / name)] == expected[name]
        for reader, answers in found.items()
        for way, path in ways.items()
        for name, case in names.items()
    }
    shards = {("shards", way, ""): len([*(path / "case0").glob("model-*.safetensors")]) > 1 for way, path in ways.items()}
    return cells | shards


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "reader",
    [
        "with compress",
        "without compress",
        pytest.param("transformers 4", marks=pytest.mark.skipif(OLD is None, reason="no COMPRESS_TRANSFORMERS_4")),
    ],
)
def test_who_reads_what_became_of_a_checkpoint(matrix: dict[tuple[str, str, str], bool], case: str, reader: str) -> None:
    cells = {way: same for (c, way, r), same in matrix.items() if (c, r) == (case, reader)}
    assert len(cells) == (5 if OLD else 4)
    assert all(cells.values()), cells


def test_what_was_saved_again_is_in_shards(matrix: dict[tuple[str, str, str], bool]) -> None:
    cells = {way: same for (c, way, _), same in matrix.items() if c == "shards"}
    assert not cells.pop("as written")
    assert not cells.pop("moved")
    assert all(cells.values()), cells


def test_a_copy_in_memory_is_saved_with_its_own_weights_and_code(tmp_path: Path) -> None:
    register()
    first = tiny_checkpoint(tmp_path / "first", "llama", "low_rank_linear")
    model = AutoModelForCausalLM.from_pretrained(first)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "other").lm_head.weight, 2 * model.lm_head.weight)
    write_remote_code(first)
    name = "modeling_compress.py"
    assert (tmp_path / "other" / name).read_bytes() == (first / name).read_bytes()
