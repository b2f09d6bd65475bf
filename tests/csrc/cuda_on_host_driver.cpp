// Calls the CUDA ops whose kernels tests/csrc/cuda_on_host.h runs on the host, on random arguments in buffers of
// exactly the right size, and compares with the ops of the CPU; run by tests/csrc/test_cuda_on_host.py under the
// sanitizers. Arguments: "patch_embed" or "cpu_states", rounds, seed, and a fault to inject: "overrun" (a buffer one
// element short) or "value" (one input changed in between).
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu_states/philox_stream.h"
#include "patch_embed/patch_embed.h"

namespace {

struct Trial {
    std::mt19937_64 random;
    bool overrun, value;

    int64_t below(int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); }
    int64_t one_of(std::initializer_list<int64_t> choices) { return choices.begin()[below(choices.size())]; }
};

void expect(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    // memcmp needs an address, which an empty vector may not have.
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// The op of the CPU; for fp16, which it does not have, the simplest loop.
template <class T>
void on_cpu(const int16_t* patches, const T* rows, const T* bias, const T* position_rows, const int64_t* positions,
            T* y, int64_t P, int64_t S, int64_t D, int64_t V) {
    if constexpr (!std::is_same_v<T, __half>) {
        using Bits = std::conditional_t<std::is_same_v<T, float>, float, uint16_t>;
        const auto bits = [](const T* x) { return reinterpret_cast<const Bits*>(x); };
        bgpt::patch_embed(patches, bits(rows), bits(bias), bits(position_rows), positions, reinterpret_cast<Bits*>(y),
                          P, S, D, V, 1, bgpt::best_isa());
        return;
    }
    for (int64_t p = 0; p < P; ++p) {
        for (int64_t d = 0; d < D; ++d) {
            float sum = static_cast<float>(bias[d]);
            for (int64_t s = 0; s < S; ++s) sum += static_cast<float>(rows[(V * s + patches[p * S + s]) * D + d]);
            if (positions != nullptr) sum += static_cast<float>(position_rows[positions[p] * D + d]);
            y[p * D + d] = T(sum);
        }
    }
}

template <class T>
void patch_embed_round(Trial& trial, int dtype) {
    const int64_t P = trial.below(9), S = 1 + trial.below(17), L = 1 + trial.below(5);
    const int64_t V = trial.one_of({128, 257});
    const int64_t D = trial.one_of({1, 7, 127, 128, 129, 200, 257});
    std::normal_distribution<float> normal;
    const auto floats = [&](int64_t count) {
        std::vector<T> values(count);
        for (T& x : values) x = T(normal(trial.random));
        return values;
    };
    std::vector<int16_t> patches(P * S);
    for (int16_t& token : patches) token = static_cast<int16_t>(trial.below(V));
    std::vector<int64_t> positions(P);
    for (int64_t& position : positions) position = trial.below(L);
    std::vector<T> rows = floats(S * V * D), bias = floats(D);
    const std::vector<T> position_rows = floats(L * D);
    const int64_t* const positions_or_null = trial.below(2) ? positions.data() : nullptr;

    const T poison = T(std::numeric_limits<float>::quiet_NaN());
    std::vector<T> y(P * D - (trial.overrun && P > 0 ? 1 : 0), poison), expected(P * D, poison);
    const auto on_gpu = [&] {
        bgpt::patch_embed_cuda(patches.data(), rows.data(), bias.data(), position_rows.data(), positions_or_null,
                               y.data(), P, S, D, V, L, dtype, nullptr);
    };
    on_gpu();
    if (trial.value) bias[0] = T(100.0f);
    on_cpu(patches.data(), rows.data(), bias.data(), position_rows.data(), positions_or_null, expected.data(), P, S, D,
           V);
    expect(same_bits(y, expected), "patch_embed: differs from the op of the CPU");

    // A token or position out of range adds nothing, as a row of zeros would, and no row is read for it.
    if (P == 0) return;
    const int64_t wrong = trial.below(P * S);
    const int64_t old_token = patches[wrong];
    patches[wrong] = static_cast<int16_t>(trial.one_of({-32768, -1, V, 32767}));
    const int64_t wrong_position = trial.below(P);
    const int64_t old_position = positions[wrong_position];
    positions[wrong_position] =
        trial.one_of({std::numeric_limits<int64_t>::min(), -1, L, std::numeric_limits<int64_t>::max()});
    on_gpu();
    patches[wrong] = static_cast<int16_t>(old_token);
    positions[wrong_position] = old_position;
    std::vector<T> without(expected);
    std::fill_n(rows.begin() + (V * (wrong % S) + old_token) * D, D, T(0.0f));
    const int64_t p = wrong / S;
    on_cpu(&patches[p * S], rows.data(), bias.data(), position_rows.data(),
           positions_or_null == nullptr || wrong_position == p ? nullptr : &positions[p], &without[p * D], 1, S, D, V);
    // Another patch with the same token in the same slot keeps its row, so only patch p is compared.
    expect(std::equal(&y[p * D], &y[p * D] + D, &without[p * D],
                      [](T a, T b) { return std::memcmp(&a, &b, sizeof(T)) == 0; }),
           "patch_embed: a token out of range adds something");
}

void cpu_states_round(Trial& trial) {
    using namespace bgpt::cpu_states;
    Options options{};
    options.num_registers = static_cast<int32_t>(trial.one_of({1, 2, 10, 255}));
    options.max_program = static_cast<int32_t>(trial.below(60));
    options.min_program = static_cast<int32_t>(trial.below(options.max_program + 1));
    options.memory_size = static_cast<int32_t>(4 * std::max(options.max_program, 1) + trial.below(9));
    const uint64_t seed = trial.random();
    const int64_t start = trial.below(int64_t{1} << 40), count = trial.below(300);

    std::vector<int64_t> sizes(count, -1), indices(count), offsets(count + 1);
    sizes_cuda(options, seed, start, count, sizes.data(), nullptr);
    expect(select(options, seed, start, count, Split::all, 1, indices.data(), offsets.data()) == start + count,
           "cpu_states: select skips instances");
    for (int64_t i = 0; i < count; ++i) {
        expect(indices[i] == start + i && sizes[i] == offsets[i + 1] - offsets[i], "cpu_states: sizes differ");
    }

    // Unless `fits`, the last instance is one byte too long for the buffer, and is skipped.
    const bool fits = count == 0 || trial.below(2) == 1;
    const int64_t capacity = offsets[count] - (fits ? 0 : 1);
    std::vector<uint8_t> expected(offsets[count]), out(capacity - (trial.overrun && fits && count > 0 ? 1 : 0), 0xA5);
    write_selected(options, seed + (trial.value ? 1 : 0), indices.data(), offsets.data(), count, expected.data(), 1);
    const int64_t num_written = fits ? count : count - 1;
    std::vector<uint8_t> flags(count, 2);
    static_assert(sizeof(bool) == 1);
    write_cuda(options, seed, start, count, offsets.data(), out.data(), capacity, reinterpret_cast<bool*>(flags.data()),
               nullptr);
    expect(std::equal(expected.begin(), expected.begin() + offsets[num_written], out.begin()),
           "cpu_states: traces differ from the host's");
    for (int64_t i = offsets[num_written]; i < capacity; ++i)
        expect(out[i] == 0xA5, "cpu_states: an instance is cut off");
    for (int64_t i = 0; i < num_written; ++i) {
        const int64_t length = draw_length(options, seed, static_cast<uint64_t>(start + i));
        expect(flags[i] == (is_eval(program_hash(expected.data() + offsets[i], length)) ? 1 : 0),
               "cpu_states: splits differ");
    }
    if (!fits) expect(flags[count - 1] == 2, "cpu_states: a skipped instance has a split");
}

}  // namespace

int main(int argc, char** argv) {
    expect(argc >= 4, "expected: patch_embed|cpu_states ROUNDS SEED [overrun|value]");
    const std::string op = argv[1], fault = argc > 4 ? argv[4] : "";
    const int rounds = std::atoi(argv[2]);
    Trial trial{std::mt19937_64(std::strtoull(argv[3], nullptr, 10)), fault == "overrun", fault == "value"};
    for (int i = 0; i < rounds; ++i) {
        if (op == "cpu_states") {
            cpu_states_round(trial);
        } else if (i % 3 == 0) {
            patch_embed_round<float>(trial, 0);
        } else if (i % 3 == 1) {
            patch_embed_round<__nv_bfloat16>(trial, 1);
        } else {
            patch_embed_round<__half>(trial, 2);
        }
    }
    std::printf("%d rounds\n", rounds);
    return 0;
}
