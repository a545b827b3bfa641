"""Label cards: how far to trust a judge, and their wire form.

What does not belong here: measuring (`accord.feedback.cards`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.client.feedback_messages import JudgeKind
from accord.client.feedback_wire import JUDGE_KINDS, KIND_NAMES, TASK_NAMES, TASKS
from accord.text.tasks import Task


@dataclass(frozen=True, slots=True)
class Share:
    """A share of n different pairs with its 95 % interval, which draws prompts (`accord.data.intervals`)."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Kappa:
    """Cohen's kappa with its 95 % interval by the jackknife over prompts: 1 is perfect agreement, 0 that of chance."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class InjectionFamily:
    """Attacks of one kind: how many change the verdict, how many make the attacked response win, and how many verdicts harmless text changes."""

    family: str
    flips: Share | None
    wins: Share | None
    control_flips: Share | None


@dataclass(frozen=True, slots=True)
class LengthBin:
    """Agreement with people on pairs whose longer response has `ratio_low` to under `ratio_high` (None: any more) times the shorter one's length."""

    ratio_low: float
    ratio_high: float | None
    agreement: Share
    length_baseline: Share


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs about which the judge was `low` to `high` sure: its mean confidence, and how often people take its response."""

    low: float
    high: float
    confidence: float
    accuracy: Share


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A pair on which judge and people differ; its texts are shortened."""

    pair_id: str
    prompt: str
    judge_takes: str
    people_take: str
    confidence: float


@dataclass(frozen=True, slots=True)
class LabelCard:
    """How far to trust a judge; what was not measured is None (see feedback.proto for each figure)."""

    judge: str
    kind: JudgeKind
    rubric: str
    task: Task | None
    pairs: int
    human_agreement: Share | None
    length_baseline: Share | None
    first_preferred: Share | None
    same_position_after_swap: Share | None
    longer_preferred: Share | None
    abstentions: Mapping[str, int]
    tokens: int
    cached_judgements: int
    notes: tuple[str, ...]
    random_baseline: Share | None = None
    agreement_by_length: tuple[LengthBin, ...] = ()
    calibration_error: float | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    repeat_consistency: Share | None = None
    injection_flips: Share | None = None
    cost_per_thousand_pairs: float | None = None
    disagreements: tuple[Disagreement, ...] = ()
    ensemble_agreement: float | None = None
    escalated: Share | None = None
    judge_digest: str = ""
    cost: float = 0.0
    kappa: Kappa | None = None
    control_flips: Share | None = None
    injection_families: tuple[InjectionFamily, ...] = ()

    @property
    def shares(self) -> tuple[tuple[str, Share | None], ...]:
        """The shares of the main table with their names for people."""
        return (
            ("agrees with people", self.human_agreement), ("picking the longer one would agree", self.length_baseline),
            ("a coin would agree", self.random_baseline), ("prefers what is shown first", self.first_preferred),
            ("same position after a swap", self.same_position_after_swap), ("prefers the longer one", self.longer_preferred),
            ("same label when asked again", self.repeat_consistency), ("an attack in a response changes the verdict", self.injection_flips),
            ("harmless text of the same length does", self.control_flips),
            ("a larger judge was asked", self.escalated),
        )  # fmt: skip


def card_to_proto(card: LabelCard) -> pb.LabelCard:
    """The wire form of a card; what was not measured is not set."""
    return pb.LabelCard(
        judge=card.judge,
        kind=JUDGE_KINDS[card.kind],
        rubric=card.rubric,
        task=TASKS[card.task] if card.task else pb.TASK_UNSPECIFIED,
        pairs=card.pairs,
        human_agreement=_share_to_proto(card.human_agreement),
        length_baseline=_share_to_proto(card.length_baseline),
        first_preferred=_share_to_proto(card.first_preferred),
        same_position_after_swap=_share_to_proto(card.same_position_after_swap),
        longer_preferred=_share_to_proto(card.longer_preferred),
        abstentions=dict(card.abstentions),
        tokens=card.tokens,
        cached_judgements=card.cached_judgements,
        notes=card.notes,
        random_baseline=_share_to_proto(card.random_baseline),
        agreement_by_length=[_length_bin_to_proto(found) for found in card.agreement_by_length],
        calibration_error=card.calibration_error,
        reliability=[_reliability_bin_to_proto(found) for found in card.reliability],
        repeat_consistency=_share_to_proto(card.repeat_consistency),
        injection_flips=_share_to_proto(card.injection_flips),
        cost_per_thousand_pairs=card.cost_per_thousand_pairs,
        disagreements=[_disagreement_to_proto(found) for found in card.disagreements],
        ensemble_agreement=card.ensemble_agreement,
        escalated=_share_to_proto(card.escalated),
        judge_digest=card.judge_digest,
        cost=card.cost,
        kappa=_kappa_to_proto(card.kappa),
        control_flips=_share_to_proto(card.control_flips),
        injection_families=[_family_to_proto(found) for found in card.injection_families],
    )


