#include "tensor.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;

namespace sdfast {
namespace {

struct TypeInfo {
    Type type;
    const char* name;
    std::int64_t size;
    const char* format;  // of Python's struct module
    nb::dlpack::dtype dlpack;
};

const TypeInfo TYPES[] = {
    {Type::f32, "f32", 4, "f", {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 32, 1}},
    {Type::f16, "f16", 2, "e", {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 16, 1}},
    {Type::i32, "i32", 4, "i", {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Int), 32, 1}},
    {Type::i64, "i64", 8, "q", {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Int), 64, 1}},
    {Type::u8, "u8", 1, "B", {static_cast<std::uint8_t>(nb::dlpack::dtype_code::UInt), 8, 1}},
};

const TypeInfo& info(Type type) { return TYPES[static_cast<int>(type)]; }

Tensor make(std::shared_ptr<void> memory, void* data, Type type, std::vector<std::int64_t> shape, int gpu = -1) {
    std::vector<std::int64_t> strides(shape.size());
    std::int64_t step = info(type).size;
    for (std::size_t k = shape.size(); k-- > 0; step *= shape[k]) strides[k] = step;
    return {std::move(memory), data, type, std::move(shape), std::move(strides), gpu};
}

const TypeInfo& named(const std::string& dtype) {
    for (const auto& known : TYPES)
        if (dtype == known.name) return known;
    throw std::invalid_argument("dtype '" + dtype + "' is unknown; use f32, f16, i32, i64 or u8");
}

std::int64_t bytes_of(const TypeInfo& type, const std::vector<std::int64_t>& shape) {
    std::int64_t bytes = type.size;
    for (const auto side : shape) {
        if (side < 1 || side > (std::int64_t{1} << 40) / bytes)
            throw std::invalid_argument("a tensor's sides must be positive and its size below 1 TiB");
        bytes *= side;
    }
    return bytes;
}

Tensor empty(std::vector<std::int64_t> shape, const std::string& dtype) {
    const TypeInfo& type = named(dtype);
    // 64 bytes: a cache line and an AVX-512 register; whole lines, so that no two tensors share one.
    void* data = std::aligned_alloc(64, static_cast<std::size_t>((bytes_of(type, shape) + 63) / 64 * 64));
    if (data == nullptr) throw std::bad_alloc();
    return make(std::shared_ptr<void>(data, std::free), data, type.type, std::move(shape));
}

// Memory that `owner` holds until nothing refers to it any more.
Tensor of_memory(std::uintptr_t pointer, std::vector<std::int64_t> shape, const std::string& dtype, nb::object owner, int gpu) {
    const TypeInfo& type = named(dtype);
    bytes_of(type, shape);
    if (pointer == 0 || pointer % static_cast<std::uintptr_t>(type.size) != 0)
        throw std::invalid_argument("a tensor's memory must lie at an address that its type divides");
    void* data = reinterpret_cast<void*>(pointer);
    auto kept = std::shared_ptr<void>(owner.release().ptr(), [](void* held) {
        nb::gil_scoped_acquire gil;
        nb::handle(static_cast<PyObject*>(held)).dec_ref();
    });
    return make(std::move(kept), data, type.type, std::move(shape), gpu);
}

Tensor zeros(std::vector<std::int64_t> shape, const std::string& dtype) {
    Tensor made = empty(std::move(shape), dtype);
    std::memset(made.data, 0, static_cast<std::size_t>(made.bytes()));
    return made;
}

Tensor rows(const Tensor& tensor, std::int64_t start, std::int64_t stop) {
    const std::int64_t count = tensor.shape.empty() ? 0 : tensor.shape[0];
    if (start < 0 || start >= stop || stop > count)
        throw std::invalid_argument("rows " + std::to_string(start) + " to " + std::to_string(stop) +
                                    " are not in a tensor of " + std::to_string(count) + " rows");
    std::vector<std::int64_t> shape = tensor.shape;
    shape[0] = stop - start;
    return make(tensor.memory, static_cast<char*>(tensor.data) + start * tensor.strides_bytes[0], tensor.type, std::move(shape), tensor.gpu);
}

Tensor from_dlpack(nb::ndarray<nb::c_contig, nb::device::cpu> array) {
    for (const auto& known : TYPES) {
        if (array.dtype() != known.dlpack) continue;
        if (array.size() == 0) throw std::invalid_argument("the array is empty; a tensor's sides must be positive");
        std::vector<std::int64_t> shape;
        for (std::size_t k = 0; k < array.ndim(); ++k) shape.push_back(static_cast<std::int64_t>(array.shape(k)));
        void* data = array.data();
        if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(known.size) != 0)
            throw std::invalid_argument("the array's memory is not aligned to its type: copy it first");
        auto kept = std::shared_ptr<void>(new nb::ndarray<nb::c_contig, nb::device::cpu>(std::move(array)), [](void* p) {
            nb::gil_scoped_acquire gil;
            delete static_cast<nb::ndarray<nb::c_contig, nb::device::cpu>*>(p);
        });
        return make(std::move(kept), data, known.type, std::move(shape));
    }
    throw std::invalid_argument("the array's type has no place in a tensor; use f32, f16, i32, i64 or u8");
}

