// Large pictures in tiles: cut from what a network reads, blended into what it writes.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "every_cpu.h"
#include "tensor.h"

namespace nb = nanobind;

namespace sdfast {
namespace {

// How the pixels of a tensor lie: planes of rows, a pixel being one value of f32 [B, C, h, w], all values of u8 [B, H, W, C].
struct Picture {
    std::int64_t planes, height, width, values;

    std::int64_t row() const { return width * values; }
};

Picture picture(const Tensor& tensor, bool channels_last) {
    on_cpu(tensor, "a picture");
    const auto& s = tensor.shape;
    if (s.size() != 4) throw std::invalid_argument("pictures and latents must have four axes");
    return channels_last ? Picture{s[0], s[1], s[2], s[3]} : Picture{s[0] * s[1], s[2], s[3], 1};
}

bool is_image(const Tensor& tensor) {
    on_cpu(tensor, "a picture");
    if (tensor.type != Type::u8 && tensor.type != Type::f32)
        throw std::invalid_argument("tiles must be u8 [B, H, W, C] or f32 [B, C, h, w]");
    return tensor.type == Type::u8;
}

void inside(const Picture& tile, const Picture& whole, std::int64_t top, std::int64_t left) {
    const bool fits = tile.planes == whole.planes && tile.values == whole.values && top >= 0 && left >= 0 &&
                      top <= whole.height - tile.height && left <= whole.width - tile.width;
    if (!fits) throw std::invalid_argument("the tile must lie inside the whole and have its batch and channels");
}

void cut_tile(const Tensor& tile, const Tensor& whole, std::int64_t top, std::int64_t left) {
    const bool image = is_image(whole);
    if (tile.type != whole.type) throw std::invalid_argument("tile and whole must have one type");
    const Picture to = picture(tile, image), from = picture(whole, image);
    inside(to, from, top, left);
    apart(tile, whole, "tile and whole");
    const std::int64_t size = image ? 1 : sizeof(float), bytes = to.row() * size;
    for (std::int64_t plane = 0; plane < to.planes; ++plane)
        for (std::int64_t y = 0; y < to.height; ++y) {
            const std::int64_t place = (plane * from.height + top + y) * from.row() + left * from.values;
            std::memcpy(static_cast<char*>(tile.data) + (plane * to.height + y) * bytes,
                        static_cast<const char*>(whole.data) + place * size, static_cast<std::size_t>(bytes));
        }
}

// The weights come first: their product is exact where each has 8 bits, and so is its product with a byte.
template <class Value>
[[gnu::always_inline]] inline void add_weighted(float* __restrict sum, const Value* __restrict tile, float row,
                                                const float* __restrict columns, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) sum[k] += row * columns[k] * static_cast<float>(tile[k]);
}

FOR_EVERY_CPU void add_bytes(float* sum, const std::uint8_t* tile, float row, const float* columns, std::int64_t n) {
    add_weighted(sum, tile, row, columns, n);
}

FOR_EVERY_CPU void add_floats(float* sum, const float* tile, float row, const float* columns, std::int64_t n) {
    add_weighted(sum, tile, row, columns, n);
}

void add_tile(const Tensor& total, const Tensor& tile, std::int64_t top, std::int64_t left, const std::vector<float>& rows,
              const std::vector<float>& columns) {
    const bool image = is_image(tile);
    const Picture from = picture(tile, image), to = picture(total, image);
    float* out = floats(total, "total");
    inside(from, to, top, left);
    apart(total, tile, "total and tile");
    if (static_cast<std::int64_t>(rows.size()) != from.height || static_cast<std::int64_t>(columns.size()) != from.width)
        throw std::invalid_argument("there must be one weight for each row and each column of the tile");
    std::vector<float> weights(static_cast<std::size_t>(from.row()));  // of every value of a row
    for (std::int64_t k = 0; k < from.row(); ++k) weights[k] = columns[k / from.values];
    for (std::int64_t plane = 0; plane < from.planes; ++plane)
        for (std::int64_t y = 0; y < from.height; ++y) {
            float* target = out + (plane * to.height + top + y) * to.row() + left * to.values;
            const std::int64_t place = (plane * from.height + y) * from.row();
            if (image)
                add_bytes(target, static_cast<const std::uint8_t*>(tile.data) + place, rows[y], weights.data(), from.row());
            else
                add_floats(target, static_cast<const float*>(tile.data) + place, rows[y], weights.data(), from.row());
        }
}

FOR_EVERY_CPU void round_bytes(std::uint8_t* __restrict out, const float* __restrict sum, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k)
        out[k] = static_cast<std::uint8_t>(static_cast<int>(std::min(std::max(0.0f, sum[k]), 255.0f) + 0.5f));
}

void write_sum(const Tensor& out, const Tensor& total) {
    const float* from = floats(total, "total");
    same_shape(out, total, "out and total");
    apart(out, total, "out and total");
    if (is_image(out))
        round_bytes(static_cast<std::uint8_t*>(out.data), from, out.count());
    else
        std::copy_n(from, out.count(), static_cast<float*>(out.data));
}

}  // namespace

void bind_blending(nb::module_& module) {
    module.def("cut_tile", &cut_tile, nb::arg("tile"), nb::arg("whole"), nb::arg("top"), nb::arg("left"),
               nb::call_guard<nb::gil_scoped_release>(), "tile = the part of whole that begins at row top and column left.");
    module.def("add_tile", &add_tile, nb::arg("total"), nb::arg("tile"), nb::arg("top"), nb::arg("left"), nb::arg("rows"),
               nb::arg("columns"), nb::call_guard<nb::gil_scoped_release>(),
               "total, from row top and column left on, += rows × columns × tile.");
    module.def("write_sum", &write_sum, nb::arg("out"), nb::arg("total"), nb::call_guard<nb::gil_scoped_release>(),
               "out = total, rounded where out is u8.");
}

}  // namespace sdfast
