"""A benchmark in sentences: what it found, and how it was measured."""

from __future__ import annotations

from typing import Any

from compress.clock import RESOLUTION
from compress.reporting.columns import RUNTIMES, VARIANTS, Entry, main_decode, text_names
from compress.reporting.numbers import mib, percent, perplexity
from compress.reporting.tables import size_entries


def summary(results: Entry) -> list[str]:
    """One sentence on the size, one on each text and one on each runtime, for every compressed variant of the results."""
    entries = {entry["label"]: entry for entry in size_entries(results)}
    lines: list[str] = []
    for label, entry in entries.items():
        if entry["kind"] != "compressed":  # the baseline and the controls are what it is compared with
            continue
        account, base = entry["account"], entries[entry["baseline"]]
        adds = account["multiply_adds"]["total"] / base["account"]["multiply_adds"]["total"]
        lines.append(
            f"{label} keeps {percent(account['replaced_kept'])} of the parameters of the modules it replaces and "
            f"{percent(account['model_kept'])} of the whole model: {mib(account['weight_bytes'])} MiB of weights instead of "
            f"{mib(base['account']['weight_bytes'])}, {percent(adds)} of the multiply-adds per token."
        )
        lines += [_on_text(results, entry, base, text) for text in text_names(results) if text in entry["quality"]["texts"]]
        lines += [_in_runtime(results["settings"], row) for row in results["rows"] if row["label"] == label]
    return lines or [f"{len(entries)} models were measured; none of them is compressed."]


def _on_text(results: Entry, entry: Entry, base: Entry, text: str) -> str:
    found, original = entry["quality"]["texts"][text], base["quality"]["texts"][text]
    change = found["perplexity"] / original["perplexity"] - 1
    line = (
        f"On “{text}” its perplexity is {perplexity(found['perplexity'])} against the baseline's "
        f"{perplexity(original['perplexity'])} ({change:+.1%}); it agrees on the most likely token in "
        f"{percent(found['top1_agreement'])} of the cases."
    )
    # The controls of one checkpoint are named by their kind alone, those of several also by the checkpoint's label.
    controls = [
        f"{other['kind']} {perplexity(other['quality']['texts'][text]['perplexity'])}"
        for other in size_entries(results)
        if other["kind"].startswith("skip") and other["label"].removesuffix(other["kind"]).strip() in ("", entry["label"])
    ]
    return line + (f" Controls on the same layers: {', '.join(controls)}." if controls else "")


def _in_runtime(settings: Entry, row: Entry) -> str:
    prefill, decode = _said(row["prefill"]["speedup"]), _said(main_decode(settings, row)["speedup"])
    return f"Against the baseline in {row['runtime']} on {row['device']}: prefill {prefill}; decoding {decode}."


def _said(found: Entry | None) -> str:
    if found is None:
        return "not compared"
    if found["low"] is None:  # no interval from so few rounds, and so no verdict
        return f"×{found['ratio']:.2f} (too few runs to say)"
    if found["verdict"] == "no difference":  # the ratio is not said: inside the noise it means nothing
        return f"no difference (95 % interval ×{found['low']:.2f} to ×{found['high']:.2f})"
    return f"{found['verdict']}, ×{found['ratio']:.2f} (×{found['low']:.2f} to ×{found['high']:.2f})"


def title(results: Entry) -> str:
    """The heading: the checkpoints by name; plain models where none is compressed."""
    compressed = [model["name"] for model in results["models"] if model["kind"] == "compressed"]
    return "Benchmark of " + ", ".join(compressed or [model["name"] for model in results["models"]])


def compared(results: Entry) -> list[tuple[str, str]]:
    """(what, what it is) of the variants, the control layers and the runtimes that were measured."""
    kinds = dict.fromkeys(model["kind"] for model in results["models"])  # a set would lose the order
    layers = sorted({layer for model in results["models"] if model["kind"] == "compressed" for layer in model["layers"]})
    variants = [(kind, VARIANTS[kind]) for kind in kinds]
    if layers and any(kind.startswith("skip") for kind in kinds):
        meaning = "those whose MLP was replaced; where none was, all in which anything was: "
        variants.append(("control layers", meaning + ", ".join(map(str, layers))))
    return variants + [(runtime, RUNTIMES[runtime]) for runtime in results["settings"]["runtimes"]]


def measured_how(results: Entry) -> list[tuple[str, str]]:
    """(what, how) for the reader who wants to know, or to repeat it, and (what, why not) of what could not be measured."""
    settings, machine = results["settings"], results["machine"]
    rounds: list[tuple[str, str]] = [
        (
            "order",
            f"In each of {settings['repeats']} rounds every variant had one turn (A B C A B C …), so that a drift of the "
            "machine meets all alike; before them, runs until the times were stable.",
        ),
        (
            "comparison",
            "Median over the rounds of baseline time / own time; the interval is a 95 % bootstrap over the rounds. Where it "
            f"comes within {RESOLUTION:.0%} of 1 the report says: no difference. Copies of one model differ by as much.",
        ),
        ("threads", f"{settings['threads']} on the CPU; dtype {settings['dtype']}."),
        (
            "machine",
            f"{machine['processor']}, {machine['usable_cores']} usable cores, {machine['memory_gib']} GiB, {_load(machine)}",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())),
        ("commit", results["commit"] or "an installed package, no checkout"),
    ]
    texts = {text["name"]: text for of in results["texts"].values() for text in of}
    rounds += [
        (
            f"text “{name}”",
            f"{text['windows']} windows of {text['length']} tokens of {text['source']['text']}, sha256 {text['sha256'][:16]}…",
        )
        for name, text in texts.items()
    ]
    # Some runtimes are judged through another, which computes the same: the reader is told which.
    judged: dict[str, Any] = {row["runtime"]: row["quality"] for row in results["rows"] if row["quality"]}
    rounds += [
        (f"outputs of {runtime}", f"judged in {by['runtime']} on {by['device']} in {by['dtype']}")
        for runtime, by in judged.items()
    ]
    return rounds + [(f"not measured: {s['runtime']} on {s['device']}", s["reason"]) for s in results["skipped"]]


def _load(machine: Entry) -> str:
    load = machine.get("load_average")  # not every system has one
    return "" if not load else f"load average {load[0]} before the run."
