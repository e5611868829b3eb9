"""A compressed checkpoint where compress is not installed: refused without trust, bit for bit the same with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ATTENTION_KINDS, LINEAR_KINDS, MLP_KINDS, scaled_kind, tiny_checkpoint, tiny_model, with_plan
from interpreters import run_without
from transformers import AutoModel, AutoModelForCausalLM

from compress.checkpoint.writer import copy_tokenizer
from compress.loading.quantizer import register
from compress.loading.remote_code import write_remote_code
from compress.plan import ModuleSpec, Plan

IDS = list(range(3, 40))
CASES = {f"qwen2-{kind}": ("qwen2", kind) for kind in (*LINEAR_KINDS, *ATTENTION_KINDS, *MLP_KINDS)} | {
    "gpt2-low_rank_linear": ("gpt2", "low_rank_linear"),
    "opt-identity_mlp": ("opt", "identity_mlp"),
    "opt-zero_mlp": ("opt", "zero_mlp"),
    "opt-mean_mlp": ("opt", "mean_mlp"),
    "opt-symbolic_mlp": ("opt", "symbolic_mlp"),
    "opt-everything": ("opt", "low_rank_linear", "affine_mlp"),
    "gpt2-shared_linear": ("gpt2", "shared_linear"),  # names that AutoModel shortens by another prefix
    "opt-shared_across": ("opt", "shared_across"),
    "gpt_neox-low_rank_linear": ("gpt_neox", "low_rank_linear"),  # whose head transformers renames by the class's name
}
WRAPPED = "qwen2-a kind that keeps its original"
SWAPPED = "qwen2-symbolic_mlp, other expressions in the same layer"

# Every folder is loaded twice in one process: plainly, before any of our code ran there, then trusting the generated file.
_LOAD = """
import hashlib, json, sys
import torch
from transformers import AutoModel, AutoModelForCausalLM
folders, ids = json.loads(sys.argv[1]), torch.tensor([json.loads(sys.argv[2])])
def load(folder, trust):
    try:
        models = [auto.from_pretrained(folder, trust_remote_code=trust) for auto in (AutoModelForCausalLM, AutoModel)]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    with torch.no_grad():
        found = [model(ids)[0] for model in models]
    return [[type(m).__name__, hashlib.sha256(y.numpy().tobytes()).hexdigest()] for m, y in zip(models, found)]
