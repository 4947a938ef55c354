// Kinds of noise other than PyTorch's, each a function of (seed, draw, element) for one image; their laws
// are those of ComfyUI's Extra-Samplers.
#include <array>
#include <stdexcept>

#include <nanobind/stl/vector.h>

#include "noise.h"
#include "tensor.h"
#include "tiles.h"

namespace nb = nanobind;

namespace sdfast {
namespace {

struct Image {
    float* values;
    std::int64_t channels, height, width;

    std::int64_t count() const { return channels * height * width; }
};

// The sums of n values and of their squares, in 16 lanes so that the additions do not wait for each other.
FOR_EVERY_CPU std::array<double, 2> moments(const float* values, std::int64_t n) {
    constexpr int lanes = 16;
    double sums[lanes] = {}, squares[lanes] = {};
    for (std::int64_t k = 0; k < n; ++k) {
        const double value = values[k];
        sums[k % lanes] += value;
        squares[k % lanes] += value * value;
    }
    for (int lane = 1; lane < lanes; ++lane) {
        sums[0] += sums[lane];
        squares[0] += squares[lane];
    }
    return {sums[0], squares[0]};
}

// Divides an image by its standard deviation.
void standardize(const Image& image) {
    const double n = static_cast<double>(image.count());
    const auto [sum, squares] = moments(image.values, image.count());
    const float factor = static_cast<float>(1.0 / std::sqrt((squares - sum * sum / n) / (n - 1.0)));
    for (std::int64_t k = 0; k < image.count(); ++k) image.values[k] *= factor;
}

Place place_of(Purpose purpose, std::uint64_t seed, std::uint32_t draw, std::uint32_t row = 0) {
    return {seed, draw, purpose, row};
}

// (U − ½) · 2 · 1.73: variance 0.9976.
void uniform(const Image& image, std::uint64_t seed, std::uint32_t draw) {
    fill(image.values, image.count(), place_of(Purpose::uniform, seed, draw), uniform_tile);
    for (std::int64_t k = 0; k < image.count(); ++k) image.values[k] *= 1.73f;
}

// (N / 4 + Laplace(0, 1)) / deviation.
void laplacian(const Image& image, std::uint64_t seed, std::uint32_t draw) {
    std::vector<float> normals(static_cast<std::size_t>(image.count()));
    fill(normals.data(), image.count(), place_of(Purpose::laplacian, seed, draw, 0), normal_tile);
    fill(image.values, image.count(), place_of(Purpose::laplacian, seed, draw, 1), laplace_tile);
    for (std::int64_t k = 0; k < image.count(); ++k) image.values[k] += 0.25f * normals[static_cast<std::size_t>(k)];
    standardize(image);
}

// Σ 0.8ⁱ N(0, 0.5ⁱ), i = 0…4, each from a larger picture by its nearest pixel. No two pixels share
// one, so the sum is a normal of variance Σ 0.16ⁱ = 1.1904.
void pyramid(const Image& image, std::uint64_t seed, std::uint32_t draw) {
    constexpr double variance = 1.0 + 0.16 + 0.16 * 0.16 + 0.16 * 0.16 * 0.16 + 0.16 * 0.16 * 0.16 * 0.16;
    const float deviation = static_cast<float>(std::sqrt(variance));
    fill(image.values, image.count(), place_of(Purpose::pyramid, seed, draw), normal_tile);
    for (std::int64_t k = 0; k < image.count(); ++k) image.values[k] *= deviation;
}

// The factor that bilinear interpolation of `large` unit normals to `small` points, large ≥ 2 · small or
// large = small, brings to the variance of each point: its two weights' squares.
std::vector<float> interpolated_variance(std::int64_t large, std::int64_t small) {
    std::vector<float> result;
    for (std::int64_t k = 0; k < small; ++k) {
        const double at = (static_cast<double>(k) + 0.5) * static_cast<double>(large) / static_cast<double>(small) - 0.5;
        const double f = at - std::floor(at);
        result.push_back(static_cast<float>(f * f + (1.0 - f) * (1.0 - f)));
    }
    return result;
}

// 1.73 U(−1, 1) + Σ 0.7ⁱ bilinear(N of size h × w), i = 0…3, h and w growing by rⁱ with r = 2 + 2U up
// to 15 times the image's; / deviation. From layer 1 on the pixels lie two or more apart in the larger
// picture, so that no two share one: the sum of the layers is one normal whose variance differs by place.
void highres_pyramid(const Image& image, std::uint64_t seed, std::uint32_t draw) {
    float ratios[4];
    fill(ratios, 4, place_of(Purpose::highres_pyramid, seed, draw, 2), uniform_tile);
    std::vector<float> variance(static_cast<std::size_t>(image.height * image.width), 0.0f);
    std::int64_t height = image.height, width = image.width;
    for (int layer = 0; layer < 4 && height < 15 * image.height && width < 15 * image.width; ++layer) {
        const double growth = std::pow(3.0 + static_cast<double>(ratios[layer]), layer);
        height = std::min(15 * image.height, static_cast<std::int64_t>(static_cast<double>(height) * growth));
        width = std::min(15 * image.width, static_cast<std::int64_t>(static_cast<double>(width) * growth));
        const auto rows = interpolated_variance(height, image.height), columns = interpolated_variance(width, image.width);
        const float weight = static_cast<float>(std::pow(0.49, layer));
        for (std::size_t k = 0; k < variance.size(); ++k)
            variance[k] += weight * rows[k / columns.size()] * columns[k % columns.size()];
    }
    std::vector<float> normals(static_cast<std::size_t>(image.count()));
    fill(normals.data(), image.count(), place_of(Purpose::highres_pyramid, seed, draw, 0), normal_tile);
    fill(image.values, image.count(), place_of(Purpose::highres_pyramid, seed, draw, 1), uniform_tile);
    for (std::size_t k = 0; k < normals.size(); ++k)
        image.values[k] = 1.73f * image.values[k] + std::sqrt(variance[k % variance.size()]) * normals[k];
    standardize(image);
}

// Adds gradient noise (Perlin 1985) of one lattice cell for each pixel, at the cells' centres: there the
// four corners weigh ¼ each, and their distances are (±½, ±½).
void add_gradient_noise(const Image& image, const Place& place) {
    const std::int64_t stride = image.width + 1, each = (image.height + 1) * stride, n = image.channels * each;
    std::vector<float> x(static_cast<std::size_t>((n + tile - 1) / tile * tile)), y(x.size());
    Words words;
    for (std::int64_t start = 0; start < n; start += tile) {
        philox_blocks(words, place, static_cast<std::uint32_t>(start / 4));
        direction_tile(x.data() + start, y.data() + start, words);
    }
    float* out = image.values;
    for (std::int64_t channel = 0; channel < image.channels; ++channel)
        for (std::int64_t row = 0; row < image.height; ++row, out += image.width) {
            const float *x0 = x.data() + channel * each + row * stride, *y0 = y.data() + channel * each + row * stride;
            const float *x1 = x0 + stride, *y1 = y0 + stride;
            for (std::int64_t k = 0; k < image.width; ++k)
                out[k] += 0.125f * ((x0[k] + y0[k]) + (y0[k + 1] - x0[k + 1]) + (x1[k] - y1[k]) - (x1[k + 1] + y1[k + 1]));
        }
}

// (N / 2 + two layers of gradient noise) / deviation.
void perlin(const Image& image, std::uint64_t seed, std::uint32_t draw) {
    fill(image.values, image.count(), place_of(Purpose::perlin, seed, draw, 0), normal_tile);
    for (std::int64_t k = 0; k < image.count(); ++k) image.values[k] *= 0.5f;
    add_gradient_noise(image, place_of(Purpose::perlin, seed, draw, 1));
    add_gradient_noise(image, place_of(Purpose::perlin, seed, draw, 2));
    standardize(image);
}

template <void (*kind)(const Image&, std::uint64_t, std::uint32_t)>
void draw_kind(const Tensor& out, const std::vector<std::uint64_t>& seeds, std::uint32_t draw) {
    float* target = floats(out, "out");
    if (out.shape.size() != 4) throw std::invalid_argument("out must have the shape [images, channels, height, width]");
    const std::int64_t each = image_elements(out, seeds);
    if (each < 2) throw std::invalid_argument("an image of out must have 2 elements or more");
    for (const std::uint64_t seed : seeds) {
        kind({target, out.shape[1], out.shape[2], out.shape[3]}, seed, draw);
        target += each;
    }
}

template <void (*kind)(const Image&, std::uint64_t, std::uint32_t)>
void bind_kind(nb::module_& module, const char* name) {
    module.def(name, &draw_kind<kind>, nb::arg("out"), nb::arg("seeds"), nb::arg("draw"),
               nb::call_guard<nb::gil_scoped_release>(), "Fills out [B, C, h, w] with draw number `draw` of each image's seed.");
}

}  // namespace

void bind_noise_kinds(nb::module_& module) {
    bind_kind<uniform>(module, "uniform");
    bind_kind<laplacian>(module, "laplacian");
    bind_kind<pyramid>(module, "pyramid");
    bind_kind<highres_pyramid>(module, "highres_pyramid");
    bind_kind<perlin>(module, "perlin");
}

}  // namespace sdfast
