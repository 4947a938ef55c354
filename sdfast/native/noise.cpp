// The normals of PyTorch's generators on CUDA and on a CPU.
#include <bit>
#include <stdexcept>

#include <nanobind/stl/vector.h>

#include "noise.h"
#include "tensor.h"
#include "tiles.h"

namespace nb = nanobind;

namespace sdfast {

std::int64_t image_elements(const Tensor& out, const std::vector<std::uint64_t>& seeds) {
    if (out.shape.empty() || static_cast<std::int64_t>(seeds.size()) != out.shape[0])
        throw std::invalid_argument("noise needs one seed for each image of out");
    return seeds.empty() ? 0 : out.count() / out.shape[0];
}

namespace {

void philox_normals(const Tensor& out, const std::vector<std::uint64_t>& seeds, std::uint32_t draw) {
    float* target = floats(out, "out");
    const std::int64_t each = image_elements(out, seeds);
    for (const std::uint64_t seed : seeds) {
        const Place place{seed, draw, Purpose::gaussian, 0};
        for (std::int64_t start = 0; start < each; start += blocks) {  // one block an element
            const std::int64_t n = std::min(blocks, each - start);
            gaussian_tile(target, place, static_cast<std::uint32_t>(start), n);
            target += n;
        }
    }
}

// The Mersenne twister MT19937 (Matsumoto & Nishimura 1998), 624 words at a time.
class Twister {
public:
    static constexpr int size = 624, middle = 397;

    explicit Twister(std::uint32_t seed) {
        state_[0] = seed;
        for (std::uint32_t k = 1; k < size; ++k)
            state_[k] = 1812433253u * (state_[k - 1] ^ (state_[k - 1] >> 30)) + k;
    }

    // The next n words' lower 24 bits, the integers behind torch's float uniforms.
    void fill(std::uint32_t* out, std::int64_t n) {
        while (n > 0) {
            if (used_ == size) {
                advance(state_);
                used_ = 0;
            }
            const std::int64_t some = std::min<std::int64_t>(n, size - used_);
            temper(out, state_ + used_, some);
            used_ += static_cast<int>(some);
            out += some;
            n -= some;
        }
    }

private:
    static std::uint32_t twist(std::uint32_t far, std::uint32_t here, std::uint32_t next) {
        const std::uint32_t y = (here & 0x80000000u) | (next & 0x7FFFFFFFu);
        return far ^ (y >> 1) ^ (0x9908B0DFu & (0u - (y & 1u)));
    }

    FOR_EVERY_CPU static void advance(std::uint32_t* x) {
        for (int k = 0; k < size - middle; ++k) x[k] = twist(x[k + middle], x[k], x[k + 1]);
        for (int k = size - middle; k < size - 1; ++k) x[k] = twist(x[k + middle - size], x[k], x[k + 1]);
        x[size - 1] = twist(x[middle - 1], x[size - 1], x[0]);
    }

    FOR_EVERY_CPU static void temper(std::uint32_t* __restrict out, const std::uint32_t* __restrict x, std::int64_t n) {
        for (std::int64_t k = 0; k < n; ++k) {
            std::uint32_t y = x[k] ^ (x[k] >> 11);
            y ^= (y << 7) & 0x9D2C5680u;
            y ^= (y << 15) & 0xEFC60000u;
            out[k] = (y ^ (y >> 18)) & 0xFFFFFFu;
        }
    }

    std::uint32_t state_[size];
    int used_ = size;
};

// Torch's Box–Muller: of 16 uniforms u = word / 2²⁴ the first eight give the radii √(−2 ln(1 − u)), the
// others the angles, rounded to float.
FOR_EVERY_CPU void torch_normals(float* __restrict out, const std::uint32_t* __restrict words, std::int64_t n) {
    for (std::int64_t start = 0; start + 16 <= n; start += 16)
        for (std::int64_t k = start; k < start + 8; ++k) {
            const std::uint32_t below = 0u - (words[k] >> 23);  // 1 − u ≤ ½
            const std::uint32_t p = (below & (0x1000000u - words[k])) | (~below & words[k]);
            const float radius = std::sqrt(minus_two_log(static_cast<float>(static_cast<std::int32_t>(p)) * 0x1p-24f, ~below));
            const float angle = 6.2831855f * (static_cast<float>(static_cast<std::int32_t>(words[k + 8])) * 0x1p-24f);
            // The rounded angle in 2⁻³² turns: the lower bits of a double that has no room for more.
            const double turns = static_cast<double>(angle) * (0x1p32 / 6.283185307179586) + 0x1p52;
            const std::uint32_t word = static_cast<std::uint32_t>(std::bit_cast<std::uint64_t>(turns));
            out[k] = radius * cosine(word, 0);
            out[k + 8] = radius * sine(word, 0);
        }
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
        std::vector<std::uint32_t> words(static_cast<std::size_t>(each));
        twister_.fill(words.data(), each);
        torch_normals(target, words.data(), each);
        if (each % 16 != 0) {  // the tail is drawn anew, overlapping the block before it
            twister_.fill(words.data(), 16);
            torch_normals(target + each - 16, words.data(), 16);
        }
    }

private:
    Twister twister_;
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
    bind_brownian(module);
    bind_noise_kinds(module);
}

}  // namespace sdfast
