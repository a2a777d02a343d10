"""The pictures of docs/attacks.md: a photo that was attacked, and what attacks reach below what none can pass.

python -m benchmarks.threat          # docs/pictures/, from the runs of ./launch/quickstart.sh
"""

import argparse
import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from PIL import Image, ImageChops

from benchmarks.common import SCHEMES, style, write_picture
from uatmc_dist.evaluation.promotion import STRONGEST, find_result

_PICTURES = Path("docs/pictures")
_SHOP, _ATTACKED = Path("runs/quickstart-shop"), {"undefended": "none", "certified": "certified"}
_AMPLIFIED, _ENLARGED = 30, 2
_COLOURS = {"undefended": "#d1495b", "certified": "#3a7ca5"}


def attacked_photo(risen: dict[str, Any]) -> Image.Image:
    """Before, after, and the difference, amplified; side by side."""
    before, after = (Image.open(risen[f"photo_{when}"]).convert("RGB") for when in ("before", "after"))
    difference = ImageChops.difference(before, after).point(lambda level: min(255, _AMPLIFIED * level))
    whole = Image.new("RGB", (3 * before.width, before.height))
    for place, picture in enumerate((before, after, difference)):
        whole.paste(picture, (place * before.width, 0))
    return whole.resize((_ENLARGED * whole.width, _ENLARGED * whole.height), Image.Resampling.NEAREST)


def attack_and_certificate(scheme: str) -> go.Figure:
    figure = go.Figure()
    for name, run in _ATTACKED.items():
        attack = json.loads(Path(f"runs/quickstart-{run}/attack.json").read_text())
        k, epsilons = attack["k"], sorted(attack["epsilons"])
        found = [find_result(attack["results"], STRONGEST, epsilon) for epsilon in epsilons]
        before = 100 * found[0][f"hit@{k}_before"]
        for key, label, dash in (
            (f"hit@{k}_after", "strongest attack", "solid"),
            (f"certified_hit@{k}", "certificate", "dot"),
        ):
            figure.add_scatter(
                x=[0, *epsilons],
                y=[before, *(100 * one[key] for one in found)],
                mode="lines+markers",
                name=f"{name}: {label}",
                line={"color": _COLOURS[name], "dash": dash},
            )
    style(figure, scheme, {"title": "ε"}, {"title": "lists with a random attacked item, %", "rangemode": "tozero"})
    return figure


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    risen = json.loads((_SHOP / "content_attack.json").read_text())["risen"][0]
    photo = _PICTURES / "attacked-photo.png"
    attacked_photo(risen).save(photo, optimize=True)
    print(f"written: {photo}; from {risen['before']:.1%} of the lists to {risen['after']:.1%} with {risen['attack']}")
    for scheme in SCHEMES:
        path = write_picture(attack_and_certificate(scheme), _PICTURES / f"certificate-{scheme}.svg", 760, 420)
        print(f"written: {path}")


if __name__ == "__main__":
    main()
