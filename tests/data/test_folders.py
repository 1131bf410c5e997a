"""A folder appears whole or not at all, whoever else is at work and however a run ended before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imaginet_hub.data.folders import check_writable, put_in_place, restore, staged


def test_it_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with staged(target) as staging:
        (staging / "file").write_text("whole")
        assert not target.exists()
        put_in_place(target)
    assert [path.name for path in target.parent.iterdir()] == ["b"]
    assert (target / "file").read_text() == "whole"


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), staged(tmp_path / "a" / "b" / "c") as staging:
        (staging / "folder").mkdir()
        raise RuntimeError("stop")
    check_writable(tmp_path / "d" / "e")
    assert list(tmp_path.iterdir()) == []


def test_what_is_replaced_stays_until_then(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError), staged(target):
        raise RuntimeError
    assert (target / "old").exists()
    with staged(target) as staging:
        (staging / "new").touch()
        put_in_place(target)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


WRITER = """
import sys, time
from pathlib import Path
from imaginet_hub.data.folders import staged
with staged(Path(sys.argv[1])) as staging:
    (staging / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_meet_and_a_killed_one_is_cleared(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"writing\n"
        with pytest.raises(OSError, match="another run is writing there"), staged(target):
            pytest.fail("it should not get here")
        assert (tmp_path / ".out.incomplete" / "half").read_text() == "half"
        os.kill(other.pid, signal.SIGKILL)
    with staged(target) as staging:
        assert list(staging.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    (tmp_path / ".out.incomplete").symlink_to(tmp_path / "mine")
    with staged(tmp_path / "out") as staging:
        (staging / "inner").symlink_to(tmp_path / "mine")
    assert (tmp_path / "mine" / "precious").exists()
    (tmp_path / ".out.incomplete").mkdir()
    (tmp_path / ".out.incomplete" / "link").symlink_to(tmp_path / "mine")
    check_writable(tmp_path / "out")
    assert (tmp_path / "mine" / "precious").exists()


def test_a_replacement_that_was_killed_between_its_renames(tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    restore(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
