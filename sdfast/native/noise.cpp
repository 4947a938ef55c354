// Unit normals from seeds: the values of PyTorch's generators on CUDA and on a CPU.
#include <random>
#include <stdexcept>

#include <nanobind/stl/vector.h>

#include "formulas.h"
#include "tensor.h"

namespace nb = nanobind;

namespace sdfast {
namespace {

void philox_normals(const Tensor& out, const std::vector<std::uint64_t>& seeds, std::uint64_t draw) {
    float* target = floats(out, "out");
    if (out.shape.empty() || static_cast<std::int64_t>(seeds.size()) != out.shape[0])
        throw std::invalid_argument("philox_normals needs one seed for each image of out");
    const std::int64_t each = out.count() / out.shape[0];
    for (const std::uint64_t seed : seeds)
        for (std::int64_t k = 0; k < each; ++k)
            *target++ = philox_normal(seed, draw, static_cast<std::uint64_t>(k));
}

// torch.Generator on the CPU: a Mersenne twister that torch.randn turns into normals in blocks of 16.
class TorchGenerator {
public:
    // Torch seeds its twister with the seed's lower 32 bits.
    explicit TorchGenerator(std::uint64_t seed) : twister_(static_cast<std::uint32_t>(seed)) {}

    void normals(const Tensor& out, std::int64_t image) {
        float* target = floats(out, "out");
        const std::int64_t images = out.shape.empty() ? 0 : out.shape[0];
        if (image < 0 || image >= images) throw std::invalid_argument("image is not a row of out");
        const std::int64_t each = out.count() / images;
        if (each < 16) throw std::invalid_argument("an image of out must have 16 elements or more");
        target += image * each;
        for (std::int64_t k = 0; k < each; ++k) target[k] = uniform();
        for (std::int64_t k = 0; k + 16 <= each; k += 16) box_muller(target + k);
        if (each % 16 != 0) {  // the tail is drawn anew, overlapping the block before it
            float* tail = target + each - 16;
            for (int k = 0; k < 16; ++k) tail[k] = uniform();
            box_muller(tail);
        }
    }

private:
    float uniform() { return static_cast<float>(twister_() & 0xFFFFFFu) * 0x1p-24f; }

    static void box_muller(float* values) {
        for (int k = 0; k < 8; ++k) {
            const float radius = std::sqrt(-2.0f * std::log(1.0f - values[k]));
            const float angle = 6.2831855f * values[k + 8];
            values[k] = radius * std::cos(angle);
            values[k + 8] = radius * std::sin(angle);
        }
    }

    std::mt19937 twister_;
};

}  // namespace

void bind_noise(nb::module_& module) {
    module.def("philox_normals", &philox_normals, nb::arg("out"), nb::arg("seeds"), nb::arg("draw"),
               nb::call_guard<nb::gil_scoped_release>(),
               "Fills out [B, …] with draw number `draw` of each image's seed: torch.randn on CUDA.");
    nb::class_<TorchGenerator>(module, "TorchGenerator", "The values of torch.randn with a CPU generator.")
        .def(nb::init<std::uint64_t>(), nb::arg("seed"))
        .def("normals", &TorchGenerator::normals, nb::arg("out"), nb::arg("image"),
             nb::call_guard<nb::gil_scoped_release>(), "Fills one image of out with the generator's next draw.");
}

}  // namespace sdfast
