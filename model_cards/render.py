#!/usr/bin/env python3
"""Renders the cards in model_cards/ and dataset_script/ from the JSON files beside them.

    python model_cards/render.py [DEMO_OUTPUT]

With the folder of a demo run, its JSON files are taken over first, and detection.svg is drawn from its scores.
"""

import json
import shutil
import sys
from pathlib import Path

from imaginet_hub.cards import model_card, render_folder
from imaginet_hub.evaluation import Results
from imaginet_hub.evaluation.figures import detection_figure, save_figure
from imaginet_hub.labels import Track

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DATASET = HERE.parent / "dataset_script"


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def take_over(demo: Path) -> None:
    """Copy what the cards are made of; results without the scores of single images, which a picture is made of."""
    for name in ("build_report.json", "audit.json", "NOTICE"):
        shutil.copyfile(demo / "dataset" / name, DATASET / name)
    for track in Track:
        for name in ("config", "training"):
            shutil.copyfile(demo / track / f"{name}.json", RESULTS / f"{track}.{name}.json")
        results = Results.read(demo / "results" / f"{track}.json")
        results.write(RESULTS / f"{track}.json", per_image=False)
        if track is Track.DETECTION:
            save_figure(detection_figure(results), HERE / "detection.svg")


def cards() -> dict[Path, str]:
    """Card file -> its text."""
    rendered = {DATASET / "README.md": render_folder(DATASET)}
    for track in Track:
        config, training, results = (read(RESULTS / f"{track}{part}.json") for part in (".config", ".training", ""))
        rendered[HERE / f"{track}.md"] = model_card(config, training, [results])
    return rendered


if __name__ == "__main__":
    if len(sys.argv) > 1:
        take_over(Path(sys.argv[1]))
    for file, text in cards().items():
        file.write_text(text, encoding="utf-8")
