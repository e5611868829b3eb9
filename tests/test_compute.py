"""Where a fit computes: what is asked for, what is here, and what is said where it is not."""

import pytest
import torch

from compress import compute
from compress.compute import Compute, on_device


def test_auto_takes_what_is_here(monkeypatch):
    for present, wanted in ((["cpu"], "cpu"), (["cpu", "mps"], "mps"), (["cpu", "cuda"], "cuda:2")):
        monkeypatch.setattr(compute, "present_devices", lambda present=present: present)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        monkeypatch.setenv("LOCAL_RANK", "2")  # torchrun's third process of a host
        assert str(Compute().on()) == wanted


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda", "'cuda' is not here; present: cpu"), ("mps", "'mps' is not here"), ("tpu", "device: "), ("cuda:x", "device: ")],
)
def test_what_is_not_here_is_told(monkeypatch, device, said):
    monkeypatch.setattr(compute, "present_devices", lambda: ["cpu"])
    with pytest.raises(ValueError, match=said):
        on_device(device)


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(compute, "present_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="cuda:7 is not here; there are cuda:0 to cuda:1"):
        on_device("cuda:7")


@pytest.mark.parametrize(
    "arguments", [("fit", "quickstart"), ("search", "quickstart"), ("eval", "novella", "--text", "novella")]
)
def test_every_command_says_so(compress, arguments):
    code, _, told = compress(*arguments, "--device", "cuda:1")
    assert code == 2
    assert told == "error: compute.device: 'cuda:1' is not here; present: cpu, or auto\n"
