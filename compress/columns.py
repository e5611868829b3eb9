"""The columns of a benchmark's tables, each with the sentence that explains it; the console, Markdown and the page share them.

A results row is "speed" (one variant in one runtime on one device); a "size" entry is what a variant is, whatever runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Entry = Mapping[str, Any]
ABSENT = "–"

VARIANTS = {
    "baseline": "the original model, as it was before compression",
    "skip-identity": "control: in the layers that were touched, the whole MLP is left out and its input passed on, MLP(x) = x",
    "skip-zero": "control: in the layers that were touched, the MLP adds nothing, MLP(x) = 0",
    "skip-mean": "control: in the layers that were touched, the MLP is its mean output over the calibration text",
    "compressed": "the checkpoint under test",
}


@dataclass(frozen=True)
class Column:
    """A header, the sentence under the table, and the cell of an entry."""

    header: str
    explanation: str
    cell: Callable[[Entry], str]
    is_name: bool = False


def size_columns(results: Entry) -> list[Column]:
    """What remains, and what it does to the outputs."""
    context = results["settings"]["contexts"]
    baseline = {model["label"]: model["account"] for model in results["models"]}
    return [
        Column("variant", "What was measured; the list above says what each variant is.", lambda e: e["label"], is_name=True),
        Column(
            "targets kept",
            "Parameters that remain of the modules that were replaced, as a fraction of the originals in those modules.",
            lambda e: percent(e["account"]["targeted_kept"]),
        ),
        Column(
            "model kept",
            "Parameters that remain of the whole model, embeddings and head included.",
            lambda e: percent(e["account"]["model_kept"]),
        ),
        Column("weights MiB", "Size of the safetensors files on disk.", lambda e: mib(e["account"]["weight_bytes"])),
        Column(
            "multiply-adds",
            f"Multiply-adds for one new token that attends to {max(context)} positions: linears, head, attention, and the "
            "operations of symbolic programs; in parentheses, relative to the baseline.",
            lambda e: (
                f"{si(e['account']['multiply_adds']['total'])} "
                f"({percent(e['account']['multiply_adds']['total'] / baseline[e['baseline']]['multiply_adds']['total'])})"
            ),
        ),
        Column(
            "cache B/token",
            "Bytes the live key-value cache grows by for each token of a sequence.",
            lambda e: integer(e["cache_bytes_per_token"]),
        ),
        *(
            column
            for text in text_names(results)
            for column in (
                Column(
                    f"perplexity {text}",
                    f"exp of the mean loss per token on the text “{text}”: lower is better, the baseline's is the goal.",
                    lambda e, text=text: quality(e, text, "perplexity", perplexity),
                ),
                Column(
                    f"KL {text}",
                    f"Mean Kullback–Leibler divergence from the baseline's predictions to this model's on “{text}”, in nats "
                    "per token: 0 means the same probabilities.",
                    lambda e, text=text: quality(e, text, "kl", lambda v: f"{v:.4f}"),
                ),
                Column(
                    f"top-1 {text}",
                    f"How often the most likely next token is the baseline's on “{text}”.",
                    lambda e, text=text: quality(e, text, "top1_agreement", percent),
                ),
            )
        ),
    ]


def speed_columns(results: Entry) -> list[Column]:
    """How fast one variant is in one runtime on one device; decoding at the first batch size and the longest context."""
    settings = results["settings"]
    batch, context = settings["batch_sizes"][0], max(settings["contexts"])
    text = text_names(results)[0]

    def decode(e: Entry) -> Entry:
        return next(d for d in e["decode"] if (d["batch"], d["context"]) == (batch, context))

    return [
        Column("variant", "What was measured.", lambda e: e["label"], is_name=True),
        Column(
            f"perplexity {text}",
            "Perplexity in this runtime, which may compute in another precision.",
            lambda e: quality(e, text, "perplexity", perplexity),
        ),
        Column(
            "prefill ms",
            f"Median time to read a prompt of {settings['prefill_length']} tokens, all logits computed and the cache filled.",
            lambda e: milliseconds(e["prefill"]["p50_ms"]),
        ),
        Column(
            "p95 / p99",
            "Time within which 95 % and 99 % of the prefills were done: what a user waits on a bad day.",
            lambda e: f"{milliseconds(e['prefill']['p95_ms'])} / {milliseconds(e['prefill']['p99_ms'])}",
        ),
        Column(
            "prefill vs baseline",
            "Baseline's time over this one's, round by round, with its 95 % interval: above 1 is faster; where the interval "
            "holds 1 there is no difference that these runs could show.",
            lambda e: speedup(e["prefill"]["speedup"]),
        ),
        Column(
            "first token ms",
            f"Median time from {context} prompt tokens on the host to the first generated token on the host.",
            lambda e: milliseconds(decode(e)["first_token"]["p50_ms"]),
        ),
        Column(
            "decode tok/s",
            f"Median tokens generated per second after the first, batch {batch}, after {context} tokens, with the live cache.",
            lambda e: f"{decode(e)['tokens_per_s']:,.0f}",
        ),
        Column(
            "decode vs baseline",
            "The same comparison for decoding.",
            lambda e: speedup(decode(e)["speedup"]),
        ),
        Column("on disk MiB", "Size of the files this runtime loads.", lambda e: mib(e["bytes_on_disk"])),
        Column(
            "peak MiB",
            "Most memory a fresh process held while it loaded the model and generated; in parentheses, what the libraries "
            "alone take. On an accelerator: the most its allocator held.",
            lambda e: _memory(e.get("cold")),
        ),
        Column(
            "steady MiB",
            "Memory of that process with the model loaded, after a generation.",
            lambda e: _steady(e.get("cold")),
        ),
        Column(
            "cold start s",
            "From the start of a process to its first token, imports and loading included, with the files in the page cache.",
            lambda e: ABSENT if not e.get("cold") else f"{e['cold']['cold_start_s']:.2f}",
        ),
    ]


def decode_columns() -> list[Column]:
    """One row per batch size and context length; entries are a row's decode measures with its label."""
    return [
        Column("variant", "What was measured.", lambda e: e["label"], is_name=True),
        Column("batch", "Sequences generated together.", lambda e: integer(e["batch"])),
        Column("context", "Prompt tokens in the cache when decoding begins.", lambda e: integer(e["context"])),
        Column(
            "first token ms",
            "Median time from the prompt to the first generated token.",
            lambda e: milliseconds(e["first_token"]["p50_ms"]),
        ),
        Column(
            "first token vs baseline",
            "Baseline's time over this one's, as above.",
            lambda e: speedup(e["first_token"]["speedup"]),
        ),
        Column(
            "ms/step",
            "Median time of one step, which makes one token per sequence.",
            lambda e: milliseconds(e["step"]["p50_ms"]),
        ),
        Column("tok/s", "Median tokens per second over all sequences of the batch.", lambda e: f"{e['tokens_per_s']:,.0f}"),
        Column("decode vs baseline", "Baseline's time over this one's, as above.", lambda e: speedup(e["speedup"])),
    ]


