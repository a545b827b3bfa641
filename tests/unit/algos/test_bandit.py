"""A bandit small enough to know the answer: PPO and DPO both end at pi_ref exp(r / beta) / Z, and nowhere else with a sign turned round.

The optimum is that of Rafailov et al. 2023 (arXiv:2305.18290), section 4, eq. 4. Responses are two tokens long, so that rewards travel
through `gae`, and nothing here comes from `accord.training`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from accord.algos.advantages import gae, shaped_rewards
from accord.algos.ppo import policy_loss, value_loss
from accord.algos.preference import PreferenceLoss

TOKENS, BETA, SAMPLES = 3, 0.5, 1024
GENERATOR_SEED = 11


class TwoTokens(nn.Module):
    """A tabular policy over responses of two tokens: logits of the first, and of the second given the first."""

    def __init__(self, seed: int, spread: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(spread * torch.randn(TOKENS, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(spread * torch.randn(TOKENS, TOKENS, generator=generator, dtype=torch.float64))

    def logprobs(self, responses: Tensor) -> Tensor:
        """(batch, 2) tokens to (batch, 2) logprobs."""
        first = torch.log_softmax(self.first, -1)[responses[:, 0]]
        second = torch.log_softmax(self.second, -1)[responses[:, 0], responses[:, 1]]
        return torch.stack([first, second], dim=1)

    def distribution(self) -> Tensor:
        """Probabilities of all nine responses."""
        return self.logprobs(every_response()).sum(dim=1).exp().detach()


def every_response() -> Tensor:
    return torch.cartesian_prod(torch.arange(TOKENS), torch.arange(TOKENS))


def rewards_of_responses() -> Tensor:
    return torch.randn(TOKENS * TOKENS, generator=torch.Generator().manual_seed(GENERATOR_SEED), dtype=torch.float64)


def optimum(reference: TwoTokens) -> Tensor:
    weights = reference.distribution() * torch.exp(rewards_of_responses() / BETA)
    return weights / weights.sum()


def distance(first: Tensor, second: Tensor) -> float:
    """Total variation."""
    return 0.5 * float((first - second).abs().sum())


def train_ppo(loss_sign: float = 1.0, kl_sign: float = 1.0, score_sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """The distribution that PPO ends with, and where it ought to."""
    reference, policy = TwoTokens(1), TwoTokens(1)
    values = nn.Parameter(torch.zeros(TOKENS + 1, dtype=torch.float64))  # of the empty response, and after each first token
    optimizer = torch.optim.Adam([{"params": policy.parameters(), "lr": 0.05}, {"params": [values], "lr": 0.05}])
    generator = torch.Generator().manual_seed(0)
    scores, mask = rewards_of_responses() * score_sign, torch.ones(SAMPLES, 2, dtype=torch.bool)
    for step in range(220):
        chosen = torch.multinomial(policy.distribution(), SAMPLES, replacement=True, generator=generator)
        responses = every_response()[chosen]
        states = torch.stack([torch.zeros(SAMPLES, dtype=torch.long), responses[:, 0] + 1], dim=1)
        with torch.no_grad():
            old, ref, old_values = policy.logprobs(responses), reference.logprobs(responses), values[states].clone()
        given = (old, ref) if kl_sign > 0 else (ref, old)
        shaped = shaped_rewards(scores[chosen], *given, mask, kl_coef=BETA)
        estimates = gae(shaped.rewards, old_values, mask, discount=1.0, gae_lambda=0.95)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 220)
        for _ in range(2):
            optimizer.zero_grad()
            loss = loss_sign * policy_loss(policy.logprobs(responses), old, estimates.advantages, mask, clip_range=0.2).loss
            (loss + value_loss(values[states], old_values, estimates.returns, mask, clip_range=10.0).loss).backward()
            optimizer.step()
    return policy.distribution(), optimum(reference)


def train_dpo(label: Callable[[Tensor], Tensor] = torch.sigmoid, kind: str = "sigmoid") -> tuple[Tensor, Tensor]:
    """The distribution that DPO ends with on all ordered pairs, labelled by Bradley-Terry exactly, and where it ought to."""
    reference, policy = TwoTokens(1), TwoTokens(1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    r = rewards_of_responses()
    pairs = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    chosen, rejected = pairs[:, 0], pairs[:, 1]
    labels, loss = label(r[chosen] - r[rejected]), PreferenceLoss(kind, BETA)  # type: ignore[arg-type]
    ref = reference.logprobs(every_response()).sum(dim=1).detach()
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 400)
        optimizer.zero_grad()
        log_pi = policy.logprobs(every_response()).sum(dim=1)
        loss(log_pi[chosen], log_pi[rejected], ref[chosen], ref[rejected], labels).losses.mean().backward()
        optimizer.step()
    return policy.distribution(), optimum(reference)


def test_the_optimum_is_not_where_training_starts() -> None:
    assert distance(TwoTokens(1).distribution(), optimum(TwoTokens(1))) > 0.4


def test_ppo_converges_to_the_optimum() -> None:
    """REFERENCES.md section 3: pi_ref exp(r / beta) / Z, from samples, shaped rewards, GAE and the clipped losses."""
    found, expected = train_ppo()
    assert distance(found, expected) < 0.03


@pytest.mark.parametrize("flip", ["loss_sign", "kl_sign", "score_sign"])
def test_ppo_with_a_sign_turned_round_ends_elsewhere(flip: str) -> None:
    found, expected = train_ppo(**{flip: -1.0})
    assert distance(found, expected) > 0.2


def test_dpo_on_exact_labels_converges_to_the_optimum() -> None:
    """REFERENCES.md section 3: soft labels sigmoid(r_i - r_j) give pi_ref exp(r / beta) / Z, whatever the reference is."""
    found, expected = train_dpo()
    assert distance(found, expected) < 1e-3


def test_dpo_with_labels_turned_round_ends_elsewhere() -> None:
    found, expected = train_dpo(label=lambda difference: torch.sigmoid(-difference))
    assert distance(found, expected) > 0.4
