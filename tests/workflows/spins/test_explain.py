"""Explanations of wave functions: derivatives, fidelities and records of the torch twin."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("netket")

import jax  # noqa: E402

from matattn.datasets import j1j2  # noqa: E402
from matattn.models.factored_attention import TransformerWaveFunction  # noqa: E402
from matattn.models.factored_attention_torch import TorchWaveFunction  # noqa: E402
from matattn.workflows.explain import heads as head_importance  # noqa: E402
from matattn.workflows.spins.explain import (  # noqa: E402
    ExplainedConfigurations,
    attention_record,
    explain,
    fidelity,
    sections,
)
from matattn.workflows.spins.predict import WaveFunction  # noqa: E402


@pytest.fixture(params=["factored", "t5"])
def subject(request) -> ExplainedConfigurations:
    torch.manual_seed(0)
    network = TorchWaveFunction((4, 4), dim=8, num_heads=2, num_layers=2, attention=request.param)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    generator = torch.Generator().manual_seed(1)
    spins = torch.randint(2, (12, 16), generator=generator).double() * 2 - 1
    return ExplainedConfigurations(network, spins)


def test_open_gates_change_nothing(subject):
    with torch.no_grad():
        plain = subject.network(subject.spins)
        assert torch.equal(subject.values(subject.gates(torch.ones(2, 2))), plain)


def test_slopes_against_finite_differences(subject):
    found, step = subject.slopes(torch.ones(2, 2, dtype=torch.float64)), 1e-6
    for head in np.ndindex(2, 2):
        ends = []
        for sign in (1, -1):
            gate = torch.ones(2, 2, dtype=torch.float64)
            gate[head] += sign * step
            ends.append(subject.values(subject.gates(gate)))
        slope = (ends[0] - ends[1]) / (2 * step)
        expected = (slope - slope.mean()).abs().detach()
        torch.testing.assert_close(found[:, *head].detach(), expected, rtol=1e-5, atol=1e-7)


def test_a_constant_factor_is_no_change(subject):
    with torch.no_grad():
        value = subject.values()
    factor = torch.tensor(0.7 + 9.1j)
    assert subject.change(value, value + factor).abs().max() < 1e-10
    assert fidelity(value, value + factor) == pytest.approx(1)
    other = value + torch.linspace(0, 1, len(value))
    assert 0 < fidelity(value, other) < 1 and subject.change(value, other).max() > 0.4


def test_fidelity_of_all_states_is_exact():
    """On configurations of |psi|^2 with their exact weights, here of a state that is uniform."""
    before = torch.zeros(8, dtype=torch.complex128)
    after = torch.log(torch.arange(1, 9).to(torch.complex128))
    amplitudes = np.arange(1, 9)
    expected = amplitudes.sum() ** 2 / (8 * (amplitudes**2).sum())
    assert fidelity(before, after) == pytest.approx(expected)


def test_dead_head_is_found(subject):
    output = subject.network.blocks[0].attention.output.weight
    output.data[:, 4:] = 0
    found = head_importance.heads([subject], lambda n: None)
    assert found["importance"][0][1] == pytest.approx(0, abs=1e-12)
    assert found["ablation"][0][1] == pytest.approx(0, abs=1e-12)
    assert found["pruning"]["order"][0] == [0, 1] and found["error_increase"] is None


def test_explanation_of_a_state_is_whole(monkeypatch):
    monkeypatch.setattr("matattn.workflows.spins.explain.CONFIGURATIONS", 128)
    system = j1j2.load("j1j2", "square", "4x4", 0.5)
    model = TransformerWaveFunction((4, 4), dim=8, num_heads=2, num_layers=2)
    variables = model.init(jax.random.key(0), np.ones((1, 16)))
    advanced = []
    result = explain(WaveFunction(system, model, variables, {}), advance=advanced.append)
    assert sum(advanced) == 2 * 2 * (2 + 5)  # ablation, the ranking, and five random orders
    stored = json.loads(json.dumps(result), parse_constant=pytest.fail)
    assert np.shape(stored["fidelity_without_head"]) == np.shape(stored["heads"]["ablation"])
    assert np.shape(stored["attention"]["weight"]) == (2, 2, 4)
    assert len(sections(stored)) == 3


def test_record_and_report(subject):
    record = attention_record((2, 2), np.full((2, 2, 4), 0.25))
    assert record.length == pytest.approx([0, 1, 1, 2**0.5])
    assert record.effective_range() == pytest.approx(np.full((2, 2), (2 + 2**0.5) / 4))
    result = {
        "network": "TransformerWaveFunction", "target": "log_psi", "unit": "", "system": "4x4",
        "configurations": 12,
        "attention": {"distance_in_patches": record.length.tolist(),
                      "weight": record.weight.tolist(),
                      "spread_over_configurations": np.full((2, 2, 4), 1e-17).tolist()},
        "heads": head_importance.heads([subject], lambda n: None),
        "fidelity_without_head": [[1.0, 0.5], [0.2, 0.9]],
    }  # fmt: skip
    first, heads, last = sections(result)
    assert "not on the spins" in first.text and len(heads.figures) == 2
    assert last.tables[0][1][1] == ["layer 1, head 2", "0.5000"]
