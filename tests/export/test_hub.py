"""Checkpoints on the hub, through its real client against a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from sdfast.errors import CheckpointError
from sdfast.export import hub, random_checkpoint, sources


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint("tiny-sdxl", tmp_path_factory.mktemp("hub") / "sdxl")


@pytest.fixture
def served(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serves tiny SDXL as owner/model, with files no one needs. Yields the files asked for."""
    root = Path(shutil.copytree(tiny, tmp_path / "served"))
    (root / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not needed")
    (root / "model.safetensors").write_bytes(b"not needed")
    files = {str(file.relative_to(root)): file for file in root.rglob("*") if file.is_file()}
    commit = "a" * 40
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/owner/model/tree/"):
                body = json.dumps([described(name) for name in files]).encode()
            elif path.startswith("/api/models/owner/model"):
                names = [{"rfilename": name} for name in files]
                body = json.dumps({"id": "owner/model", "sha": commit, "siblings": names}).encode()
            elif path.startswith("/owner/model/resolve/"):
                asked.append(path.split("/", 5)[5])
                body = files[asked[-1]].read_bytes()
            else:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
            return None

        def log_message(self, *_: object) -> None:
            pass

    def described(name: str) -> dict[str, object]:
        body = files[name].read_bytes()
        oid = hashlib.sha1(body).hexdigest()
        return {"type": "file", "path": name, "size": len(body), "oid": oid}

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield asked
    server.shutdown()
    server.server_close()


def test_a_hub_id_is_downloaded_once_and_read_offline_from_the_cache(
    tiny: Path, served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = sources.read("owner/model")
    assert read.source == f"owner/model@{'a' * 40}"
    theirs = sources.read(tiny)
    for part, component in theirs.components.items():
        ours = read.components[part].weights
        assert all(torch.equal(ours[name], w) for name, w in component.weights.items())
    assert "unet/diffusion_pytorch_model.safetensors" in served
    assert not [name for name in served if "fp16" in name or name == "model.safetensors"]
    served.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert sources.read("owner/model", revision="main").source == read.source
    assert served == []
    with pytest.raises(CheckpointError, match=r"offline mode.*give its folder"):
        sources.read("owner/other")


def test_an_unknown_hub_id_is_told(served: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"there is no folder owner/other, and the hub's"):
        sources.read("owner/other")


def test_only_one_form_of_each_weight_is_needed_from_the_hub() -> None:
    names = ["model_index.json", "README.md", "v1-5-pruned.ckpt", "model.safetensors"]
    names += [f"unet/diffusion_pytorch_model{end}" for end in (".bin", ".fp16.safetensors")]
    names += ["unet/config.json", "safety_checker/model.safetensors", "unet/model.onnx"]
    shards = [f"vae/diffusion_pytorch_model-{k}-of-2.safetensors" for k in (1, 2)]
    names += [*shards, "vae/diffusion_pytorch_model.safetensors.index.json"]
    names += ["vae/diffusion_pytorch_model.fp16-1-of-1.safetensors", "text_encoder/model.bin"]
    expected = {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors.index.json",
        *shards,
    }
    assert hub.needed(names, allow_pickle=False) == expected
    assert hub.needed(names, allow_pickle=True) == expected | {"text_encoder/model.bin"}
    # A ControlNet has its files at the top.
    alone = ["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"]
    assert hub.needed(alone, allow_pickle=True) == {alone[0], alone[2]}
