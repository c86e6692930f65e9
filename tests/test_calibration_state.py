"""A calibration that is interrupted or spread over machines ends in the same bits as one that is not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from normfuse import calibration_passes, measuring
from normfuse.batches import WHOLE, Shard, batches_of
from normfuse.calibration import calibrate, concluded
from normfuse.calibration_shards import measure_shard, merge_parts
from normfuse.errors import NormfuseError
from normfuse.model import load
from normfuse.population import ESTIMATORS, Sums
from tests.parity import Array
from tests.test_calibration import data, net
from tests.test_cli_calibrate import folder as folder  # a fixture
from tests.test_cli_calibrate import model as model  # a fixture
from tests.test_cli_calibrate import run

SIZES = (4, 2, 3, 2, 5)


class Interrupted:
    """Batches; at the given one of all that are read, the user presses Ctrl-C."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for batch in data(SIZES):
            if not self._left:
                raise KeyboardInterrupt
            self._left -= 1
            yield batch


class TestCheckpoint:
    @pytest.mark.parametrize(("flow", "at"), [("levels", 2), ("levels", 5), ("levels", 8), ("batch", 3)])
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_what_is_resumed_is_what_was_not_interrupted(
        self, flow: Any, at: int, estimator: Any, tmp_path: Path
    ) -> None:
        path = tmp_path / "checkpoint.npz"
        settings = {"estimator": estimator, "flow": flow}
        with pytest.raises(KeyboardInterrupt):
            calibrate(net(), Interrupted(at), checkpoint=path, **settings)
        assert path.exists()
        resumed = calibrate(net(), data(SIZES), checkpoint=path, **settings)
        assert resumed.model == calibrate(net(), data(SIZES), **settings).model
        assert not path.exists()

    def test_only_what_is_left_is_measured(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, measured = tmp_path / "checkpoint.npz", 0
        with pytest.raises(KeyboardInterrupt):
            calibrate(net(), Interrupted(3), checkpoint=path, flow="batch")
        measure = measuring.Measurer.measure

        def counting(self: Any, batch: Any) -> Any:
            nonlocal measured
            measured += 1
            return measure(self, batch)

        monkeypatch.setattr(measuring.Measurer, "measure", counting)
        calibrate(net(), data(SIZES), checkpoint=path, flow="batch")
        assert measured == 2

    @pytest.mark.parametrize("calls", [2, 6, 7, 13])
    def test_an_interrupt_amid_a_sum_leaves_the_checkpoint_before_it(
        self, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two layers of the first level: the second call is in the middle of the first batch."""
        path, add, made = tmp_path / "checkpoint.npz", Sums.add, 0

        def interrupted(self: Sums, moments: Any) -> None:
            nonlocal made
            made += 1
            if made == calls:
                raise KeyboardInterrupt
            add(self, moments)

        monkeypatch.setattr(calibration_passes, "INTERVAL", -1.0)
        with monkeypatch.context() as patched:
            patched.setattr(Sums, "add", interrupted)
            with pytest.raises(KeyboardInterrupt):
                calibrate(net(), data(SIZES), checkpoint=path)
        assert path.exists() == (calls > 2)
        assert calibrate(net(), data(SIZES), checkpoint=path).model == calibrate(net(), data(SIZES)).model

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"model": net(opset=17)}, "belongs to another model"),
            ({"estimator": "pooled"}, "was made with the estimator mean, not pooled"),
            ({"flow": "batch"}, "was made with the flow levels, not batch"),
            ({"batches": data((4, 2, 3, 5, 2))}, "was made of other batches"),
            ({"batches": data(SIZES[:1])}, "was made of other batches"),
            ({"batches": [{"x": 2 * batch["x"]} for batch in data(SIZES)]}, "was made of other batches"),
        ],
    )
    def test_that_of_something_else_is_refused(self, change: Any, reason: str, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.npz"
        with pytest.raises(KeyboardInterrupt):
            calibrate(net(), Interrupted(4), checkpoint=path)
        content = path.read_bytes()
        settings = {"model": net(), "batches": data(SIZES), **change}
        with pytest.raises(NormfuseError, match=reason):
            calibrate(settings.pop("model"), settings.pop("batches"), checkpoint=path, **settings)
        assert path.read_bytes() == content

    def test_later_passes_have_the_batches_of_the_first(self, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.npz"
        with pytest.raises(KeyboardInterrupt):
            calibrate(net(), Interrupted(6), checkpoint=path)
        with pytest.raises(NormfuseError, match="the first pass had other batches, 5 where there are 4 now"):
            calibrate(net(), data(SIZES[:4]), checkpoint=path)
        with pytest.raises(NormfuseError, match="the first pass had other batches; give the same"):
            calibrate(net(), data(SIZES[::-1]), checkpoint=path)

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
    def test_what_is_none_is_refused(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.npz"
        path.write_bytes(content)
        with pytest.raises(NormfuseError, match=r"checkpoint\.npz holds no state of a calibration"):
            calibrate(net(), data(), checkpoint=path)
        np.savez(path, allow_pickle=False, x=np.ones(3))
        with pytest.raises(NormfuseError, match=r"checkpoint\.npz holds no state of a calibration"):
            calibrate(net(), data(), checkpoint=path)

    def test_that_of_another_format_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.npz"
        with pytest.raises(KeyboardInterrupt):
            calibrate(net(), Interrupted(6), checkpoint=path)
        with np.load(path) as archive:
            arrays = dict(archive)
        header = json.loads(arrays["header"].tobytes())
        for change, reason in (
            ({"format": "normfuse calibration 0"}, "was written by another version"),
            ({"passes": 4}, "holds no state"),
            ({"number": 2}, "holds no state"),
            ({"estimator": "median"}, "no estimator 'median'"),
        ):
            arrays["header"] = np.frombuffer(json.dumps({**header, **change}).encode(), np.uint8)
            np.savez(path, allow_pickle=False, **arrays)
            with pytest.raises(NormfuseError, match=reason):
                calibrate(net(), data(SIZES), checkpoint=path)
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        name = next(name for name in arrays if name.startswith("second"))
        np.savez(path, allow_pickle=False, **{**arrays, name: arrays[name][:, 1:]})
        with pytest.raises(NormfuseError, match="holds no state"):
            calibrate(net(), data(SIZES), checkpoint=path)

    def test_a_model_is_never_overwritten(self, model: Path, folder: Path, tmp_path: Path) -> None:
        for checkpoint, reason in ((model, "is the input"), (tmp_path / "other.onnx", "the name of a model")):
            done = run(model, folder, "-o", tmp_path / "new.onnx", "--checkpoint", checkpoint)
            assert (done.exit_code, reason in done.stderr) == (2, True), done.stderr

    def test_on_the_command_line(self, model: Path, folder: Path, tmp_path: Path) -> None:
        path, output = tmp_path / "checkpoint.npz", tmp_path / "new.onnx"
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, Part(), checkpoint=path)
        done = run(model, folder, "-o", output, "--checkpoint", path)
        assert done.exit_code == 0, done.output
        assert onnx.load(output) == calibrate(net(), data()).model
        assert not path.exists()

    def test_ctrl_c_says_how_to_go_on(
        self, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, output = tmp_path / "checkpoint.npz", tmp_path / "new.onnx"
        with monkeypatch.context() as patched:
            patched.setattr("normfuse.batches.batches_of", lambda _, original: batches_of(Part(), original))
            done = run(model, folder, "-o", output, "--checkpoint", path)
        assert done.exit_code == 130
        assert "checkpoint.npz holds what was done: the same command goes on from there" in done.stderr
        assert not output.exists()
        done = run(model, folder, "-o", output, "--checkpoint", path)
        assert done.exit_code == 0, done.output
        assert onnx.load(output) == calibrate(net(), data()).model


class Part:
    """The batches of the fixture `folder`, until the user presses Ctrl-C."""

    def __iter__(self) -> Iterator[dict[str, Array]]:
        yield from data()[:2]
        raise KeyboardInterrupt


class TestNotes:
    def test_batches_that_differ_from_pass_to_pass_are_told(self) -> None:
        drawn = 0

        class Augmented:
            def __iter__(self) -> Iterator[dict[str, Array]]:
                nonlocal drawn
                drawn += 1
                yield {"x": data()[0]["x"] + np.float32(drawn)}

        assert "were not the same in each pass" in calibrate(net(), Augmented()).report.notes[0]
        assert not calibrate(net(), data()).report.notes


class TestShards:
    @pytest.mark.parametrize("flow", ["levels", "batch"])
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_parts_merge_to_the_bits_of_the_whole(self, flow: Any, estimator: Any, tmp_path: Path) -> None:
        original, after = load(net()), None
        passes = 3 if flow == "levels" else 1
        for number in range(passes):
            parts = []
            for index in (2, 0, 1):
                batches = batches_of(data(SIZES), original)
                state = measure_shard(original, batches, Shard(index, 3), estimator, flow, after=after)
                assert state.done == len(range(index, 5, 3))
                parts.append(str(tmp_path / f"part-{number}-{index}.npz"))
                state.save(parts[-1])
            whole = merge_parts(original, parts)
            after = str(tmp_path / f"state-{number}.npz")
            whole.save(after)
        expected = calibrate(net(), data(SIZES), estimator=estimator, flow=flow)
        report, result = concluded(original, whole, [])
        assert onnx.ModelProto.FromString(_bytes(result)) == expected.model
        assert report.batches == expected.report.batches == 5

    def test_on_the_command_line(self, model: Path, folder: Path, tmp_path: Path) -> None:
        after: list[str | Path] = []
        for number in range(3):
            parts = [tmp_path / f"{number}-{index}.npz" for index in (1, 2)]
            for index, part in enumerate(parts, 1):
                done = run(model, folder, "--shard", f"{index}/2", "-o", part, *after)
                assert done.exit_code == 0, done.output
                assert f"shard {index}/2, pass {number + 1} of 3: {3 - index} batches" in done.stdout
            last = number == 2
            output = tmp_path / ("new.onnx" if last else f"state-{number}.npz")
            if not last:
                refused = run(model, "--merge", *parts, "-o", tmp_path / "new.onnx")
                assert refused.exit_code == 2
                assert "what is written there is none yet" in refused.stderr
            done = run(model, "--merge", *reversed(parts), "-o", output, "--json")
            assert done.exit_code == 0, done.output
            assert json.loads(done.stdout)["written"] == str(output)
            after = ["--after", output]
        assert onnx.load(tmp_path / "new.onnx") == calibrate(net(), data()).model
        refused = run(model, "--merge", *parts, "-o", tmp_path / "new.npz")
        assert refused.exit_code == 2
        assert "no name of a model" in refused.stderr

    def test_parts_that_do_not_belong_together(self, tmp_path: Path) -> None:
        original = load(net())

        def part(index: int, count: int, sizes: tuple[int, ...] = SIZES, **settings: Any) -> str:
            path = str(tmp_path / f"{len(list(tmp_path.iterdir()))}.npz")
            measure_shard(original, batches_of(data(sizes), original), Shard(index, count), **settings).save(path)
            return path

        first, second = part(0, 2), part(1, 2)
        for parts, reason in (
            ([first], "of 2 shards 2 are missing"),
            ([first, first], "is given twice"),
            ([first, part(0, 2)], "is the same shard as"),
            ([first, part(1, 3)], "another number of shards"),
            ([first, part(1, 2, estimator="pooled")], "was made with the estimator pooled, not mean"),
        ):
            with pytest.raises(NormfuseError, match=reason):
                merge_parts(original, parts)
        with pytest.raises(NormfuseError, match="belongs to another model"):
            merge_parts(load(net(opset=17)), [first, second])
        state = str(tmp_path / "state.npz")
        merge_parts(original, [first, second]).save(state)
        with pytest.raises(NormfuseError, match="another pass"):
            merge_parts(original, [first, part(1, 2, after=state)])
        with pytest.raises(NormfuseError, match="is no part that is complete"):
            merge_parts(original, [state])
        with pytest.raises(NormfuseError, match="--after wants what --merge wrote"):
            part(0, 2, after=first)
        other = str(tmp_path / "other.npz")
        merge_parts(original, [part(0, 2, sizes=(2, 2)), part(1, 2, sizes=(2, 2))]).save(other)
        with pytest.raises(NormfuseError, match="was made after other statistics"):
            merge_parts(original, [part(0, 2, after=state), part(1, 2, sizes=(2, 2), after=other)])
        with pytest.raises(NormfuseError, match="of another pass than"):
            part(0, 2, after=state, checkpoint=first)
        with pytest.raises(NormfuseError, match="the first pass had other batches in this shard"):
            part(0, 2, sizes=(2, 2, 3, 4, 5), after=state)
        with pytest.raises(NormfuseError, match="the first pass had other batches, 5 where there are 2 now"):
            part(0, 1, sizes=(4, 2), after=state)
        with pytest.raises(NormfuseError, match="there are no batches for shard 3/3"):
            part(2, 3, sizes=(2, 3))

    def test_a_checkpoint_of_a_pass_behind_other_statistics(self, tmp_path: Path) -> None:
        original = load(net())
        states: list[str] = []
        for factor in (1, 2):
            batches = batches_of([{"x": batch["x"] * np.float32(factor)} for batch in data(SIZES)], original)
            part, states = str(tmp_path / "part.npz"), [*states, str(tmp_path / f"state-{factor}.npz")]
            measure_shard(original, batches, WHOLE).save(part)
            merge_parts(original, [part]).save(states[-1])
        path = str(tmp_path / "checkpoint.npz")
        batches = batches_of(data(SIZES), original)
        with pytest.raises(KeyboardInterrupt):
            measure_shard(original, batches_of(Interrupted(3), original), WHOLE, after=states[0], checkpoint=path)
        with pytest.raises(NormfuseError, match=r"checkpoint\.npz was made after other statistics than .*state-2\.npz"):
            measure_shard(original, batches, WHOLE, after=states[1], checkpoint=path)
        assert measure_shard(original, batches, WHOLE, after=states[0], checkpoint=path).complete

    def test_parts_of_other_data(self, tmp_path: Path) -> None:
        """Each machine has some files of its own, and takes a share of these."""
        original = load(net())

        def part(name: str, shard: Shard, given: list[dict[str, Array]], in_files: bool, **settings: Any) -> str:
            folder, path = tmp_path / f"data-{name}", str(tmp_path / f"part-{name}.npz")
            folder.mkdir()
            for index, batch in enumerate(given):
                np.savez(folder / f"{index}.npz", allow_pickle=False, **batch)
            batches = batches_of(folder if in_files else given, original)
            measure_shard(original, batches, shard, **settings).save(path)
            return path

        one, other = data(SIZES), [{"x": batch["x"] + 1} for batch in data(SIZES)]
        parts = [part("a", Shard(0, 2), one, True), part("b", Shard(1, 2), other, True)]
        with pytest.raises(
            NormfuseError, match=r"part-b\.npz was made of other data than .*; give each shard the batches"
        ):
            merge_parts(original, parts)
        parts = [part("c", Shard(0, 3), one, False), part("d", Shard(1, 3), one[:2], False)]
        with pytest.raises(NormfuseError, match=r"part-d\.npz was made of other data than"):
            merge_parts(original, [*parts, part("e", Shard(2, 3), one[:4], False)])
        uncounted = [(Shard(0, 2), one[:1]), (Shard(1, 2), one)]
        for index, (shard, given) in enumerate(uncounted):
            path = str(tmp_path / f"uncounted-{index}.npz")
            measure_shard(original, batches_of(iter(given), original), shard).save(path)
        with pytest.raises(
            NormfuseError, match=r"uncounted-0\.npz has 1 of 3 batches, where shard 1/2 has 2; give each"
        ):
            merge_parts(original, [str(tmp_path / f"uncounted-{index}.npz") for index in range(2)])

        state = str(tmp_path / "state.npz")
        merge_parts(original, [parts[0], part("f", Shard(1, 3), one, True), part("g", Shard(2, 3), one, True)]).save(
            state
        )
        with pytest.raises(NormfuseError, match="other batches were given before"):
            part("h", Shard(0, 1), other, True, after=state)
        with pytest.raises(NormfuseError, match="5 where there are 3 now"):
            part("i", Shard(0, 1), one[:3], False, after=state)
        with pytest.raises(NormfuseError, match="the shards had other batches in the first pass"):
            merge_parts(original, [part("j", Shard(0, 1), other, False, after=state)])
        with pytest.raises(NormfuseError, match="the shards had other batches in the first pass"):
            merge_parts(original, [part("k", Shard(0, 1), one[::-1], False, after=state)])
        merge_parts(original, [part("l", Shard(0, 1), one, False, after=state)])

    def test_a_shard_is_resumed(self, tmp_path: Path) -> None:
        original, path = load(net()), str(tmp_path / "checkpoint.npz")
        with pytest.raises(KeyboardInterrupt):
            measure_shard(original, batches_of(Interrupted(3), original), Shard(0, 2), checkpoint=path)
        batches = batches_of(data(SIZES), original)
        with pytest.raises(NormfuseError, match="belongs to another shard"):
            measure_shard(original, batches, Shard(1, 2), checkpoint=path)
        resumed = measure_shard(original, batches, Shard(0, 2), checkpoint=path)
        whole = measure_shard(original, batches, Shard(0, 2))
        assert resumed.digest == whole.digest
        for stored, sums in resumed.sums.items():
            np.testing.assert_array_equal(sums.second.digits, whole.sums[stored].second.digits)

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--shard", "3/2", "-o", "p.npz"], "is not a shard of several"),
            (["--shard", "1", "-o", "p.npz"], "is not a shard of several"),
            (["--shard", "1/2", "-o", "p.onnx"], "end it with .npz"),
            (["-o", "new.npz"], "is no name of a model; end it with .onnx"),
            (["--shard", "1/2", "--after", "p.npz", "-o", "p.npz"], "--after and -o name the same file"),
            (
                ["--shard", "1/2", "--after", "p.npz", "--checkpoint", "p.npz", "-o", "q.npz"],
                "--after and --checkpoint name the same file",
            ),
            (["--checkpoint", "p.npz", "-o", "p.npz", "--shard", "1/2"], "--checkpoint and -o name the same file"),
            (["p.npz", "--merge", "-o", "p.npz"], "the part p.npz and -o name the same file"),
            (["--shard", "1/2", "-o", "data/0.npz"], "data/0.npz: it is one of the batches"),
            (["--shard", "1/2", "-o", "data/p.npz"], "it would be taken for a batch"),
            (["-o", "new.onnx", "--checkpoint", "data/p.npz"], "it would be taken for a batch"),
            (["--shard", "1/2", "--dry-run"], "--shard does not go with --dry-run"),
            (["--merge", "--one-pass", "-o", "p.npz"], "--merge does not go with --one-pass"),
            (["--merge", "--estimator", "mean", "-o", "p.npz"], "--merge does not go with --estimator"),
            (["--after", "a.npz", "-o", "p.npz"], "give --shard, too"),
            (["--shard", "1/2", "--after", "a.npz", "-o", "p.npz"], "cannot read a.npz"),
        ],
    )
    def test_usage(
        self,
        arguments: list[str],
        reason: str,
        model: Path,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
        done = run(model, folder, *arguments)
        assert (done.exit_code, reason in done.stderr) == (2, True), done.stderr
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def _bytes(model: Any) -> bytes:
    from normfuse.model import serialize

    return serialize(model)
