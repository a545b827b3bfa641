"""What the numbers of a study say, in sentences: each made from the results, and honest about what so few prompts cannot show.

What does not belong here: formatting of tables (`accord.study.report`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.study.graph import PREFERRED_FT
from accord.text.judge import named

Json = Mapping[str, Any]
_FEWEST_PROMPTS = 6
"""With fewer, not even prompts that all agree differ from chance: a two-sided sign test of five has p = 1/16."""
_TOO_FEW = "Too few prompts to tell"
OPPONENTS = {"sft": "SFT", "reference": "the references"}
"""Whom the judge compares arms with, as results have them and for people."""


def findings(results: Json) -> list[str]:
    """Sentences about the comparison, in the order of importance."""
    found: list[str] = []
    for task in results["tasks"]:
        found += _wins(task)
        found += _undecided(task)
        found += _held_out_wins(task)
        found += _beside_control(results, task)
    found += [sentence for task in results["tasks"] if (sentence := _feedback(results, task))]
    found += [sentence for task in results["tasks"] if (sentence := _algorithms(task))]
    found += _judges(results)
    return found


def _wins(task: Json) -> list[str]:
    arms = [arm for arm in task["arms"] if arm["algorithm"] and arm["metrics"].get("win_vs_sft", {}).get("value") is not None]
    if not arms:
        return []
    telling = [arm for arm in arms if _tells(arm["metrics"]["win_vs_sft"])]
    clear = [arm for arm in telling if arm["metrics"]["win_vs_sft"]["low"] > 0.5]
    worse = [arm for arm in telling if arm["metrics"]["win_vs_sft"]["high"] < 0.5]
    best = max(arms, key=lambda arm: arm["metrics"]["win_vs_sft"]["value"])
    wins = best["metrics"]["win_vs_sft"]
    name = task["task"].capitalize()
    interval = f" (95 % interval {wins['low']:.0%} to {wins['high']:.0%})" if _tells(wins) else ""
    most = f", the most of the {len(arms)} arms" if len(arms) > 1 else ""
    sentence = (
        f"{name}: the judge prefers {best['arm']} to SFT on {wins['value']:.0%} of responses to {wins['n']} held-out prompts, a tie counting half"
        f"{interval}{most}. "
    )
    if len(telling) < len(arms):
        sentence += f"{_TOO_FEW}{'' if not telling else ' of ' + ', '.join(arm['arm'] for arm in arms if arm not in telling)}. "
    if not telling:
        return [sentence.rstrip()]
    if clear:
        sentence += f"The interval stays above one half for {', '.join(arm['arm'] for arm in clear)}."
    elif worse:
        sentence += "No arm's interval stays above one half."
    else:
        sentence += (
            f"Every {'other ' if len(telling) < len(arms) else ''}arm's interval contains one half: at this size none can be told from SFT by wins."
        )
    if worse:
        sentence += f" It stays below one half for {', '.join(arm['arm'] for arm in worse)}."
    return [sentence]


def _undecided(task: Json) -> list[str]:
    """Where there are no wins because the judge decided nothing: a reader must not take the gap for a tie."""
    found = []
    for against, opponent in OPPONENTS.items():
        counts = {arm["arm"]: arm.get("comparisons", {}).get(against) for arm in task["arms"]}
        silent = {arm: count["asked"] for arm, count in counts.items() if count and count["abstained"] == count["asked"]}
        if silent:
            found.append(
                f"{task['task'].capitalize()}: the judge abstained on every comparison with {opponent} of {', '.join(silent)} "
                f"({max(silent.values())} each), so there are no wins of these to count."
            )
    return found


def abstentions(task: Json) -> list[str]:
    """Each arm and opponent with comparisons that the judge left undecided; rates of wins are over the others."""
    return [
        f"{arm['arm']} {count['abstained']} of {count['asked']} with {opponent}"
        for arm in task["arms"]
        for against, opponent in OPPONENTS.items()
        if (count := arm.get("comparisons", {}).get(against)) and count["abstained"]
    ]


def _held_out_wins(task: Json) -> list[str]:
    """Wins against SFT by a reward model that no arm has learnt from; where there is none, by the one of the other kind of labels."""
    arms = [arm for arm in task["arms"] if arm["feedback"]]
    if any("win_by_score_held_out" in arm["metrics"] for arm in arms):
        scorer = "a reward model of the held-out pairs, from which no arm has learnt"
        metrics = {arm["arm"]: "win_by_score_held_out" for arm in arms}
    else:
        scorer = "a reward model that the arm has not seen (the one of the other kind of labels)"
        metrics = {arm["arm"]: f"win_by_score_{'ai' if arm['feedback'] == 'human' else 'human'}" for arm in arms}
    found = {arm["arm"]: arm["metrics"].get(metrics[arm["arm"]]) for arm in arms}
    known = {name: wins for name, wins in found.items() if wins and wins.get("value") is not None}
    if not known:
        return []
    parts = [f"{name} {wins['value']:.0%} {_interval(wins)}" for name, wins in known.items()]
    clear = [name for name, wins in known.items() if _tells(wins) and wins["low"] > 0.5]
    sentence = f"{task['task'].capitalize()}, wins against SFT by {scorer}: {', '.join(parts)}."
    return [sentence + (f" The interval stays above one half for {', '.join(clear)}." if clear else "")]


def _tells(found: Json) -> bool:
    """Whether there are prompts enough for a claim from an interval, which has no width where all prompts agree."""
    return bool(found["n"] >= _FEWEST_PROMPTS)


def _interval(found: Json, form: str = ".0%") -> str:
    return f"({found['low']:{form}} to {found['high']:{form}})" if _tells(found) else f"({found['n']} prompts: {_TOO_FEW.lower()})"


def _beside_control(results: Json, task: Json) -> list[str]:
    """Wins of the arms less those of the control, which went on with SFT on chosen responses: what preferences gave beyond more SFT."""
    control = next((arm for arm in task["arms"] if arm["arm"] == PREFERRED_FT), None)
    metric, scorer = "win_by_score_held_out", "a reward model of the held-out pairs"
    if control is not None and metric not in control["metrics"]:
        metric, scorer = "win_vs_sft", "the judge"
    wins = control["metrics"].get(metric) if control is not None else None
    if control is None or not wins or wins.get("value") is None:
        return []
    rows = {arm["arm"]: _contrast(results, task["task"], metric, arm["arm"], PREFERRED_FT) for arm in task["arms"] if arm["feedback"]}
    parts = [f"{arm} {row['difference']:+.0%} {_interval(row, '+.0%')}" for arm, row in rows.items() if row is not None]
    sentence = (
        f"{task['task'].capitalize()}, the control {PREFERRED_FT} ({control['training']['steps']} more steps of SFT on chosen responses) wins "
        f"{wins['value']:.0%} {_interval(wins)} against SFT by {scorer}"
    )
    return [f"{sentence}; wins beyond it, on the same prompts: {', '.join(parts)}." if parts else f"{sentence}."]


def _feedback(results: Json, task: Json) -> str:
    """AI against human feedback, arm by arm, in ROUGE-L on the same prompts."""
    parts = []
    for algorithm in ("ppo", "dpo"):
        row = _contrast(results, task["task"], "rouge_l", f"{algorithm}-ai", f"{algorithm}-human")
        if row is not None:
            parts.append(f"{algorithm.upper()} {row['difference']:+.3f} {_interval(row, '+.3f')}")
    if not parts:
        return ""
    pairs = task.get("data", {}).get("pairs", {})
    kept = [pairs.get(feedback, {}).get("kept") for feedback in ("ai", "human")]
    labels = "" if None in kept else f", with {kept[0]} AI against {kept[1]} human labels"
    return (
        f"{task['task'].capitalize()}, AI minus human feedback in ROUGE-L on the same prompts: {'; '.join(parts)}{labels}. "
        "An interval that contains 0 means that the difference is not resolved."
    )


def _contrast(results: Json, task: str, metric: str, a: str, b: str) -> dict[str, Any] | None:
    """The difference a - b, whichever way round the evaluation has it."""
    for row in results["contrasts"]:
        if (row["task"], row["metric"]) == (task, metric) and {row["a"], row["b"]} == {a, b}:
            if row["a"] == a:
                return {"difference": row["difference"], "low": row["low"], "high": row["high"], "n": row["n"]}
            return {"difference": -row["difference"], "low": -row["high"], "high": -row["low"], "n": row["n"]}
    return None


def _algorithms(task: Json) -> str:
    """What PPO and DPO cost, and how far they went from SFT."""
    groups: dict[str, list[Json]] = {"ppo": [], "dpo": []}
    for arm in task["arms"]:
        if arm["algorithm"]:
            groups[arm["algorithm"]].append(arm)
    if not groups["ppo"] or not groups["dpo"]:
        return ""
    seconds = {name: sum(_whole_cost(arm) for arm in arms) / len(arms) for name, arms in groups.items()}
    tokens = {name: _mean(arms, "response_tokens") for name, arms in groups.items()}
    kl = {name: _mean(arms, "kl") for name, arms in groups.items()}
    return (
        f"{task['task'].capitalize()}: a PPO arm took {seconds['ppo']:.0f} s of training (its reward model included), "
        f"a DPO arm {seconds['dpo']:.0f} s; responses of {tokens['ppo']:.0f} against {tokens['dpo']:.0f} tokens, "
        f"KL to SFT {kl['ppo']:z.2f} against {kl['dpo']:z.2f} nats."
    )


def _whole_cost(arm: Json) -> float:
    return float(arm["training"]["seconds"]) + float(arm["training"].get("reward_model_seconds", 0.0))


def _mean(arms: list[Json], metric: str) -> float:
    values = [arm["metrics"][metric]["value"] for arm in arms if arm["metrics"].get(metric, {}).get("value") is not None]
    return sum(values) / len(values) if values else float("nan")


def title_of(judge: Json) -> str:
    """A row of the results' judges for people: its kind, and its name where it is not the default."""
    return f"{judge['card']['kind']} {judge.get('name', '')}".rstrip()


