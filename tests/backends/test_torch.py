from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import feeds
import numpy as np
import onnx
import pytest
import torch
import torch._inductor.config as inductor

from sdfast import backends, compiled, cpu
from sdfast.backends import Options, torch_lowering, torch_network
from sdfast.backends import torch as backend
from sdfast.errors import BackendUnavailable, BundleError, EngineError
from sdfast.tensors import Tensor

from .test_engines import DEMO, EXACT, tensors

NETWORKS = tuple(DEMO.manifest.networks)


def in_half(name: str, precision: str) -> tuple[feeds.Arrays, feeds.Arrays]:
    """A demo network's outputs in a precision, and the exact ones."""
    file = DEMO.network(name)
    given = feeds.feed(DEMO.manifest.networks[name].inputs)
    return feeds.in_precision(file, precision, given), feeds.expected(file, given)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_computed_as_by_onnx_runtime(name: str) -> None:
    file = DEMO.network(name)
    given = feeds.feed(DEMO.manifest.networks[name].inputs)
    want = feeds.expected(file, given)
    got = feeds.computed(file, given, want, "torch", EXACT)
    # A pixel between two levels may be rounded to either.
    assert feeds.distance(got, want) <= (1 if "image" in want else 1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "unet_adapters"])  # as unet, slowly
def test_half_precision_rounds_products_and_nothing_that_is_exact(
    name: str, precision: str
) -> None:
    got, want = in_half(name, precision)
    apart = feeds.distance(got, want)
    if "image" in want:
        assert 0 < apart <= (16 if precision == "bf16" else 3)
    else:
        # Sines of angles in half precision would be noise.
        assert 1e-5 < apart < (5e-2 if precision == "bf16" else 6e-3)


def test_activations_are_freed_when_nothing_reads_them_any_more() -> None:
    network = torch_lowering.lowered(DEMO.network("unet"), "fp32")
    freed = [name for call in network.calls for name in call.frees]
    assert len(freed) == len(set(freed))
    made = {name for call in network.calls for name in call.outputs}
    kept = set(network.outputs)
    assert made - kept == set(freed) & made
    assert not kept & set(freed)


def graph(folder: Path, body: str, *initializers: onnx.TensorProto) -> Path:
    model = onnx.parser.parse_model(
        f'<ir_version: 11, opset_import: ["": 23]> net (float[R,4] x) => (float[R,k] y) {{{body}}}'
    )
    model.graph.initializer.extend(initializers)
    file = folder / "net.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def test_weights_stay_in_their_file_but_in_another_type(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    (tmp_path / "net.safetensors").write_bytes(b"head" + values.tobytes())
    weight = onnx.TensorProto(
        name="w", dims=[4, 3], data_type=1, data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in (("location", "net.safetensors"), ("offset", "4"), ("length", "48")):
        weight.external_data.add(key=key, value=value)
    file = graph(tmp_path, "y = MatMul (x, w)", weight)
    given = {"x": np.eye(4, dtype=np.float32)}
    assert (feeds.computed(file, given, {"y": values}, "torch", EXACT)["y"] == values).all()
    weights = torch_network.read(torch_lowering.lowered(file, "fp32"), "cpu")
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(tmp_path / "net.safetensors"))
    ]
    assert any(start <= weights["w"].data_ptr() < end for start, end in ranges)
    half = torch_network.read(torch_lowering.lowered(file, "bf16"), "cpu")["w"]
    assert half.dtype == torch.bfloat16
    assert (half.float().numpy() == values).all()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("y = Selu (x)", "operator Selu, which .* is not known"),
        ("y = Softmax <axis = 1, wide = 1> (x)", r"Softmax .*wide"),
        ('y = Resize <mode = "cubic"> (x, , x)', "Resize"),
        ("s = Abs (x)\ny = Reshape (x, s)", "operator Abs"),
        ("s = Relu (x)\ny = Reshape (x, s)", "Reshape .* depends on s"),
        ("s = Shape (x)\ny = Add (x, s)", "Add .* reads s"),
        ("y = Relu (z)", "reads z"),
        ("z = Relu (x)", "nothing computes y"),
        ("y = Cast <to = 11> (x)", "element type 11"),
    ],
)
def test_what_pytorch_would_compute_otherwise_is_refused(
    tmp_path: Path, body: str, said: str
) -> None:
    file = graph(tmp_path, body)
    with pytest.raises(BundleError, match=rf"net\.onnx cannot be run by PyTorch here \(.*{said}"):
        backends.open_engine(file, "torch", EXACT)


def test_weights_that_are_not_all_there_are_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO.path, tmp_path / "copied"))
    file = folder / "vae.safetensors"
    file.write_bytes(file.read_bytes()[:-400_000])
    engine = backends.open_engine(folder / "vae_decoder.onnx", "torch", EXACT)
    latent, image = Tensor.zeros((1, 4, 8, 8), "f32"), Tensor.empty((1, 64, 64, 3), "u8")
    with pytest.raises(BundleError, match="cannot be read"):
        engine.bind({"latent": latent, "image": image})


