from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sdfast import backends, store
from sdfast.backends import Options
from sdfast.errors import BackendUnavailable, BundleError, EngineError
from sdfast.tensors import Tensor, TensorSpec

DEMO = store.load("demo")
EXACT = Options(precision="fp32")


@pytest.fixture(params=backends.BACKENDS["cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tensors(rows: int, side: int, seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    unet = DEMO.manifest.networks["unet"]
    times, keys_values = (unet.inputs[name].shape[-1] for name in ("time", "keys_values"))
    features = unet.outputs["features"].shape[1]
    arrays = {
        "latent": rng.standard_normal((rows, 4, side, side), np.float32),
        "time": rng.standard_normal((rows, times), np.float32),
        "keys_values": rng.standard_normal((rows, 77, keys_values), np.float32),
        "noise": np.full((rows, 4, side, side), np.nan, np.float32),
        "features": np.empty((rows, features, side, side), np.float32),
    }
    return {name: Tensor.from_dlpack(array) for name, array in arrays.items()}


def test_tensors_are_those_of_the_manifest(backend: str) -> None:
    for name, network in DEMO.manifest.networks.items():
        engine = backends.open_engine(DEMO.network(name), backend)
        assert dict(engine.inputs) == network.inputs
        assert dict(engine.outputs) == network.outputs
        engine.close()
    unet = DEMO.manifest.networks["unet"]
    assert unet.inputs["latent"] == TensorSpec("f32", (None, 4, None, None))


def test_results_land_in_the_bound_memory_at_every_shape(backend: str) -> None:
    engine = backends.open_engine(DEMO.network("unet"), backend, EXACT)
    for rows, side in [(2, 16), (1, 8), (3, 24), (2, 16)]:
        bound = tensors(rows, side)
        engine.bind(bound)
        engine.run()
        assert np.isfinite(np.asarray(bound["noise"])).all()


def test_a_row_does_not_depend_on_its_neighbours(backend: str) -> None:
    engine = backends.open_engine(DEMO.network("unet"), backend, EXACT)
    pair = tensors(2, 16)
    engine.bind(pair)
    engine.run()
    for row in range(2):
        single = {
            name: Tensor.from_dlpack(np.array(tensor)[row : row + 1])
            for name, tensor in pair.items()
        }
        engine.bind(single)
        engine.run()
        both = np.asarray(pair["noise"])[row]
        # Matrix products of another height may sum in another order.
        assert np.abs(np.asarray(single["noise"])[0] - both).max() < 1e-4


def test_binding_sees_later_changes_of_its_memory(backend: str) -> None:
    engine = backends.open_engine(DEMO.network("unet"), backend, EXACT)
    bound = tensors(1, 8)
    engine.bind(bound)
    engine.run()
    before = np.array(bound["noise"])
    np.asarray(bound["latent"])[:] *= -1
    engine.run()
    assert not np.allclose(before, np.asarray(bound["noise"]))


def test_a_tensor_of_another_type_is_refused(backend: str) -> None:
    engine = backends.open_engine(DEMO.network("unet"), backend, EXACT)
    bound = tensors(1, 8) | {"time": Tensor.empty((1, 704), "i64")}
    with pytest.raises(ValueError, match="time is i64"):
        engine.bind(bound)


def test_a_run_that_fails_says_what_to_do(backend: str) -> None:
    engine = backends.open_engine(DEMO.network("unet"), backend, EXACT)
    wrong = tensors(1, 8) | {"noise": Tensor.empty((1, 4, 16, 8), "f32")}

    def run() -> None:
        engine.bind(wrong)
        engine.run()

    with pytest.raises(EngineError, match=r"unet\.onnx failed .*: a smaller picture"):
        run()


def test_a_file_that_is_no_network_is_named(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"\x08\x09not a graph")
    with pytest.raises(BundleError, match=r"broken\.onnx cannot be run"):
        backends.open_engine(file, backend)
    with pytest.raises(BundleError, match=r"missing\.onnx cannot be run"):
        backends.open_engine(tmp_path / "missing.onnx", backend)


def test_weights_outside_the_bundle_are_not_read(backend: str, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(400))
    weight = onnx.TensorProto(
        name="w", dims=[100], data_type=1, data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in (("location", "../secret.bin"), ("length", "400")):
        weight.external_data.add(key=key, value=value)
    output = onnx.helper.make_tensor_value_info("y", 1, [100])
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [output], [weight])
    opset = [onnx.helper.make_opsetid("", 23)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=11)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"net\.onnx cannot be run.*(outside|escape)"):
        backends.open_engine(folder / "net.onnx", backend)


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(
        BackendUnavailable, match=r"did you mean 'onnxruntime'.*auto, openvino, onnxruntime"
    ):
        backends.open_engine(DEMO.network("unet"), "onnxruntim")


def test_usable_says_so() -> None:
    assert backends.usable() == {"openvino": None, "onnxruntime": None, "torch": None}
    assert backends.choose() == "openvino"


def test_one_backend_computes_what_the_others_do() -> None:
    found = []
    for name in backends.BACKENDS["cpu"]:
        engine = backends.open_engine(DEMO.network("unet"), name, EXACT)
        bound = tensors(2, 16)
        engine.bind(bound)
        engine.run()
        found.append(np.array(bound["noise"]))
    for other in found[1:]:
        assert np.abs(found[0] - other).max() < 1e-4 * np.abs(found[0]).max()


def test_an_engine_that_was_closed_opens_again(backend: str) -> None:
    engine = backends.open_engine(DEMO.network("unet"), backend, EXACT)
    bound = tensors(2, 16)
    engine.bind(bound)
    engine.run()
    before = np.array(bound["noise"])
    engine.close()
    np.asarray(bound["noise"])[:] = np.nan
    engine.bind(bound)
    engine.run()
    assert (before == np.asarray(bound["noise"])).all()


def test_no_backend_takes_a_precision_that_is_none(backend: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"precision 'fp8' is unknown.*auto, fp32, bf16"):
        backends.precision(backend, "fp8")
    assert backends.precision(backend, "fp32") == "fp32"
