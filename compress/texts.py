"""The text of a source: the packaged one, a file, or a hub dataset.

Text files are taken as they are. Rows (jsonl, parquet, hub datasets) are joined by a newline, empty ones left out.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from compress.beginning import BOS, Bos
from compress.novella import FOLDER
from compress.reading import json_text

Role = Literal["calibration", "evaluation"]

DEMO = "novella"  # the alias of the packaged model and of its texts
CHAT = "messages"  # the column of conversations, lists of {role, content}
SUFFIXES = (".txt", ".jsonl", ".parquet")
_SPLIT: dict[Role, str] = {"calibration": "train", "evaluation": "validation"}
_ALLOWED = f"{DEMO!r}, a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, or a hub dataset id such as 'Salesforce/wikitext'"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class TextSource(BaseModel):
    """Where tokens come from and how they are cut. `{text: novella}` is the packaged calibration or evaluation text, by use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(description='"novella" (packaged), a .txt, .jsonl or .parquet file, or a hub dataset id')
    config: str | None = Field(default=None, description="hub dataset configuration, such as wikitext-2-v1")
    revision: str | None = Field(default=None, description="hub revision (branch, tag or commit)")
    split: str | None = Field(default=None, description="hub split; calibration reads train, evaluation reads validation")
    column: str = Field(
        default="text", description="the column of a jsonl, parquet or hub dataset that holds the text; without it, `messages`"
    )
    characters: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="at most this many characters, from a random start"
    )
    seed: int = Field(default=0, description="of the random start and of the choice of calibration windows")
    length: Annotated[int, Field(ge=2)] = Field(default=256, description="tokens per window, with those that `bos` adds")
    bos: Bos = Field(default="auto", description=f"what every window begins with ({BOS})")
    sequences: Annotated[int, Field(ge=1)] | None = Field(
        None, description="windows: calibration draws exactly this many, evaluation takes at most this many; all by default"
    )


def read_text(source: TextSource, split_default: Role, tokenizer: Any = None) -> str:
    """The text of a source; `split_default` says which packaged text or hub split is meant where the source does not.

    Rows that are conversations go through the chat template of `tokenizer`.

    Raises FileNotFoundError or ValueError (format, column, split, no text, a reader that is not installed).
    """
    text = _whole_text(source, split_default, tokenizer)
    if not text.strip():
        raise ValueError(f"{source.text!r} holds no text; give a source with text in it (column: {source.column!r})")
    if source.characters is None or source.characters >= len(text):
        return text
    start = random.Random(source.seed).randint(0, len(text) - source.characters)
    return text[start : start + source.characters]


def _whole_text(source: TextSource, role: Role, tokenizer: Any) -> str:
    name = source.text
    if name == DEMO:
        return _utf8(FOLDER / "text" / f"{role}.txt")
    path = Path(name).expanduser()
    if path.suffix.lower() in SUFFIXES or path.exists():
        _check_file(path)
        if path.suffix.lower() == ".txt":
            return _utf8(path)
        read = _jsonl_rows if path.suffix.lower() == ".jsonl" else _parquet_rows
        rows = read(path, source.column, tokenizer)
    elif _HUB_ID.fullmatch(name):
        rows = _hub_rows(source, role, tokenizer)
    else:
        raise FileNotFoundError(f"no file {name!r}, and it is no hub dataset id; give {_ALLOWED}")
    return "\n".join(row for row in rows if row.strip())


def _check_file(path: Path) -> None:
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return
    if path.exists():
        what = "a folder" if path.is_dir() else f"a {path.suffix} file" if path.suffix else "a file without a suffix"
        raise ValueError(f"{str(path)!r} is {what}; give {_ALLOWED}")
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    raise FileNotFoundError(
        f"no file {str(path)!r}; " + (f"did you mean {str(path.parent / near[0])!r}?" if near else f"give {_ALLOWED}")
    )


def _utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # not read_text: newlines stay as they are
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 (byte {error.start}); convert it first") from None


def _jsonl_rows(path: Path, column: str, tokenizer: Any) -> Iterable[str]:
    for number, line in enumerate(_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json_text.loads(line, "")
        except ValueError as error:
            raise ValueError(f"{str(path)!r} line {number} is not JSON ({str(error)[2:]}); each line is one object") from None
        if not isinstance(row, dict):
            raise ValueError(f"{str(path)!r} line {number} is a JSON {type(row).__name__}; each line is one object")
        where = f"{str(path)!r} line {number}"
        name = _column(where, column, row)
        yield _string(row[name], where, name, tokenizer)


def _parquet_rows(path: Path, column: str, tokenizer: Any) -> Iterable[str]:
    try:
        from pyarrow import ArrowInvalid, parquet  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(f'reading {str(path)!r} needs pyarrow; pip install "compress[hub]"') from None
    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(f"{str(path)!r} is not a parquet file ({error})") from None
    name = _column(repr(str(path)), column, file.schema_arrow.names)
    return [_string(value, repr(str(path)), name, tokenizer) for value in file.read([name])[name].to_pylist()]


def _hub_rows(source: TextSource, role: Role, tokenizer: Any) -> Iterable[str]:
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(
            f'{source.text!r} is no file; to read it as a hub dataset, pip install "compress[hub]". Allowed: {_ALLOWED}'
        ) from None
    split = source.split or _SPLIT[role]
    where = f"hub dataset {source.text!r}"
    try:
        splits = datasets.get_dataset_split_names(source.text, source.config, revision=source.revision)
        if split not in splits:
            raise ValueError(f"{where} has no split {split!r}; set split to one of {', '.join(splits)}")
        data = datasets.load_dataset(source.text, source.config, split=split, revision=source.revision)
    except OSError as error:  # unknown id, gated, or no network
        raise FileNotFoundError(f"{where}: {str(error).splitlines()[0]}; give {_ALLOWED}") from error
    name = _column(where, source.column, data.column_names)
    return [_string(value, where, name, tokenizer) for value in data[name]]


def _column(where: str, column: str, columns: Iterable[str]) -> str:
    """The column itself; where the usual one is missing, that of conversations."""
    if column in columns:
        return column
    if column == TextSource.model_fields["column"].default and CHAT in columns:
        return CHAT
    raise ValueError(f"{where} has no column {column!r}; set column to one of {', '.join(map(repr, columns))}")


def _string(value: object, where: str, column: str, tokenizer: Any) -> str:
    """A cell as text, a conversation by the chat template; a missing one is an empty row."""
    if isinstance(value, list):
        return _chat(value, where, column, tokenizer)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: column {column!r} holds {type(value).__name__}, not text; set column to one that does")
    text = value or ""
    # JSON may hold half of a character that is written as two; no tokenizer takes it.
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"{where}: half a character, an unpaired surrogate such as \\ud83d; leave the row out, or mend it"
        raise ValueError(message) from None
    return text


def _chat(turns: Sequence[Any], where: str, column: str, tokenizer: Any) -> str:
    spoken = [turn for turn in turns if isinstance(turn, dict) and turn.get("role") and isinstance(turn.get("content"), str)]
    if not turns or len(spoken) < len(turns):
        raise ValueError(f"{where}: column {column!r} holds a list; a conversation is a list of {{role, content}}")
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(f"{where}: a conversation, and this model's tokenizer has no chat template; give rows of text")
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # of a template, which is the model's own program
        raise ValueError(f"{where}: the chat template refuses it ({str(error)[:200]})") from None
