"""The columns of a benchmark's tables, each with the sentence that explains it.

The console, Markdown and the page share them: a number reads the same wherever it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from compress.clock import RESOLUTION
from compress.reporting.numbers import ABSENT, integer, mib, milliseconds, peak, percent, perplexity, si, speedup, steady

Entry = Mapping[str, Any]  # plain data of results.json: the whole, a row, or a part of one

# What the page and Markdown say of each name that results.json may hold.
VARIANTS = {
    "baseline": "the original model, as it was before compression",
    "skip-identity": "control: in the control layers the MLP is left out and its input passed on, MLP(x) = x",
    "skip-zero": "control: in the control layers the MLP adds nothing, MLP(x) = 0",
    "skip-mean": "control: in the control layers the MLP is its mean output over the calibration text",
    "compressed": "the checkpoint under test",
}
RUNTIMES = {
    "eager": "transformers’ own code in PyTorch, as from_pretrained gives it",
    "compile": "the same through torch.compile, with a cache of fixed size",
    "onnx": "onnxruntime on the exported graph, weights as exported",
    "ort-int8": "onnxruntime on the exported graph, matrices quantized to 8 bits on top",
}


@dataclass(frozen=True)
class Column:
    """A header, the sentence that explains it, and what the column says of an entry."""

    header: str
    explanation: str
    text: Callable[[Entry], str]
    is_name: bool = False
    is_detail: bool = False  # left out where there is little room
    is_group: bool = False  # written once for the entries that share it


# The two columns that say whose numbers a row holds; the runtime is the same for several rows, so it is written once.
VARIANT = Column("variant", "What was measured.", lambda e: e["label"], is_name=True)
RUNTIME = Column(
    "runtime", "What executed it, and on which device.", lambda e: f"{e['runtime']} · {e['device']}", is_group=True
)


def size_columns(results: Entry) -> tuple[Column, ...]:
    """What is kept of what, for entries of `size_entries`."""
    # One column for each thing that the literature calls the ratio.
    context = max(results["settings"]["contexts"])
    # An entry knows its own count only; the relative one needs its baseline's.
    adds = {model["label"]: model["account"]["multiply_adds"]["total"] for model in results["models"]}
    return (
        VARIANT,
        Column(
            "replaced kept",
            "Parameters that remain of the modules that were replaced, as a fraction of the originals in those modules.",
            lambda e: percent(e["account"]["replaced_kept"]),
        ),
        Column(
            "model kept",
            "Parameters that remain of the whole model, embeddings and head included.",
            lambda e: percent(e["account"]["model_kept"]),
        ),
        Column(
            "parameters",
            "Numbers stored of the whole model; tied ones count once.",
            lambda e: si(e["account"]["parameters"]),
            is_detail=True,
        ),
        Column("weights MiB", "Size of the safetensors files on disk.", lambda e: mib(e["account"]["weight_bytes"])),
        Column(
            "multiply-adds",
            f"Multiply-adds for one new token that attends to {context} positions: linears, head, attention, and the "
            "operations of symbolic programs; in parentheses, relative to the baseline.",
            lambda e: f"{si(adds[e['label']])} ({percent(adds[e['label']] / adds[e['baseline']])})",
        ),
        Column(
            "cache B/token",
            "Bytes by which the live key-value cache grows for each token of a sequence.",
            lambda e: integer(e["cache_bytes_per_token"]),
        ),
    )


def quality_columns(results: Entry) -> tuple[Column, ...]:
    """Who judged, the variant, then three columns for each text, for entries of `quality_entries`."""
    columns = [
        Column(
            "judged in",
            "The runtime whose outputs were compared with the baseline’s in torch; torch.compile computes what eager does.",
            lambda e: f"{e['quality']['runtime']} · {e['quality']['device']} · {e['quality']['dtype']}",
            is_group=True,
        ),
        VARIANT,
    ]
    for text in text_names(results):
        # `text=text` holds this round's text; a bare one would be the last text in every column.
        columns += [
            Column(
                f"perplexity {text}",
                f"exp of the mean loss per token on the text “{text}”: lower is better, the baseline’s is the goal.",
                lambda e, text=text: _quality(e, text, "perplexity", perplexity),
            ),
            Column(
                f"KL {text}",
                f"Mean Kullback–Leibler divergence from the baseline’s predictions to this model’s on “{text}”, in nats per "
                "token: 0 means the same probabilities.",
                lambda e, text=text: _quality(e, text, "kl", lambda v: f"{v:.4f}"),
            ),
            Column(
                f"top-1 {text}",
                f"How often the most likely next token is the baseline’s on “{text}”.",
                lambda e, text=text: _quality(e, text, "top1_agreement", percent),
            ),
        ]
    return tuple(columns)


def speed_columns(results: Entry) -> tuple[Column, ...]:
    """Prefill, first token, and decoding at the first batch size and the longest context, for rows of the results."""
    settings = results["settings"]
    # One decoding stands for all here; the others have a table of their own.
    batch, context = settings["batch_sizes"][0], max(settings["contexts"])
    decode = partial(main_decode, settings)
    return (
        RUNTIME,
        VARIANT,
        Column(
            "prefill ms",
            f"Median time to read a prompt of {settings['prefill_length']} tokens, all logits computed and the cache filled.",
            lambda e: milliseconds(e["prefill"]["p50_ms"]),
        ),
        Column(
            "p95 / p99",
            "Time within which 95 % and 99 % of the prefills were done: what a user waits on a bad day.",
            lambda e: f"{milliseconds(e['prefill']['p95_ms'])} / {milliseconds(e['prefill']['p99_ms'])}",
            is_detail=True,
        ),
        Column(
            "prefill vs baseline",
            "Baseline’s time over this one’s, round by round, with its 95 % interval: above 1 is faster; where the interval "
            f"comes within {RESOLUTION:.0%} of 1, there is no difference that these runs could show.",
            lambda e: speedup(e["prefill"]["speedup"]),
        ),
        Column(
            "first token ms",
            f"Median time from {context} prompt tokens on the host to the first generated token on the host.",
            lambda e: milliseconds(decode(e)["first_token"]["p50_ms"]),
            is_detail=True,
        ),
        Column(
            "decode tok/s",
            f"Median tokens generated per second after the first, batch {batch}, after {context} tokens, with the live cache.",
            lambda e: f"{decode(e)['tokens_per_s']:,.0f}",
        ),
        Column("decode vs baseline", "The same comparison for decoding.", lambda e: speedup(decode(e)["speedup"])),
    )


def footprint_columns() -> tuple[Column, ...]:
    """Disk, memory and cold start, for rows of the results."""
    # Not the weights of the first table: a graph with its matrices in 8 bits is another file.
    return (
        RUNTIME,
        VARIANT,
        Column("on disk MiB", "Size of the weight or graph files this runtime loads.", lambda e: mib(e["bytes_on_disk"])),
        Column(
            "peak MiB",
            "Most memory a fresh process held while it loaded the model and generated; in parentheses, what the libraries "
            "alone take. On an accelerator: the most its allocator held.",
            # Cold starts are optional in a benchmark.
            lambda e: peak(e.get("cold")),
        ),
        Column(
            "steady MiB",
            "Memory of that process after a generation, the model loaded.",
            lambda e: steady(e.get("cold")),
            is_detail=True,
        ),
        Column(
            "cold start s",
            "From the start of a process to its first token, imports and loading included, the files in the page cache.",
            lambda e: ABSENT if not e.get("cold") else f"{e['cold']['cold_start_s']:.2f}",
        ),
    )


def decode_columns() -> tuple[Column, ...]:
    """Every batch size and context length, for entries of `decode_entries`."""
    return (
        RUNTIME,
        VARIANT,
        Column("batch", "Sequences generated together.", lambda e: integer(e["batch"])),
        Column("context", "Prompt tokens in the cache when decoding begins.", lambda e: integer(e["context"])),
        Column(
            "first token ms",
            "Median time from the prompt on the host to the first generated token on the host.",
            lambda e: milliseconds(e["first_token"]["p50_ms"]),
        ),
        Column("first vs baseline", "Comparison as above.", lambda e: speedup(e["first_token"]["speedup"])),
        Column("ms/step", "Median time of one step: one token per sequence.", lambda e: milliseconds(e["step"]["p50_ms"])),
        Column("tok/s", "Median tokens per second over all sequences of the batch.", lambda e: f"{e['tokens_per_s']:,.0f}"),
        Column("decode vs baseline", "Comparison as above.", lambda e: speedup(e["speedup"])),
    )


def main_decode(settings: Entry, row: Entry) -> Entry:
    """The decoding that stands for a row where there is room for one: first batch size, longest context.

    `settings` are those of the results. Raises StopIteration where the row was not measured there.
    """
    wanted = (settings["batch_sizes"][0], max(settings["contexts"]))
    return next(d for d in row["decode"] if (d["batch"], d["context"]) == wanted)


def text_names(results: Entry) -> list[str]:
    """The evaluation texts of all baselines, each once, in the order of results.json."""
    return list(dict.fromkeys(text["name"] for texts in results["texts"].values() for text in texts))


def _quality(entry: Entry, text: str, key: str, write: Callable[[float], str]) -> str:
    found = entry["quality"]["texts"].get(text)  # two baselines may have been judged on different texts
    return ABSENT if found is None else write(found[key])