def settings_of(judge: Json) -> str:
    """What a row of the results' judges was asked with that is not the default; empty where all was."""
    return ", ".join(_settings(judge.get("asked", {})))


def judge_in_use(results: Json) -> str:
    """The judge that labels and counts wins, for people: its name, or whom the feedback service asks where it has none, and how it is asked."""
    recipe = results["recipe"]
    judge = recipe["judge"]
    how = ", ".join([f"{judge['kind']} judge", *_settings(judge)])
    if judge["name"]:
        return f"{judge['name']} ({how})"
    models = sorted(
        {name for task in results["tasks"] for name in task.get("judged_by", {}).values()}
        or {row["card"]["judge"] for row in results["judges"] if _in_use(row, judge)}  # results of before that was kept
    )
    if models == [recipe["base_model"]] and not judge["adapter"]:
        return f"the same model that is aligned ({how})"
    return f"the feedback service's default judge{''.join(f', {model}' for model in models)} ({how})"


def labelled_by_another(results: Json) -> list[str]:
    """Of each task whose AI labels are not all of the judge that counts its wins: by whom they are, for people."""
    found = []
    for task in results["tasks"]:
        cards = [row["card"] for row in results["judges"] if (row["task"], row["purpose"]) == (task["task"], "training labels")]
        if any(_is_of_another(card, task) for card in cards):
            names = ", ".join(named(card["judge"], card["judge_digest"]) for card in cards)
            wins = ", ".join(named(name, digest) for digest, name in task["judged_by"].items())
            found.append(f"{task['task']} has labels of {names} and wins by {wins}")
    return found


