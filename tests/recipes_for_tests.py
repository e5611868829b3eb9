"""Tiny random models with a tokenizer and text beside them, and recipes over them: whole runs in a second."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from checkpoints import VOCABULARY, tiny_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from compress.evaluating.perplexity import compare
from compress.fitting.job import prepare, tokens_of
from compress.recipe import Recipe, parse_recipe

IDS = torch.arange(60).view(2, 30) % 90  # tokens that every tiny model knows
ALPHABET = [chr(0x21 + i) for i in range(VOCABULARY - 4)]


def tiny_folder(folder: Path, model_type: str, seed: int = 0, **overrides: Any) -> Path:
    """A model folder with a one-character-a-token tokenizer, and text.txt of 4,000 random characters."""
    tiny_model(model_type, seed, **overrides).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(ALPHABET)}, unk_token=ALPHABET[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    choose = random.Random(seed)
    (folder / "text.txt").write_text("".join(choose.choices(ALPHABET, k=4000)))
    return folder


def own_text(folder: Path) -> None:
    """Replace text.txt by what the model itself writes, so that every change of the model costs perplexity."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    ids = torch.randint(len(ALPHABET), (40, 1))
    with torch.no_grad():
        while ids.shape[1] < 96:
            logits = model(ids).logits[:, -1, : len(ALPHABET)]
            ids = torch.cat([ids, torch.multinomial((2 * logits).softmax(-1), 1)], dim=1)
    (folder / "text.txt").write_text("".join(ALPHABET[i] for i in ids.flatten()))


def tiny_recipe(folder: Path, output: Path, *steps: dict[str, Any], **more: Any) -> Recipe:
    """A recipe that calibrates on the folder's own text."""
    text = str(folder / "text.txt")
    base: dict[str, Any] = {
        "model": str(folder),
        "calibration": {"text": text, "sequences": 40, "length": 32},
        "steps": list(steps),
        "output": str(output),
        "compute": {"lanes": 2},  # more would only be more calls of a tiny model
    }
    return parse_recipe(base | more)


def logits(path: Path) -> torch.Tensor:
    """What the model in a folder says to `IDS`, float32 (2, 30, vocabulary)."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(IDS).logits


def divergence(folder: Path, source: Path, recipe: Recipe) -> float:
    """KL of the model in `folder` from the one in `source`, on the recipe's calibration tokens."""
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (folder, source)]
    return compare(*models, tokens_of(prepare(recipe)))["kl"]


STEP = {"method": "feature_space", "layers": [0], "rank": {"keep": 0.5}}


def symbolic_step(outputs: int, terms: int) -> dict[str, Any]:
    """Layer 1's MLP as `outputs` sparse expressions of `terms` terms."""
    return {
        "method": "symbolic_mlp",
        "layers": [1],
        "latents": {"inputs": 3, "outputs": outputs},
        "engine": {"name": "sparse", "terms": terms},
        "samples": 100,
    }


def evaluated_recipe(folder: Path, output: Path, *steps: dict[str, Any], **more: Any) -> Recipe:
    """A recipe that is judged on the folder's text, too; without steps, of one low-rank layer."""
    texts = {"texts": {"own": str(folder / "text.txt")}, "length": 32, "sequences": 4}
    return tiny_recipe(folder, output, *(steps or (STEP,)), **{"evaluation": texts, **more})
