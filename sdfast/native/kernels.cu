// The denoising loop on a GPU: one kernel does everything between two runs of the network.
//
// All of it goes element by element, so that a thread can take one element of every latent through guidance, the
// sampler's combinations and draws, and the network's next input, without a word to other threads. What it does is data:
// the words that sdfast/devices/steps.py writes, one row for each gap between runs. A program is a table, and a graph
// that was captured with one runs every other of as many evaluations.
#include "formulas.h"

namespace sdfast {

// The operations of a row, and the words behind each (f: a float's bits, d: a double's, low word first).
enum class Operation : std::uint32_t {
    end,       // -
    guide,     // out, x, halves, σ d: D of the network's answer
    combine,   // out, n, n times (slot, coefficient f)
    wide,      // out, n, n times (slot, coefficient d): the sum in double
    gaussian,  // out, draw: torch.randn on CUDA
    brownian,  // out, σ d, σ_next d
    given,     // out, index: of the draws that came from the host
    prepare,   // x, σ d, t f, evaluation: the network's input
    finish,    // x: the result
    blend,     // out, x, kept: x where the mask is 1, kept where it is 0
};

// What a run touches; every pointer is of the GPU, and of one graph for as long as it lives.
struct Run {
    const std::uint32_t* words;    // the program
    const std::uint32_t* starts;   // where each row begins in it
    std::uint32_t* counter;        // the row that is next, or null where the launch says it
    float* slots;                  // the program's latents [slots, B, C, h, w]
    const float* answer;           // the network's output [G·B, C, h, w]
    float* latent;                 // its input [G·B, C or more, h, w]
    float* timestep;               // [G·B]
    float* time;                   // [G·B, S], or null
    const float* table;            // the time embeddings [G·E, S] of E timesteps, or null
    const float* draws;            // what the host drew [n, B, C, h, w]
    float* result;                 // [B, C, h, w]: D of the latest answer, and x in the end
    const std::uint64_t* seeds;    // [B]
    const double* guidance;        // its scale, and φ of CFG rescale
    double* sums;                  // of CFG rescale [B, lanes, 4], or null without
    double* factors;               // of CFG rescale [B]
    const float* mask;             // of the pictures that are redrawn in part [B, 1, h, w]
    std::uint32_t prediction;
    std::int64_t image;            // elements of an image, C·h·w
    std::int64_t plane;            // of a channel, h·w
    std::int64_t input;            // of a row of the network's input, at least an image's
    std::int64_t images;           // B
    std::int64_t rows;             // G·B
    std::int64_t time_size;        // S
    std::int64_t timesteps;        // E
};

namespace {

struct Reader {
    const std::uint32_t* at;