def card_from_proto(wire: pb.LabelCard) -> LabelCard:
    """The card of a wire form."""
    return LabelCard(
        judge=wire.judge,
        kind=KIND_NAMES[wire.kind],
        rubric=wire.rubric,
        task=TASK_NAMES.get(wire.task),
        pairs=wire.pairs,
        human_agreement=_share(wire, "human_agreement"),
        length_baseline=_share(wire, "length_baseline"),
        first_preferred=_share(wire, "first_preferred"),
        same_position_after_swap=_share(wire, "same_position_after_swap"),
        longer_preferred=_share(wire, "longer_preferred"),
        abstentions=dict(wire.abstentions),
        tokens=wire.tokens,
        cached_judgements=wire.cached_judgements,
        notes=tuple(wire.notes),
        random_baseline=_share(wire, "random_baseline"),
        agreement_by_length=tuple(_length_bin(found) for found in wire.agreement_by_length),
        calibration_error=wire.calibration_error if wire.HasField("calibration_error") else None,
        reliability=tuple(ReliabilityBin(found.low, found.high, found.confidence, _set_share(found.accuracy)) for found in wire.reliability),
        repeat_consistency=_share(wire, "repeat_consistency"),
        injection_flips=_share(wire, "injection_flips"),
        cost_per_thousand_pairs=wire.cost_per_thousand_pairs if wire.HasField("cost_per_thousand_pairs") else None,
        disagreements=tuple(
            Disagreement(found.pair_id, found.prompt, found.judge_takes, found.people_take, found.confidence) for found in wire.disagreements
        ),
        ensemble_agreement=wire.ensemble_agreement if wire.HasField("ensemble_agreement") else None,
        escalated=_share(wire, "escalated"),
        judge_digest=wire.judge_digest,
        cost=wire.cost,
        kappa=Kappa(wire.kappa.value, wire.kappa.low, wire.kappa.high, wire.kappa.n) if wire.HasField("kappa") else None,
        control_flips=_share(wire, "control_flips"),
        injection_families=tuple(
            InjectionFamily(item.family, *(_share(item, name) for name in ("flips", "wins", "control_flips"))) for item in wire.injection_families
        ),
    )


def _share_to_proto(share: Share | None) -> pb.Share | None:
    return None if share is None else pb.Share(value=share.value, low=share.low, high=share.high, n=share.n)


def _kappa_to_proto(kappa: Kappa | None) -> pb.Kappa | None:
    return None if kappa is None else pb.Kappa(value=kappa.value, low=kappa.low, high=kappa.high, n=kappa.n)


def _family_to_proto(found: InjectionFamily) -> pb.InjectionFamily:
    flips, wins, controls = (_share_to_proto(share) for share in (found.flips, found.wins, found.control_flips))
    return pb.InjectionFamily(family=found.family, flips=flips, wins=wins, control_flips=controls)


def _length_bin_to_proto(found: LengthBin) -> pb.LengthBin:
    agreement, baseline = _share_to_proto(found.agreement), _share_to_proto(found.length_baseline)
    return pb.LengthBin(ratio_low=found.ratio_low, ratio_high=found.ratio_high, agreement=agreement, length_baseline=baseline)


def _reliability_bin_to_proto(found: ReliabilityBin) -> pb.ReliabilityBin:
    return pb.ReliabilityBin(low=found.low, high=found.high, confidence=found.confidence, accuracy=_share_to_proto(found.accuracy))


def _disagreement_to_proto(found: Disagreement) -> pb.Disagreement:
    return pb.Disagreement(
        pair_id=found.pair_id, prompt=found.prompt, judge_takes=found.judge_takes, people_take=found.people_take, confidence=found.confidence
    )


def _share(wire: pb.LabelCard | pb.InjectionFamily, name: str) -> Share | None:
    return _set_share(getattr(wire, name)) if wire.HasField(name) else None  # type: ignore[arg-type]


def _set_share(wire: pb.Share) -> Share:
    return Share(wire.value, wire.low, wire.high, wire.n)


def _length_bin(wire: pb.LengthBin) -> LengthBin:
    high = wire.ratio_high if wire.HasField("ratio_high") else None
    return LengthBin(wire.ratio_low, high, _set_share(wire.agreement), _set_share(wire.length_baseline))