class Store:
    """Where compiled networks are kept, and what was made."""

    def __init__(self, place: Path) -> None:
        self.place, self.made = place, list[dict[str, str]]()
        self.options = Options(precision="fp32", keep=self.keep)

    def keep(self, key: Any, build: compiled.Build) -> Path | None:
        def counted(folder: Path) -> None:
            self.made.append(dict(key))
            build(folder)

        return compiled.entry(self.place, key, counted)


@pytest.mark.slow
def test_a_compiled_network_is_kept_and_computes_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = DEMO.network("unet_shallow")
    given = feeds.feed(DEMO.manifest.networks["unet_shallow"].inputs)
    want = feeds.expected(file, given)
    first, again = (feeds.computed(file, given, want, "torch", store.options) for _ in range(2))
    (key,) = store.made
    assert feeds.distance(first, want) < 1e-4
    assert (first["noise"] == again["noise"]).all()
    (folder,) = (f for f in (tmp_path / "engines").iterdir() if f.is_dir())
    assert {f.name for f in folder.iterdir()} == {"entry.json", "network.pt2"}
    assert json.loads((folder / "entry.json").read_text())["key"] == key
    assert key["backend"] == "torch"
    assert "('latent', (2, 4, 8, 16))" in key["shapes"]
    # Kernels alone: the weights stay in the bundle.
    weights = sum(f.stat().st_size for f in DEMO.path.glob("unet*.safetensors"))
    assert (folder / "network.pt2").stat().st_size < weights / 2


def test_networks_without_convolutions_are_not_compiled(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = DEMO.network("time_projection")
    given = feeds.feed(DEMO.manifest.networks["time_projection"].inputs)
    want = feeds.expected(file, given)
    got = feeds.computed(file, given, want, "torch", store.options)
    assert feeds.distance(got, want) < 1e-4
    assert not store.made


def test_the_compiled_forms_of_the_latest_two_shapes_are_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = []

    def package(network: Any, example: list[Any], file: Path, threads: int) -> None:
        made.append(example[0].shape[0])
        file.write_bytes(b"compiled")

    monkeypatch.setattr(backend, "_package", package)
    monkeypatch.setattr(backend, "_loaded", lambda file, gpu: file)
    for low_memory, held in ((False, [1, 3]), (True, [3])):
        options = Options(precision="fp32", low_memory=low_memory, keep=Store(tmp_path).keep)
        engine = backend.open(DEMO.network("unet"), options)
        for rows in (1, 2, 1, 3):
            engine.bind(tensors(rows, 8))
        assert [shapes[0][1][0] for shapes in engine._compiled] == held
    assert made == [1, 2, 3]  # and then they are in the store


def test_a_compilation_that_fails_says_what_to_do(tmp_path: Path) -> None:
    # Not by monkeypatch, which would leave the setting hidden.
    missing = {"cpp.cxx": (str(tmp_path / "missing-compiler"),)}
    engine = backends.open_engine(DEMO.network("unet_shallow"), "torch", Store(tmp_path).options)
    given = feeds.feed(engine.inputs)
    bound = {n: Tensor.from_dlpack(a) for n, a in given.items()}
    failing = pytest.raises(BackendUnavailable, match="PyTorch cannot compile a network")
    with inductor.patch(missing), failing:
        engine.bind(bound | {"noise": Tensor.empty((2, 4, 8, 16), "f32")})


def test_it_is_unusable_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.reason_unusable() is None
    if not torch.cuda.is_available():
        assert "CUDA" in (backend.reason_unusable("cuda") or "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler, which is missing" in (backend.reason_unusable() or "")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert 'pip install "sdfast[torch]"' in (backend.reason_unusable() or "")


def test_precisions_are_those_that_the_device_is_fast_in() -> None:
    fast = {"avx512_bf16", "amx_bf16"} & set(cpu.features())
    assert backend.precision("auto") == ("bf16" if fast else "fp32")
    with pytest.raises(BackendUnavailable, match="--precision bf16 or fp32"):
        backend.precision("fp16")
    assert [backend.precision(asked, "cuda") for asked in ("auto", "fp32")] == ["fp16", "fp32"]


def test_an_output_of_another_shape_is_no_result() -> None:
    engine = backends.open_engine(DEMO.network("unet"), "torch", EXACT)
    wrong = tensors(1, 8) | {"noise": Tensor.empty((2, 4, 8, 8), "f32")}  # to which one would fit
    engine.bind(wrong)
    with pytest.raises(EngineError, match=r"noise is \(1, 4, 8, 8\)"):
        engine.run()


def test_threads_are_those_of_the_engine_and_others_keep_theirs() -> None:
    before = torch.get_num_threads()
    seen = []
    engine = backend.open(DEMO.network("unet"), Options(precision="fp32", threads=before + 1))
    engine.bind(tensors(1, 8))
    program = engine._program
    assert program is not None

    def watched(*given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return program(*given)

    engine._program = watched
    engine.run()
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_a_run_writes_what_the_exact_one_does_where_memory_is_not_aligned() -> None:
    engine = backends.open_engine(DEMO.network("unet"), "torch", EXACT)
    bound = tensors(2, 8)
    engine.bind(bound)
    engine.run()
    want = np.array(bound["noise"])[1:]
    rows = {name: tensor.rows(1, 2) for name, tensor in bound.items()}
    engine.bind(rows)
    engine.run()
    assert np.abs(np.asarray(bound["noise"])[1:] - want).max() < 1e-4
