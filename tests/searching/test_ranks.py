"""Surgical search: decided from cached hidden states, resumable, and what it says is what the checkpoint does."""

import json

import pytest
import torch
from recipes_for_tests import ALPHABET, own_text, tiny_folder, tiny_recipe
from transformers import AutoModelForCausalLM

from compress import data
from compress.evaluating.perplexity import perplexity
from compress.fitting import run
from compress.searching import ranks as search
from compress.searching.cached_states import Split, Tail
from compress.searching.ranks import SearchOptions

STEP = {"method": "feature_space", "targets": {"roles": ["q", "v", "down"]}, "rank": {"keep": 0.5}}
SMALL = {"search_windows": 6, "test_windows": 6, "length": 24}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A random model and text that it wrote itself, so that every change of the model costs perplexity."""
    folder = tiny_folder(tmp_path_factory.mktemp("source"), "llama")
    own_text(folder)
    return folder


def recipe(source, output, step=STEP):
    return tiny_recipe(source, output, step, evaluation={"texts": {"own": str(source / "text.txt")}, "length": 24})


def options(**more):
    return SearchOptions.model_validate({**SMALL, "tolerance": 0.1, **more})


def lines(output):
    return [json.loads(line) for line in (output / "search.jsonl").read_text().splitlines()]


def test_each_rank_is_the_smallest_that_holds(source, tmp_path):
    found = search.search(recipe(source, tmp_path), options())
    header, *decisions = lines(tmp_path)
    assert header["tolerance"] == 0.1
    layers = [int(d["modules"][0].split(".")[2]) for d in decisions]
    assert layers == [1, 1, 1, 0, 0, 0]
    base = found["results"][0]["search"]
    for number, decision in enumerate(decisions, start=1):
        *failed, last = decision["trials"]
        ranks = [t["rank"] for t in decision["trials"]]
        assert ranks == sorted(set(ranks))
        assert ranks[0] == 1
        assert all(t["value"] is None or t["value"] > t["limit"] for t in failed)
        assert last["limit"] == pytest.approx(base * 1.1**number)
        assert decision["rank"] == (last["rank"] if last["value"] <= last["limit"] else None)
        assert found["ranks"][decision["modules"][0]] == decision["rank"]
    assert any(len(d["trials"]) > 1 for d in decisions)
    assert any(d["rank"] is not None for d in decisions)
    surgical = found["results"][1]
    assert surgical["search"] <= base * 1.1 ** len(decisions)


def test_the_reported_perplexity_is_the_checkpoints(source, tmp_path):
    chosen = recipe(source, tmp_path / "search")
    found = search.search(chosen, options())
    step = {**STEP, "rank": {"table": str(tmp_path / "search" / "ranks.json")}}
    folder = run.fit(recipe(source, tmp_path / "fit", step))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = data.TextSource.model_validate({"text": str(source / "text.txt"), "length": SMALL["length"]})
    windows = data.evaluation_tokens(text, data.load_tokenizer(str(source)))
    rows = {row["ranks"]: row for row in found["results"]}
    assert perplexity(model, windows[:6])["perplexity"] == pytest.approx(rows["surgical"]["search"], rel=1e-5)
    assert perplexity(model, windows[-6:])["perplexity"] == pytest.approx(rows["surgical"]["test"], rel=1e-5)
    assert rows["uniform"]["stored"] >= rows["surgical"]["stored"]
    report = json.loads((folder / "report.json").read_text())
    assert report["parameters"]["targeted_compressed"] == rows["surgical"]["stored"]


def test_a_trial_runs_only_the_layers_from_the_one_it_changes(source, tmp_path, monkeypatch):
    calls = []
    measure = Split.measure

    def watched(self, index, layers):
        ran = []
        handles = [layer.register_forward_hook(lambda *_, i=index + at: ran.append(i)) for at, layer in enumerate(layers)]
        originals = [layer.register_forward_hook(lambda *_: ran.append("original")) for layer in self.model.layers]
        value = measure(self, index, layers)
        for handle in handles + originals:
            handle.remove()
        calls.append((index, ran))
        return value

    monkeypatch.setattr(Split, "measure", watched)
    search.search(recipe(source, tmp_path), options(compare_uniform=False))
    trials = sum(len(d["trials"]) for d in lines(tmp_path)[1:])
    assert len(calls) == trials + 2  # the result, on both splits
    assert {index for index, _ in calls} == {0, 1}
    # The 6 windows are 2 micro-batches.
    assert all(ran == list(range(index, 2)) * 2 for index, ran in calls)


def test_an_interrupted_search_continues_behind_its_last_decision(source, tmp_path, monkeypatch):
    whole = search.search(recipe(source, tmp_path / "whole"), options())
    append, left = search.append, [3]

    def dying(log, line):
        if left[0] == 0:
            with log.open("a") as file:
                file.write('{"number": 4, "mod')  # cut off in the middle of a line
            raise KeyboardInterrupt
        left[0] -= 1
        append(log, line)

    monkeypatch.setattr(search, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        search.search(recipe(source, tmp_path / "broken"), options())
    assert not (tmp_path / "broken" / "ranks.json").exists()
    again = []
    monkeypatch.setattr(search, "append", lambda log, line: again.append(line["number"]) or append(log, line))
    assert search.search(recipe(source, tmp_path / "broken"), options()) == whole
    assert again == [4, 5, 6]
    for name in ("ranks.json", "search.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_log_of_another_search_is_refused(source, tmp_path):
    search.search(recipe(source, tmp_path), options(compare_uniform=False))
    with pytest.raises(ValueError) as error:
        search.search(recipe(source, tmp_path), options(tolerance=0.5))
    log = tmp_path / "search.jsonl"
    assert str(error.value) == f"{log} is of another search (not the same tolerance); give --fresh or another output"
    search.search(recipe(source, tmp_path), options(tolerance=0.5, compare_uniform=False), fresh=True)
    assert lines(tmp_path)[0]["tolerance"] == 0.5


def test_fresh_with_a_text_that_is_too_short_forgets_nothing(source, tmp_path):
    search.search(recipe(source, tmp_path), options(compare_uniform=False))
    before = (tmp_path / "search.jsonl").read_bytes()
    with pytest.raises(ValueError, match="lower --search-windows, --test-windows or --length"):
        search.search(recipe(source, tmp_path), options(test_windows=9000), fresh=True)
    assert (tmp_path / "search.jsonl").read_bytes() == before


def test_no_tolerance_and_all_tolerance(source, tmp_path):
    everything = search.search(recipe(source, tmp_path / "all"), options(tolerance=1e6))
    assert set(everything["ranks"].values()) == {1}
    nothing = search.search(recipe(source, tmp_path / "none"), options(tolerance=0))
    assert None in nothing["ranks"].values()
    assert nothing["results"][1]["search"] <= nothing["results"][0]["search"]


def test_by_task_accuracy(source, tmp_path):
    questions = [
        {"context": "".join(ALPHABET[i : i + 5]), "choices": [ALPHABET[i], ALPHABET[40 + i] * (1 + i % 3)], "answer": i % 2}
        for i in range(24)
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, questions)))
    found = search.search(recipe(source, tmp_path), options(metric="tasks", tasks=file, tolerance=0.1))
    rows = {row["ranks"]: row for row in found["results"]}
    assert all(0 <= row[split] <= 1 for row in rows.values() for split in ("search", "test"))
    for decision in lines(tmp_path)[1:]:
        by_chunk = {c: [t for t in decision["trials"] if t["chunk"] == c] for c in range(4)}
        smallest = [next((t["rank"] for t in by_chunk[c] if t["holds"]), None) for c in range(3)]
        if decision["rank"] is not None:
            assert decision["rank"] == max(smallest)
            assert by_chunk[3] == [by_chunk[3][0]]
            assert by_chunk[3][0]["holds"]
        else:
            assert None in smallest or not by_chunk[3][0]["holds"]


def test_padded_scores_are_the_scores_of_each_choice_alone(source, tmp_path):
    from compress.evaluating.tasks import Question, score_choice
    from compress.searching.metrics import Accuracy
    from compress.stream.model import StreamedModel
    from compress.stream.original import OnDisk

    tokenizer = data.load_tokenizer(str(source))
    asked = [
        Question(context="abc", choices=("de", "fghij"), answer=0),
        Question(context="klmno", choices=("p", "q"), answer=1),
    ]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    expected = [score_choice(model, tokenizer, q.context, choice) for q in asked for choice in q.choices]
    original = OnDisk(source)
    streamed = StreamedModel(original.weights, original.config)
    split = Split(streamed, Accuracy.of(asked, tokenizer), tmp_path, 0, lambda: None)
    tail = Tail(streamed, torch.float32)
    tail.reach(0)
    split._boundaries.load(0)
    found = split._log_probabilities(0, tail.layers)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-4)


def test_shared_bases_are_searched_as_one(source, tmp_path):
    step = {"method": "shared_basis", "targets": {"roles": ["k", "v"]}, "rank": {"keep": 0.5}}
    ranks = search.search(recipe(source, tmp_path, step), options())["ranks"]
    assert len(ranks) == 4
    assert all(ranks[f"model.layers.{i}.self_attn.k_proj"] == ranks[f"model.layers.{i}.self_attn.v_proj"] for i in (0, 1))


def test_what_cannot_be_searched(source, tmp_path):
    def message(chosen, **more):
        with pytest.raises(ValueError) as error:
            search.search(chosen, options(**more))
        return str(error.value)

    mlp = recipe(source, tmp_path, {"method": "skip_mlp", "layers": [0], "output": "zero"})
    assert message(mlp) == "steps.0: skip_mlp has no rank to search; leave low-rank steps only"
    without = tiny_recipe(source, tmp_path, STEP)
    assert message(without) == ("evaluation.texts is empty; a search needs one: --set evaluation.texts.own.text=novella")
    assert message(recipe(source, tmp_path), search_windows=500) == (
        "evaluation text 'own' gives 160 windows of 24, the two splits need 506: "
        "lower --search-windows, --test-windows or --length"
    )
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps({"context": "a", "choices": ["b", "c"], "answer": 0}))
    assert message(recipe(source, tmp_path), metric="tasks", tasks=few) == f"{few} holds 1 questions; a search needs at least 8"
    with pytest.raises(ValueError, match=r"give --metric tasks --tasks FILE\.jsonl, or neither"):
        options(metric="tasks")
