"""Pods that want to be near others, or far from them. Pure.

"Near" means in the same domain: on nodes with the same value of a label, the topology key. A pod that is
there may keep others away, too. A required term that no pod anywhere meets is met by the first pod that
meets it itself: else no group could ever begin. Source: upstream's plugins/interpodaffinity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.scheduler.filters import Requests
from kubeclient.selectors import LabelSelector, Requirement

Object = dict[str, Any]
Labels = Mapping[str, str]
Namespaces = Mapping[str, Labels]
Domain = tuple[str, str]
"""A node label's name and value."""

REQUIRED, PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
HARD_WEIGHT = 1
"""What a required affinity of a pod that is there counts, when nodes are compared (upstream's default)."""


@dataclass(frozen=True, slots=True)
class Term:
    """Which pods are meant, and what counts as near; without a selector none are meant."""

    key: str
    selector: LabelSelector | None
    names: frozenset[str]
    namespace_selector: LabelSelector | None
    weight: int = 0

    def means(self, namespace: str, labels: Labels, namespaces: Namespaces) -> bool:
        """Whether a pod of that namespace with these labels is meant."""
        if self.selector is None:
            return False
        there = namespace in self.names
        if not there and self.namespace_selector is not None:
            there = self.namespace_selector.matches(namespaces.get(namespace) or {})
        return there and self.selector.matches(labels)


@dataclass(frozen=True, slots=True)
class Rules:
    """A pod's terms: what it must be near to, must be far from; would rather be near to, or far from."""

    near: tuple[Term, ...] = ()
    far: tuple[Term, ...] = ()
    rather_near: tuple[Term, ...] = ()
    rather_far: tuple[Term, ...] = ()


NO_RULES = Rules()


@dataclass(frozen=True, slots=True)
class Placed:
    """A pod on its node, as far as others have to know of it; `started` in epoch seconds."""

    node: str
    requests: Requests
    owner: str
    namespace: str
    labels: Labels
    rules: Rules
    ending: bool = False
    priority: int = 0
    started: float = 0.0
    name: str = ""
    uid: str = ""
    claims: tuple[str, ...] = ()  # of its namespace


def rules_of(pod: Object) -> Rules:
    """The pod's terms about other pods."""
    affinity = pod["spec"].get("affinity") or {}
    near, far = affinity.get("podAffinity") or {}, affinity.get("podAntiAffinity") or {}
    if not near and not far:
        return NO_RULES
    return Rules(_required(pod, near), _required(pod, far), _preferred(pod, near), _preferred(pod, far))


def _required(pod: Object, side: Object) -> tuple[Term, ...]:
    return tuple(_term(pod, term) for term in side.get(REQUIRED) or ())


def _preferred(pod: Object, side: Object) -> tuple[Term, ...]:
    terms = side.get(PREFERRED) or ()
    return tuple(_term(pod, term["podAffinityTerm"], int(term["weight"])) for term in terms)


def _term(pod: Object, term: Object, weight: int = 0) -> Term:
    own, labels = pod["metadata"].get("namespace", "default"), pod["metadata"].get("labels") or {}
    names, chosen = term.get("namespaces") or (), term.get("namespaceSelector")
    return Term(
        term["topologyKey"],
        with_label_keys(term, labels),
        frozenset(names if names or chosen is not None else (own,)),
        LabelSelector.from_object(chosen) if chosen is not None else None,
        weight,
    )


def with_label_keys(term: Object, labels: Labels) -> LabelSelector | None:
    """The term's selector, narrowed to pods whose labels of those keys are as the pod's own, or others."""
    if term.get("labelSelector") is None:
        return None
    found = LabelSelector.from_object(term["labelSelector"])
    extra = [
        Requirement(key, operator, (labels[key],))
        for field, operator in (("matchLabelKeys", "in"), ("mismatchLabelKeys", "notin"))
        for key in term.get(field) or ()
        if key in labels
    ]
    return LabelSelector((*found.requirements, *extra))


class Neighbours:
    """What stands where, as one pod that is to be placed sees it."""

    def __init__(
        self, pod: Object, placed: Sequence[Placed], nodes: Mapping[str, Labels], namespaces: Namespaces
    ) -> None:
        self._rules = rules_of(pod)
        self._namespace = pod["metadata"].get("namespace", "default")
        self._labels = pod["metadata"].get("labels") or {}
        self._placed, self._nodes, self._namespaces = placed, nodes, namespaces
        self._forbidden = self._kept_away()
        self._far = {domain for term in self._rules.far for domain in self._domains((term,), term.key)}
        self._near = [Counter(self._domains(self._rules.near, term.key)) for term in self._rules.near]
        self._first = not any(self._near) and all(
            term.means(self._namespace, self._labels, namespaces) for term in self._rules.near
        )

    def why_not(self, node: str) -> list[str]:
        """Upstream's sentence of the first rule that the node breaks."""
        labels = self._nodes[node]
        for term, counts in zip(self._rules.near, self._near, strict=True):
            if term.key not in labels or not (counts[(term.key, labels[term.key])] or self._first):
                return ["node(s) didn't match pod affinity rules"]
        here = set(labels.items())
        if self._far & here:
            return ["node(s) didn't match pod anti-affinity rules"]
        if self._forbidden & here:
            return ["node(s) didn't satisfy existing pods anti-affinity rules"]
        return []

    def points(self, nodes: Iterable[str]) -> list[float]:
        """How much each node is liked, by weights; more is better."""
        liked: Counter[Domain] = Counter()
        for terms, sign in ((self._rules.rather_near, 1), (self._rules.rather_far, -1)):
            for term in terms:
                for domain in self._domains((term,), term.key):
                    liked[domain] += sign * term.weight
        for other in self._placed:
            if other.rules is not NO_RULES:
                self._like_of(other, liked)
        return [float(sum(liked[item] for item in self._nodes[node].items())) for node in nodes]

    def _like_of(self, other: Placed, liked: Counter[Domain]) -> None:
        """What a pod that is there thinks of ours: preferences work both ways."""
        labels = self._nodes.get(other.node, {})
        for terms, sign, fixed in (
            (other.rules.rather_near, 1, 0),
            (other.rules.rather_far, -1, 0),
            (other.rules.near, 1, HARD_WEIGHT),
        ):
            for term in terms:
                if term.key in labels and term.means(self._namespace, self._labels, self._namespaces):
                    liked[(term.key, labels[term.key])] += sign * (term.weight or fixed)

    def _domains(self, terms: Sequence[Term], key: str) -> list[Domain]:
        """The key's domain of each pod that all of these terms mean."""
        return [
            (key, labels[key])
            for other in self._placed
            if key in (labels := self._nodes.get(other.node, {}))
            and all(term.means(other.namespace, other.labels, self._namespaces) for term in terms)
        ]

    def _kept_away(self) -> set[Domain]:
        """Domains from which pods that are there keep ours away."""
        return {
            (term.key, labels[term.key])
            for other in self._placed
            for term in other.rules.far
            if term.key in (labels := self._nodes.get(other.node, {}))
            and term.means(self._namespace, self._labels, self._namespaces)
        }
