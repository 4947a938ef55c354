// Counter-based random numbers, a tile of them at a time, so that the loops that make them are vectors.
#pragma once

#include <algorithm>

#include "every_cpu.h"
#include "formulas.h"

namespace sdfast {

inline constexpr std::int64_t blocks = 256;       // philox blocks of a tile
inline constexpr std::int64_t tile = 4 * blocks;  // words of a tile: word w of block b is element w · 256 + b

struct Words {
    alignas(64) std::uint32_t word[tile];
};

// Where a row of random numbers lies: counters (draw, purpose, block, row) under the key `seed`.
struct Place {
    std::uint64_t seed;
    std::uint32_t draw;
    Purpose purpose;
    std::uint32_t row;
};

// Blocks first … first + 255 of a row.
void philox_blocks(Words& words, const Place& place, std::uint32_t first);

// n ≤ 256 normals from the first two words of a block each: philox_normal of the elements from `first` on.
void gaussian_tile(float* out, const Place& place, std::uint32_t first, std::int64_t n);

// A tile of unit normals, four from a block: sine and cosine of one angle are independent.
void normal_tile(float* out, const Words& words);

// A tile of numbers uniform in (−1, 1).
void uniform_tile(float* out, const Words& words);

// A tile of Laplace's law of scale 1: an exponential of 31 bits with a sign of one.
void laplace_tile(float* out, const Words& words);

// A tile of unit vectors at uniform angles: the cosines into x, the sines into y.
void direction_tile(float* x, float* y, const Words& words);

// out[0 … n) from the tiles of a row.
template <class Convert>
void fill(float* out, std::int64_t n, const Place& place, Convert convert) {
    Words words;
    alignas(64) float values[tile];
    for (std::int64_t start = 0; start < n; start += tile) {
        philox_blocks(words, place, static_cast<std::uint32_t>(start / 4));
        convert(values, words);
        std::copy_n(values, std::min(tile, n - start), out + start);
    }
}

}  // namespace sdfast
