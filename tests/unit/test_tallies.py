"""An attack that was interrupted: what was finished is kept, and the figures are those of an undisturbed one."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.unit.random_model import RandomModel
from uatmc_dist.config import AttackConfig
from uatmc_dist.evaluation import promotion
from uatmc_dist.evaluation.kept import KeptParts, digest_of

CONFIG = AttackConfig(
    attacks=["pgd", "apgd"], num_targets=4, seeds=[1, 2], k=5, epsilons=[0.05, 0.3], apgd_steps=3, restarts=2
)


class TinyCatalog:
    num_users, num_items = 50, 40

    def split(self, name):
        rng = np.random.default_rng(0)
        return rng.integers(0, 50, 200), rng.integers(0, 40, 200)


def attacked(kept=None):
    found = promotion.attack_model(RandomModel(50, 40, 6), TinyCatalog(), CONFIG, kept=kept)  # type: ignore[arg-type]
    for result in [*found["results"], *found["any_content"]]:
        del result["seconds"]
    return found


@pytest.mark.parametrize("cut", [False, True], ids=["between scenes", "in a line"])
def test_it_goes_on_where_it_was(tmp_path, monkeypatch, cut):
    undisturbed, path = attacked(), tmp_path / "attack-x.jsonl"
    done, attack_scene = [], promotion._attack_scene

    def interrupted(*given):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(given[3])
        attack_scene(*given)

    monkeypatch.setattr(promotion, "_attack_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attacked(KeptParts(path))
    if cut:
        path.write_text(path.read_text()[:-30])
    again = []
    monkeypatch.setattr(promotion, "_attack_scene", lambda *given: again.append(given[3]) or attack_scene(*given))
    kept = KeptParts(path)
    assert attacked(kept) == undisturbed
    assert len(again) == (3 if cut else 2)
    assert len(KeptParts(path)._done) == 6
    kept.drop()
    assert not list(tmp_path.iterdir())


def test_other_options_another_catalog_or_another_model_begin_anew(tmp_path):
    model = tmp_path / "model/model.safetensors"
    model.parent.mkdir()
    model.write_bytes(b"weights")
    one, other = SimpleNamespace(digest="one"), SimpleNamespace(digest="other")
    asked = [(one, CONFIG), (one, CONFIG), (one, AttackConfig(k=7)), (other, CONFIG)]
    digest = lambda catalog, config: digest_of([tmp_path], catalog, config.model_dump(mode="json"))  # noqa: E731
    digests = [digest(catalog, config) for catalog, config in asked]
    model.write_bytes(b"other weights")
    digests.append(digest(one, CONFIG))
    assert digests[0] == digests[1] and len(set(digests)) == 4
