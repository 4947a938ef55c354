// The tiles of random numbers: philox in the widest vectors there are, and what its words become.
#include "tiles.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sdfast {
namespace {

FOR_EVERY_CPU void philox_everywhere(Words& words, const Place& place, std::uint32_t first) {
    const Place at = place;  // a copy, which no store to words can change
    for (std::uint32_t b = 0; b < blocks; ++b) {
        const Block block = philox({{at.draw, static_cast<std::uint32_t>(at.purpose), first + b, at.row}}, at.seed);
        words.word[b] = block.word[0];
        words.word[blocks + b] = block.word[1];
        words.word[2 * blocks + b] = block.word[2];
        words.word[3 * blocks + b] = block.word[3];
    }
}

#if defined(__x86_64__)
// The same with the multiplication 32 × 32 → 64 bits that compilers do not find: eight blocks in the
// lanes of a vector, whose upper halves hold what the next product ignores; four vectors at once hide
// the latency of a round. Words 2 and 3 are written only where they are wanted.
template <int wanted>
__attribute__((target("avx512f"))) void philox_avx512(Words& words, const Place& place, std::uint32_t first) {
    const Place at = place;
    constexpr int vectors = 4;
    const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
    const __m512i lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    for (std::int64_t b = 0; b < blocks; b += 8 * vectors) {
        __m512i c[4][vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            c[0][v] = _mm512_set1_epi64(at.draw);
            c[1][v] = _mm512_set1_epi64(static_cast<std::uint32_t>(at.purpose));
            c[2][v] = _mm512_add_epi64(lanes, _mm512_set1_epi64(first + b + 8 * v));
            c[3][v] = _mm512_set1_epi64(at.row);
        }
        std::uint32_t k0 = static_cast<std::uint32_t>(at.seed), k1 = static_cast<std::uint32_t>(at.seed >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                const __m512i p0 = _mm512_mul_epu32(c[0][v], m0), p1 = _mm512_mul_epu32(c[2][v], m1);
                c[0][v] = _mm512_srli_epi64(p1, 32) ^ c[1][v] ^ _mm512_set1_epi64(k0);
                c[2][v] = _mm512_srli_epi64(p0, 32) ^ c[3][v] ^ _mm512_set1_epi64(k1);
                c[1][v] = p1;
                c[3][v] = p0;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
#pragma GCC unroll 4
        for (int w = 0; w < wanted; ++w)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v += 2)  // the lower halves of two vectors make one
                _mm512_store_si512(words.word + w * blocks + b + 8 * v, _mm512_permutex2var_epi32(c[w][v], even, c[w][v + 1]));
    }
}

bool wide() {
    static const bool supported = __builtin_cpu_supports("avx512f");
    return supported;
}
#endif

FOR_EVERY_CPU void box_mullers(float* __restrict out, const Words& words, std::int64_t n) {
    for (std::int64_t b = 0; b < n; ++b) out[b] = box_muller(words.word[b], words.word[blocks + b]);
}

}  // namespace

void philox_blocks(Words& words, const Place& place, std::uint32_t first) {
#if defined(__x86_64__)
    if (wide()) return philox_avx512<4>(words, place, first);
#endif
    philox_everywhere(words, place, first);
}

void gaussian_tile(float* out, const Place& place, std::uint32_t first, std::int64_t n) {
    Words words;
#if defined(__x86_64__)
    if (wide())
        philox_avx512<2>(words, place, first);
    else
#endif
        philox_everywhere(words, place, first);
    box_mullers(out, words, n);
}

FOR_EVERY_CPU void normal_tile(float* __restrict out, const Words& words) {
    for (int pair = 0; pair < 4; pair += 2)
        for (std::int64_t b = 0; b < blocks; ++b) {
            const float radius = std::sqrt(minus_two_log_of_word(words.word[pair * blocks + b]));
            out[pair * blocks + b] = radius * sine(words.word[(pair + 1) * blocks + b], 1);
            out[(pair + 1) * blocks + b] = radius * cosine(words.word[(pair + 1) * blocks + b], 1);
        }
}

FOR_EVERY_CPU void uniform_tile(float* __restrict out, const Words& words) {
    for (std::int64_t k = 0; k < tile; ++k)
        out[k] = (static_cast<float>(static_cast<std::int32_t>(words.word[k]) >> 8) + 0.5f) * 0x1p-23f;
}

FOR_EVERY_CPU void laplace_tile(float* __restrict out, const Words& words) {
    for (std::int64_t k = 0; k < tile; ++k) {
        const float exponential = 0.5f * minus_two_log_of_word(words.word[k] << 1);
        out[k] = float_of(bits_of(exponential) ^ (words.word[k] & 0x80000000u));
    }
}

FOR_EVERY_CPU void direction_tile(float* __restrict x, float* __restrict y, const Words& words) {
    for (std::int64_t k = 0; k < tile; ++k) {
        x[k] = cosine(words.word[k], 1);
        y[k] = sine(words.word[k], 1);
    }
}

}  // namespace sdfast
