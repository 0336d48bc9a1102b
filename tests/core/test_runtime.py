import os

import pytest
import torch

from matattn.errors import ConfigError
from matattn.runtime import find_device, machine, on_cpu, one_thread, plain_torch


@pytest.mark.parametrize("accelerator, gpu", [("cpu", False), ("auto", True), ("gpu", True)])
def test_reports_name_the_gpu_that_trained(accelerator, gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    with one_thread():
        assert machine(accelerator).endswith(", 1 thread" + ", NVIDIA H200" * gpu)


def test_plain_torch_is_that_of_a_fresh_process_and_leaves_no_trace():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode():
            with pytest.raises(KeyError), plain_torch():
                made = torch.zeros(1, requires_grad=True)
                assert (made.dtype, made.device.type) == (torch.float32, "cpu")
                assert not made.is_inference() and (made * 2).requires_grad
                raise KeyError
            assert torch.is_inference_mode_enabled()
        assert torch.zeros(1).dtype == torch.float64 and torch.zeros(1).device.type == "meta"
        with on_cpu():
            assert torch.zeros(1).device.type == "cpu"
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_predictions_have_full_precision_within_automatic_half_precision():
    two = torch.full((2, 2), 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (two @ two).dtype == torch.bfloat16
        with on_cpu():
            assert (two @ two).dtype == torch.float32
        assert (two @ two).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX, if another test loaded it
def test_forked_processes_use_one_thread():
    with on_cpu():
        pass
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    if (child := os.fork()) == 0:
        os._exit(torch.get_num_threads())
    torch.set_num_threads(threads)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_devices_are_found_by_name_or_object():
    assert find_device(torch.device("cpu")) == find_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no device 'meta'; this machine has cpu"):
        find_device(torch.device("meta"))
