"""Two hosts: network namespaces joined by a cable of their own, and torchrun in each of them."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from long import long
from parallel.test_ranks import everything

ROOT = Path(__file__).parents[2]


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def hosts():
    """(namespace, interface, address) of two hosts that reach each other, and nothing else."""
    names = [f"compress{os.getpid()}{side}" for side in "ab"]
    if not shutil.which("ip") or any(ip("netns", "add", name).returncode for name in names):
        pytest.skip("no network namespaces here")
    made = [(name, f"veth{side}", f"10.97.0.{number}") for name, side, number in zip(names, "ab", (1, 2), strict=True)]
    steps = [("link", "add", "vetha", "netns", names[0], "type", "veth", "peer", "name", "vethb", "netns", names[1])]
    for name, interface, address in made:
        steps += [("-n", name, "addr", "add", f"{address}/24", "dev", interface)]
        steps += [("-n", name, "link", "set", each, "up") for each in ("lo", interface)]
    try:
        for step in steps:
            done = ip(*step)
            if done.returncode:
                pytest.skip(f"no virtual cable here: {done.stderr}")
        yield made
    finally:
        for name in names:
            ip("netns", "del", name)


@long
def test_two_hosts_write_what_one_process_writes(folders, tmp_path, hosts):
    def fit(output, *launchers):
        recipe = tmp_path / f"{output}.yaml"
        recipe.write_text(everything(folders("llama"), tmp_path / output).to_yaml())
        started = [
            subprocess.Popen([*launcher, "-m", "compress", "fit", str(recipe)], env=environment, cwd=tmp_path)
            for launcher, environment in launchers
        ]
        assert [process.wait(300) for process in started] == [0] * len(started)
        return hashlib.sha256((tmp_path / output / "model.safetensors").read_bytes()).hexdigest()

    plain = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    alone = fit("alone", ([sys.executable], plain))
    launchers = []
    for rank, (name, interface, _) in enumerate(hosts):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
        where = [f"--master-addr={hosts[0][2]}", "--master-port=29533"]
        inside = ["ip", "netns", "exec", name, *torchrun, *where]
        launchers.append((inside, {**plain, "GLOO_SOCKET_IFNAME": interface, "TP_SOCKET_IFNAME": interface}))
    assert fit("together", *launchers) == alone
