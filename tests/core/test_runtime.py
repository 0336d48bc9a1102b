import pytest
import torch

from matattn.runtime import machine, one_thread


@pytest.mark.parametrize("accelerator, gpu", [("cpu", False), ("auto", True), ("gpu", True)])
def test_reports_name_the_gpu_that_trained(accelerator, gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    with one_thread():
        assert machine(accelerator).endswith(", 1 thread" + ", NVIDIA H200" * gpu)
