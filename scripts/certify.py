"""Certificates on real models: `python -m scripts.certify [--all] [--offline] [--target T] [NAME ...]`.

Each model of `scripts.fetch_models` is optimized with `normfuse optimize --certificates`, and its certificates are made
anew with `normfuse verify --certificates`: how many changes were proved by themselves, and what proving costs beside
rewriting. Exits with 1 where a certificate does not hold, a change was rolled back, or a proof failed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from normfuse import pipeline
from normfuse.certificates import recheck, save_certificates
from normfuse.errors import NormfuseError
from normfuse.model import load, save
from normfuse.tables import table
from normfuse.target import PROVIDERS
from scripts.fetch_models import fetch


@dataclass(frozen=True, slots=True)
class Certified:
    """What became of one model.

    Attributes:
        name: of the model.
        verdicts: how many certificates have which verdict.
        left_out: changes that were rolled back.
        worst: the largest ratio of a certificate.
        seconds: of rewriting alone, of rewriting with certificates and the proof of the whole, and of making the
            certificates anew.
        proved: the ratio of the proof of the whole; None where it failed.
        rechecked: why the certificates do not hold; empty where they do.
    """

    name: str
    verdicts: dict[str, int]
    left_out: int
    worst: float
    seconds: tuple[float, float, float]
    proved: float | None
    rechecked: str

    @property
    def holds(self) -> bool:
        """Whether everything was proved that could be judged."""
        return not self.left_out and self.proved is not None and not self.rechecked


def certify(name: str, path: Path, target: str, place: Path) -> Certified:
    """Optimizes a model with certificates, saves both, and makes the certificates anew."""
    model = load(path)
    times = [time.perf_counter()]
    pipeline.rewrite(model.clone(), target)
    times.append(time.perf_counter())
    result, report = pipeline.prove(model, target)
    times.append(time.perf_counter())
    output, file = place / f"{name}.onnx", place / f"{name}.json"
    save(result, output)
    save_certificates(file, path, output, report, {"target": target})
    assert json.loads(file.read_text())["certificates"], "nothing was changed"
    times.append(time.perf_counter())
    again = recheck(file, path, output)
    times.append(time.perf_counter())
    parity = report.parity
    return Certified(
        name,
        dict(Counter(one.verdict for one in report.certificates)),
        len(report.left_out),
        max((one.ratio for one in report.certificates), default=0.0),
        (times[1] - times[0], times[2] - times[1], times[4] - times[3]),
        parity.ratio if parity is not None and parity.passed else None,
        again.reason,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for each model."""
    parser = argparse.ArgumentParser(prog="python -m scripts.certify", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; those that are not large where none is given")
    parser.add_argument("--all", action="store_true", help="large models, too")
    parser.add_argument("--offline", action="store_true", help="only models that lie in the cache")
    parser.add_argument("--target", choices=PROVIDERS, default="cpu")
    options = parser.parse_args(arguments)
    try:
        paths = fetch(options.names, options.all, options.offline)
    except NormfuseError as error:
        print(error, file=sys.stderr)
        return 2
    rows = table(
        "model",
        ">proved",
        ">not judged",
        ">rolled back",
        ">worst",
        ">whole",
        ">rewrite s",
        ">prove s",
        ">anew s",
        "anew",
    )
    holds = True
    with tempfile.TemporaryDirectory() as place:
        for name, path in paths.items():
            found = certify(name, path, options.target, Path(place))
            holds &= found.holds
            rows.add_row(
                found.name,
                str(found.verdicts.get("passed", 0)),
                str(found.verdicts.get("not judged", 0)),
                str(found.left_out),
                f"{found.worst:.2f}",
                "FAILED" if found.proved is None else f"{found.proved:.2f}",
                *(f"{one:.1f}" for one in found.seconds),
                found.rechecked or "hold",
            )
            print(f"{name} done", file=sys.stderr)
    Console(width=160).print(rows)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