print(json.dumps([{name: load(folder, trust) for name, folder in folders.items()} for trust in (False, True)]))
"""


def _digest(folder: Path, auto: Any = AutoModelForCausalLM) -> str:
    """Of the logits; of the last hidden states where `auto` is AutoModel."""
    with torch.no_grad():
        found = auto.from_pretrained(folder)(torch.tensor([IDS]))[0]
    return hashlib.sha256(found.numpy().tobytes()).hexdigest()


def _logits(folder: Path, **options: bool) -> bytes:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, **options)(torch.tensor([IDS])).logits.numpy().tobytes()


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, Any, Any]]]:
    """Per case: digests with compress, what a plain load gave without it, what trusting loads gave without it."""
    with scaled_kind():
        register()
        root = tmp_path_factory.mktemp("remote")
        folders = {name: tiny_checkpoint(root / name, *case) for name, case in CASES.items()}
        folders[WRAPPED] = _wrapped(root / "wrapped")
        folders[SWAPPED] = tiny_checkpoint(root / "swapped", "qwen2", "symbolic_mlp")
        config = json.loads((folders[SWAPPED] / "config.json").read_text())
        config["quantization_config"]["modules"][0]["options"]["expressions"].reverse()
        (folders[SWAPPED] / "config.json").write_text(json.dumps(config))
        for folder in folders.values():
            write_remote_code(folder)
        digests = {name: [_digest(folder), _digest(folder, AutoModel)] for name, folder in folders.items()}
        arguments = json.dumps({name: str(folder) for name, folder in folders.items()}), json.dumps(IDS)
        plain, trusted = json.loads(run_without(["compress"], _LOAD, root, *arguments).splitlines()[-1])
        yield {name: (digests[name], plain[name], trusted[name]) for name in folders}


def _wrapped(folder: Path) -> Path:
    """A checkpoint with a kind that keeps the module it replaces."""
    plan = Plan(modules=(ModuleSpec(module="model.layers.1.mlp.up_proj", kind="scaled_linear", options={"factor": 0.5}),))
    return with_plan(folder, tiny_model("qwen2"), plan)


# A crystallized attention keeps the original's weights: what a loader that does not know it gets is the original model.
@pytest.mark.parametrize("case", [case for case in (*CASES, WRAPPED) if "crystallized" not in case])
def test_a_plain_load_without_compress_raises_instead_of_guessing_weights(loads: Any, case: str) -> None:
    _, plain, _ = loads[case]
    assert isinstance(plain, str), "random weights were loaded"
    assert "size mismatch" in plain or "mismatched" in plain


@pytest.mark.parametrize("case", [*CASES, SWAPPED, WRAPPED])
def test_a_trusting_load_without_compress_computes_the_same_bit_for_bit(loads: Any, case: str) -> None:
    (logits, hidden), _, trusted = loads[case]
    assert trusted == [["CompressedForCausalLM", logits], ["CompressedModel", hidden]]


def test_the_generated_file_needs_neither_compress_nor_sympy(tmp_path: Path) -> None:
    write_remote_code(tiny_checkpoint(tmp_path, "llama", "low_rank_linear", "symbolic_mlp"))
    text = (tmp_path / "modeling_compress.py").read_text()
    assert "import compress" not in text
    assert "from compress" not in text
    assert "sympy" not in text
    compile(text, "modeling_compress.py", "exec", dont_inherit=True)
    assert "AffineMLP" not in text, "a class that this checkpoint does not use"


def test_with_compress_installed_the_checkpoint_loads_as_before(tmp_path: Path) -> None:
    register()
    folder = tiny_checkpoint(tmp_path, "qwen2", "low_rank_linear")
    before = _digest(folder)
    write_remote_code(folder)
    write_remote_code(folder)  # a second time changes nothing
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert config["auto_map"] == {
        "AutoModelForCausalLM": "modeling_compress.CompressedForCausalLM",
        "AutoModel": "modeling_compress.CompressedModel",
    }
    assert _digest(folder) == before


@pytest.mark.parametrize("trust", [False, True])
def test_with_compress_installed_a_renamed_head_is_read_and_written_either_way(tmp_path: Path, trust: bool) -> None:
    folder = tiny_checkpoint(tmp_path / "first", "gpt_neox", "low_rank_linear")
    write_remote_code(folder)
    model, told = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, output_loading_info=True)
    assert not told["missing_keys"] | told["unexpected_keys"]
    model.save_pretrained(tmp_path / "again")
    assert _digest(tmp_path / "again") == _digest(folder)


def test_save_pretrained_takes_its_options_by_position_too(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "first", "qwen2", "identity_mlp")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again", True, model.state_dict())
    assert _digest(tmp_path / "again") == _digest(folder)
    assert (tmp_path / "again" / "modeling_compress.py").is_file()
    model.save_pretrained(tmp_path / "elsewhere", False)  # not the main process: it writes no code
    assert not (tmp_path / "elsewhere" / "modeling_compress.py").exists()


def test_the_original_s_code_is_named_no_more_but_for_a_tokenizer_that_is_there(tmp_path: Path) -> None:
    """As the published Phi-3 folders have it: configuration and model code of their own, beside a type transformers knows."""
    folder = tiny_checkpoint(tmp_path, "phi3", "low_rank_linear")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        "AutoModelForSequenceClassification": "modeling_phi3.Phi3ForSequenceClassification",
        "AutoTokenizer": ["tokenization_phi3.Phi3Tokenizer", None],
        "AutoProcessor": "processing_phi3.Phi3Processor",  # which is not there
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenization_phi3.py").write_text("class Phi3Tokenizer: ...")
    write_remote_code(folder)
    found = json.loads((folder / "config.json").read_text())["auto_map"]
    assert found == {
        "AutoModelForCausalLM": "modeling_compress.CompressedForCausalLM",
        "AutoModel": "modeling_compress.CompressedModel",
        "AutoTokenizer": ["tokenization_phi3.Phi3Tokenizer", None],
    }
    assert _digest(folder) == hashlib.sha256(_logits(folder, trust_remote_code=True)).hexdigest()


def test_a_tokenizer_s_own_code_is_copied_with_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenization_phi3.py", "tokenizer_config.json", "modeling_phi3.py", "configuration_phi3.py"):
        (source / name).write_text("{}")
    copy_tokenizer(source, tmp_path / "target")
    assert {path.name for path in (tmp_path / "target").iterdir()} == {"tokenization_phi3.py", "tokenizer_config.json"}


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        write_remote_code(tmp_path)
    with pytest.raises(ValueError, match="no quantization_config of compress"):
        write_remote_code(tiny_checkpoint(tmp_path, "qwen2"))


def test_an_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen2", "identity_mlp")
    path = folder / "config.json"
    path.write_text(path.read_text().replace("identity_mlp", "from_the_future"))
    with pytest.raises(ValueError, match="unknown kind 'from_the_future'"):
        write_remote_code(folder)
