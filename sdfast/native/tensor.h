// A Tensor: contiguous memory on a device with a shape and a type, handed between Python and C++.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>

namespace sdfast {

enum class Type { f32, f16, i32, i64, u8 };

struct Tensor {
    std::shared_ptr<void> memory;  // keeps the bytes alive, ours or another library's
    void* data;
    Type type;
    std::vector<std::int64_t> shape, strides_bytes;
    int gpu = -1;  // the number of the GPU that the bytes are of, which nothing here reads; -1 for the CPU

    std::int64_t count() const;
    std::int64_t bytes() const;
};

// Throws ValueError in Python unless the tensor is the CPU's.
void on_cpu(const Tensor& tensor, const char* name);
// The floats of a tensor; throws ValueError in Python when it is of another type or device.
float* floats(const Tensor& tensor, const char* name);
// Throws ValueError unless both tensors have one shape.
void same_shape(const Tensor& a, const Tensor& b, const char* names);
// Throws ValueError if both tensors have a byte in common.
void apart(const Tensor& a, const Tensor& b, const char* names);

void bind_tensor(nanobind::module_& module);
void bind_latents(nanobind::module_& module);
void bind_noise(nanobind::module_& module);
void bind_blending(nanobind::module_& module);

}  // namespace sdfast
