"""What a runtime kind is: one file with its options as a checked schema, its module, its cost, its torch source, its ONNX.

A kind is a frozen pydantic class whose fields are the options of a Plan's spec. Everything that reads a checkpoint (the loader,
both exporters, the benchmark, the fit itself) asks a kind through this class and knows none by name. What a checkpoint says
becomes source only through the types declared here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from compress.plan import ModuleSpec
from compress.source.family import Family
from compress.source.pieces import AttentionSource, LinearSource, MLPSource, Scalar, Switch
from compress.validation import Finite, Name, Positive, Size

__all__ = [
    "Finite",
    "Kind",
    "Moves",
    "Name",
    "Place",
    "Positive",
    "Size",
    "Work",
    "asked",
    "defaults",
    "state_dtypes",
]

Moves = dict[str, tuple[int, Tensor]]  # tensor of a module → (dimension, indices) that rearrange it


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one new token. An operation of a symbolic program counts as one.

    `attends`: the attention's own products are part of `matrices`, and not counted beside it.
    """

    matrices: int = 0
    programs: int = 0
    attends: bool = False


@dataclass
class Place:
    """Where a module's work is counted: the token attends to `context` positions; `activation` is equal for modules that read
    the same one; `shared` holds the products that were counted already.
    """

    module: str
    context: int
    activation: object
    shared: set[tuple[str, object]] = field(default_factory=set)


class Kind(BaseModel):
    """Base of all kinds. One subclass per file in `compress/kinds`, or behind an entry point `compress.kinds` of that name.

    What is not declared is as for a module that stands alone: built from its options, copied as it is into generated files,
    traced as it is for ONNX, its matrices counted once per token.
    """

    # Strict: options come from a file, and a size of "4" or 4.0 there is an error to be told, not a 4.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: ClassVar[str]  # the name in a Plan; the file's own
    replaces: ClassVar[Literal["linear", "mlp", "attention"]]
    runtime: ClassVar[type[nn.Module]]  # imports torch only: its source is copied into files that stand alone
    wraps: ClassVar[bool] = False  # keeps (part of) what it replaces, which its constructor takes as `original`
    passes_through: ClassVar[bool] = False  # only holds a place in an MLP that its layer runs inline
    computed: ClassVar[tuple[str, str] | None] = (
        None  # (option, constructor argument made from it), where a loader computes one
    )
    exempt: ClassVar[Mapping[str, str]] = {}  # conformance check, "check:architecture" or "*:architecture" → why not here
    told: ClassVar[str] = ""  # of an attention, what the standalone file says of its layers

    def spec(self, module: str) -> ModuleSpec:
        """This kind at a module of the full model: the Plan's entry, with the options that were given."""
        return ModuleSpec(module=module, kind=self.kind, options=self.model_dump(exclude_unset=True))

    def arguments(self) -> dict[str, Any]:
        """The constructor's keyword arguments, without `original`."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    def build(self, original: nn.Module | None = None) -> nn.Module:
        """The runtime module with uninitialised parameters; `original` for the kinds that wrap. Raises ValueError for options
        that do not go together.
        """
        wrapped = {"original": original} if self.wraps else {}
        return type(self).runtime(**self.arguments(), **wrapped)

    # Other modules

    @property
    def reads(self) -> str | None:
        """Full name of another replaced module that this one reads when it runs."""
        return None

    def link(self, module: nn.Module, owner: nn.Module) -> None:
        """Connect the module to the one it reads, once both are in place. Raises ValueError where that is of another kind."""
        raise NotImplementedError(f"{self.kind} reads no other module")

    # Cost

    def work(self, module: nn.Module, place: Place) -> Work:
        """Multiply-adds per token of the module and everything inside it: by default each matrix once."""
        # Biases, norms and other vectors do not count, as usual.
        return Work(sum(p.numel() for p in module.parameters() if p.ndim == 2))

    def cache_numbers(self) -> int | None:
        """Numbers that one token adds to the cache, of an attention; None where they are the original's."""
        return None

    # Rearranging channels (linears)

    def move_outputs(self, channels: Tensor) -> Moves | None:
        """What puts the outputs in the order of `channels`; None where they cannot be rearranged."""
        return None

    def move_inputs(self, channels: Tensor) -> Moves | None:
        """What lets the inputs come in the order of `channels`; None where they cannot."""
        return None

    def as_they_come(self) -> tuple[str, Self] | None:
        """(name of the tensor that puts outputs in order, the same kind without it), where the order can be left out."""
        return None

    def dense_twin(self) -> nn.Linear | None:
        """The linear that this one is a cheaper form of, to time it against; None where it is no alternative to one."""
        return None

    # Torch source

    def torch_linear(self, place: Callable[[str], str]) -> LinearSource:
        """Of a linear. `place` gives the name in the file of a linear of the checkpoint."""
        options: dict[str, Scalar] = self.arguments()
        return LinearSource(self.runtime.__name__, options, self.runtime, defaults(self.runtime))

    def torch_mlp(self, layer: int) -> MLPSource:
        """Of an MLP."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments().items())
        return MLPSource(f"{self.runtime.__name__}({given})", None, self.runtime, self.runtime.__name__)

    @classmethod
    def torch_classes(cls, placed: Mapping[int, Self]) -> Sequence[str]:
        """Source of the classes that the MLPs of this kind need, given all of them by layer."""
        return ()

    def torch_attention(self, family: Family, layer: int) -> AttentionSource:
        """Of an attention. Raises NotImplementedError where the file cannot hold it."""
        raise NotImplementedError(
            f"the standalone torch file has no attention of kind {self.kind!r}; use the checkpoint, or ONNX"
        )

    @classmethod
    def torch_attention_class(cls, family: Family, placed: Mapping[int, Self], biases: Mapping[str, bool]) -> str:
        """The class of attentions with an expression of their own; `biases` of their original linears, by role."""
        return ""

    @classmethod
    def torch_switch(cls) -> Switch | None:
        """How the stock attention class attends in the layers of this kind."""
        return None

    # ONNX

    def for_onnx(self, module: nn.Module) -> nn.Module:
        """What is traced in the module's place, with its tensors: by default the module itself."""
        return module


def defaults(runtime: type[nn.Module]) -> dict[str, tuple[str, Scalar]]:
    """{argument: (annotation, default)} of a constructor's arguments that have a default."""
    parameters = inspect.signature(runtime.__init__).parameters.values()
    # Annotations are text, since the runtime modules postpone them.
    return {p.name: (str(p.annotation), p.default) for p in parameters if p.default is not inspect.Parameter.empty}


def asked(module: nn.Module, context: int) -> int:
    """What a runtime module says of its own multiply-adds for one token that attends to `context` positions."""
    own: Any = module
    return int(own.multiply_adds(context))


def state_dtypes(kind: Kind, original: nn.Module) -> dict[str, bool]:
    """Tensor names of a kind's runtime module; False where one stays float32 when the model is loaded in bfloat16."""
    before = torch.get_default_dtype()
    # A tensor that is float32 under a bfloat16 default was made so on purpose.
    torch.set_default_dtype(torch.bfloat16)
    try:
        # Names and dtypes, without memory.
        with torch.device("meta"):
            state = kind.build(original).state_dict()
    finally:
        torch.set_default_dtype(before)
    return {name: value.dtype != torch.float32 for name, value in state.items()}
