"""The guides: each of their blocks runs, in order, in a folder of its own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "tests" / "guides").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", re.M | re.S)

pytest.importorskip("torch")


PROLOGUE = """
import sys
from click.testing import CliRunner
from normfuse import cli

def _run(command, *arguments):
    if command == "pytest":
        import pytest
        assert pytest.main([*arguments, "-p", "no:cacheprovider", "-p", "normfuse.pytest_plugin"]) == 0
    else:
        done = CliRunner().invoke(cli.main, arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
"""


def program(guide: Path, folder: Path) -> str:
    """The blocks of a guide as one program; those with a title become files."""
    parts = [PROLOGUE]
    for language, title, text in BLOCK.findall(guide.read_text(encoding="utf-8")):
        if title:
            (folder / title).write_text(text, encoding="utf-8")
        elif language == "python":
            parts.append(text)
        else:
            assert language == "sh"
            parts += [f"_run(*{shlex.split(line)!r})" for line in text.splitlines()]
    return "\n".join(parts)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_runs(guide: Path, tmp_path: Path) -> None:
    (tmp_path / "guide.py").write_text(program(guide, tmp_path), encoding="utf-8")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = os.environ | {"PYTHONPATH": path, "NORMFUSE_CACHE": str(tmp_path / "cache")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the plugin may be installed or not
    done = subprocess.run(
        [sys.executable, "guide.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_every_guide_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(GUIDES) >= 5
    for guide in GUIDES:
        assert f"(tests/guides/{guide.name})" in readme
