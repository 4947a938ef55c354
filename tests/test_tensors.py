from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from sdfast._core import combine
from sdfast.tensors import Tensor


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("f32", "<f4"), ("f16", "<f2"), ("i32", "<i4"), ("i64", "<i8"), ("u8", "|u1")],
)
def test_every_type_has_the_width_and_format_that_numpy_gives_it(dtype: str, expected: str) -> None:
    tensor = Tensor.empty((2, 3, 5), dtype)
    array = np.asarray(tensor)
    assert array.dtype == np.dtype(expected)
    assert array.shape == tensor.shape == (2, 3, 5)
    assert array.nbytes == tensor.nbytes
    assert (tensor.dtype, tensor.device) == (dtype, "cpu")


def test_memory_is_aligned_to_cache_lines() -> None:
    assert all(Tensor.empty((n,), "u8").pointer % 64 == 0 for n in range(1, 100, 7))


def test_the_buffer_protocol_shares_memory() -> None:
    tensor = Tensor.empty((4,), "f32")
    np.asarray(tensor)[:] = [1, 2, 3, 4]
    assert memoryview(tensor).tolist() == [1, 2, 3, 4]
    assert np.from_dlpack(tensor).tolist() == [1, 2, 3, 4]
    assert np.from_dlpack(tensor).ctypes.data == tensor.pointer


def test_memory_of_another_library_is_shared_and_kept_alive() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    tensor = Tensor.from_dlpack(array)
    assert tensor.pointer == array.ctypes.data
    del array
    assert np.asarray(tensor).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_view_outlives_its_tensor() -> None:
    view = np.asarray(Tensor.empty((1000,), "f32"))
    view[:] = 7
    assert (view == 7).all()


def test_rows_are_the_same_memory() -> None:
    whole = Tensor.empty((5, 3), "i32")
    part = whole.rows(2, 4)
    assert (part.shape, part.dtype, part.nbytes) == ((2, 3), "i32", 24)
    assert part.pointer == whole.pointer + 2 * 3 * 4
    np.asarray(whole)[:] = np.arange(15).reshape(5, 3)
    assert np.asarray(part).tolist() == [[6, 7, 8], [9, 10, 11]]
    assert part.rows(1, 2).pointer == whole.rows(3, 4).pointer


def test_rows_keep_their_tensor_alive() -> None:
    array = np.arange(4000, dtype=np.float32).reshape(4, 1000)
    held = weakref.ref(array)
    part = Tensor.from_dlpack(array).rows(3, 4)
    del array
    gc.collect()
    assert held() is not None
    assert np.asarray(part)[0, -1] == 3999
    del part
    gc.collect()
    assert held() is None


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 2), (0, 6), (5, 6)])
def test_rows_that_are_not_there_are_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not in a tensor of 5 rows"):
        Tensor.empty((5, 3), "f32").rows(start, stop)


def test_a_number_has_no_rows() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        Tensor.empty((), "f32").rows(0, 1)


@pytest.mark.parametrize(
    ("shape", "dtype", "word"),
    [((2,), "f64", "f64"), ((0,), "f32", "positive")],
)
def test_what_cannot_be_made_says_why(shape: tuple[int, ...], dtype: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Tensor.empty(shape, dtype)


def test_memory_of_another_owner_lives_while_a_tensor_refers_to_it() -> None:
    class Memory:
        def __init__(self) -> None:
            self.values = np.arange(6, dtype=np.float32)

    owner = Memory()
    held, pointer = weakref.ref(owner), owner.values.ctypes.data
    tensor = Tensor.of_memory(pointer, (3, 2), "f32", owner)
    del owner
    row = tensor.rows(1, 2)
    del tensor
    assert np.asarray(row).tolist() == [[2.0, 3.0]]
    assert held() is not None
    del row
    gc.collect()
    assert held() is None


def test_a_tensor_of_a_gpu_is_not_read_here() -> None:
    memory = np.zeros(4, np.float32)  # never touched: what is tested is that nobody does
    tensor = Tensor.of_memory(memory.ctypes.data, (1, 4), "f32", memory, gpu=1)
    assert tensor.device == "cuda:1"
    assert tensor.rows(0, 1).device == "cuda:1"
    assert tensor.__dlpack_device__() == (2, 1)
    with pytest.raises(BufferError, match="GPU"):
        memoryview(tensor)
    with pytest.raises(ValueError, match="on a GPU"):
        combine(tensor, [1.0], [tensor])


@pytest.mark.parametrize("pointer", [0, 3])
def test_memory_at_no_such_address_is_refused(pointer: int) -> None:
    with pytest.raises(ValueError, match="address"):
        Tensor.of_memory(pointer, (2,), "f32", object())


def test_a_strided_array_is_refused() -> None:
    with pytest.raises(TypeError):
        Tensor.from_dlpack(np.zeros((4, 4), np.float32)[:, ::2])


def test_an_empty_array_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Tensor.from_dlpack(np.zeros((0, 4), np.float32))


def test_a_read_only_array_is_refused() -> None:
    array = np.zeros(4, np.float32)
    array.flags.writeable = False
    with pytest.raises(TypeError):
        Tensor.from_dlpack(array)


def test_a_tensor_that_was_never_made_has_no_bytes_to_show() -> None:
    with pytest.raises(BufferError, match="no memory"):
        memoryview(Tensor.__new__(Tensor))


def test_memory_that_is_not_aligned_is_refused() -> None:
    array = np.frombuffer(bytearray(257), np.uint8)[1:].view(np.float32)
    with pytest.raises(ValueError, match="aligned"):
        Tensor.from_dlpack(array)
