"""Weights from a local server that answers like the Hugging Face hub: the same numbers as a file, and every fault."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import file_server
import open_clip
import pytest
import torch
from file_server import Fault
from hub_server import HubServer, path_of
from huggingface_hub import constants
from safetensors.torch import load as loaded
from safetensors.torch import save as safetensors
from test_hugging_face import CONFIG, model, theirs  # noqa: F401  (fixtures)

from fedpgp.clip.model import TINY, load
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError

ROOT = Path(__file__).parents[2]
OPEN, FOREIGN = "owner/open", "owner/foreign"
PREPROCESSOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
FILES = {
    OPEN: ("open_clip_config.json", "open_clip_model.safetensors"),
    FOREIGN: ("config.json", "preprocessor_config.json", "model.safetensors"),
}
WAY_OUT = "or download the checkpoint elsewhere and give backbone.weights=FILE with the open_clip name and"


@pytest.fixture(scope="module")
def server():
    with file_server.serving(HubServer) as server:
        yield server


@pytest.fixture
def hub(server, model, theirs, tmp_path, monkeypatch):  # noqa: F811
    """The server with two repositories of the same model, and an empty cache."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    config = {"model_cfg": copy.deepcopy(TINY) | {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    contents = {
        OPEN: (json.dumps(config).encode(), safetensors(state)),
        FOREIGN: (json.dumps(CONFIG).encode(), json.dumps(PREPROCESSOR).encode(), safetensors(theirs)),
    }
    server.reset()
    server.files = {
        path_of(name, file): content
        for name, files in FILES.items()
        for file, content in zip(files, contents[name], strict=True)
    }
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.address),
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    return server


