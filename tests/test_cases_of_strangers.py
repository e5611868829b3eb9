"""Public reports of other people's trouble, tried on this project: the right outcome of each, from the command line."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from recipes_for_tests import ALPHABET, STEP, evaluated_recipe, tiny_folder, tiny_recipe
from transformers import AutoTokenizer

from compress.checkpoint.lock import BusyError

LINES = ["".join(ALPHABET[(i + k) % 80] for i in range(60)) for k in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("cases") / "model", "llama")


def evaluated(compress, model, text, *more):
    return compress("eval", model, "--text", text, "--length", "32", "--sequences", "2", *more)


# --- calibration text


def test_a_byte_order_mark_and_a_suffix_in_capitals_are_read(compress, model, tmp_path):
    rows = "\n".join(json.dumps({"text": line}) for line in LINES)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    (tmp_path / "plain.jsonl").write_text(rows)
    (tmp_path / "UP.TXT").write_text("\n".join(LINES))
    found = [evaluated(compress, model, tmp_path / name, "--json") for name in ("bom.jsonl", "plain.jsonl", "UP.TXT")]
    assert [code for code, _, _ in found] == [0, 0, 0]
    values = [next(iter(json.loads(out).values()))["nll"] for _, out, _ in found]
    assert values[0] == values[1] == values[2]


def test_half_an_emoji_is_refused_by_its_line(compress, model, tmp_path):
    (tmp_path / "half.jsonl").write_bytes(b'{"text": "good"}\n{"text": "bad \\ud83d half"}\n')
    code, _, err = evaluated(compress, model, tmp_path / "half.jsonl")
    assert code == 2
    assert re.search(r"half\.jsonl' line 2: half a character, an unpaired surrogate", err)


def test_conversations_go_through_the_chat_template(compress, tmp_path):
    model = tiny_folder(tmp_path / "model", "llama")
    turns = [[{"role": "user", "content": line}, {"role": "assistant", "content": line[::-1]}] for line in LINES]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": turn}) for turn in turns))
    code, _, err = evaluated(compress, model, tmp_path / "chat.jsonl")
    assert code == 2
    assert "line 1: a conversation, and this model's tokenizer has no chat template" in err
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(model)
    (tmp_path / "same.txt").write_text("\n".join(f"u{user['content']}a{other['content']}" for user, other in turns))
    found = [evaluated(compress, model, tmp_path / name, "--json") for name in ("chat.jsonl", "same.txt")]
    assert [next(iter(json.loads(out).values()))["nll"] for _, out, _ in found] == [
        pytest.approx(next(iter(json.loads(found[1][1]).values()))["nll"])
    ] * 2


# --- recipes


def written(tmp_path, model, **changes):
    data = yaml.safe_load(tiny_recipe(model, tmp_path / "out", STEP).to_yaml())
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**data, **changes}, sort_keys=False))
    return file


def test_a_key_twice_is_an_error_with_both_lines(compress, model, tmp_path):
    file = written(tmp_path, model)
    line = file.read_text().count("\n") + 1
    file.write_text(file.read_text() + "model: elsewhere\n")
    code, _, err = compress("fit", file, "--dry-run")
    assert (code, err) == (2, f"error: {file} line {line}: key 'model' is given already in line 1; keep one\n")


def test_a_tilde_is_the_home_folder(compress, model, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    code, _, err = compress("fit", written(tmp_path, model, output="~/small"))
    assert code == 0, err
    assert (tmp_path / "home" / "small" / "config.json").is_file()
    assert not (tmp_path / "~").exists()


def test_a_recipe_in_latin_1_names_file_and_byte(compress, tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xe9\nmodel: novella\n")
    code, _, err = compress("fit", tmp_path / "latin.yaml")
    assert (code, err) == (2, f"error: {tmp_path / 'latin.yaml'}: not UTF-8 (byte 6); save it as UTF-8\n")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_an_output_that_is_a_file_is_one_line(compress, model, tmp_path, dry):
    (tmp_path / "afile").write_text("mine")
    for output in ("afile", "afile/inside"):
        code, _, err = compress("fit", written(tmp_path, model, output=str(tmp_path / output)), *dry)
        assert code == 2
        assert re.fullmatch(r"error: .*afile.* is a file.*; give another (path|output)\n", err)
    assert (tmp_path / "afile").read_text() == "mine"


def test_a_path_that_is_not_there_is_no_packaged_recipe(compress, tmp_path):
    missing = tmp_path / "quickstart.yaml"
    code, _, err = compress("fit", missing, "--dry-run")
    expected = f"no recipe {str(missing)!r}; `quickstart` is the packaged one of that name; `compress recipes ls` lists"
    assert code == 2
    assert err.startswith(f"error: {expected}")


def test_calibration_left_out_is_an_error_with_a_suggestion(compress, model, tmp_path):
    file = written(tmp_path, model)
    data = yaml.safe_load(file.read_text())
    del data["calibration"]
    file.write_text(yaml.safe_dump(data))
    code, _, err = compress("fit", file, "--dry-run")
    assert code == 2
    assert "calibration is left out, and the packaged text is for novella alone; give" in err
    assert err.count("\n") == 1


# --- windows and tokens


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_window_beyond_the_positions_is_one_line(compress, folders, tmp_path, family):
    folder = folders(family)
    line = "windows of 300 tokens, and the model has 128 positions; lower length to that\n"
    code, _, err = compress("eval", folder, "--text", folder / "text.txt", "--length", "300", "--sequences", "2")
    assert (code, err.endswith(line)) == (2, True)
    calibration = {"text": str(folder / "text.txt"), "sequences": 4, "length": 300}
    code, _, err = compress("fit", written(tmp_path, folder, calibration=calibration), "--dry-run")
    assert (code, err) == (2, f"error: calibration: {line}")
    evaluation = {"texts": {"own": str(folder / "text.txt")}, "length": 300}
    code, _, err = compress("fit", written(tmp_path, folder, evaluation=evaluation))
    assert (code, err) == (2, f"error: evaluation text 'own': {line}")


def test_a_token_beyond_the_vocabulary_is_one_line(compress, tmp_path):
    folder = tiny_folder(tmp_path / "model", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<|extra{i}|>" for i in range(8)])
    tokenizer.save_pretrained(folder)
    (folder / "text.txt").write_text("<|extra7|>" + "ab" * 3000)
    line = r"token \d+ \('<\|extra7\|>'\) is beyond the model's vocabulary of 97; give the tokenizer that belongs to it"
    code, _, err = evaluated(compress, folder, folder / "text.txt")
    assert code == 2
    assert re.search(line, err)
    code, _, err = compress(
        "fit", written(tmp_path, folder, calibration={"text": str(folder / "text.txt"), "length": 16}), "--dry-run"
    )
    assert code == 2
    assert re.search(line, err)


# --- what fails late elsewhere


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"evaluation": {"texts": {"own": "nowhere.txt"}, "length": 32}}, "no file 'nowhere.txt'"),
        ({"evaluation": {"texts": {"own": {"text": "MODEL/text.txt", "length": 5000}}}}, "128 positions"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0; given -1"),
        ({"steps": [{"method": "weight_svd", "rank": 3, "layers": "0-99999999"}]}, "is neither an index nor a range"),
        ({"steps": [{"method": "weight_svd", "rank": 3, "layers": "0-9999,0-9999"}]}, "more than 10,000 indices"),
    ],
)
def test_a_dry_run_says_it_first(compress, model, tmp_path, changes, line):
    changes = json.loads(json.dumps(changes).replace("MODEL", str(model)))
    code, _, err = compress("fit", written(tmp_path, model, **changes), "--dry-run")
    assert code == 2
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_too_little_disk_and_memory_are_said_first(compress, model, tmp_path, monkeypatch):
    from compress.fitting import look_ahead

    monkeypatch.setattr(look_ahead.shutil, "disk_usage", lambda _: look_ahead.shutil._ntuple_diskusage(10, 0, 10))
    code, _, err = compress("fit", written(tmp_path, model), "--dry-run")
    assert code == 2
    assert re.search(r"output: '.*out' needs about .* MiB, and its disk has 0 MiB left; free some, or give another folder", err)
    monkeypatch.undo()
    small = look_ahead.psutil.virtual_memory()._replace(total=1000, available=1000)
    monkeypatch.setattr(look_ahead.psutil, "virtual_memory", lambda: small)
    monkeypatch.setattr("sys.argv", [])
    code, _, err = compress("fit", written(tmp_path, model), "--dry-run")
    assert code == 2
    assert re.search(r"memory: about .* are needed, and this machine has 0 MiB; lower calibration\.sequences", err)


# --- tables and exit codes


def test_tables_are_readable_where_there_is_no_terminal(compress, model, tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest's workers set it
    names = {f"a rather long name of a text, number {i}": str(model / "text.txt") for i in range(10)}
    file = tmp_path / "recipe.yaml"
    recipe = evaluated_recipe(model, tmp_path / "out", evaluation={"texts": names, "length": 32, "sequences": 2})
    file.write_text(recipe.to_yaml())
    code, out, _ = compress("fit", file)
    assert code == 0
    for name in names:
        assert re.search(rf"{name} .* baseline .* \+0\.0000", out), "a row, on one line"
    code, out, _ = compress("fit", file, "--dry-run")
    assert "model.layers.0.self_attn.q_proj" in out
    assert "…" not in out


def test_a_narrow_terminal_breaks_words_and_no_number(compress, model, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = compress("fit", written(tmp_path, model), "--dry-run")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert out.count("1,024") >= 2


def test_the_help_says_what_exit_codes_mean(compress):
    code, out, _ = compress("--help")
    assert code == 0
    words = " ".join(out.split())
    for told in ("0 done;", "2 a mistake in what was given;", "3 the machine", "130 interrupted"):
        assert told in words


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "out"), 3, "error: Permission denied: out; nothing that"),
        (MemoryError(), 3, "error: out of memory; nothing that was finished is lost"),
        (NotADirectoryError(20, "Not a directory", "file"), 2, "error: Not a directory: file\n"),
        (IsADirectoryError(21, "Is a directory", "out"), 2, "error: Is a directory: out\n"),
        (torch.OutOfMemoryError("CUDA out of memory."), 3, "error: CUDA out of memory; nothing that was finished is lost"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 3, "error: [enforce fail] Def"),
        (BusyError("another run is writing to out; wait for it"), 3, "error: another run is writing to out; wait for it\n"),
        (RuntimeError("nll is not finite"), 1, "failed: nll is not finite"),
        (KeyError("x\x1b[2J"), 70, "bug: KeyError: 'x"),
    ],
)
def test_whatever_goes_wrong_is_one_line(compress, monkeypatch, error, code, line):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("compress.api.finished.report", broken)
    found, out, err = compress("report", "anything")
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith(line)
    assert "\x1b" not in err
