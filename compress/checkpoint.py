"""Safetensors on disk: a lazy shard reader, atomic files, unit files, a sharded writer. Nothing here ever unpickles."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compress.methods.base import Artefact

SHARD_BYTES = 256 * 1024**2  # small enough that writing never dominates the memory of a fit
_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
)
_UMASK = os.umask(0)  # can only be read by setting it
os.umask(_UMASK)
_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def locate(model: str, revision: str | None = None) -> Path:
    """The local folder of a model: a folder as it is, a hub id through huggingface_hub's cache.

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
            f"no model folder {model!r}{hint} Allowed: novella, a local folder, or a hub id such as org/name"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", *_TOKENIZER_FILES]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
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


class Shards:
    """The tensors of a model folder, read lazily by name through memory maps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._file = {str(k): str(v) for k, v in json.loads(index.read_text())["weight_map"].items()}
            missing = sorted({name for name in self._file.values() if not (folder / name).is_file()})
            if missing:
                raise FileNotFoundError(
                    f"{folder}: the index names {missing[0]}, which is not there; download the folder again"
                )
        elif (folder / "model.safetensors").is_file():
            with _open(folder / "model.safetensors") as handle:
                self._file = dict.fromkeys(handle.keys(), "model.safetensors")
        else:
            raise FileNotFoundError(
                f"{folder}: no model.safetensors or index; pickled weights are never read: save as safetensors"
            )
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in sorted(set(self._file.values())):
            with _open(folder / file) as handle:
                for name in handle.keys():  # noqa: SIM118 - not a mapping
                    piece = handle.get_slice(name)
                    self.shapes[name], self.dtypes[name] = tuple(piece.get_shape()), piece.get_dtype()

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def tensor(self, name: str) -> Tensor:
        """One tensor, mapped, not copied. Raises KeyError."""
        with _open(self.folder / self._file[name]) as handle:
            return handle.get_tensor(name)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose name starts with `prefix`, by full name."""
        by_file: dict[str, list[str]] = {}
        for name, file in self._file.items():
            if name.startswith(prefix):
                by_file.setdefault(file, []).append(name)
        out: dict[str, Tensor] = {}
        for file, names in by_file.items():
            with _open(self.folder / file) as handle:
                out.update((name, handle.get_tensor(name)) for name in names)
        return out

    def bytes(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel() * _DTYPES[self.dtypes[name]]

    def fingerprint(self) -> str:
        """Hash over names, shapes, sizes and times of the files: cheap, and changed by any rewriting of the model."""
        stats = [
            (f, (self.folder / f).stat().st_size, (self.folder / f).stat().st_mtime_ns)
            for f in sorted(set(self._file.values()))
        ]
        return hash_json([stats, sorted(self.shapes.items())])


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        handle = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({error}); it may be cut off: write or download it again"
        ) from None
    with handle as opened:
        yield opened


def hash_json(value: Any) -> str:
    """sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling; on success it is synced and renamed over `path`, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # safetensors writes for the owner alone
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The file's value, or None where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def write_unit(path: Path, artefact: Artefact, fingerprint: str) -> None:
    """One finished unit of work; the file's presence with this fingerprint means done."""
    metadata = {"fingerprint": fingerprint, "artefact": json.dumps(artefact.metadata, sort_keys=True)}
    with atomic(path) as temporary:
        save_file({k: v.contiguous() for k, v in sorted(artefact.tensors.items())}, temporary, metadata=metadata)


def read_unit(path: Path, fingerprint: str, only: Container[str] | None = None) -> Artefact | None:
    """The artefact, or None where the file is missing, damaged, or is of something else; `only` some tensors."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            names = [name for name in handle.keys() if only is None or name in only]  # noqa: SIM118 - not a mapping
            return Artefact({name: handle.get_tensor(name) for name in names}, json.loads(metadata["artefact"]))
    except (SafetensorError, KeyError, json.JSONDecodeError):
        return None


class Spilled(Mapping[str, Tensor]):
    """Tensors of one safetensors file, read when asked for and not kept."""

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        self._file, self._names = file, sorted(tensors)
        with atomic(file) as temporary:
            save_file({name: tensors[name].contiguous() for name in self._names}, temporary)

    def __getitem__(self, name: str) -> Tensor:
        with _open(self._file) as handle:
            return handle.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], total_bytes: int) -> dict[str, str]:
    """Write named tensors as they come, in shards of at most `SHARD_BYTES`, with an index where there is more than one.

    `total_bytes` says how many shards there will be. Returns {file name: sha256}. Files of an earlier, longer run are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if total_bytes <= SHARD_BYTES:
        written = [_write_shard(folder / "model.safetensors", dict(tensors))]
        weight_map: dict[str, str] = {}
    else:
        weight_map, parts = {}, []
        for part in _parts(tensors):
            parts.append((f".{len(parts)}.part", list(part)))
            _write_shard(folder / parts[-1][0], part)
        written = []
        for number, (temporary, names) in enumerate(parts, 1):
            file = folder / f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            (folder / temporary).replace(file)
            weight_map |= dict.fromkeys(names, file.name)
            written.append(file)
    for stale in set(folder.glob("model*.safetensors")) - set(written):
        stale.unlink()
    index = folder / "model.safetensors.index.json"
    if weight_map:
        write_json(index, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
    else:
        index.unlink(missing_ok=True)
    return {file.name: hash_file(file) for file in sorted(written)}


def _parts(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if part and size + tensor.nbytes > SHARD_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    if part:
        yield part


def _write_shard(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    with atomic(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"format": "pt"})
    return path


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's and generation's files, as they are."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in (*_TOKENIZER_FILES, "generation_config.json"):
        for file in sorted(source.glob(pattern)):
            with atomic(target / file.name) as temporary:
                shutil.copyfile(file, temporary)
