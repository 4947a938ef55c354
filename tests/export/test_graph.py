from __future__ import annotations

import numpy as np
import onnx
import pytest

from sdfast.export.graph import OPSET, Graph, Weight, operators

SHAPES = {"a.weight": (4, 3), "b.weight": (2, 3), "blocks.0.bias": (4,), "blocks.1.bias": (4,)}


@pytest.fixture
def g() -> Graph:
    return Graph(SHAPES)


def test_outputs_have_their_nodes_names_numbered_where_these_are_taken(g: Graph) -> None:
    x = g.input("x", "f32", ["rows", 3])
    names = [g.add("Relu", x, name="x"), g.add("Relu", x, name="y"), g.add("Relu", x, name="y")]
    assert names == ["x.2", "y", "y.2"]
    assert g.split("Split", x, names=["k", "v"], axis=0, num_outputs=2) == ["k", "v"]
    assert [node.name for node in g.model().graph.node] == ["x.2", "y", "y.2", "k"]


def test_a_value_that_is_given_out_is_read_by_its_new_name(g: Graph) -> None:
    x = g.add("Relu", g.input("x", "f32", ["rows"]), name="hidden")
    y = g.add("Add", x, x, name="sum")
    g.output("first", "f32", ["rows"], x)
    g.output("second", "f32", ["rows"], y)
    first, second = g.model().graph.node
    assert list(first.output) == list(second.input[:1]) == ["first"]
    assert (list(second.output), first.name) == (["second"], "hidden")


def test_an_input_may_be_given_out_as_it_is(g: Graph) -> None:
    g.output("same", "f32", ["rows"], g.input("x", "f32", ["rows"]))
    model = g.model()
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == {"Identity": 1}


def test_equal_constants_are_stored_once(g: Graph) -> None:
    assert g.number(2.0) == g.number(2.0) != g.number(3.0)
    assert g.integers([1, 2]) == g.integers([1, 2]) != g.integers([2, 1])
    zero = np.zeros(1, np.float32)
    # Equal numbers of another type, shape or sign are others.
    others = [zero, zero.astype(np.int64), zero.reshape(1, 1), -zero]
    assert len({g.constant(values, "zero") for values in others}) == 4
    assert len(g.model().graph.initializer) == 8


def test_a_weight_is_named_once_for_each_form(g: Graph) -> None:
    plain, turned = g.weight("a.weight"), g.weight("a.weight", turned=True)
    assert (plain, g.weight("a.weight"), turned) == ("a.weight", "a.weight", "a.weight.2")
    assert g.weight("a.weight", turned=True) == turned
    both = g.weight("ab.weight", ["a.weight", "b.weight"], turned=True)
    sides = g.weight("blocks.0.bias", shape=(4, 1, 1))
    last = g.weight("last", ["a.weight"], rows=(2, 4), turned=True)
    assert g.weights == {
        plain: Weight(("a.weight",), None, False, (4, 3)),
        turned: Weight(("a.weight",), None, True, (3, 4)),
        both: Weight(("a.weight", "b.weight"), None, True, (3, 6)),
        sides: Weight(("blocks.0.bias",), None, False, (4, 1, 1)),
        last: Weight(("a.weight",), (2, 4), True, (3, 2)),
    }


def test_weights_are_in_the_graph_by_name_and_shape_alone(g: Graph) -> None:
    g.weight("a.weight", turned=True)
    (pointer,) = g.model().graph.initializer
    assert pointer.data_location == onnx.TensorProto.EXTERNAL
    assert (pointer.name, list(pointer.dims), pointer.raw_data) == ("a.weight", [3, 4], b"")


def test_modules_are_found_by_their_weights(g: Graph) -> None:
    assert g.children("blocks") == ["blocks.0", "blocks.1"]
    assert g.children("a") == []
    assert g.has("blocks.1")
    assert g.has("a.weight")
    assert not g.has("block")


def test_the_model_says_its_opset_and_what_varies(g: Graph) -> None:
    x = g.input("x", "f32", ["rows", 3])
    g.output(
        "y", "f32", ["rows", 4], g.add("MatMul", x, g.weight("a.weight", turned=True), name="")
    )
    assert g.inputs() == {"x": ["rows", 3]}
    model = g.model()
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "rows"


def test_operators_are_counted_the_most_frequent_first(g: Graph) -> None:
    x = g.input("x", "f32", ["rows"])
    for kind in ("Relu", "Neg", "Abs", "Neg"):
        x = g.add(kind, x, name=kind)
    assert list(operators(g.model()).items()) == [("Neg", 2), ("Abs", 1), ("Relu", 1)]
