"""What runs at inference; imports torch only.

In: the options of a Plan's specs. Out: modules, by the spec's `kind` (`KINDS`).
"""

from torch import nn

from compress.nn.attention import CrystallizedAttention
from compress.nn.latent import LatentAttention
from compress.nn.linear import DenseLinear, LowRankLinear, PivotedLinear, SharedLinear
from compress.nn.mlp import AffineMLP, IdentityMLP, MeanMLP, PassThrough, ZeroMLP
from compress.nn.symbolic import SymbolicMLP

KINDS: dict[str, type[nn.Module]] = {
    "low_rank_linear": LowRankLinear,
    "pivoted_linear": PivotedLinear,
    "shared_linear": SharedLinear,
    "dense_linear": DenseLinear,
    "pass_through": PassThrough,
    "identity_mlp": IdentityMLP,
    "zero_mlp": ZeroMLP,
    "mean_mlp": MeanMLP,
    "affine_mlp": AffineMLP,
    "symbolic_mlp": SymbolicMLP,
    "crystallized_attention": CrystallizedAttention,
    "latent_attention": LatentAttention,
}

# Kinds that keep (part of) the module they replace; they are built with it as `original`.
WRAPPERS: frozenset[str] = frozenset({"crystallized_attention", "latent_attention"})
