"""models.packages: networks of transformers and diffusers, whose norms are all found."""

import pytest

torch = pytest.importorskip("torch")

import normfuse  # noqa: E402  # nothing here can run without torch
from models.export import export  # noqa: E402
from models.packages import PACKAGED, missing  # noqa: E402
from scripts import nets  # noqa: E402


class TestMissing:
    def test_names_what_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("models.packages.find_spec", lambda name: None if name == "diffusers" else name)
        assert missing() == ("diffusers",)

    def test_its_nets_are_left_out_with_a_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("models.packages.missing", lambda: ("diffusers",))
        known = nets.entries()
        assert "bert" in known
        assert "vae-decoder" not in known
        assert "no nets of diffusers: run pip install -e .[compare]" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.skipif(bool(missing()), reason=f"{', '.join(missing())} not installed")
@pytest.mark.parametrize("name", PACKAGED)
class TestNetworks:
    def test_all_norms_are_found(self, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = tmp_path_factory.mktemp(name) / "raw.onnx"
        normfuse.save(export(PACKAGED[name], "dynamo", 20, keep_bn=False), path)
        assert nets.norms(path) == nets.Norms(nets.layers(PACKAGED[name]), 0)
