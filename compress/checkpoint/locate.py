"""Where a model is: a local folder, or a hub id through its cache; and what must stay apart from it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

TOKENIZER_FILES = (
    "tokenizer*",
    "tokenization_*.py",  # code of the tokenizer's own, where a model brings it
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
)


def locate(model: str, revision: str | None = None, *, code: bool = False, **hub: Any) -> Path:
    """The local folder of a model: a folder as it is, a hub id through huggingface_hub's cache, with its `code` where asked.

    `hub` are options of `snapshot_download` (token, cache_dir, …).

    Raises FileNotFoundError naming the nearest folder, or what the hub said.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{model!r} has no config.json; give a folder in HuggingFace format")
        return path
    if path.is_absolute() or model.count("/") != 1:
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, around, n=1)
        hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
        raise FileNotFoundError(
            f"no model folder {model!r}{hint or '.'} Allowed: novella, a local folder, or a hub id such as org/name"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", *TOKENIZER_FILES, *["*.py"] * code]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, **hub))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"could not get {model!r} from the hub ({type(error).__name__}: {reason}); give a local folder"
        ) from None


def keep_apart(output: Path, model: Path) -> None:
    """Raises ValueError where writing to `output` could touch the model's files: its folder, one inside it, one around it."""
    ours, theirs = output.expanduser().resolve(), model.expanduser().resolve()
    if ours != theirs and ours not in theirs.parents and theirs not in ours.parents:
        return
    where = "" if ours == theirs else "inside " if theirs in ours.parents else "around "
    other = theirs.with_name(f"{theirs.name}-compressed")
    raise ValueError(
        f"output: {str(output)!r} is {where}the model's own folder {str(model)!r}; give another, such as {str(other)!r}"
    )
