"""Runtime modules in the place of a model's own: built from specs, filled, linked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress import kinds

if TYPE_CHECKING:
    from compress.plan import ModuleSpec, Plan

Find = Callable[[str], nn.Module]  # a module by its full name
Put = Callable[[str, nn.Module], None]  # a module in the place of that name


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Replace modules of `model` in place, with uninitialised parameters. Raises ValueError for a module that is not there."""
    prefix = str(getattr(model, "base_model_prefix", "")) + "."
    headless = not hasattr(model, prefix[:-1])  # AutoModel without a head: names lose the prefix

    def find(name: str) -> nn.Module:
        try:
            return model.get_submodule(name.removeprefix(prefix) if headless else name)
        except AttributeError:
            raise ValueError(f"the plan replaces {name!r}, which this {type(model).__name__} does not have") from None

    for spec in plan.modules:
        parent, _, child = spec.module.rpartition(".")
        # A module is born in training mode; this model may have left it.
        find(parent).register_module(child, build(spec, find(spec.module)).train(model.training))
    link(plan.modules, find)


def install(
    specs: Iterable[ModuleSpec],
    tensors: Mapping[str, Tensor],
    *,
    find: Find,
    put: Put,
    stored_in: torch.dtype,
    computed_in: torch.dtype,
    device: torch.device | None = None,
) -> None:
    """Put replacements in as a checkpoint will hold them: float64 tensors rounded to `stored_in`, then in `computed_in`, on
    `device` or where they are.

    `tensors` are keyed by full parameter name; `find` is asked for what a kind that wraps keeps, and for owners.
    """
    specs = tuple(specs)
    for spec in specs:
        module = build(spec, find(spec.module))
        prefix = f"{spec.module}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        # Rounded as the file will hold it, so that what is measured is what loads. Indices and float32 tensors stay.
        own_dtypes = torch.float64, stored_in
        rounded = {n: v.to(stored_in).to(computed_in) if v.dtype in own_dtypes else v for n, v in own.items()}
        # assign: the tensors themselves become the parameters, each in its own dtype.
        placed = {name: value.to(device or value.device) for name, value in rounded.items()}
        module.load_state_dict(placed, strict=True, assign=True)
        put(spec.module, module.eval())
    link(specs, find)


def within(root: nn.Module, prefix: str = "") -> tuple[Find, Put]:
    """Find and put below a module whose full name with a dot is `prefix`."""

    def find(name: str) -> nn.Module:
        return root.get_submodule(name.removeprefix(prefix))

    def put(name: str, module: nn.Module) -> None:
        owner, _, child = name.removeprefix(prefix).rpartition(".")
        root.get_submodule(owner).register_module(child, module)

    return find, put


def build(spec: ModuleSpec, original: nn.Module | None = None) -> nn.Module:
    """The runtime module of one spec. `original` is handed to the kinds that wrap what they replace.

    Raises ValueError for an unknown kind, or options the kind does not take.
    """
    return kinds.of(spec).build(original)


def link(specs: Iterable[ModuleSpec], find: Find) -> None:
    """Connect the modules that read another one to it, once all are in place."""
    for spec in specs:
        kind = kinds.of(spec)
        if kind.reads is not None:
            try:
                kind.link(find(spec.module), find(kind.reads))
            except ValueError as error:
                raise ValueError(f"{spec.module}: {error}") from None
