"""Verbs that attack the photos and words themselves."""

from pathlib import Path
from typing import Annotated, Any

import typer

from uatmc_dist.cli.common import Overrides, RunPath, app, console, exit_where_failed, opened, tell_written
from uatmc_dist.errors import UserError
from uatmc_dist.progress import shown


@app.command("attack-content")
def attack_content(
    run: RunPath,
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda: where photos are encoded.")] = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a check fails.")] = False,
) -> None:
    """Promotion attacks on photos and words, judged by the files; writes content_attack.json, and can be resumed."""
    from uatmc_dist.content_attacks.drawn import Attacked
    from uatmc_dist.content_attacks.report import summarise
    from uatmc_dist.content_attacks.suite import ContentAttacks
    from uatmc_dist.tables.attacks import print_content_attacks

    folder, config, catalog, model = opened(run, overrides)
    options = _possible(config.content_attack, model, catalog)
    surrogate = _opened_surrogate(options.surrogate) if "transfer" in options.attacks else None
    attacked = Attacked(model, catalog)
    attacks = ContentAttacks(attacked, config.attack, options, run / "content_attack", device, surrogate)
    with shown("targets") as progress:
        records = attacks.run(progress)
    report = summarise(records, options, config.attack.k)
    titles = catalog.titles()[1]
    report["risen"] = [{"title": titles[one["item"]] or f"item {one['item']}", **one} for one in attacks.risen(records)]
    path = folder.write_json("content_attack.json", report)
    print_content_attacks(console, run, report)
    tell_written(path)
    exit_where_failed(report, strict)


def _opened_surrogate(run: Path) -> Any:
    """The run that the attacker of `transfer` has, on its own catalog."""
    from uatmc_dist.content_attacks.drawn import Attacked

    _, _, catalog, model = opened(run, None)
    return Attacked(model, catalog)


def _possible(options: Any, model: Any, catalog: Any) -> Any:
    """Without the attacks that cannot be made on the model, or with what the catalog knows, which are named."""
    from uatmc_dist.content_attacks.suite import MODALITIES_OF, ON_LINEAR_FUSION

    if model.dense is None:
        raise UserError("this model has no content (model.content=false), so there is nothing to attack")
    unknown = _without_files(catalog, model.dense.modalities)
    lacking = {
        f"the model has {model.dense.modalities[0]} features alone": [
            name for name in options.attacks if not set(MODALITIES_OF[name]) <= set(model.dense.modalities)
        ],
        f"the catalog has {' and '.join(unknown)} features alone": [
            name for name in options.attacks if set(MODALITIES_OF[name]) & set(unknown)
        ],
        "needs linear fusion": [name for name in options.attacks if name in ON_LINEAR_FUSION and not model.is_linear],
    }
    possible = [name for name in options.attacks if not any(name in names for names in lacking.values())]
    why = "; ".join(f"{', '.join(names)}: left out, {reason}" for reason, names in lacking.items() if names)
    if not possible:
        raise UserError(f"content_attack.attacks: {why}; give others")
    if why:
        console.print(why, highlight=False, soft_wrap=True)
    return options.model_copy(update={"attacks": possible})


@app.command()
def calibrate(
    run: RunPath,
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda: where photos and texts are encoded.")] = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a check fails.")] = False,
) -> None:
    """Which epsilon changed pixels and words are worth; writes calibration.json (adversarial.epsilon=calibrated)."""
    from uatmc_dist.content_attacks import calibration
    from uatmc_dist.content_attacks.drawn import Attacked
    from uatmc_dist.content_attacks.report import summarise
    from uatmc_dist.content_attacks.suite import ContentAttacks
    from uatmc_dist.tables.attacks import print_calibration

    folder, config, catalog, model = opened(run, overrides)
    options = config.content_attack.model_copy(update={"attacks": ["pixels", "words"]})
    options = _possible(options, model, catalog)
    content = ContentAttacks(Attacked(model, catalog), config.attack, options, run / "content_attack", device)
    with shown("targets") as progress:
        records = content.run(progress)
    report = calibration.calibrate(records, config.attack.k)
    report["checks"] = summarise(records, options, config.attack.k)["checks"]
    path = folder.write_json(calibration.FILE, report)
    print_calibration(console, run, report)
    tell_written(path)
    exit_where_failed(report, strict)


def _without_files(catalog: Any, modalities: list[str]) -> list[str]:
    """photos or texts that the catalog does not know, where it knows the other; of neither the attack itself tells what
    to do."""
    known = [name for name in modalities if "encoding" in catalog.meta["modalities"][name]]
    return [name for name in modalities if name not in known] if known else []
