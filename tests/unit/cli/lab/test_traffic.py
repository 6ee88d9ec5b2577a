from __future__ import annotations

import pytest

from kubelet_py.cli.lab import traffic
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.state import Cable, Lab

LAB = Lab(network="198.18.44.0/24", cluster_cidr="10.244.0.0/16", service_cidr="10.96.0.0/12").grown(3)


def rules(lab: Lab) -> list[str]:
    return [line.strip() for line in traffic.ruleset(lab).splitlines() if line.startswith("    ")]


def test_good_cables_need_no_rule_and_the_old_ones_go() -> None:
    text = traffic.ruleset(LAB)
    assert rules(LAB) == []
    assert "delete table bridge kubelet-py-lab" in text


def test_a_cut_machine_reaches_neither_others_nor_the_switch_itself() -> None:
    lab = LAB.with_cable("node2", Cable(apart=("*",)))
    assert rules(lab) == [
        'iifname "node2" drop',
        'oifname "node2" drop',
        'iifname "node2" drop',  # input
        'oifname "node2" drop',  # output
    ]


def test_cut_from_one_concerns_that_pair_both_ways() -> None:
    lab = LAB.with_cable("node2", Cable(apart=("control",)))
    assert rules(lab) == [
        'iifname "node2" oifname "control" drop',
        'iifname "control" oifname "node2" drop',
    ]


def test_a_delayed_machine_is_known_by_the_port_of_its_relay_also_as_the_other_side() -> None:
    lab = LAB.with_cable("node3", Cable(delay=50.0)).with_cable("node1", Cable(apart=("node3",)))
    assert rules(lab)[0] == 'iifname "node1" oifname "node3-slow" drop'


def test_loss_is_counted_in_ten_thousandths_each_way() -> None:
    lab = LAB.with_cable("node1", Cable(loss=0.5))
    assert rules(lab) == [
        f'{side} "node1" numgen random mod 10000 < 50 drop' for side in ("iifname", "oifname")
    ]


def test_all_loss_is_all_without_dice_that_nft_would_refuse() -> None:
    for loss in (100.0, 99.999):
        rules = traffic.ruleset(LAB.with_cable("node1", Cable(loss=loss)))
        assert 'iifname "node1" drop' in rules and "numgen" not in rules
    assert "mod 10000 < 9999 drop" in traffic.ruleset(LAB.with_cable("node1", Cable(loss=99.99)))


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("50ms", 50.0), ("1.5s", 1500.0), ("250us", 0.25), ("0", 0.0), ("60s", 60_000.0)],
)
def test_delays(text: str, milliseconds: float) -> None:
    assert traffic.parse_delay(text) == milliseconds


@pytest.mark.parametrize("text", ["50", "ms", "-5ms", "61s", "1e3ms", "", "five", "5%"])
def test_what_is_no_delay(text: str) -> None:
    with pytest.raises(LabError, match="write it like 50ms"):
        traffic.parse_delay(text)


@pytest.mark.parametrize(("text", "per_cent"), [("5%", 5.0), ("0.25%", 0.25), ("100%", 100.0), ("0", 0.0)])
def test_losses(text: str, per_cent: float) -> None:
    assert traffic.parse_loss(text) == per_cent


@pytest.mark.parametrize("text", ["5", "101%", "-1%", "%", "", "a lot", "5ms"])
def test_what_is_no_loss(text: str) -> None:
    with pytest.raises(LabError, match="write it like 5%"):
        traffic.parse_loss(text)


def test_a_cable_in_words() -> None:
    assert traffic.describe(Cable()) == "ok"
    assert traffic.describe(Cable(apart=("*",), loss=5.0)) == "cut, loss 5%"
    assert traffic.describe(Cable(apart=("node1", "host"), delay=0.5)) == "cut from node1,host, delay 0.5ms"
