"""Copied source stands alone: everything a class needs comes with it, once and in order."""

import pytest
from torch import nn

from compress import kinds
from compress.source.inline import import_block, inline, refuse_twice


@pytest.mark.parametrize("kind", kinds.names())
def test_a_copied_kind_compiles_with_its_imports_alone(kind):
    copied = inline([kinds.load(kind).runtime])
    text = "from __future__ import annotations\n\n" + import_block(copied.imports) + "\n\n\n" + copied.text + "\n"
    compile(text, kind, "exec", dont_inherit=True)
    assert "compress" not in import_block(copied.imports)
    assert list(copied.definitions)[-1] == kinds.load(kind).runtime.__name__, "what it needs stands above it"


def test_what_two_classes_share_is_copied_once():
    copied = inline([kinds.load(name).runtime for name in ("identity_mlp", "zero_mlp")])
    assert list(copied.definitions) == ["Occupied", "IdentityMLP", "ZeroMLP"]
    assert copied.text.count("class Occupied") == 1


def test_a_class_inside_a_function_is_refused():
    class Inner(nn.Module):
        pass

    with pytest.raises(ValueError, match="Inner is not defined at the top of"):
        inline([Inner])


@pytest.mark.parametrize("second", ["class MLP: ...", "def MLP(): ...", "MLP = 1", "MLP: int = 1"])
def test_a_name_of_the_generated_file_is_not_taken_by_a_copy(second):
    with pytest.raises(ValueError, match="two definitions of MLP"):
        refuse_twice(f"import torch\nfrom torch import nn\nclass MLP(nn.Module): ...\n{second}\n")
    with pytest.raises(ValueError, match="two definitions of nn"):
        refuse_twice("from torch import nn\nnn = 1")
