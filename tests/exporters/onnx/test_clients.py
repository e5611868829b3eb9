"""The programs that people run on exported folders, each in its own environment, generate what transformers generates here.

They cannot live in ours (optimum-onnx needs transformers below 4.58), so COMPRESS_CLIENTS=1 lets these tests install them:
once, into COMPRESS_CLIENTS_CACHE (by default the user's cache folder), some 2 GB and two minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import VOCABULARY
from filelock import FileLock
from long import long
from onnx_folders import folders

from compress.data import load_tokenizer
from compress.loading.quantizer import from_pretrained
from exporters.onnx.graph import export_onnx
from exporters.onnx.parity import PASSAGE

pytestmark = pytest.mark.skipif(
    os.environ.get("COMPRESS_CLIENTS") != "1", reason="installs other programs; set COMPRESS_CLIENTS=1"
)

NEW_TOKENS = 24
# torch in the build that is here: on a machine without a GPU the default one would bring 4 GB of CUDA.
PACKAGES = {"optimum": (f"torch=={torch.__version__}", "optimum-onnx[onnxruntime]>=0.1"), "genai": ("onnxruntime-genai>=0.9",)}

OPTIMUM = """
import json, sys, torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer
given = json.load(sys.stdin)
model = ORTModelForCausalLM.from_pretrained(given["folder"], file_name=given["file"])
answer = {}
for name, (ids, mask) in given["prompts"].items():
    answer[name] = model.generate(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False,
        min_new_tokens=given["new"], max_new_tokens=given["new"],
    ).tolist()
if given["text"]:
    answer["ids"] = AutoTokenizer.from_pretrained(given["folder"])(given["text"])["input_ids"]
print(json.dumps(answer))
"""

GENAI = """
import json, sys
import onnxruntime_genai as og
given = json.load(sys.stdin)
model = og.Model(given["folder"])
answer = {}
for name, (ids, mask) in given["prompts"].items():
    parameters = og.GeneratorParams(model)
    length = len(ids[0]) + given["new"]
    parameters.set_search_options(batch_size=len(ids), min_length=length, max_length=length)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    answer[name] = [generator.get_sequence(row).tolist() for row in range(len(ids))]
if given["text"]:
    answer["ids"] = og.Tokenizer(model).encode(given["text"]).tolist()
print(json.dumps(answer))
"""


def environment(client: str) -> Path:
    """The Python of a client's environment; skips the test where it cannot be installed."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "compress-clients"
    folder = Path(os.environ.get("COMPRESS_CLIENTS_CACHE", default)) / client
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    with FileLock(folder / "lock"):
        if not (folder / "installed").exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            for package in PACKAGES[client]:
                done = subprocess.run(
                    [python, "-m", "pip", "install", "--quiet", package], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    pytest.skip(f"{package} could not be installed: {done.stderr.strip().splitlines()[-1]}")
            (folder / "installed").touch()
    return python


def ask(client: str, folder: Path, prompts: dict[str, Any], text: str | None, file: str = "model.onnx") -> dict[str, Any]:
    """What the client generates and how it tokenizes."""
    given = {"folder": str(folder), "file": file, "prompts": prompts, "new": NEW_TOKENS, "text": text}
    code = OPTIMUM if client == "optimum" else GENAI
    done = subprocess.run(
        [environment(client), "-c", code], input=json.dumps(given), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def prompts_of(tokens: list[int], client: str) -> dict[str, Any]:
    """One row, two rows of equal length, and for optimum two of unequal length (genai does not mask padding of such models)."""
    out = {"single": ([tokens[:20]], [[1] * 20]), "batch": ([tokens[:16], tokens[16:32]], [[1] * 16] * 2)}
    if client == "optimum":
        out["left_padded"] = ([[0] * 6 + tokens[:10], tokens[16:32]], [[0] * 6 + [1] * 10, [1] * 16])
    return out


def expected(checkpoint: Path | str, prompts: dict[str, Any]) -> dict[str, Any]:
    model = from_pretrained(checkpoint, dtype=torch.float32)
    length = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    return {
        name: model.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **length).tolist()
        for name, (ids, mask) in prompts.items()
    }


@pytest.mark.parametrize("client", PACKAGES)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", pytest.param("opt", marks=long)])
def test_random_models(client: str, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint, out = folders(name, tmp_path_factory)
    tokens = torch.randint(1, VOCABULARY, (32,), generator=torch.Generator().manual_seed(3)).tolist()
    prompts = prompts_of(tokens, client)
    assert ask(client, out, prompts, None) == expected(checkpoint, prompts)


@pytest.mark.parametrize("client", PACKAGES)
def test_novella_with_its_tokenizer(client: str, tmp_path: Path) -> None:
    """And the int8 graph beside it loads: by name in optimum; genai_config.json names it."""
    export_onnx("novella", tmp_path, quantize="int8")
    tokens = load_tokenizer("novella").encode(PASSAGE)
    prompts = prompts_of(tokens, client)
    ask(client, tmp_path, prompts, None, "model_int8.onnx")
    config = json.loads((tmp_path / "genai_config.json").read_text())
    assert config["model"]["decoder"]["filename"] == "model_int8.onnx"
    config["model"]["decoder"]["filename"] = "model.onnx"
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    assert ask(client, tmp_path, prompts, PASSAGE) == expected("novella", prompts) | {"ids": tokens}
