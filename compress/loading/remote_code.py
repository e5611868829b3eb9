"""`modeling_compress.py`: lets a compressed checkpoint load with `trust_remote_code=True` where compress is not installed.

The file holds the source of the module classes the checkpoint uses and a quantizer that swaps them in. Where compress is
installed its own quantizer is there already, and of the file only a subclass of the stock model is used.
"""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from compress import kinds
from compress.checkpoint.files import write_json, write_text
from compress.loading.swapping import SwapQuantizer, with_older_names
from compress.plan import Plan, checked_plan
from compress.reading import json_text
from compress.source.inline import import_block, inline, refuse_twice
from compress.version import __version__

FILE = "modeling_compress.py"
_READ_TEXT = ("AutoTokenizer", "AutoProcessor")  # what code of the original's own a compressed model may need
CLASS, BASE_CLASS = "CompressedForCausalLM", "CompressedModel"

_IMPORTS = (
    "from typing import Any",
    "from torch import nn",
    "from transformers import {stock}, {stock_base}",
    "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer",
)

# The quantizer is registered once per process, but every checkpoint brings its own model class: checkpoints of different
# kinds, or with different expressions in the same layer, load side by side because the tables are read by the class.
_TEMPLATE = '''\
"""Loads this compressed checkpoint where compress is not installed: `from_pretrained(folder, trust_remote_code=True)`.

Written by compress {version}. config.json says under `quantization_config` which module is replaced by which kind; the first
classes below are those kinds, as they are in compress.nn, and what its quantizer has in common with this one.
"""

from __future__ import annotations

{imports}


{classes}


KINDS: dict[str, type[nn.Module]] = {{
{kinds}
}}
{tables}

class CompressQuantizer(SwapQuantizer):
    """Has the model replace its own modules: only its class knows the kinds of this checkpoint."""

    def swap(self, model: nn.Module) -> None:
        if not hasattr(model, "replace_modules"):
            raise ValueError("this checkpoint is compressed: load it with trust_remote_code=True, or install compress")
        model.replace_modules(self.quantization_config)


if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:  # compress itself, or the file of another checkpoint
    register_quantization_config(QUANT_METHOD)(CompressConfig)
    register_quantizer(QUANT_METHOD)(CompressQuantizer)


def replace_modules(model: nn.Module, config: CompressConfig) -> None:
    """Raises ValueError for a plan this file was not written for."""
    if config.format_version != {format_version}:
        raise ValueError(f"this file reads format_version {format_version}, not {{config.format_version}}: write it again")
    prefix = model.base_model_prefix + "."
    headless = not hasattr(model, model.base_model_prefix)  # AutoModel without a head: names lose the prefix

    def find(name: str) -> nn.Module:
        return model.get_submodule(name.removeprefix(prefix) if headless else name)

    for spec in config.modules:
        if spec["kind"] not in KINDS:
            raise ValueError(f"this file has {{', '.join(KINDS)}}, not {{spec['kind']!r}}: write it again")
        parent, _, child = spec["module"].rpartition(".")
        options = dict(spec["options"])
{extras}        find(parent).register_module(child, KINDS[spec["kind"]](**options).train(model.training))
{link}

class {name}({stock}):
    """{stock} with the replacements of this checkpoint."""

    _auto_class = "AutoModelForCausalLM"  # save_pretrained takes this file along

    def __init__(self, config: Any, *inputs: Any, **options: Any) -> None:
        super().__init__(with_older_names(config), *inputs, **options)

    def replace_modules(self, config: CompressConfig) -> None:
        replace_modules(self, config)


class {base_name}({stock_base}):
    """{stock_base} with the replacements of this checkpoint."""

    _auto_class = "AutoModel"

    def __init__(self, config: Any, *inputs: Any, **options: Any) -> None:
        super().__init__(with_older_names(config), *inputs, **options)

    def replace_modules(self, config: CompressConfig) -> None:
        replace_modules(self, config)
'''

_COMPUTED = """\
        if options.pop("{option}", None) is not None:
            options["{argument}"] = {table}[spec["module"]]
"""
_ORIGINAL = """\
        if spec["kind"] in WRAPPERS:
            options["original"] = find(spec["module"])
"""
_LINK = """\
    for spec in config.modules:  # once all are in place: an owner may come after what reads its basis
        if spec["options"].get("owner") is not None:
            find(spec["module"]).link(find(spec["options"]["owner"]))
"""


