"""What the report page reads of a run's folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uatmc_dist.config import read_yaml
from uatmc_dist.errors import UserError
from uatmc_dist.runs import opened_run

Json = dict[str, Any] | None


@dataclass(frozen=True)
class RunFiles:
    """The files of one run; None for those that no command has written yet."""

    path: Path
    metrics: list[dict[str, Any]]
    environment: Json
    evaluation: Json
    attack: Json
    certificate: Json
    mismatch: Json
    content_attack: Json
    config: dict[str, Any]
    """config.yaml of the run: every option."""

    @property
    def has_content(self) -> bool:
        return self.config.get("model", {}).get("content", True)

    @property
    def is_defended(self) -> bool:
        adversarial = self.config.get("adversarial", {})
        return adversarial.get("epochs", 0) > 0 and adversarial.get("adversary") != "none"

    @property
    def start_from(self) -> Path | None:
        given = self.config.get("start_from")
        return None if given is None else Path(given).resolve()

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def protocol(self) -> tuple[Any, ...] | None:
        """What makes the figures of two runs comparable; None for a run that was not measured."""
        if self.attack is None or self.evaluation is None:
            return None
        threat = self.attack["threat_model"]
        return self.attack["k"], threat["norm"], threat["budget"], self.evaluation["split"]

    @classmethod
    def read(cls, path: Path) -> "RunFiles":
        """UserError for a folder that is not a run, or a file that is not whole."""
        folder = opened_run(path)
        names = ("environment", "evaluation", "attack", "certificate", "mismatch", "content_attack")
        files = {name: folder.read_json(f"{name}.json") for name in names}
        for name, verb, newest in (("attack", "attack", "any_content"), ("mismatch", "mismatch", "backbone")):
            found = files[name]
            if found is not None and newest not in found:
                raise UserError(f"{path}/{name}.json: written by an older version; run `uatmc {verb} {path}` again")
        return cls(path, folder.read_metrics(), **files, config=read_yaml(path / "config.yaml"))

    def missing(self) -> list[str]:
        """Commands that would fill the page's gaps."""
        verbs = {"evaluation": "evaluate"}
        if self.has_content:
            verbs |= {"attack": "attack", "certificate": "certify", "mismatch": "mismatch"}
        return [f"uatmc {verb} {self.path}" for name, verb in verbs.items() if getattr(self, name) is None]