    SDFAST_FORMULA std::uint32_t word() { return *at++; }
    SDFAST_FORMULA float number() { return float_of(*at++); }
    SDFAST_FORMULA double wide() {
        const std::uint64_t low = *at++, high = *at++;
        return __builtin_bit_cast(double, high << 32 | low);
    }
};

// Four normals come of a block, in tiles of 1024 elements: those of its word pairs' sines and cosines lie 256 apart.
SDFAST_FORMULA float tiled_normal(std::uint64_t seed, std::uint32_t draw, Purpose purpose, std::uint32_t row,
                                  std::uint32_t element) {
    const std::uint32_t place = element & 1023u, word = place >> 8;
    const Block block = philox({{draw, static_cast<std::uint32_t>(purpose), (element >> 10 << 8) + (place & 255u), row}}, seed);
    const std::uint32_t pair = word & 2u;
    const float radius = std::sqrt(minus_two_log_of_word(pair != 0 ? block.word[2] : block.word[0]));
    const std::uint32_t angle = pair != 0 ? block.word[3] : block.word[1];
    return radius * ((word & 1u) != 0 ? cosine(angle, 1) : sine(angle, 1));
}

// W(σ) at one element of a seed's path, as native/brownian.cpp has it.
SDFAST_FORMULA float path(double sigma, std::uint64_t seed, std::uint32_t element) {
    if (sigma == 0.0) return 0.0f;  // the path starts there
    const auto normal = [&](std::uint32_t node, std::uint32_t row) {
        return tiled_normal(seed, node, Purpose::brownian, row, element);
    };
    float left = Descent::start * normal(0, 0), right = left + Descent::rest * normal(0, 1);
    Descent way{sigma};
    for (int level = 0; level < Descent::depth; ++level) {
        const Bridge bridge = way.next();
        const float middle = bridge.left * left + bridge.right * right + bridge.deviation * normal(bridge.node, 0);
        (bridge.becomes_left ? left : right) = middle;
    }
    return way.to_left() * left + way.to_right() * right;
}

// One element's way through a row.
SDFAST_FORMULA void take(const Run& run, std::uint32_t number, std::int64_t i) {
    const std::int64_t all = run.images * run.image, image = i / run.image;
    const std::uint32_t element = static_cast<std::uint32_t>(i - image * run.image);
    const std::int64_t guided = run.rows == run.images ? i : all + i;
    const auto slot = [&](std::uint32_t which) -> float& { return run.slots[which * all + i]; };
    Reader row{run.words + run.starts[number]};
    while (true) {
        switch (static_cast<Operation>(row.word())) {
            case Operation::guide: {
                float& out = slot(row.word());
                const float x = slot(row.word());
                const bool halves = row.word() == 2;
                const double sigma = row.wide();
                Denoise d = denoise_coefficients(static_cast<Prediction>(run.prediction), sigma);
                if (halves && run.sums != nullptr) d = rescaled(d, sigma, run.factors[image]);
                const float answer = halves ? guide(run.answer[i], run.answer[guided], static_cast<float>(run.guidance[0]))
                                            : run.answer[guided];
                run.result[i] = out = static_cast<float>(d.skip) * x + static_cast<float>(d.scale) * answer;
                break;
            }
            case Operation::combine: {
                float& out = slot(row.word());
                const std::uint32_t terms = row.word();
                float sum = 0.0f;
                for (std::uint32_t term = 0; term < terms; ++term) {
                    const float source = slot(row.word()), product = row.number() * source;
                    sum = term == 0 ? product : sum + product;
                }
                out = sum;
                break;
            }
            case Operation::wide: {
                float& out = slot(row.word());
                const std::uint32_t terms = row.word();
                double sum = 0.0;
                for (std::uint32_t term = 0; term < terms; ++term) {
                    const double source = static_cast<double>(slot(row.word()));
                    sum += row.wide() * source;
                }
                out = static_cast<float>(sum);
                break;
            }
            case Operation::gaussian: {
                float& out = slot(row.word());
                out = philox_normal(run.seeds[image], row.word(), element);
                break;
            }
            case Operation::brownian: {
                float& out = slot(row.word());
                const double sigma = row.wide(), next = row.wide(), width = next > sigma ? next - sigma : sigma - next;
                const double scale = width > 0.0 ? 1.0 / std::sqrt(width) : 0.0;  // no time, no noise
                const float from = path(sigma, run.seeds[image], element), to = path(next, run.seeds[image], element);
                const float narrow = static_cast<float>(scale);
                out = scale > wide_from ? static_cast<float>(-scale * static_cast<double>(from) + scale * static_cast<double>(to))
                                        : -narrow * from + narrow * to;
                break;
            }
            case Operation::given: {
                float& out = slot(row.word());
                out = run.draws[static_cast<std::int64_t>(row.word()) * all + i];
                break;
            }
            case Operation::prepare: {
                const float x = slot(row.word()), input = static_cast<float>(input_scale(row.wide())) * x;
                const std::int64_t place = image * run.input + element, half = (run.rows - run.images) * run.input;
                run.latent[half + place] = run.latent[place] = input;  // one place, or one in either half
                const float t = row.number();
                if (i < run.rows) run.timestep[i] = t;
                const std::int64_t evaluation = row.word();
                for (std::int64_t k = i; run.table != nullptr && k < run.rows * run.time_size; k += all) {
                    const std::int64_t half = k / run.time_size / run.images;
                    run.time[k] = run.table[(half * run.timesteps + evaluation) * run.time_size + k % run.time_size];
                }
                break;
            }
            case Operation::finish: run.result[i] = slot(row.word()); break;
            case Operation::blend: {
                float& out = slot(row.word());
                const float x = slot(row.word()), kept = slot(row.word());
                out = blend(x, kept, run.mask[image * run.plane + element % run.plane]);
                break;
            }
            default: return;
        }
    }
}

constexpr std::int64_t lanes = 256;

// Of the rows that guide in halves: one lane's sums of v and of its squares, under the prompt alone and guided.
SDFAST_FORMULA void add_up(const Run& run, std::uint32_t number, std::int64_t image, std::int64_t lane) {
    Reader row{run.words + run.starts[number]};
    if (static_cast<Operation>(row.word()) != Operation::guide) return;
    row.word();
    const float* x = run.slots + row.word() * run.images * run.image;
    if (row.word() != 2) return;
    const double sigma = row.wide();
    const Denoise v = v_part(denoise_coefficients(static_cast<Prediction>(run.prediction), sigma), sigma);
    double sums[4] = {};
    for (std::int64_t k = image * run.image + lane; k < (image + 1) * run.image; k += lanes) {
        const float unguided = run.answer[k], guided = run.answer[run.images * run.image + k];
        const double skipped = v.skip * static_cast<double>(x[k]), with = skipped + v.scale * static_cast<double>(guided);
        const double mixed = skipped + v.scale * guide<double>(unguided, guided, run.guidance[0]);
        sums[0] += with;
        sums[1] += with * with;
        sums[2] += mixed;
        sums[3] += mixed * mixed;
    }
    for (int k = 0; k < 4; ++k) run.sums[(image * lanes + lane) * 4 + k] = sums[k];
}

// The image's factor of v. The deviations are unbiased, but their ratio needs no division by n − 1.
SDFAST_FORMULA void divide(const Run& run, std::int64_t image) {
    double sums[4] = {};
    for (std::int64_t k = 0; k < 4 * lanes; ++k) sums[k % 4] += run.sums[image * lanes * 4 + k];
    const double n = static_cast<double>(run.image);
    const double with = sums[1] - sums[0] * sums[0] / n, mixed = sums[3] - sums[2] * sums[2] / n;
    run.factors[image] = rescale_factor(with > 0.0 ? with : 0.0, mixed > 0.0 ? mixed : 0.0, run.guidance[1]);
}

}  // namespace

#ifdef __CUDACC__

// The row that a launch takes: the one it names, or the one that the run's counter says.
__device__ std::uint32_t row_of(const Run& run, std::uint32_t number) { return run.counter == nullptr ? number : *run.counter; }

extern "C" __global__ void step(const __grid_constant__ Run run, std::uint32_t number) {
    const std::uint32_t row = row_of(run, number);
    const std::int64_t all = run.images * run.image, stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += stride) take(run, row, i);
}

// CFG rescale, before a step: one block of `lanes` threads an image, then one thread an image.
extern "C" __global__ void sum_up(const __grid_constant__ Run run, std::uint32_t number) {
    add_up(run, row_of(run, number), blockIdx.x, threadIdx.x);
}

extern "C" __global__ void find_factors(const __grid_constant__ Run run, std::uint32_t) { divide(run, threadIdx.x); }

// After a step of a graph that is launched for each row.
extern "C" __global__ void advance(const __grid_constant__ Run run, std::uint32_t) { *run.counter += 1; }

#endif

}  // namespace sdfast
