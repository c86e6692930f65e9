"""Optimizes real models with the commands a user would type, and prints one table: `python -m scripts.before_after`.

The results are kept in build/demo. What `scripts/demo` runs once it has an environment.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfuse.errors import NormfuseError
from scripts.fetch_models import fetch, shapes

FOLDER = Path("build/demo")
HEAD = ("model", "nodes", "normalizations", "MB", "error ratio", "ms before", "ms after", "time")


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one model.

    Attributes:
        name: what scripts call it.
        sizes: of the files before and after, in bytes.
        report: what `normfuse optimize --json` printed.
        parity: what `normfuse verify --json` printed for the two files.
        timing: what `normfuse bench --json` printed for them.
    """

    name: str
    sizes: tuple[int, int]
    report: Mapping[str, Any]
    parity: Mapping[str, Any]
    timing: Mapping[str, Any]

    def cells(self) -> tuple[str, ...]:
        """The cells of the table, under `HEAD`."""
        before, after = self.report["before"], self.report["after"]
        first, second = self.timing["timings"]
        return (
            self.name,
            f"{before['nodes']} → {after['nodes']}",
            f"{sum(before['norms'].values())} → {sum(after['norms'].values())}",
            f"{self.sizes[0] / 1e6:.2f} → {self.sizes[1] / 1e6:.2f}",
            f"{float(self.parity['ratio']):.2f}",
            f"{1e3 * first['median']:.2f}",
            f"{1e3 * second['median']:.2f}",
            f"× {second['ratio']:.2f}",
        )


def before_after(name: str, path: Path) -> Row:
    """Optimizes, verifies and times one model.

    Raises:
        subprocess.CalledProcessError: a command failed, with its exit status.
    """
    result = FOLDER / f"{name}.onnx"
    dims = [f"--shape={one}={'x'.join(map(str, shape))}" for one, shape in shapes(name).items()]
    report = _normfuse("optimize", str(path), "-o", str(result), "--no-verify")  # the files are verified next
    parity = _normfuse("verify", str(path), str(result), *dims)
    timing = _normfuse("bench", str(path), str(result), *dims)
    return Row(name, (path.stat().st_size, result.stat().st_size), report, parity, timing)


def _normfuse(*arguments: str) -> dict[str, Any]:
    """Runs a verb, shown as it is typed, and reads the JSON it prints."""
    print("$ normfuse", shlex.join(arguments), file=sys.stderr)
    command = [sys.executable, "-m", "normfuse", *arguments, "--json"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout
    content: dict[str, Any] = json.loads(output)
    return content


def markdown(rows: Sequence[Row]) -> str:
    """The table of all models, in Markdown."""
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(names: Sequence[str]) -> int:
    """Prints the table of the models named."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        rows = [before_after(name, path) for name, path in fetch(names).items()]
    except NormfuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except subprocess.CalledProcessError as error:
        print(f"error: {shlex.join(error.cmd)} ended with exit status {error.returncode}", file=sys.stderr)
        return error.returncode
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
