"""A working folder full of files that are named like Python's own: no command and no helper process imports one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from long import long
from recipes_for_tests import evaluated_recipe, tiny_folder

from compress import child

OTHERS = ("torch", "numpy", "yaml", "transformers", "pydantic", "typer", "sympy", "sitecustomize", "usercustomize", "exporters")
NEVER = {"__main__", "__future__"}  # Python itself reads these names before any path

PROGRAM = """
import json, sys
from compress.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["compress", *arguments]
    try:
        main.main()
    except SystemExit as stop:
        print(arguments[0], stop.code or 0, file=sys.stderr)
"""


def hostile(folder, names):
    """A folder in which every module of these names has a double that notes that it was imported."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(folder / f'EXECUTED-{name}')!r}, 'w').close()\n")
    return folder


def executed(folder):
    return sorted(file.name for file in folder.glob("EXECUTED-*"))


def environment():
    # As a shell has it: this process may have run main(), which asks for a safe path.
    return {**{key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}, "OMP_NUM_THREADS": "1"}


def test_python_dash_m_takes_the_working_folder_off_the_path(tmp_path):
    # Without runpy's own imports: those come before any code of ours, and are what `python -P` is for.
    folder = hostile(tmp_path / "hostile", {"json", "typing", "pathlib", "subprocess", "random", "hashlib", *OTHERS})
    command = [sys.executable, "-m", "compress", "recipes", "ls"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert executed(folder) == []
    assert (done.returncode, "quickstart.yaml" in done.stdout) == (0, True), done.stderr


def test_a_helper_process_imports_nothing_from_the_working_folder(tmp_path):
    folder = hostile(tmp_path / "hostile", {*sys.stdlib_module_names, *OTHERS} - NEVER)
    command = child.command("compress.cli.main", "recipes", "ls")
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert executed(folder) == []
    assert done.returncode == 0, done.stderr


@long
def test_no_command_and_no_helper_process_imports_from_the_working_folder(tmp_path):
    folder = hostile(tmp_path / "hostile", {*sys.stdlib_module_names, *OTHERS} - NEVER)
    model = tiny_folder(tmp_path / "model", "llama")
    out = tmp_path / "out"
    (tmp_path / "r.yaml").write_text(evaluated_recipe(model, out).to_yaml())
    small = ["--runtimes", "eager", "--devices", "cpu", "--contexts", "8", "--prefill", "8", "--repeats", "2"]
    commands = [
        ["fit", str(tmp_path / "r.yaml")],
        ["bench", str(out), *small],  # starts processes of its own
        ["export", str(out), "--torch"],
        ["report", str(out / "bench")],
        ["eval", str(out), "--text", str(model / "text.txt"), "--length", "32", "--sequences", "2"],
    ]
    # -P: as the installed command is started, which has its own folder in front, not the working one.
    command = [sys.executable, "-P", "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert executed(folder) == []
    codes = [line for line in done.stderr.splitlines() if line.split(" ")[0] in {c[0] for c in commands}]
    assert codes == [f"{c[0]} 0" for c in commands], done.stderr
    cold = json.loads((out / "bench" / "results.json").read_text())["rows"][0]["cold"]
    assert cold["cold_start_s"] > 0, "a helper process measured it"
