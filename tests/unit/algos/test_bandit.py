"""A bandit small enough to know the answer: PPO, RLOO and DPO end at pi_ref exp(r / beta) / Z, and nowhere else with a sign turned round.

The optimum is that of Rafailov et al. 2023 (arXiv:2305.18290), section 4, eq. 4. GRPO, whose KL term is in the loss, has another fixed point,
which is derived here. Responses are two tokens long, so that rewards travel through `gae`, and nothing here comes from `accord.training`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from accord.algos.advantages import gae, shaped_rewards
from accord.algos.groups import (
    centred_advantages,
    group_relative_advantages,
    grpo_loss,
    leave_one_out_advantages,
    penalised_rewards,
    rloo_loss,
    token_weights,
)
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


def train_in_groups(loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, TwoTokens]:
    """The distribution that a loss of (new, old, reference logprobs; scores) ends with, and the reference; two updates of each batch."""
    reference, policy = TwoTokens(1), TwoTokens(1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(220):
        chosen = torch.multinomial(policy.distribution(), SAMPLES, replacement=True, generator=generator)
        responses = every_response()[chosen]
        with torch.no_grad():
            old, ref = policy.logprobs(responses), reference.logprobs(responses)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 220)
        for _ in range(2):
            optimizer.zero_grad()
            loss(policy.logprobs(responses), old, ref, rewards_of_responses()[chosen]).backward()
            optimizer.step()
    return policy.distribution(), reference


def rloo(*, loss_sign: float = 1.0, kl_sign: float = 1.0, score_sign: float = 1.0) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """RLOO's loss on groups of four, with the KL divergence in the reward."""

    def loss(new: Tensor, old: Tensor, reference: Tensor, scores: Tensor) -> Tensor:
        mask = torch.ones_like(new, dtype=torch.bool)
        given = (old, reference) if kl_sign > 0 else (reference, old)
        rewards = penalised_rewards(score_sign * scores, *given, mask, kl_coef=BETA)
        return loss_sign * rloo_loss(new, old, leave_one_out_advantages(rewards, group_size=4), mask, clip_range=0.2).loss

    return loss


def grpo(advantages: Callable[..., Tensor], group_size: int, *, score_sign: float = 1.0) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """GRPO's loss, with the KL divergence in it."""

    def loss(new: Tensor, old: Tensor, reference: Tensor, scores: Tensor) -> Tensor:
        weights = token_weights(torch.ones_like(new, dtype=torch.bool), normalization="response", max_tokens=2)
        gains = advantages(score_sign * scores, group_size=group_size)
        return grpo_loss(new, old, reference, gains, weights, clip_range=0.2, kl_coef=BETA).loss

    return loss


def grpo_fixed_point(reference: TwoTokens, expected_advantage: Callable[[Tensor], Tensor]) -> Tensor:
    """Where GRPO's expected gradient is 0, given the expected advantage of each of the nine responses under a policy.

    Where the policy has not moved since it sampled, a token a after x adds ``-pi(a) (A(a) - mean A) + beta (pi(a) - pi_ref(a))`` to the
    gradient of its logit: the derivative of k3 is ``1 - pi_ref / pi``, whose expectation under pi is that of KL(pi_ref, pi). It is 0 at
    ``pi(a) = pi_ref(a) beta / (c - A(a))``, with c such that it sums to 1; A(a) of a first token is the mean over what follows, in which there
    is no later divergence: that is in the loss and not in the reward. (Vojnovic & Yun 2025, arXiv:2502.18548, for one token.)
    """

    def settle(base: Tensor, gains: Tensor) -> Tensor:
        low, high = gains.max(), gains.max() + BETA  # the sum falls from infinity to at most 1
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if (base * BETA / (middle - gains)).sum() > 1 else (low, middle)
        return base * BETA / (high - gains)

    with torch.no_grad():
        first, second = torch.softmax(reference.first, -1), torch.softmax(reference.second, -1)
    policy = reference.distribution()
    for _ in range(300):  # the advantage depends on the policy
        gains = expected_advantage(policy).reshape(TOKENS, TOKENS)
        after = torch.stack([settle(second[x], gains[x]) for x in range(TOKENS)])
        before = settle(first, (after * gains).sum(dim=1))
        policy = 0.5 * policy + 0.5 * (before[:, None] * after).reshape(-1)
    return policy


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


def test_rloo_converges_to_the_optimum() -> None:
    """REFERENCES.md section 3: pi_ref exp(r / beta) / Z without a critic, the divergence in the reward of whole responses."""
    found, reference = train_in_groups(rloo())
    assert distance(found, optimum(reference)) < 0.03


@pytest.mark.parametrize("flip", ["loss_sign", "kl_sign", "score_sign"])
def test_rloo_with_a_sign_turned_round_ends_elsewhere(flip: str) -> None:
    found, reference = train_in_groups(rloo(**{flip: -1.0}))
    assert distance(found, optimum(reference)) > 0.2


def test_grpo_without_scaling_converges_to_its_own_fixed_point() -> None:
    """Rewards count (1 - 1 / group size), since a group's mean holds each of them; it is not where PPO and RLOO go."""
    found, reference = train_in_groups(grpo(centred_advantages, 4))
    expected = grpo_fixed_point(reference, lambda policy: 0.75 * rewards_of_responses())
    assert expected.sum().item() == pytest.approx(1)
    assert distance(found, expected) < 0.03
    assert distance(expected, optimum(reference)) > 0.1
    assert distance(expected, grpo_fixed_point(reference, lambda policy: rewards_of_responses())) > 0.03, "the group's size shows"


def test_grpo_in_pairs_learns_who_wins() -> None:
    """Scaled advantages of two are +-1 / sqrt(2): the expected advantage is the chance to win less that to lose, over sqrt(2)."""
    r = rewards_of_responses()
    wins = torch.sign(r[:, None] - r[None, :])
    found, reference = train_in_groups(grpo(group_relative_advantages, 2))
    expected = grpo_fixed_point(reference, lambda policy: wins @ policy / 2**0.5)
    assert distance(found, expected) < 0.03
    assert distance(expected, optimum(reference)) > 0.1


def test_grpo_with_rewards_turned_round_ends_elsewhere() -> None:
    found, reference = train_in_groups(grpo(centred_advantages, 4, score_sign=-1.0))
    assert distance(found, grpo_fixed_point(reference, lambda policy: 0.75 * rewards_of_responses())) > 0.2


def test_dpo_on_exact_labels_converges_to_the_optimum() -> None:
    """REFERENCES.md section 3: soft labels sigmoid(r_i - r_j) give pi_ref exp(r / beta) / Z, whatever the reference is."""
    found, expected = train_dpo()
    assert distance(found, expected) < 1e-3


def test_dpo_with_labels_turned_round_ends_elsewhere() -> None:
    found, expected = train_dpo(label=lambda difference: torch.sigmoid(-difference))
    assert distance(found, expected) > 0.4