def size_entries(results: Entry) -> list[dict[str, Any]]:
    """The models, each with the cache and the quality of its first row: torch's, where torch was measured."""
    first = {row["label"]: row for row in reversed(results["rows"])}
    return [
        {
            **model,
            "quality": first[model["label"]]["quality"],
            "cache_bytes_per_token": first[model["label"]]["cache_bytes_per_token"],
        }
        for model in results["models"]
        if model["label"] in first
    ]


def speed_groups(results: Entry) -> dict[tuple[str, str], list[Entry]]:
    """Rows by (runtime, device)."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for row in results["rows"]:
        groups.setdefault((row["runtime"], row["device"]), []).append(row)
    return groups


def decode_entries(rows: Sequence[Entry]) -> list[dict[str, Any]]:
    return [{"label": row["label"], **measures} for row in rows for measures in row["decode"]]


def text_names(results: Entry) -> list[str]:
    return list(dict.fromkeys(text["name"] for texts in results["texts"].values() for text in texts))


def quality(entry: Entry, text: str, key: str, write: Callable[[float], str]) -> str:
    found = (entry.get("quality") or {}).get("texts", {}).get(text)
    return ABSENT if found is None else write(found[key])


def speedup(found: Entry | None) -> str:
    """A comparison in words: a difference inside the noise is none."""
    if found is None:
        return ABSENT
    if found["low"] is None:
        return f"×{found['ratio']:.2f} (too few runs)"
    interval = f"[{found['low']:.2f}, {found['high']:.2f}]"
    return f"no difference {interval}" if found["verdict"] == "no difference" else f"×{found['ratio']:.2f} {interval}"


def _memory(cold: Entry | None) -> str:
    if not cold:
        return ABSENT
    if "device_peak_mib" in cold:
        return f"{cold['device_peak_mib']:,.0f}"
    return f"{cold['peak_mib']:,.0f} ({cold['imports_mib']:,.0f})"


def _steady(cold: Entry | None) -> str:
    return ABSENT if not cold else f"{cold.get('device_steady_mib', cold['steady_mib']):,.0f}"


def percent(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1%}"


def integer(value: int) -> str:
    return f"{value:,}"


def milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def mib(value: int) -> str:
    size = value / 2**20
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"


def perplexity(value: float) -> str:
    return f"{value:.3g}" if value >= 1e5 else f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def si(value: float) -> str:
    """1 634 816 → 1.63 M"""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.0f}"
