"""Who may talk to whom: the network policies are evaluated here, on labels, for every pair of components. (The CI's cluster does not enforce them.)"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from tests.chart.rendering import CASES, Object, case_id, of_kind, render

PODS = ("policy", "reward", "feedback", "trainer", "run", "study", "test")
ARROWS = {
    ("feedback", "policy"), ("feedback", "reward"), ("run", "policy"), ("run", "reward"), ("run", "feedback"),
    *product(("study", "test"), ("policy", "reward", "feedback", "trainer")),
}  # fmt: skip
RUNS_IN_TRAINER = {("trainer", "policy"), ("trainer", "reward"), ("trainer", "feedback")}


def labels(component: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "accord", "app.kubernetes.io/instance": "accord", "app.kubernetes.io/component": component}


def matches(selector: Object, component: str) -> bool:
    return selector.get("matchLabels", {}).items() <= labels(component).items()


def allowed(policies: list[Object], component: str, peer: str, direction: str, port: int) -> bool:
    """Whether a pod may talk to (egress) or be reached by (ingress) a peer, as the API defines it: the union of all policies that select it."""
    key, side = ("Egress", "to") if direction == "egress" else ("Ingress", "from")
    chosen = [item["spec"] for item in policies if matches(item["spec"]["podSelector"], component) and key in item["spec"]["policyTypes"]]
    if not chosen:
        return True
    rules = [rule for spec in chosen for rule in spec.get(direction) or []]
    return any(
        ("ports" not in rule or any(entry["port"] == port and entry["protocol"] == "TCP" for entry in rule["ports"]))
        and (
            side not in rule
            or any("podSelector" in item and "namespaceSelector" not in item and matches(item["podSelector"], peer) for item in rule[side])
        )
        for rule in rules
    )


def arrows(policies: list[Object], port: int) -> set[tuple[str, str]]:
    return {
        (source, target)
        for source, target in product(PODS, PODS)
        if source != target and allowed(policies, source, target, "egress", port) and allowed(policies, target, source, "ingress", port)
    }


@pytest.mark.parametrize("case", [case for case in CASES], ids=case_id)
def test_only_the_arrows_of_the_architecture_are_open(case: Path | None) -> None:
    objects = render(case)
    policies = of_kind(objects, "NetworkPolicy")
    local = not of_kind(objects, "Role")
    there = {item["metadata"]["labels"]["app.kubernetes.io/component"] for item in of_kind(objects, "Deployment")} | {"run", "study", "test"}
    expected = {arrow for arrow in ARROWS | (RUNS_IN_TRAINER if local else set()) if arrow[1] in there and arrow[0] in there}
    found = {arrow for arrow in arrows(policies, 50051) if set(arrow) <= there}
    assert found == expected
    assert not {arrow for arrow in arrows(policies, 9090) if set(arrow) <= there}


def test_runs_inside_the_trainer_call_from_its_pod() -> None:
    policies = of_kind(render(None, "trainer.launcher=local"), "NetworkPolicy")
    assert arrows(policies, 50051) >= RUNS_IN_TRAINER
    assert not allowed(policies, "trainer", "elsewhere", "egress", 443)
    assert allowed(of_kind(render(), "NetworkPolicy"), "trainer", "elsewhere", "egress", 443), "the API server"


def test_clients_are_let_in_by_name() -> None:
    policies = of_kind(render(None, "networkPolicy.clients[0].namespaceSelector.matchLabels.team=a"), "NetworkPolicy")
    for component in ("policy", "reward", "feedback", "trainer"):
        (found,) = [item["spec"] for item in policies if item["metadata"]["name"] == f"accord-{component}"]
        assert {"namespaceSelector": {"matchLabels": {"team": "a"}}} in found["ingress"][0]["from"]


def test_another_name_leaves_the_jobs_which_the_trainer_labels_by_itself_their_names_of_hosts() -> None:
    (deny,) = [
        item["spec"] for item in of_kind(render(None, "nameOverride=tuning"), "NetworkPolicy") if item["metadata"]["name"].endswith("-default-deny")
    ]
    selector = deny["podSelector"]
    assert selector["matchLabels"] == {"app.kubernetes.io/instance": "accord"}
    (names,) = selector["matchExpressions"]
    assert (names["key"], names["operator"], set(names["values"])) == ("app.kubernetes.io/name", "In", {"tuning", "accord"})


def test_everything_is_closed_before_it_is_opened() -> None:
    (deny,) = [item["spec"] for item in of_kind(render(), "NetworkPolicy") if item["metadata"]["name"] == "accord-default-deny"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    assert [port["port"] for rule in deny["egress"] for port in rule["ports"]] == [53, 53]
