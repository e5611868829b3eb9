"""The commands about surrogates: show, pick, layers, explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from compress.cli.console import AsJson, Beginning, Device, Overrides, bar, emit, on, parse_beginning, quiet_transformers, show

Folder = Annotated[Path, typer.Argument(help="A checkpoint folder that `compress fit` wrote, with its work folder.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command("show")(show_expressions)
    app.command("pick")(pick)
    app.command("layers")(layers)
    app.command("explain")(explain)


def show_expressions(
    folder: Folder,
    layer: Annotated[int | None, typer.Option(help="One layer; default: all that have expressions.")] = None,
    latex: Annotated[bool, typer.Option("--latex", help="The chosen expressions in LaTeX.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the Pareto fronts of a checkpoint's expressions; the chosen ones are marked."""
    from compress.api.checkpoint import Checkpoint
    from compress.cli import tables

    quiet_transformers()
    found = Checkpoint(folder).expressions(layer)
    if as_json:
        emit([item.to_json() for item in found])
    elif latex:
        print("\n\n".join(f"% layer {item.layer}\n{item.latex()}" for item in found))
    else:
        for item in found:
            show(tables.fronts_table(item.to_json()))


def pick(
    folder: Folder,
    layer: Annotated[int, typer.Option(help="The layer whose expression changes.")],
    output: Annotated[int, typer.Option(help="Which of its outputs, from 0.")],
    complexity: Annotated[int, typer.Option(help="The most accurate expression of at most this complexity is taken.")],
    as_json: AsJson = False,
) -> None:
    """Choose one expression by hand and write the checkpoint again; nothing is fitted again."""
    from compress.api.checkpoint import Checkpoint

    quiet_transformers()
    found = Checkpoint(folder).pick(layer, output, complexity, progress=bar(as_json))
    chosen = found.to_json()["outputs"][output]
    emit(chosen) if as_json else print(chosen["candidates"][chosen["chosen"]]["text"])


def layers(
    recipe: Annotated[str, typer.Argument(help="A recipe with one step that replaces MLPs or crystallizes attention.")],
    overrides: Overrides = None,
    device: Device = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Fraction of the targeted layers' cost that may remain; default: all replaced."),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="An option of the step and its values, latents.outputs=16,64: each layer may take any.")
    ] = None,
    search_windows: Annotated[int, typer.Option(help="Choices see the first windows of the first evaluation text …")] = 32,
    test_windows: Annotated[int, typer.Option(help="… and the curves are of the last ones.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 128,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Draw an affine map and pruning of equal cost too.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh/--resume", help="Forget an earlier run, or continue it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Choose which layers to replace by measuring, least nll for what is saved first; writes layers.json and a plot."""
    from compress.api import fit as api
    from compress.api import search as searches

    loaded = api.load_recipe(recipe, on(device, overrides))
    quiet_transformers()
    from compress.cli import tables
    from compress.searching.points import parse_setting

    varied = dict([parse_setting(sizes)] if sizes else [])
    found = searches.layers(
        loaded,
        budget=budget,
        sizes=varied,
        search_windows=search_windows,
        test_windows=test_windows,
        length=length,
        controls=controls,
        fresh=fresh,
        progress=bar(as_json),
    )
    if as_json:
        emit({"output": str(loaded.output), **found})
    else:
        show(tables.layers_table(found))
        print(f"curve: {loaded.output / 'layers.png'}")
        if budget is not None:
            chosen = json.dumps(found["steps" if varied else "layers"], separators=(",", ":"))
            print(f"to fit: compress fit {recipe} --set '{'steps' if varied else 'steps.0.layers'}={chosen}'")


def explain(
    model: Annotated[str, typer.Argument(help="A checkpoint folder, a model folder, a hub id, or novella.")],
    module: Annotated[str, typer.Option(help="Full module name: model.layers.3.mlp, an attention, a linear, a whole layer.")],
    text: Annotated[str, typer.Option(help="The text itself; two dozen tokens or more say how activations vary.")],
    position: Annotated[int, typer.Option(help="Which token of it, from 0; negative from the end.")] = -1,
    inputs: Annotated[int, typer.Option(help="Directions of the module's input that the expression reads.")] = 4,
    outputs: Annotated[int, typer.Option(help="Directions of its output, one expression each.")] = 1,
    neighbours: Annotated[int, typer.Option(help="Points sampled around the token.")] = 2000,
    width: Annotated[float, typer.Option(help="Of the neighbourhood, as a share of the text's own spread.")] = 0.5,
    complexity: Annotated[int | None, typer.Option(help="At most this complexity; default: the knee of the front.")] = None,
    engine: Annotated[str, typer.Option(help="sparse, operon or pysr.")] = "sparse",
    bos: Beginning = "auto",
    seed: Annotated[int, typer.Option(help="Of the neighbours and the search.")] = 0,
    latex: Annotated[bool, typer.Option("--latex", help="The expressions in LaTeX.")] = False,
    as_json: AsJson = False,
) -> None:
    """Explain a module around one token by a small expression, with its local R² beside that of a linear one."""
    quiet_transformers()
    from compress.api import fit as api

    found = api.explain(
        model,
        module,
        text,
        position=position,
        inputs=inputs,
        outputs=outputs,
        neighbours=neighbours,
        width=width,
        choose=complexity or "knee",
        engine=engine,  # pyright: ignore[reportArgumentType] - checked there
        bos=parse_beginning(bos),
        seed=seed,
    )
    if as_json:
        emit(found.to_json())
    else:
        print(found.latex() if latex else found.text())
