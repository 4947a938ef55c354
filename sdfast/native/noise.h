// What the sources of noise share at the border to Python.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor.h"

namespace sdfast {

// The elements of one image of out [B, …]; throws ValueError in Python unless it has one seed an image.
std::int64_t image_elements(const Tensor& out, const std::vector<std::uint64_t>& seeds);

void bind_brownian(nanobind::module_& module);
void bind_noise_kinds(nanobind::module_& module);

}  // namespace sdfast
