# pyright: strict
"""Check a recipe, fit it, explain a model. Each is the twin of a command."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from compress.api.checkpoint import Checkpoint
from compress.api.folders import AnyPath, model_folder

if TYPE_CHECKING:
    from compress.bars import Shown
    from compress.explaining.explain import Explanation
    from compress.recipe import Recipe
    from compress.regression.front import Rule
    from compress.regression.options import EngineOptions

    AnyRecipe = AnyPath | Mapping[str, Any] | Recipe  # a file (or a packaged recipe's name), plain data, or what was loaded

IN_MEMORY = "in_memory"  # what a recipe without `model:` calls the model that it is given


def load_recipe(recipe: AnyRecipe, overrides: Sequence[str] = ()) -> Recipe:
    """Check a recipe: everything that can be known before a weight is read.

    Args:
        recipe: a file, the name of a packaged recipe, plain data, or a Recipe.
        overrides: `dotted.key=value` with YAML values, as `--set` takes them.

    Returns the checked recipe; `recipe.to_yaml()` is what a file would hold.

    Raises FileNotFoundError, or ValueError with one line per mistake: what was given, what is allowed, the nearest match.

    >>> import compress
    >>> recipe = compress.load_recipe("quickstart", ["seed=7"])
    >>> recipe.model.name, recipe.seed
    ('novella', 7)
    >>> compress.load_recipe("quickstart", ["evaluation.length=1"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ...quickstart.yaml: evaluation.length: Input should be greater than or equal to 2; given 1
    """
    from compress import recipe as schema

    plain = plain_recipe(recipe)
    if isinstance(plain, Path):
        return schema.load_recipe(plain, overrides)
    return schema.parse_recipe(plain, overrides)


def plain_recipe(recipe: AnyRecipe) -> Path | dict[str, Any]:
    """A file, or plain data that may be changed. Raises ValueError for anything else."""
    import yaml

    from compress.packaged import packaged
    from compress.recipe import Recipe

    if isinstance(recipe, Recipe):
        return cast("dict[str, Any]", yaml.safe_load(recipe.to_yaml()))
    if isinstance(recipe, Mapping):
        return copy.deepcopy(dict(recipe))
    if isinstance(recipe, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        return packaged(recipe)
    raise ValueError(f"recipe: {type(recipe).__name__} given; give a path, a mapping, or a Recipe")


def fit(
    recipe: AnyRecipe,
    *,
    model: Any = None,
    tokenizer: Any = None,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    progress: Shown = None,
) -> Checkpoint:
    """Compress a model as a recipe says, and write a checkpoint that plain `from_pretrained` loads.

    Args:
        recipe: a file, the name of a packaged recipe, plain data, or a Recipe.
        model: a transformers model in memory, compressed instead of the one that the recipe names; it is not changed. The
            recipe's `model:` may be left out then, and is a label where it is given.
        tokenizer: of `model`; by default the one it was loaded with.
        overrides: `dotted.key=value` with YAML values, as `--set` takes them.
        fresh: forget finished units of an earlier run, and what was picked by hand, instead of taking them over.
        progress: None, "bar", or a function (see `compress.progress.Progress`).

    Returns the checkpoint, in the folder that the recipe's `output:` names.

    Raises FileNotFoundError or ValueError, one line per mistake, and FileExistsError where a file that compress did not write
    is in the way, before a weight is read where that can be; RuntimeError where a loss is not finite, or another run is on it.

    >>> import tempfile, compress
    >>> recipe = {"calibration": {"text": "novella", "sequences": 8, "length": 64}}
    >>> recipe["steps"] = [{"method": "feature_space", "layers": [0], "targets": {"roles": ["q"]}, "rank": {"keep": 0.5}}]
    >>> model = compress.from_pretrained("novella")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = compress.fit({**recipe, "output": f"{folder}/out"}, model=model)
    ...     [spec.module for spec in checkpoint.plan.modules]
    ['model.layers.0.self_attn.q_proj']
    """
    from compress.bars import shown
    from compress.fitting import run
    from compress.stream.original import Loaded

    if model is None and tokenizer is not None:
        raise ValueError("tokenizer: it goes with model=; the tokenizer of a model that the recipe names is in its folder")
    original = None if model is None else Loaded(model, tokenizer)
    loaded = load_recipe(recipe if original is None else _labelled(recipe), overrides)
    with shown(progress) as tell:
        folder = run.fit(loaded, fresh=fresh, progress=tell, original=original)
    return Checkpoint(folder, original=original)


def _labelled(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with a name for its model where it has none."""
    from compress.recipe import read_yaml

    plain = plain_recipe(recipe)
    read = read_yaml(plain) if isinstance(plain, Path) else plain
    if not isinstance(read, dict) or "model" in read:
        return recipe
    return {"model": IN_MEMORY, **cast("dict[str, Any]", read)}


def explain(
    model: Any,
    module: str,
    text: str,
    *,
    position: int = -1,
    tokenizer: Any = None,
    inputs: int = 4,
    outputs: int = 1,
    neighbours: int = 2000,
    width: float = 0.5,
    choose: Rule = "knee",
    engine: Literal["sparse", "operon", "pysr"] | EngineOptions = "sparse",
    bos: Literal["auto"] | bool = "auto",
    seed: int = 0,
) -> Explanation:
    """Explain a module around one token by a small expression, with its local R² beside that of a linear one.

    Args:
        model: a checkpoint, a model folder, a hub id, "novella", or a transformers model with its `tokenizer`.
        module: its full name: an MLP, an attention, a linear, a whole layer.
        text: two dozen tokens or more say how activations vary.
        position: which token of it, from 0; negative from the end.
        tokenizer: of a model in memory.
        inputs, outputs: directions of the module's input that the expressions read, and of its output, one expression each.
        neighbours, width: points sampled around the token, as far as this share of the text's own spread.
        choose: "knee", "held_out", or the most accurate expression of at most this complexity.
        engine: what searches, few terms and evaluations by a bare name: what explains is short.
        bos: what stands in front of the text, without a position: "auto" (what the tokenizer itself puts there), True (at least
            its beginning-of-sequence token) or False (nothing).
        seed: of the neighbours and the search.

    Returns the explanation; `.text()` and `.latex()` are for people.

    Raises ValueError for a module or a position that is not there, text too short, or options that cannot be.

    >>> import compress
    >>> text = "The old house stood at the end of the lane, and nobody had lived there for many years. It was dark inside."
    >>> found = compress.explain("novella", "model.layers.2.mlp", text, inputs=2, neighbours=200)
    >>> found.module, len(found.distilled.text())
    ('model.layers.2.mlp', 1)
    """
    from compress import validation
    from compress.bars import shown
    from compress.explaining import explain as explaining

    sizes = {"inputs": inputs, "outputs": outputs, "neighbours": neighbours, "width": width, "bos": bos, "seed": seed}
    named = {"name": engine, "terms": explaining.TERMS, "evaluations": explaining.EVALUATIONS}
    searched = named if isinstance(engine, str) else engine
    options = validation.checked(explaining.ExplainOptions, {**sizes, "engine": searched, "choose": choose})
    with shown(None):
        loaded, words = _loaded(model, tokenizer)
    return explaining.explain_token(loaded, words, module, text, position, options)


def _loaded(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """A model in eval mode and its tokenizer, float32 where they are loaded here."""
    import torch

    from compress import data
    from compress.checkpoint.config import load_config
    from compress.loading.quantizer import from_pretrained

    if not isinstance(model, (str, os.PathLike)):
        if tokenizer is None:
            raise ValueError("tokenizer: give that of the model in memory")
        return model, tokenizer
    folder = model_folder(cast("AnyPath", model))
    load_config(folder)  # looked at before the tokenizer is read
    tokenizer = tokenizer or data.load_tokenizer(folder)
    return from_pretrained(folder, dtype=torch.float32).eval(), tokenizer
