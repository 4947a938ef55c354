// Brownian paths over the noise level: virtual trees, functions of (seed, σ, element).
#include <stdexcept>
#include <string>

#include <nanobind/stl/vector.h>

#include "noise.h"
#include "tensor.h"
#include "tiles.h"

namespace nb = nanobind;

namespace sdfast {
namespace {

// end = a · left + b · right + c · normals; end may be left or right.
FOR_EVERY_CPU void bridge_tile(float* end, const float* left, const float* right, const float* normals, float a, float b,
                               float c) {
#pragma GCC ivdep
    for (std::int64_t k = 0; k < tile; ++k) end[k] = a * left[k] + b * right[k] + c * normals[k];
}

void brownian_image(float* out, std::int64_t n, std::uint64_t seed, double sigma) {
    Descent way{sigma};
    Bridge bridges[Descent::depth];
    for (Bridge& bridge : bridges) bridge = way.next();
    Words words;
    alignas(64) float left[tile], right[tile], normals[tile];
    const auto draw_normals = [&](std::uint32_t node, std::uint32_t row, std::int64_t start) {
        philox_blocks(words, {seed, node, Purpose::brownian, row}, static_cast<std::uint32_t>(start / 4));
        normal_tile(normals, words);
    };
    for (std::int64_t start = 0; start < n; start += tile) {
        draw_normals(0, 0, start);
        bridge_tile(left, normals, normals, normals, 0.0f, 0.0f, Descent::start);
        draw_normals(0, 1, start);
        bridge_tile(right, left, normals, normals, 1.0f, 0.0f, Descent::rest);
        for (const Bridge& bridge : bridges) {
            draw_normals(bridge.node, 0, start);
            bridge_tile(bridge.becomes_left ? left : right, left, right, normals, bridge.left, bridge.right, bridge.deviation);
        }
        bridge_tile(left, left, right, normals, way.to_left(), way.to_right(), 0.0f);
        std::copy_n(left, std::min(tile, n - start), out + start);
    }
}

// W(σ) of each seed's path, a virtual Brownian tree (Li et al. 2020, arXiv:2001.01328) over σ: the
// nodes halve intervals of log σ, the normal of a node has the node's number for its draw.
void brownian(const Tensor& out, const std::vector<std::uint64_t>& seeds, double sigma) {
    float* target = floats(out, "out");
    const std::int64_t each = image_elements(out, seeds);
    if (sigma != 0.0 && !(sigma >= Descent::lowest && sigma <= Descent::highest))
        throw std::invalid_argument("a Brownian path has levels 0 and 2^-16 to 2^16; sigma is " + std::to_string(sigma));
    if (sigma == 0.0) return void(std::fill_n(target, out.count(), 0.0f));  // the path starts there
    for (const std::uint64_t seed : seeds) {
        brownian_image(target, each, seed, sigma);
        target += each;
    }
}

}  // namespace

void bind_brownian(nb::module_& module) {
    module.def("brownian", &brownian, nb::arg("out"), nb::arg("seeds"), nb::arg("sigma"),
               nb::call_guard<nb::gil_scoped_release>(),
               "Fills out [B, …] with W(sigma) of each image's seed's Brownian path.");
}

}  // namespace sdfast
