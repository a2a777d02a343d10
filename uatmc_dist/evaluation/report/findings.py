"""What the files of some runs say in plain words, and what to do about it: a sentence for each finding."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from uatmc_dist.evaluation.comparison import TITLES
from uatmc_dist.evaluation.promotion import STRONGEST, find_result
from uatmc_dist.evaluation.report.sources import RunFiles

_CHEAP = 0.97
"""Share of the undefended accuracy from which on a defence counts as one that costs little."""

_WHITENED = (
    " adversarial.whitening=0.75 adversarial.budget=any_content adversarial.epsilon=0.4 adversarial.lr_factor=0.1"
)
"""What keeps most accuracy under linear fusion (docs/results.md, "Photos and words")."""


class Finding(NamedTuple):
    says: str
    to_do: str


def findings(runs: Sequence[RunFiles]) -> list[Finding]:
    """Accuracy first, then attacks, certificates, files, and what each defence costs; runs that share a finding share
    its sentence."""
    parts = (_below(runs), _failed(runs), _attacked(runs), _certified(runs), _changed(runs))
    return [finding for part in parts for finding in part] + [f for run in runs for f in _costs(run, runs)]


def _below(runs: Sequence[RunFiles]) -> Iterator[Finding]:
    below = [(run, run.evaluation["below"]) for run in runs if run.evaluation and run.evaluation.get("below")]
    if below:
        whom = "; ".join(f"{run.name} than {', '.join(TITLES[name] for name in names)}" for run, names in below)
        first = below[0][0].path
        yield Finding(f"Less accurate: {whom}.", f"Search options before anything else: uatmc tune {first}/config.yaml")


def _failed(runs: Sequence[RunFiles]) -> Iterator[Finding]:
    for run in runs:
        checks = run.attack["checks"] if run.attack else []
        if failed := [check["check"].replace("_", " ") for check in checks if check["passed"] is False]:
            yield Finding(
                f"{run.name}: checks of the attacks failed ({', '.join(failed)}).",
                "Take its attacks for weaker than possible until they pass; each check says what a failure means.",
            )


def _attacked(runs: Sequence[RunFiles]) -> Iterator[Finding]:
    by_epsilon: dict[float, list[RunFiles]] = {}
    for run in runs:
        if run.attack is not None:
            by_epsilon.setdefault(max(run.attack["epsilons"]), []).append(run)
    for epsilon, attacked in by_epsilon.items():
        said = []
        for run in attacked:
            assert run.attack is not None
            k, result = run.attack["k"], find_result(run.attack["results"], STRONGEST, epsilon)
            said.append(f"{run.name} {result[f'hit@{k}_before']:.1%} to {result[f'hit@{k}_after']:.1%}")
        to_do = "All are defended: what each costs is below."
        if bare := [run for run in attacked if not run.is_defended]:
            trained = f"uatmc train {bare[0].path}/config.yaml name={bare[0].name}-robust start_from={bare[0].path}"
            is_linear = bare[0].config.get("model", {}).get("backbone") != "mmgcn"
            defence = f"adversarial.adversary=uat adversarial.epochs=5{_WHITENED if is_linear else ''}"
            to_do = f"{bare[0].name} is not defended: {trained} {defence}"
        yield Finding(
            f"Lists that a random item is in, before and after the strongest attack of ε = {epsilon:g}: "
            f"{', '.join(said)}.",
            to_do,
        )


def _certified(runs: Sequence[RunFiles]) -> Iterator[Finding]:
    said, what = [], ""
    for run in runs:
        if run.certificate and run.certificate["any_content"]:
            k, widest = run.certificate["k"], run.certificate["any_content"][-1]
            what = " and ".join("photo" if name == "visual" else name for name in widest["modalities"])
            said.append(f"{run.name} {widest[f'certified_hit@{k}']:.1%}")
    if said:
        yield Finding(
            f"Whatever {what} an item gets, on average it comes into at most: {', '.join(said)} of the lists.",
            "Let a person look at new photos and texts of the items under “Items to watch” before they go online.",
        )


def _changed(runs: Sequence[RunFiles]) -> Iterator[Finding]:
    for run in runs:
        if run.content_attack and run.content_attack["risen"]:
            risen = run.content_attack["risen"][0]
            yield Finding(
                f"{run.name}: a changed file takes “{risen['title']}” from {risen['before']:.1%} of the lists to "
                f"{risen['after']:.1%}.",
                "Keep the first upload of each item and compare later ones with it, those of the gallery first.",
            )


def _costs(run: RunFiles, runs: Sequence[RunFiles]) -> Iterator[Finding]:
    """A defended run beside the one that it started from, or the undefended one that did as well."""
    if not run.is_defended or run.protocol is None:
        return
    others = [other for other in runs if not other.is_defended and other.protocol == run.protocol]
    twins = [other for other in others if other.start_from == run.start_from] or [
        other for other in others if other.path.resolve() == run.start_from
    ]
    if not twins:
        return
    twin = twins[0]
    assert run.evaluation and run.attack and twin.evaluation and twin.attack  # which have a protocol have both
    k, common = run.attack["k"], set(run.attack["epsilons"]) & set(twin.attack["epsilons"])
    if not common:
        return
    recall = run.evaluation["recall@20"], twin.evaluation["recall@20"]
    hits = tuple(
        find_result(report["results"], STRONGEST, max(common))[f"hit@{k}_after"] for report in (run.attack, twin.attack)
    )
    change = recall[0] / recall[1] - 1 if recall[1] else 0.0
    says = (
        f"{run.name}: against {twin.name} it costs {-change:.1%} of Recall@20"
        if change < 0
        else f"{run.name}: against {twin.name} it gains {change:.1%} of Recall@20"
    )
    says += f", and the strongest attack reaches {hits[0]:.1%} of the lists instead of {hits[1]:.1%}."
    if hits[0] >= hits[1]:
        to_do = f"Do not ship it: {twin.name} is as hard to attack without it."
    elif recall[0] >= _CHEAP * recall[1]:
        to_do = "Ship it: it costs little."
    else:
        to_do = "Ship it where the lists are worth that much accuracy; a smaller adversarial.adv_weight costs less."
    yield Finding(says, to_do)