// The options of the protocol (stream, dl_device, copy, max_version) ask nothing of memory on the CPU.
nb::object dlpack(nb::handle self, nb::kwargs) {
    const Tensor& tensor = nb::cast<const Tensor&>(self);
    std::vector<std::size_t> shape(tensor.shape.begin(), tensor.shape.end());
    const bool cpu = tensor.gpu < 0;
    nb::ndarray<> array(tensor.data, shape.size(), shape.data(), self, nullptr, info(tensor.type).dlpack,
                        cpu ? nb::device::cpu::value : nb::device::cuda::value, cpu ? 0 : tensor.gpu);
    return nb::cast(array);
}

int get_buffer(PyObject* self, Py_buffer* view, int) {
    *view = {};
    if (!nb::inst_ready(self)) {  // made by Tensor.__new__ alone
        PyErr_SetString(PyExc_BufferError, "the tensor has no memory: make one with Tensor.empty or from_dlpack");
        return -1;
    }
    Tensor& tensor = *nb::inst_ptr<Tensor>(self);
    if (tensor.gpu >= 0) {
        PyErr_SetString(PyExc_BufferError, "the tensor is a GPU's, whose memory the CPU does not read: copy it first");
        return -1;
    }
    view->buf = tensor.data;
    view->obj = self;
    view->len = tensor.bytes();
    view->itemsize = info(tensor.type).size;
    view->format = const_cast<char*>(info(tensor.type).format);
    view->ndim = static_cast<int>(tensor.shape.size());
    view->shape = reinterpret_cast<Py_ssize_t*>(tensor.shape.data());
    view->strides = reinterpret_cast<Py_ssize_t*>(tensor.strides_bytes.data());
    Py_INCREF(self);
    return 0;
}

PyType_Slot SLOTS[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)}, {0, nullptr}};

}  // namespace

std::int64_t Tensor::count() const { return bytes() / info(type).size; }

std::int64_t Tensor::bytes() const {
    return shape.empty() ? info(type).size : shape[0] * strides_bytes[0];
}

void on_cpu(const Tensor& tensor, const char* name) {
    if (tensor.gpu >= 0) throw std::invalid_argument(std::string(name) + " is on a GPU; it must be on the CPU");
}

float* floats(const Tensor& tensor, const char* name) {
    on_cpu(tensor, name);
    if (tensor.type != Type::f32)
        throw std::invalid_argument(std::string(name) + " is " + info(tensor.type).name + "; it must be f32");
    return static_cast<float*>(tensor.data);
}

void apart(const Tensor& a, const Tensor& b, const char* names) {
    const auto *first = static_cast<const char*>(a.data), *second = static_cast<const char*>(b.data);
    if (first < second + b.bytes() && second < first + a.bytes())
        throw std::invalid_argument(std::string(names) + " share memory; they must lie apart");
}

void same_shape(const Tensor& a, const Tensor& b, const char* names) {
    if (a.shape != b.shape) throw std::invalid_argument(std::string(names) + " must have one shape");
}

void bind_tensor(nb::module_& module) {
    nb::class_<Tensor>(module, "Tensor", nb::type_slots(SLOTS),
                       "Contiguous memory on a device: speaks DLPack and the buffer protocol.")
        .def_static("empty", &empty, nb::arg("shape"), nb::arg("dtype"),
                    "Uninitialised memory, 64-byte aligned. dtype: f32, f16, i32, i64 or u8.")
        .def_static("zeros", &zeros, nb::arg("shape"), nb::arg("dtype"), "As empty, every byte 0.")
        .def_static("from_dlpack", &from_dlpack, nb::arg("array").noconvert(),
                    "The memory of a C-contiguous CPU array of another library, shared, not copied.")
        .def_static("of_memory", &of_memory, nb::arg("pointer"), nb::arg("shape"), nb::arg("dtype"), nb::arg("owner"),
                    nb::arg("gpu") = -1, "The memory at pointer, which owner holds.")
        .def("rows", &rows, nb::arg("start"), nb::arg("stop"), "Rows start…stop − 1 along the first axis: the same memory.")
        .def_prop_ro("pointer", [](const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.data); })
        .def_prop_ro("shape", [](const Tensor& t) { return nb::tuple(nb::cast(t.shape)); })
        .def_prop_ro("dtype", [](const Tensor& t) { return info(t.type).name; })
        .def_prop_ro("device", [](const Tensor& t) { return t.gpu < 0 ? std::string("cpu") : "cuda:" + std::to_string(t.gpu); })
        .def_prop_ro("nbytes", &Tensor::bytes)
        .def("__dlpack__", &dlpack)
        .def("__dlpack_device__", [](const Tensor& t) { return t.gpu < 0 ? nb::make_tuple(1, 0) : nb::make_tuple(2, t.gpu); });
}

}  // namespace sdfast