def _is_of_another(card: Json, task: Json) -> bool:
    """Whether a card is of another judge than the one that counts a task's wins; results of before digests were kept do not tell."""
    return bool(task.get("judged_by") and card.get("judge_digest") and card["judge_digest"] not in task["judged_by"])


def judge_is_measured(results: Json) -> bool:
    """Whether there is a card of that judge, asked as it was, against people on held-out pairs."""
    tasks = {task["task"]: task for task in results["tasks"]}
    return any(
        row["purpose"] == "held-out check"
        and row["card"]["human_agreement"]
        and _in_use(row, results["recipe"]["judge"])
        and not _is_of_another(row["card"], tasks[row["task"]])
        for row in results["judges"]
    )


def _in_use(row: Json, judge: Json) -> bool:
    """Whether a row of the results' judges is the recipe's, asked as it is; results of before that was kept tell by name, kind and settings."""
    plain = (row.get("name", ""), row["card"]["kind"]) == (judge["name"], judge["kind"]) and not _settings(judge)
    return bool(row.get("in_use", plain))


def _settings(judge: Json) -> list[str]:
    """What a judge is asked with that is not the default."""
    rubric = judge.get("rubric")
    rubrics = ", ".join(f"rubric {name}" for name in (rubric.values() if isinstance(rubric, Mapping) else [rubric]) if name)
    said = {
        "rubric": rubrics, "adapter": f"adapter {judge.get('adapter')}", "rationale": "with rationales",
        "tie_margin": f"ties within {judge.get('tie_margin')}",
    }  # fmt: skip
    return [words for name, words in said.items() if judge.get(name) and words]


def _judges(results: Json) -> list[str]:
    found = []
    for judge in results["judges"]:
        card = judge["card"]
        if judge["purpose"] != "held-out check" or not card["human_agreement"]:
            continue
        agreement, baseline, settings = card["human_agreement"], card["length_baseline"], settings_of(judge)
        name = f"{title_of(judge)} judge" + (f" ({settings})" if settings else "")
        sentence = (
            f"The {name} agrees with people on {agreement['value']:.0%} of {agreement['n']} decided {judge['task']} pairs "
            f"({agreement['low']:.0%} to {agreement['high']:.0%})"
        )
        if baseline:
            sentence += f"; taking the longer response would be right on {baseline['value']:.0%}"
        if card["first_preferred"]:
            sentence += f"; it prefers the response shown first in {card['first_preferred']['value']:.0%} of its judgements"
        found.append(sentence + ".")
    return found
