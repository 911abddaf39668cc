"""The README's commands are run as they stand, in order, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
# `make` makes its own environment; CI and the quickstart test run what it runs.
NOT_HERE = re.compile(r"^\s*(make |git clone|cd |pip install)")


def list_commands(text: str) -> list[str]:
    """The lines of every ```bash block, joined where a backslash continues them."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [block for block in blocks if not all(map(NOT_HERE.match, block.strip().splitlines()))]


def test_the_two_commands_exist_in_the_makefile() -> None:
    text = README.read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in ("quickstart", "test"):
        assert f"make {target}" in text
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_links_and_pictures_exist() -> None:
    text = README.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(((?!https?://|#)[^)]+)\)", text)
    assert targets
    assert not [target for target in targets if not (REPOSITORY / target.split("#")[0]).exists()]


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path) -> None:
    commands = list_commands(README.read_text(encoding="utf-8"))
    assert len(commands) >= 2
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    for block in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
            timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
