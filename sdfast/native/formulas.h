// The per-element formulas of the denoising loop: plain functions of numbers, which the CPU's loops and
// the GPU's kernels share. They give the same bits on both, compiled without fused multiply-add.
#pragma once

#ifdef __CUDACC_RTC__  // the compiler at run time knows the mathematics, and has no standard headers
namespace std {
using int32_t = int;
using int64_t = long long;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using ::sqrt;
}  // namespace std
#else
#include <cmath>
#include <cstdint>
#endif

#ifdef __CUDACC__
#define SDFAST_FORMULA __host__ __device__ inline
#else
#define SDFAST_FORMULA inline
#endif

namespace sdfast {

SDFAST_FORMULA std::uint32_t bits_of(float value) { return __builtin_bit_cast(std::uint32_t, value); }
SDFAST_FORMULA float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

// What the network predicts from (x, σ); the denoised D = skip · x + scale · prediction.
enum class Prediction { epsilon, v, sample };

struct Denoise {
    double skip, scale;
};

// epsilon: D = x − σ ε.  v: D = x / (σ² + 1) − σ v / √(σ² + 1) (arXiv:2202.00512).  sample: D itself.
SDFAST_FORMULA Denoise denoise_coefficients(Prediction prediction, double sigma) {
    const double variance = sigma * sigma + 1.0;
    switch (prediction) {
        case Prediction::epsilon: return {1.0, -sigma};
        case Prediction::v: return {1.0 / variance, -sigma / std::sqrt(variance)};
        default: return {0.0, 1.0};
    }
}

// The network's input: x in the variance-preserving frame, c_in = 1 / √(σ² + 1).
SDFAST_FORMULA double input_scale(double sigma) { return 1.0 / std::sqrt(sigma * sigma + 1.0); }

// Classifier-free guidance (arXiv:2207.12598).
template <typename Number>
SDFAST_FORMULA Number guide(Number unguided, Number guided, Number scale) {
    return unguided + scale * (guided - unguided);
}

// Of a picture that is redrawn in part: x where the mask is 1, what is kept where it is 0, exactly.
SDFAST_FORMULA float blend(float x, float kept, float mask) { return mask * x + (1.0f - mask) * kept; }

// The part of D that is a multiple of v: D − x / (σ² + 1) = −σ v / √(σ² + 1), whatever the network predicts.
// Its deviations are in the ratio of those of v, so that rescaling needs no v, which σ = 0 does not have.
SDFAST_FORMULA Denoise v_part(Denoise d, double sigma) { return {d.skip - 1.0 / (sigma * sigma + 1.0), d.scale}; }

// CFG rescale (arXiv:2305.08891, §3.4), of v: v ← φ · v · std(v_guided) / std(v) + (1 − φ) · v. This is the factor
// of v from the two variances; an image whose v is constant has nothing to rescale.
SDFAST_FORMULA double rescale_factor(double guided_variance, double variance, double phi) {
    return variance > 0.0 ? phi * std::sqrt(guided_variance / variance) + 1.0 - phi : 1.0;
}

// D with v scaled by that factor: x / (σ² + 1) + factor · v_part.
SDFAST_FORMULA Denoise rescaled(Denoise d, double sigma, double factor) {
    const Denoise v = v_part(d, sigma);
    return {d.skip - v.skip + factor * v.skip, factor * v.scale};
}

// Four words: a counter of philox, or what it makes of one.
struct Block {
    std::uint32_t word[4];
};

// Philox4x32-10 (Salmon et al., SC 2011): four random words for a counter and a key.
SDFAST_FORMULA Block philox(Block counter, std::uint64_t key) {
    std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = 0xD2511F53ull * counter.word[0], p1 = 0xCD9E8D57ull * counter.word[2];
        counter = {{static_cast<std::uint32_t>(p1 >> 32) ^ counter.word[1] ^ k0, static_cast<std::uint32_t>(p1),
                    static_cast<std::uint32_t>(p0 >> 32) ^ counter.word[3] ^ k1, static_cast<std::uint32_t>(p0)}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return counter;
}

// The logarithm and the sine below are polynomials of float +, −, × and integer arithmetic, free of
// branches: a compiler makes vectors of them, and every processor that does not contract a·b + c
// computes the same bits.

// −2 ln u, u ∈ (0, 1]: u = p, or 1 − p where `above` is all ones; p ≤ ½, so that nothing of u is lost
// near 1. Error at most 2e-7 of the value.
SDFAST_FORMULA float minus_two_log(float p, std::uint32_t above) {
    // p, or 1 where above, is 2^exponent · (1 + f) with 1 + f between √½ and √2; there f = −p.
    constexpr std::uint32_t root_half = 0x3F3504F3u, one = 0x3F800000u;
    const std::uint32_t bits = bits_of(p);
    const std::uint32_t scaled = ((bits & ~above) | (one & above)) - root_half;
    const float exponent = static_cast<float>(static_cast<std::int32_t>(scaled) >> 23);
    const float f = float_of((scaled & 0x7FFFFFu) + root_half) - 1.0f - float_of(bits & above);
    // ln(1 + f) = f + f² r(f), r the minimax fit over f ∈ [−½, √2 − 1] of the error relative to ln u: 5e-8.
    float r = 0.2618463337421417f;
    r = r * f - 0.14928299188613892f;
    r = r * f + 0.04863801598548889f;
    r = r * f - 0.11589458584785461f;
    r = r * f + 0.15158914029598236f;
    r = r * f - 0.16740915179252625f;
    r = r * f + 0.19950440526008606f;
    r = r * f - 0.24997439980506897f;
    r = r * f + 0.33334213495254517f;
    r = r * f - 0.5000002384185791f;
    return -2.0f * (exponent * 0.69314718f + f + f * f * r);
}

// −2 ln u of u = (word + ½) / 2³².
SDFAST_FORMULA float minus_two_log_of_word(std::uint32_t word) {
    const std::uint32_t above = static_cast<std::uint32_t>(static_cast<std::int32_t>(word) >> 31);
    return minus_two_log((static_cast<float>(static_cast<std::int32_t>(word ^ above)) + 0.5f) * 0x1p-32f, above);
}

// sin(2π (word + half / 2) / 2³²), half 0 or 1. Error at most 1.2e-7.
SDFAST_FORMULA float sine(std::uint32_t word, std::uint32_t half) {
    // sin(π − θ) = sin θ brings the two outer quarters, whose upper bits differ, to [−π/2, π/2].
    const std::uint32_t outer = static_cast<std::uint32_t>(static_cast<std::int32_t>(word ^ (word << 1)) >> 31);
    const std::uint32_t inner = (outer & (0x80000000u - half - word)) | (~outer & word);
    const float z = (static_cast<float>(static_cast<std::int32_t>(inner)) + 0.5f * static_cast<float>(half)) * 0x1p-30f;
    // sin(π z / 2) = z + z s(z²): near |z| = 1 s vanishes, and with it its rounding. Minimax, 4e-9.
    const float q = z * z;
    float s = 0.0001510513247922063f;
    s = s * q - 0.00467282859608531f;
    s = s * q + 0.07968901842832565f;
    s = s * q - 0.6459635496139526f;
    s = s * q + 0.5707963109016418f;
    return z + z * s;
}

// The cosine of the same angle: a quarter turn on.
SDFAST_FORMULA float cosine(std::uint32_t word, std::uint32_t half) { return sine(word + 0x40000000u, half); }

// Box and Muller's normal from two words, as cuRAND makes it: the radius from the first and the sine
// of an angle from the second, both taken in the middle of their 2⁻³². Error at most 2.6e-7 of
// max(1, |normal|) in 2²⁴ draws, of which 2 in 100,000 are beyond 2e-7.
SDFAST_FORMULA float box_muller(std::uint32_t radius, std::uint32_t angle) {
    return std::sqrt(minus_two_log_of_word(radius)) * sine(angle, 1);
}

// What a counter's second word says of the draw: PyTorch's own normals have 0 there, so that no other
// kind of noise meets their counters.
enum class Purpose : std::uint32_t { gaussian, brownian, uniform, pyramid, highres_pyramid, perlin, laplacian };

// The normal that PyTorch's CUDA generator gives element `index` in its draw number `draw`.
SDFAST_FORMULA float philox_normal(std::uint64_t seed, std::uint32_t draw, std::uint64_t index) {
    const Block words = philox({{draw, static_cast<std::uint32_t>(Purpose::gaussian), static_cast<std::uint32_t>(index),
                                 static_cast<std::uint32_t>(index >> 32)}},
                               seed);
    return box_muller(words.word[0], words.word[1]);
}

// One bridge of a Brownian path's tree: W(σ) = left · W(σ_left) + right · W(σ_right) + deviation · normal at the
// geometric mean σ of the interval (σ_left, σ_right), which becomes its right or its left end.
struct Bridge {
    std::uint32_t node;
    float left, right, deviation;
    bool becomes_left;
};

// The way from the interval [2⁻¹⁶, 2¹⁶] down to the cell that holds σ, and σ's place in that cell. W at the interval's
// ends: start · normal, and that + rest · normal (√(2¹⁶ − 2⁻¹⁶) is 2⁸ in float).
struct Descent {
    static constexpr double lowest = 0x1p-16, highest = 0x1p16;
    static constexpr float start = 0x1p-8f, rest = 0x1p8f;
    // 2²¹ cells, each 1.06e-5 of its σ wide: to interpolate inside one instead of going on takes less
    // than half a cell, 0.11 %, from the variance of an interval of 0.5 % of σ.
    static constexpr int depth = 21;

    double sigma;
    double left = lowest, right = highest;
    std::uint32_t node = 1;

    SDFAST_FORMULA Bridge next() {
        const double middle = std::sqrt(left * right), width = right - left;
        const Bridge bridge{node, static_cast<float>((right - middle) / width), static_cast<float>((middle - left) / width),
                            static_cast<float>(std::sqrt((middle - left) * (right - middle) / width)), sigma >= middle};
        (bridge.becomes_left ? left : right) = middle;
        node = 2 * node + bridge.becomes_left;
        return bridge;
    }
    SDFAST_FORMULA float to_left() const { return static_cast<float>((right - sigma) / (right - left)); }
    SDFAST_FORMULA float to_right() const { return static_cast<float>((sigma - left) / (right - left)); }
};

// Coefficients so large that their terms all but cancel are taken in double: steps to 0 and derivatives by difference
// have some, and lose the digits that float32 products round away.
inline constexpr double wide_from = 8.0;

}  // namespace sdfast
