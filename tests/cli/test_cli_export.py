"""`fedpgp export` and `fedpgp predict` as a person uses them: what they print, and their exit codes."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from fedpgp.storage.run_folder import RunFolder

SMALL = (
    "protocol.shots=1", "partition.clients=2", "method.n_ctx=1", "method.rank=1", "federation.rounds=1",
    "federation.local_epochs=1", "resources.backend=serial", "tracking.mlflow=false", "storage.root=store",
)  # fmt: skip


@pytest.fixture
def run(fedpgp, tmp_path, monkeypatch):
    """Folder of a small finished run."""
    monkeypatch.chdir(tmp_path)
    code, out, err = fedpgp("run", "shapes", *SMALL)
    assert code == 0, err
    return out.rsplit("run: ", 1)[1].strip()


def test_a_prompt_leaves_and_classifies(fedpgp, run, tmp_path):
    for _ in range(2):  # the second takes the place of the first
        code, out, err = fedpgp("export", run, "--client", "client 1", "--out", "home")
        assert (code, err) == (0, "")
        assert out.splitlines() == [
            "prompt: home/prompt.safetensors",
            "card: home/prompt.json",
            "MLflow model: home/mlflow-model",
        ]
    assert json.loads((tmp_path / "home" / "prompt.json").read_text())["whose"] == "client 1"
    Image.new("RGB", (32, 32), (200, 20, 20)).save("red.png")
    code, out, _ = fedpgp(
        "predict", "red.png", "--prompt", "home/prompt.safetensors", "--classes", "owl,oak tree", "--top", "1"
    )
    assert code == 0
    assert "red.png" in out
    assert ("owl" in out) != ("oak tree" in out)


def test_photos_are_classified_upright(fedpgp, run, tmp_path):
    import fedpgp as api

    exif = Image.Exif()
    exif[0x112] = 6
    upright = Image.new("RGB", (32, 32), "red")
    upright.paste("blue", (0, 0, 32, 10))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save("photo.png", exif=exif)
    lying.save("lying.png")
    upright.save("upright.png")
    prompt = api.Run(run).prompt("global")
    by_image = {
        name: one["probability"].tolist()
        for name, one in prompt.predict(["photo.png", "upright.png", "lying.png", Image.open("photo.png")]).groupby(
            "image"
        )
    }
    assert by_image["photo.png"] == by_image["upright.png"] == by_image["image 3"] != by_image["lying.png"]


def test_what_is_refused_ends_with_2_and_writes_nothing(fedpgp, run, tmp_path):
    def refused(*arguments):
        code, out, err = fedpgp("export", run, *arguments)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        return err

    assert "has no client 'nobody'" in refused("--client", "nobody", "--out", "home")
    assert "Missing option '--client'" in refused("--out", "home")
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        assert f"--out: {tmp_path}/file is not a writable folder" in refused("--client", "0", "--out", place)
    with RunFolder.open(tmp_path / run).lock():
        assert "the run is running, only a finished one is exported; wait for it" in refused(
            "--client", "0", "--out", "home"
        )
    assert "the run is interrupted" in refused("--client", "0", "--out", "home")
    RunFolder.open(tmp_path / run).fail("disk full")
    assert "the run is failed" in refused("--client", "0", "--out", "home")
    assert not (tmp_path / "home").exists()