@pytest.fixture
def tags(hub, monkeypatch):
    """Tags of open_clip's own registry that name files of the server."""
    config = copy.deepcopy(TINY) | {"quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-quickgelu", config)
    about = {"quick_gelu": True, "url": "", "mean": (0.1, 0.2, 0.3)}
    known = {"whole": about | {"hf_hub": f"{OPEN}/"}, "named": about | {"hf_hub": f"{OPEN}/weights.bin"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small", known)


def fetched(name):
    return load(BackboneSettings(name=f"hf-hub:{name}"))


def refusal(name=OPEN, **settings):
    with pytest.raises(BackboneError) as caught:
        load(BackboneSettings(**({"name": f"hf-hub:{name}"} | settings)))
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith("backbone.")
    return told


def cached(tmp_path):
    """Names of all that the cache has of contents."""
    return {path.name for path in tmp_path.glob("cache/*/blobs/*")}


@pytest.fixture(scope="module")
def local_file(model, tmp_path_factory):  # noqa: F811
    """The same weights in a local file."""
    path = tmp_path_factory.mktemp("local") / "local.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def local(local_file):
    """The backbone of the local file."""
    return load(BackboneSettings(name="tiny", weights=str(local_file), activation="quick_gelu"))


@pytest.mark.parametrize("name", [OPEN, FOREIGN])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_repository_gives_the_numbers_of_a_local_file(name, pickled, hub, tmp_path, local):
    if pickled:
        content = hub.files.pop(path_of(name, FILES[name][-1]))
        path = tmp_path / "weights.pt"
        torch.save(loaded(content), path)
        other = {OPEN: "open_clip_pytorch_model.bin", FOREIGN: "pytorch_model.bin"}[name]
        hub.files[path_of(name, other)] = path.read_bytes()
    backbone = fetched(name)
    assert backbone.fingerprint == local.fingerprint
    assert backbone.image.mean == (0.1, 0.2, 0.3)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    assert torch.equal(backbone.model.encode_image(images), local.model.encode_image(images))
    hub.reset()
    assert fetched(name).fingerprint == local.fingerprint
    assert {method for method, _, _ in hub.requests} == {"HEAD"}


def test_tags_give_the_same_numbers(tags, hub, local_file, local):
    assert load(BackboneSettings(name="small-quickgelu", weights="whole")).fingerprint == local.fingerprint
    hub.files[path_of(OPEN, "weights.bin")] = local_file.read_bytes()
    assert load(BackboneSettings(name="small-quickgelu", weights="named")).fingerprint == local.fingerprint
    assert path_of(OPEN, "weights.safetensors") in [path for _, path, _ in hub.requests]
    hub.files[path_of(OPEN, "weights.safetensors")] = hub.files[path_of(OPEN, "open_clip_model.safetensors")]
    hub.reset()
    assert load(BackboneSettings(name="small-quickgelu", weights="named")).fingerprint == local.fingerprint
    assert path_of(OPEN, "weights.bin") not in [path for _, path, _ in hub.requests]


def test_every_tag_of_open_clip_names_a_repository():
    known = open_clip.pretrained
    assert all(known.get_pretrained_cfg(*entry)["hf_hub"].count("/") == 2 for entry in known.list_pretrained())


@pytest.mark.parametrize("name", [OPEN, FOREIGN])
def test_a_cut_connection_is_continued(name, hub, local):
    path = path_of(name, FILES[name][-1])
    hub.faults[path] = Fault(cut=500_000, times=1, methods=("GET",))
    assert fetched(name).fingerprint == local.fingerprint
    assert hub.starts(path) == [0, 500_000]


EVERY_FILE = [(name, file) for name, files in FILES.items() for file in files]


@pytest.mark.parametrize(("name", "file"), EVERY_FILE)
def test_what_breaks_off_is_never_used(name, file, hub, tmp_path, local):
    """Not in this call, and not in the next one."""
    path = path_of(name, file)
    hub.faults[path] = Fault(cut=20, methods=("GET",))
    hub.ranges = False
    told = refusal(name)
    assert f"backbone.weights: hf-hub:{name} cannot be fetched: {hub.address}/{name}: " in told
    assert "check the network and HF_ENDPOINT, try again" in told
    assert WAY_OUT in told
    assert not [blob for blob in cached(tmp_path) if "incomplete" in blob]
    hub.reset()
    assert fetched(name).fingerprint == local.fingerprint


ANSWERS = {
    "gated": (
        Fault(403, headers=(("X-Error-Code", "GatedRepo"),)),
        "is refused; accept the terms there and set HF_TOKEN",
    ),
    "forbidden": (Fault(403, headers=(("X-Error-Code", None),)), "is refused; accept the terms there and set HF_TOKEN"),
    "unauthorized": (
        Fault(401, headers=(("X-Error-Code", "RepoNotFound"),)),
        "or it is private; check the name, set HF_T",
    ),
    "gone": (Fault(404, headers=(("X-Error-Code", "RepoNotFound"),)), "or it is private; check the name, set HF_TOKEN"),
    "failing": (Fault(500, headers=(("X-Error-Code", None),)), "answers with HTTP status 500; try again later"),
    "busy": (Fault(429, headers=(("X-Error-Code", None),)), "answers with HTTP status 429; try again later"),
}


@pytest.mark.parametrize(
    ("name", "file", "answer"),
    [*((OPEN, FILES[OPEN][-1], answer) for answer in ANSWERS), *((*one, "failing") for one in EVERY_FILE)],
)
def test_a_hub_that_refuses_is_explained(name, file, answer, hub, local):
    """Nothing stands in for the file: not other weights, and not the usual preprocessing."""
    hub.faults[path_of(name, file)], why = ANSWERS[answer]
    told = refusal(name)
    assert why in told
    assert f"{hub.address}/{name}" in told
    assert WAY_OUT in told
    hub.reset()
    assert fetched(name).fingerprint == local.fingerprint


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_storage_that_refuses_is_explained(status, hub, tmp_path):
    """The hub answers, the place to which it sends for the content does not."""
    path = path_of(OPEN, "open_clip_model.safetensors")
    hub.faults[path] = Fault(status, methods=("GET",), headers=(("X-Error-Code", None),))
    told = refusal()
    assert {403: "is refused", 404: "HTTP status 404", 500: "HTTP status 500"}[status] in told
    assert len(hub.starts(path)) == 1


def test_other_weights_do_not_stand_in_for_those_that_cannot_come(hub):
    for file in ("open_clip_pytorch_model.bin", "model.safetensors"):
        hub.files[path_of(OPEN, file)] = b"other"
    hub.faults[path_of(OPEN, "open_clip_model.safetensors")] = Fault(500, headers=(("X-Error-Code", None),))
    assert "HTTP status 500" in refusal()


def test_unknown_repositories_and_files(hub):
    assert f"there is no {hub.address}/owner/none, or it is private" in refusal("owner/none")
    assert "cannot be fetched: 'owner/open@other' is not OWNER/MODEL; give such an id" in refusal("owner/open@other")
    del hub.files[path_of(OPEN, "open_clip_model.safetensors")]
    assert refusal() == (
        "backbone.name: hf-hub:owner/open has none of the files open_clip_model.safetensors, "
        "open_clip_pytorch_model.bin, model.safetensors, pytorch_model.bin; give another model"
    )


def test_a_mirror_without_the_codes_of_the_hub(hub, local):
    """It answers 404 to a missing file, and says no more."""
    for file in ("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        hub.faults[path_of(FOREIGN, file)] = Fault(404, headers=(("X-Error-Code", None), ("X-Repo-Commit", None)))
    assert fetched(FOREIGN).fingerprint == local.fingerprint


def test_the_password_of_an_endpoint_is_not_shown(hub, monkeypatch):
    with_password = hub.address.replace("//", "//user:S3CRET@")
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(constants, name, getattr(constants, name).replace(hub.address, with_password))
    hub.faults[path_of(OPEN, "open_clip_config.json")] = Fault(cut=20, methods=("GET",))
    hub.ranges = False
    told = refusal()
    assert "S3CRET" not in told
    assert f"{hub.address.replace('//', '//***@')}/{OPEN}" in told


def test_a_server_that_is_no_hub(hub):
    hub.faults[path_of(OPEN, "open_clip_config.json")] = Fault(headers=(("X-Repo-Commit", None),))
    assert "check the network and HF_ENDPOINT" in refusal()


@pytest.mark.parametrize("size", ["1000", "99999999"])
def test_another_size_than_published_is_refused(size, hub, local):
    path = path_of(OPEN, "open_clip_model.safetensors")
    hub.faults[path] = Fault(headers=(("X-Linked-Size", size),))
    assert f"Consistency check failed: file should be of size {size}" in refusal()
    hub.reset()
    assert fetched(OPEN).fingerprint == local.fingerprint


def test_another_content_than_published_is_refused(hub, local):
    path = path_of(OPEN, "open_clip_model.safetensors")
    whole = hub.files[path]
    hub.digests[path] = hashlib.sha256(whole).hexdigest()
    hub.files[path] = whole[:-1] + bytes([whole[-1] ^ 1])
    for _ in range(2):
        assert "open_clip_model.safetensors arrived damaged: SHA-256" in refusal()
    hub.files[path] = whole
    assert fetched(OPEN).fingerprint == local.fingerprint


def test_a_full_disk_is_named(hub, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert f"no space left in {tmp_path / 'cache'}; free some, set HF_HOME to a folder on another disk" in refusal()
    assert cached(tmp_path) == set()


@pytest.mark.parametrize("name", [OPEN, FOREIGN])
@pytest.mark.parametrize("how", ["offline", "unreachable", "failing"])
def test_without_a_hub_the_cache_is_used(name, how, hub, tmp_path, monkeypatch, local):
    def cut_off():
        if how == "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        elif how == "unreachable":
            nowhere = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.address, "http://127.0.0.1:1")
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        else:
            hub.faults = {path: Fault(503, headers=(("X-Error-Code", None),)) for path in hub.files}

    why = {
        "offline": f"it is not in {tmp_path / 'cache'} and HF_HUB_OFFLINE is set; unset it, copy that folder here",
        "unreachable": f"http://127.0.0.1:1/{name}: ",
        "failing": "answers with HTTP status 503",
    }
    with monkeypatch.context():
        fetched(name)
    (tmp_path / "cache").rename(tmp_path / "kept")
    cut_off()
    assert why[how] in refusal(name)
    (tmp_path / "kept").rename(tmp_path / "again")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "again"))
    assert fetched(name).fingerprint == local.fingerprint
    for path in tmp_path.glob("again/*/.no_exist/*/*"):  # as after `hf download`
        path.unlink()
    assert fetched(name).fingerprint == local.fingerprint


def test_half_a_file_of_a_killed_process_is_not_used(hub, tmp_path, local):
    fetched(OPEN)
    (blob,) = (path for path in tmp_path.glob("cache/*/blobs/*") if len(path.name) == 64)
    blob.rename(blob.with_name(f"{blob.name}.12345678.incomplete"))
    os.truncate(blob.with_name(f"{blob.name}.12345678.incomplete"), 5000)
    assert fetched(OPEN).fingerprint == local.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "environment", "why"),
    [
        ("owner/none", {}, "there is no "),
        (OPEN, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_run_is_refused_before_any_work(name, environment, why, hub, tmp_path):
    """With the variables that a person sets."""
    environment = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), **environment}
    command = ["run", "icons", f"backbone.name=hf-hub:{name}", f"storage.root={tmp_path / 'store'}"]
    done = subprocess.run(
        [sys.executable, "-m", "fedpgp", *command],
        env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    *before, line = done.stderr.splitlines()
    assert line.startswith("error: backbone.weights: ")
    assert why in line
    assert before == ["preparing  reading data and backbone"]
    assert done.stdout == ""
    assert not (tmp_path / "store").exists()
