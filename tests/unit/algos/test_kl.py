"""KL estimators, controllers and the bound of best-of-N; figures of REFERENCES.md, section 3."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accord.algos.kl import AdaptiveKLController, FixedKLController, best_of_n_kl_bound, k1, k2, k3, k3_loss


def test_estimators_as_printed() -> None:
    """REFERENCES.md section 3; Schulman 2020: at log-ratio .2, k1 .2, k2 .02, k3 .018731."""
    ratio = torch.tensor([0.2], dtype=torch.float64)
    assert k1(ratio).item() == pytest.approx(0.2)
    assert k2(ratio).item() == pytest.approx(0.02)
    assert k3(ratio).item() == pytest.approx(0.018731, abs=5e-7)
    assert k1(-ratio).item() == pytest.approx(-0.2), "never clamped"


@given(st.floats(-30, 30))
def test_k3_is_never_negative(value: float) -> None:
    assert k3(torch.tensor(value, dtype=torch.float64)).item() >= 0


def test_what_is_learnt_from_is_k3_and_below_minus_twenty_its_tangent() -> None:
    inside = torch.linspace(-19.5, 30, 100, requires_grad=True)
    gradients = [torch.autograd.grad(divergence(inside).sum(), inside)[0] for divergence in (k3_loss, k3)]
    assert torch.equal(k3_loss(inside), k3(inside))
    assert torch.equal(*gradients), "in float32, to the last bit"
    outside = torch.tensor([-20.5, -45.0, -500.0], dtype=torch.float64, requires_grad=True)
    values = k3_loss(outside)
    values.sum().backward()
    slope = 1 - math.exp(20)
    assert values.tolist() == pytest.approx([math.exp(20) - 21 + slope * (value + 20) for value in outside.tolist()])
    assert outside.grad is not None
    assert outside.grad.tolist() == pytest.approx([slope] * 3)


@given(st.integers(0, 2**20))
def test_k1_and_k3_are_unbiased_and_k2_is_close_for_near_distributions(seed: int) -> None:
    """Exact expectations under pi of a discrete distribution: E[k1] = E[k3] = KL(pi, ref), whatever the two are."""
    generator = torch.Generator().manual_seed(seed)
    log_pi, log_ref = (torch.log_softmax(torch.randn(7, generator=generator, dtype=torch.float64), 0) for _ in range(2))
    kl = float((log_pi.exp() * (log_pi - log_ref)).sum())
    assert float((log_pi.exp() * k1(log_pi - log_ref)).sum()) == pytest.approx(kl)
    assert float((log_pi.exp() * k3(log_pi - log_ref)).sum()) == pytest.approx(kl)
    near = torch.log_softmax(log_pi + 0.01 * log_ref, 0)
    kl = float((log_pi.exp() * (log_pi - near)).sum())
    assert float((log_pi.exp() * k2(log_pi - near)).sum()) == pytest.approx(kl, rel=0.1)


def test_adaptive_controller_as_printed() -> None:
    """REFERENCES.md section 3; Ziegler et al. 2019, section 2.2: target 6, horizon 1e4, n 256: .2 -> .201024 at KL 12."""
    controller = AdaptiveKLController(0.2, target=6.0, horizon=1e4)
    controller.update(12.0, 256)
    assert controller.value == pytest.approx(0.201024, abs=5e-7)


@pytest.mark.parametrize(("kl", "error"), [(1e9, 0.2), (12.0, 0.2), (7.2, 0.2), (6.6, 0.1), (6.0, 0.0), (5.4, -0.1), (0.0, -0.2), (-5.0, -0.2)])
def test_the_error_is_clipped_to_a_fifth(kl: float, error: float) -> None:
    """REFERENCES.md section 3: the error is clipped to +-.2; the coefficient rises above the target and falls below it."""
    controller = AdaptiveKLController(0.2, target=6.0, horizon=1000.0)
    controller.update(kl, 100)
    assert controller.value == pytest.approx(0.2 * (1 + error * 0.1))


def test_controllers_go_on_where_they_were() -> None:
    adaptive = AdaptiveKLController(0.2, 6.0, 1000.0)
    for kl in (12.0, 3.0, 6.1):
        adaptive.update(kl, 64)
    again = AdaptiveKLController(0.9, 6.0, 1000.0)
    again.load_state_dict(adaptive.state_dict())
    adaptive.update(8.0, 64)
    again.update(8.0, 64)
    assert again.value == adaptive.value
    fixed = FixedKLController(0.05)
    fixed.update(1e6, 1000)
    assert fixed.value == 0.05
    fixed.load_state_dict({"value": 0.1})
    assert fixed.state_dict() == {"value": 0.1}


@pytest.mark.parametrize(("n", "bound"), [(2, 0.1931), (4, 0.6363), (16, 1.8351), (64, 3.1745)])
def test_best_of_n_as_printed(n: int, bound: float) -> None:
    """REFERENCES.md section 3; Stiennon et al. 2020, appendix G.3: ln N - (N - 1) / N."""
    assert best_of_n_kl_bound(n) == pytest.approx(bound, abs=5e-5)


def test_one_sample_moves_nothing() -> None:
    assert best_of_n_kl_bound(1) == 0


@pytest.mark.parametrize("n", [2, 5])
def test_the_bound_is_the_divergence_of_best_of_n_without_ties(n: int) -> None:
    """Best of n over many equally likely responses of different rewards: P(k-th of m) = (k^n - (k-1)^n) / m^n."""
    m = 20_000
    total = 0.0
    for k in range(1, m + 1):
        share = (k / m) ** n - ((k - 1) / m) ** n
        total += share * math.log(share * m)
    assert total == pytest.approx(best_of_n_kl_bound(n), abs=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: AdaptiveKLController(-0.1, 6.0, 1.0),
        lambda: AdaptiveKLController(0.1, 0.0, 1.0),
        lambda: AdaptiveKLController(0.1, 6.0, 0.0),
        lambda: FixedKLController(-0.1),
        lambda: FixedKLController(float("nan")),
        lambda: best_of_n_kl_bound(0),
    ],
)
def test_out_of_range(call) -> None:
    with pytest.raises(ValueError, match="must"):
        call()
