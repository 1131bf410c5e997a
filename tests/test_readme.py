"""Every command and every code block of the README runs, on a small ROOT."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT, image_bytes, table_rows, write_root

_BLOCK = re.compile(r"(?P<comment><!--[^\n]*-->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.S)
#: What other tests do: the demo, the test suite itself.
_ELSEWHERE = ("make ",)


def blocks() -> list[tuple[str, str]]:
    """(language, code) of the README's blocks that can run anywhere, in order."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    return [(m["language"], m["code"]) for m in _BLOCK.finditer(text) if "test: skip" not in (m["comment"] or "")]


def test_blocks_are_found() -> None:
    languages = [language for language, _ in blocks()]
    assert languages.count("bash") >= 5 and languages.count("python") >= 4


def test_every_block_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_root(tmp_path / "ROOT", table_rows(real=70, synthetic=60), size=(64, 64))
    (tmp_path / "folder").mkdir()
    for number, name in enumerate(("picture.png", "a.webp", "folder/b.png")):
        format_ = "WEBP" if name.endswith("webp") else "PNG"
        (tmp_path / name).write_bytes(image_bytes(1000 + number, (90, 70), format_))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, code in blocks():
        if language == "bash":
            commands = [line for line in code.splitlines() if line and not line.startswith(_ELSEWHERE)]
            argv = ["bash", "-euo", "pipefail", "-c", "\n".join(commands)]
        elif language == "python":
            argv = [sys.executable, "-c", code]
        else:
            continue
        done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
