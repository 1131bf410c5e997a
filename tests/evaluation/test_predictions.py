"""Predictions that outlive a run, whatever happened to their file."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation.predictions import PredictionStore, predictions_folder

DIGESTS = [f"{number:064x}" for number in range(10)]
SCORES = np.random.default_rng(0).random((10, 2)) ** 20  # tiny ones too


def test_scores_come_back_to_the_last_bit(tmp_path: Path) -> None:
    store = PredictionStore({"model": "a"}, 2, tmp_path)
    store.add([*DIGESTS[:4], None], SCORES[:5])
    store.add(DIGESTS[5:], SCORES[5:])
    again = PredictionStore({"model": "a"}, 2, tmp_path)
    assert len(again) == 9 and again.path == store.path
    for digest, scores in zip(DIGESTS, SCORES, strict=True):
        found = again.get(digest)
        assert (found is None) == (digest == DIGESTS[4])
        assert found is None or np.array_equal(found, scores)


def test_every_key_has_its_own_file(tmp_path: Path) -> None:
    keys = [{"model": "a"}, {"model": "b"}, {"model": "a", "crop": 3}, {}, {"model": "\udcff"}]
    stores = [PredictionStore(key, n, tmp_path) for key in keys for n in (1, 2)]
    assert len({store.path for store in stores}) == 10
    stores[0].add(DIGESTS[:1], SCORES[:1, :1])
    assert [len(PredictionStore(key, n, tmp_path)) for key in keys for n in (1, 2)] == [1] + 9 * [0]
    assert PredictionStore({"crop": 3, "model": "a"}, 1, tmp_path).path == stores[4].path, "whatever the order"


@pytest.mark.parametrize("cut", [1, 5, 40, 80, 100])
def test_a_line_that_was_cut_short_is_as_if_it_were_not_there(tmp_path: Path, cut: int) -> None:
    store = PredictionStore({}, 2, tmp_path)
    store.add(DIGESTS[:3], SCORES[:3])
    data = store.path.read_bytes()
    store.path.write_bytes(data[:-cut])
    again = PredictionStore({}, 2, tmp_path)
    assert 1 <= len(again) <= 3  # without its newline alone a line is whole
    again.add(DIGESTS[2:4], SCORES[2:4])
    third = PredictionStore({}, 2, tmp_path)
    assert len(third) == 4 and np.array_equal(third.get(DIGESTS[3]), SCORES[3])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"[]\n",
        b'"text"\n',
        b'{"sha256": 3, "scores": [0.5, 0.5]}\n',
        b'{"sha256": "x", "scores": [0.5]}\n',
        b'{"sha256": "x", "scores": [0.5, "0.5"]}\n',
        b'{"sha256": "x", "scores": [NaN, 0.5]}\n',
        b'{"sha256": "x", "scores": [Infinity, 0.5]}\n',
        b'{"sha256": "x", "scores": [' + b"9" * 5000 + b", 0.5]}\n",
        b'{"scores": [0.5, 0.5]}\n',
        b"\0" * 100 + b"\n",
    ],
)
def test_lines_that_say_nothing_are_passed_over(tmp_path: Path, line: bytes) -> None:
    store = PredictionStore({}, 2, tmp_path)
    store.add(DIGESTS[:1], SCORES[:1])
    store.path.write_bytes(store.path.read_bytes() + line)
    store.add(DIGESTS[1:2], SCORES[1:2])
    assert len(PredictionStore({}, 2, tmp_path)) == 2


def test_a_killed_process_leaves_whole_batches(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        import numpy as np
        from pathlib import Path
        from imaginet_hub.evaluation.predictions import PredictionStore
        store = PredictionStore({}, 2, Path(sys.argv[1]))
        for batch in range(100):
            store.add([f"{batch:060x}{n:04x}" for n in range(32)], np.full((32, 2), 0.25))
            if batch == 7:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=False)
    assert done.returncode == -9
    assert len(PredictionStore({}, 2, tmp_path)) == 8 * 32


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--no-cache"):
        PredictionStore({}, 2, tmp_path / "file")
    store = PredictionStore({}, 2, tmp_path / "there")
    store.path.unlink()
    store.path.mkdir()
    with pytest.raises(UsageError, match=r"cannot be kept in .*--no-cache"):
        store.add(DIGESTS[:1], SCORES[:1])


def test_the_file_says_what_it_belongs_to(tmp_path: Path) -> None:
    store = PredictionStore({"model": "x", "crop": 3}, 2, tmp_path)
    assert json.loads(store.path.read_text("utf-8").splitlines()[0]) == {"model": "x", "crop": 3, "n_scores": 2}


def test_predictions_are_kept_where_hugging_face_keeps_things() -> None:
    from huggingface_hub.constants import HF_HOME

    assert predictions_folder() == Path(HF_HOME) / "imaginet" / "predictions"