def write_remote_code(folder: Path) -> None:
    """Write `modeling_compress.py` into a compressed checkpoint and name it in config.json's `auto_map`; model_type stays.

    Raises FileNotFoundError for a folder without config.json, ValueError for one that has no plan.
    """
    if not (path := folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give a checkpoint folder written by `compress fit`")
    config: dict[str, Any] = json_text.read(path)
    quantization: dict[str, Any] = config.get("quantization_config") or {}
    if quantization.get("quant_method") != "compress":
        raise ValueError(f"{path} has no quantization_config of compress; a plain model needs no remote code")
    plan = checked_plan({key: quantization[key] for key in ("format_version", "modules") if key in quantization}, str(path))
    # The code goes first: a config that names a missing file would stop every load.
    write_text(folder / FILE, remote_code(plan, str(config["model_type"])))
    config["auto_map"] = auto_map(folder, config.get("auto_map"))
    write_json(path, config, sort_keys=True)


def auto_map(folder: Path, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What config.json says of code in the folder: our classes, and of those `given` what reads text and is there.

    Configuration and model classes that came with the original model give way: ours are made for transformers' own, and another
    model class would load the factors as something else.
    """

    def stays(name: str, reference: Any) -> bool:
        files = {f"{str(part).rpartition('--')[2].partition('.')[0]}.py" for part in _references(reference)}
        return name.startswith(_READ_TEXT) and all((folder / file).is_file() for file in files)

    ours = {"AutoModelForCausalLM": f"{Path(FILE).stem}.{CLASS}", "AutoModel": f"{Path(FILE).stem}.{BASE_CLASS}"}
    return {name: reference for name, reference in (given or {}).items() if stays(name, reference)} | ours


def saves_remote_code(model: Any, plan: Plan) -> None:
    """Have `save_pretrained` of this model, loaded by compress as transformers' own class, write `modeling_compress.py` too."""
    model.save_pretrained = partial(_save_pretrained, model, plan)


def _save_pretrained(
    model: Any, plan: Plan, save_directory: str | PathLike[str], is_main_process: bool = True, *more: Any, **options: Any
) -> None:
    # The file goes first: what transformers uploads are the files that changed since it began.
    if is_main_process:
        folder = Path(save_directory)
        write_text(folder / FILE, remote_code(plan, str(model.config.model_type)))
        model.config.auto_map = auto_map(folder, getattr(model.config, "auto_map", None))
    type(model).save_pretrained(model, save_directory, is_main_process, *more, **options)


def _references(value: Any) -> list[Any]:
    """A tokenizer names two classes, of which one may be null."""
    return [part for part in value if part] if isinstance(value, (list, tuple)) else [value]


def remote_code(plan: Plan, model_type: str) -> str:
    """Text of `modeling_compress.py` for a plan on a stock model.

    Raises ValueError for an unknown kind, for one that takes a name of the file's own, and where transformers has no causal
    language model of this type.
    """
    stock, stock_base = _stock_classes(model_type)
    by_module = {spec.module: kinds.of(spec) for spec in plan.modules}
    # Sorted, so that the file does not depend on the order of the modules.
    classes = {kind.kind: type(kind) for kind in sorted(by_module.values(), key=lambda kind: kind.kind)}
    inlined = inline([*(cls.runtime for cls in classes.values()), SwapQuantizer, with_older_names])
    wrappers = [name for name, cls in classes.items() if cls.wraps]
    # What only compress can compute goes into the file as a table: of each (option, argument), the value by module.
    computed = {
        pair: {m: k.arguments()[pair[1]] for m, k in by_module.items() if k.computed == pair}
        for pair in dict.fromkeys(cls.computed for cls in classes.values())
        if pair is not None
    }
    text = _TEMPLATE.format(
        version=__version__,
        imports=import_block([*inlined.imports, *(line.format(stock=stock, stock_base=stock_base) for line in _IMPORTS)]),
        classes=inlined.text,
        kinds="\n".join(f'    "{name}": {cls.runtime.__name__},' for name, cls in classes.items()),
        tables=_tables(computed, wrappers),
        name=CLASS,
        stock=stock,
        base_name=BASE_CLASS,
        stock_base=stock_base,
        format_version=plan.format_version,
        extras="".join(_COMPUTED.format(option=o, argument=a, table=_table(a)) for o, a in computed)
        + _ORIGINAL * bool(wrappers),
        link=_LINK * any(kind.reads is not None for kind in by_module.values()),
    )
    # A kind of another package might bring a name that the file has already.
    return refuse_twice(text)


def _stock_classes(model_type: str) -> tuple[str, str]:
    """transformers' class with the output projection, and the one without."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type), MODEL_MAPPING_NAMES.get(model_type)
    # Some types map to a tuple of classes, or to none.
    if not isinstance(names[0], str) or not isinstance(names[1], str):
        raise ValueError(f"transformers has no causal language model of model_type {model_type!r}; compress targets those only")
    return names[0], names[1]


def _table(argument: str) -> str:
    """The name of the table of one computed argument."""
    return f"{argument.upper()}S"


def _tables(computed: Mapping[tuple[str, str], Mapping[str, Any]], wrappers: list[str]) -> str:
    """Constants that a loader elsewhere cannot compute, by module, and the kinds that keep what they replace."""
    text = f"WRAPPERS = {wrappers}  # kinds that keep the module they replace\n" if wrappers else ""
    for (option, argument), by_module in computed.items():
        table = pprint.pformat(dict(by_module), width=120, compact=True, sort_dicts=False)
        text += f"\n# The {argument} of each module, compiled from its {option}.\n{_table(argument)} = {table}\n"
    return text
