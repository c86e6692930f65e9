import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("fcntl", reason="links and permissions as Unix has them")

from normfuse.calibration import calibrate
from normfuse.certificates import save_certificates
from normfuse.cut import Case, write
from normfuse.errors import NormfuseError
from normfuse.junit import save_junit
from normfuse.leftovers import folder_beside
from normfuse.model import check_output, load, save
from normfuse.report import Counts, Report
from normfuse.storage import destination, validate_place

WEIGHT = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)


def model(external: Path | None = None) -> onnx.ModelProto:
    """y = x · W; where a folder is given, W lies in a file there."""
    weight = numpy_helper.from_array(WEIGHT, "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 40]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "n")], "g", [x], [y], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if external is not None:
        onnx.save(made, external / "in.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return made


def mode(path: Path) -> int:
    """The permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027], ids=["022", "027"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "real.onnx").write_bytes(b"old")
    for name, target in {"link": "elsewhere/real.onnx", "new": "elsewhere/fresh.onnx", "twice": "link"}.items():
        (tmp_path / name).symlink_to(target)
        check_output(tmp_path / name, None)
        save(model(), tmp_path / name)
        assert os.readlink(tmp_path / name) == target
        assert onnx.load(tmp_path / name) == model()
    assert set(os.listdir(elsewhere)) == {"real.onnx", "fresh.onnx"}
    assert set(os.listdir(tmp_path)) == {"elsewhere", "link", "new", "twice"}


def test_the_data_file_belongs_to_the_file_behind_the_link(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    model(source)
    (out / "latest.onnx").symlink_to("v3.onnx")
    for _ in range(2):  # the second replaces the data file of the first
        save(load(source / "in.onnx"), out / "latest.onnx")
        weight = onnx.load(out / "latest.onnx").graph.initializer[0]
        np.testing.assert_array_equal(numpy_helper.to_array(weight), WEIGHT)
        assert (out / "latest.onnx").is_symlink()
        data = set(os.listdir(out)) - {"latest.onnx", "v3.onnx"}
        assert len(data) == 1
        assert data.pop().startswith("v3.onnx.")


def test_a_data_file_that_is_not_found_through_the_link_is_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    model(source)
    (tmp_path / "link.onnx").symlink_to("out/real.onnx")
    for given in (source / "in.onnx", (source / "in.onnx").read_bytes(), load(source / "in.onnx")):
        with pytest.raises(NormfuseError, match=r"link\.onnx: .*another folder.*real\.onnx"):
            check_output(tmp_path / "link.onnx", given)
    with pytest.raises(NormfuseError, match=r"link\.onnx: .*another folder.*real\.onnx"):
        save(load(source / "in.onnx"), tmp_path / "link.onnx")
    assert os.listdir(out) == []
    check_output(tmp_path / "link.onnx", model())


def test_a_checkpoint_is_removed_and_the_link_to_it_stays(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2, 3] x) => (float[N, 2, 3] y)
        <float[2] s = {1, 2}, float[2] m = {3, 4}> { y = BatchNormalization (x, s, s, m, s) }"""
    (tmp_path / "link.npz").symlink_to("state.npz")
    batches = [{"x": np.random.default_rng(seed).normal(size=(4, 2, 3)).astype(np.float32)} for seed in range(2)]
    seen: list[bool] = []

    def look(*_: object) -> None:
        seen.append((tmp_path / "state.npz").exists())

    calibrate(onnx.parser.parse_model(text), batches, checkpoint=tmp_path / "link.npz", progress=look)
    assert any(seen)
    assert os.listdir(tmp_path) == ["link.npz"]


def test_links_to_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "lost").symlink_to("absent/real.onnx")
    (tmp_path / "folder").symlink_to(".")
    (tmp_path / "null").symlink_to("/dev/null")
    for name, words in {"circle": "circle", "lost": "no folder .*absent", "folder": "a folder", "null": "file"}.items():
        with pytest.raises(NormfuseError, match=words):
            validate_place(str(tmp_path / name))
    assert destination(str(tmp_path / "plain")) == str(tmp_path / "plain")


def test_permissions_are_kept(tmp_path: Path, umask: int) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"old")
    for bits in (0o600, 0o664, 0o755):
        out.chmod(bits)
        save(model(), out)
        assert mode(out) == bits
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    save(model(), tmp_path / "link.onnx")
    assert mode(out) == 0o755


def test_a_data_file_is_as_private_as_its_model(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model(source)
    out = tmp_path / "m.onnx"
    out.write_bytes(b"old")
    out.chmod(0o600)
    for _ in range(2):
        save(load(source / "in.onnx"), out)
        assert [mode(file) for file in tmp_path.glob("m.onnx*")] == [0o600, 0o600]


def test_fresh_files_follow_umask(tmp_path: Path, umask: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model(source)
    save(model(), tmp_path / "m.onnx")
    save(load(source / "in.onnx"), tmp_path / "external.onnx")
    save_junit(str(tmp_path / "cases.xml"), "suite", [])
    nothing = Report(Counts.of(load(model())), Counts.of(load(model())), [], [])
    save_certificates(tmp_path / "proof.json", tmp_path / "m.onnx", tmp_path / "m.onnx", nothing, {})
    inputs = {"x": np.ones((1, 40), np.float32)}
    case = write(Case(load(model()), load(model()), inputs, "y", True), tmp_path / "case", "title")
    files = [path for path in (*tmp_path.iterdir(), *case.iterdir()) if path.is_file()]
    assert len(files) == 9
    assert {mode(file) for file in files} == {0o666 & ~umask}
    assert mode(case) == 0o777 & ~umask


def test_an_existing_folder_for_a_case_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("private")
    inputs = {"x": np.ones((1, 40), np.float32)}
    write(Case(load(model()), load(model()), inputs, "y", True), tmp_path / "link", "title")
    assert (tmp_path / "link").is_symlink()
    assert mode(tmp_path / "private") == 0o700
    assert "run.py" in os.listdir(tmp_path / "private")


def test_a_write_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"old")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, how: path != str(out) and real(path, how))
    with pytest.raises(NormfuseError, match="write-protected"):
        check_output(out, None)
    check_output(tmp_path / "new.onnx", None)


def test_folders_of_killed_processes_are_removed_those_of_the_living_are_not(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom normfuse.leftovers import folder_beside\n"
        "with folder_beside(sys.argv[1]) as path:\n"
        "    open(path + '/weights.data', 'w').close(); print(path, flush=True); time.sleep(60)"
    )
    place = str(tmp_path / "m.onnx")
    with subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().strip())
        assert (left.parent, mode(left)) == (tmp_path, 0o700)
        with folder_beside(place) as mine:
            assert (left / "weights.data").exists()
            killed.kill()
            killed.wait()
            (tmp_path / ".normfuse-notes").mkdir()
            (tmp_path / f".normfuse-{'0' * 16}.dir").symlink_to(".normfuse-notes")
            (tmp_path / f".normfuse-{'1' * 16}.dir").write_bytes(b"a file")
            save(model(), place)
            assert not left.exists()
            assert os.path.isdir(mine)
    kept = {"m.onnx", ".normfuse-notes", f".normfuse-{'0' * 16}.dir", f".normfuse-{'1' * 16}.dir"}
    assert set(os.listdir(tmp_path)) == kept
