"""Runtime kinds, discovered by being there or by entry point `compress.kinds`: a file each, named in Plans by its file name.

In: a Plan's spec. Out: the checked kind, which builds its module, counts its cost and writes itself as torch source and ONNX.
"""

from __future__ import annotations

from pydantic import ValidationError

from compress.kinds.contract import Kind
from compress.plan import ModuleSpec
from compress.registry import Registry
from compress.validation import explain

# All files of this folder but the base class are kinds.
registry: Registry[Kind] = Registry(
    "compress.kinds", lambda: Kind, "compress.kinds", frozenset({"contract"}), lambda found: found.kind
)


def names() -> tuple[str, ...]:
    """Every kind's name, without importing any of ours."""
    return registry.names()


def load(name: str) -> type[Kind]:
    """The class of a kind. Raises KeyError for a name that is none."""
    return registry.load(name)


def of(spec: ModuleSpec) -> Kind:
    """The kind of a spec with its options checked.

    Raises ValueError for an unknown kind, or options that it does not take, one line each.
    """
    try:
        found = load(spec.kind)
    except KeyError:
        raise ValueError(
            f"{spec.module}: unknown kind {spec.kind!r}; this compress knows {', '.join(names())}: a newer one wrote it, or a "
            "package with that kind is not installed"
        ) from None
    try:
        return found.model_validate(spec.options)
    except ValidationError as error:
        # Every line names its module, since a Plan has many.
        raise ValueError("\n".join(f"{spec.module}: {spec.kind}: {line}" for line in explain(error, found))) from None
