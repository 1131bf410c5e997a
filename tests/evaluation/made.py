"""Results of detectors that are drawn at random: rows whose grey level is the score."""

import numpy as np
from PIL import Image

from imaginet_hub.evaluation import evaluate_rows
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.protocols import Scored, run_protocols

FAMILIES = {"ProGAN": "GAN", "SDXL": "SD"}


def rows_of(n=80, generators=FAMILIES, seed=0, apart=40):
    """Half real, half synthetic rows in turns; generators are the further from real the later they come."""
    rng = np.random.default_rng(seed)
    names = list(generators)
    for i in range(n):
        number = (i // 2) % len(names)
        generator = "real" if i % 2 == 0 else names[number]
        mean = 110 if generator == "real" else 110 + 2 * apart * (number + 1) / (len(names) + 1)
        level = int(np.clip(rng.normal(mean, 40), 0, 255))
        yield {
            "image": Image.new("RGB", (8, 8), (level, level, level)),
            "label": "real" if generator == "real" else "synthetic",
            "generator": generator,
            "generator_family": generators.get(generator, "real"),
            "content_type": ("faces", "photos", "photos")[i % 3],
            "path": f"./folder/{i}.png",
        }


def by_level(images):
    scores = np.array([np.asarray(image).mean() / 255 for image in images])
    return np.stack([1 - scores, scores], axis=1)


def detection(rows=None, **options):
    options = {"by": ("generator_family", "generator", "content_type"), "n_resamples": 30, "progress": False} | options
    rows = list(rows_of()) if rows is None else rows
    return evaluate_rows(rows, by_level, track="detection", names=("real", "synthetic"), **options)


def one_class(label):
    return detection([row for row in rows_of() if row["label"] == label])


def identification(k=2, n=160, right=0.7, seed=0):
    """Classes "class 0".. of which the one that a row has wins with this probability."""
    rng = np.random.default_rng(seed)
    names = [f"class {i}" for i in range(k)]
    rows = [
        {
            "image": Image.new("RGB", (8, 8)),
            "label": "synthetic",
            "generator_family": names[i % k],
            "generator": f"{names[i % k]} v{i % 3}",
            "content_type": "photos",
            "path": f"./{i}.png",
        }
        for i in range(n)
    ]
    answers = [i % k if rng.random() < right else int(rng.integers(k)) for i in range(n)]
    scores = rng.dirichlet(np.ones(k), n) * 0.5
    scores[np.arange(n), answers] += 0.5
    drawn = iter(scores)

    def predict(images):
        return np.stack([next(drawn) for _ in images])

    return evaluate_rows(
        rows, predict, track="identification", names=names, n_resamples=30, progress=False, by=("generator",)
    )


def with_protocols(content):
    """The object of a results file with both protocols."""
    images = content["per_image"]
    scored = Scored(
        paths=[image["path"] for image in images],
        labels=[int(image["label"] == "synthetic") for image in images],
        scores=[image["scores"][1] for image in images],
        content_types=[image["columns"]["content_type"] for image in images],
        families=[image["columns"]["generator_family"] for image in images],
        generators=[image["columns"]["generator"] for image in images],
    )
    found = run_protocols(scored, lists=None, train=None, calibrated=True, bootstrap=Bootstrap(n_resamples=30))
    return content | {"protocols": found}
