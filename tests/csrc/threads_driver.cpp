// Calls each function that shares its work among threads, on enough data for several, and compares the bits with those
// of one thread; run by tests/csrc/test_sanitizers.py under the thread sanitizer. Compiled for one folder of csrc/ at a
// time: -DBGPT_TEST_<folder>.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "common/cpu.h"

#if defined(BGPT_TEST_bias_gelu)
#include "bias_gelu/bias_gelu.h"
#elif defined(BGPT_TEST_byte_embed)
#include "byte_embed/byte_embed.h"
#elif defined(BGPT_TEST_layer_norm)
#include "layer_norm/layer_norm.h"
#elif defined(BGPT_TEST_invariant_linear)
#include "invariant_linear/invariant_linear.h"
#elif defined(BGPT_TEST_patch_attention)
#include "patch_attention/short_attention.h"
#elif defined(BGPT_TEST_linear_cross_entropy)
#include "linear_cross_entropy/cross_entropy.h"
#elif defined(BGPT_TEST_matrix_product)
#include "matrix_product/matrix_product.h"
#elif defined(BGPT_TEST_patch_embed)
#include "patch_embed/patch_embed.h"
#elif defined(BGPT_TEST_symmetric_product)
#include "symmetric_product/symmetric_product.h"
#elif defined(BGPT_TEST_cached_attention)
#include "cached_attention/cached_attention.h"
#elif defined(BGPT_TEST_patches)
#include "patches/patches.h"
#elif defined(BGPT_TEST_cpu_states)
#include "cpu_states/philox_stream.h"
#include "cpu_states/traces.h"
#endif

namespace {

using Floats = std::vector<float>;

[[maybe_unused]] Floats floats(int64_t count) {
    std::mt19937 engine(0);
    std::normal_distribution<float> normal;
    Floats values(count);
    for (float& value : values) value = normal(engine);
    return values;
}

// Runs `work(threads)`, which returns its results as bytes, and compares.
template <class Work>
void compare(const Work& work) {
    const auto expected = work(1), got = work(3);
    if (expected != got) {
        std::fprintf(stderr, "3 threads give other bits than 1\n");
        std::exit(1);
    }
}

void check() {
    [[maybe_unused]] const bgpt::Isa isa = bgpt::best_isa();
#if defined(BGPT_TEST_bias_gelu)
    const int64_t N = 2000, F = 300;
    const Floats x = floats(N * F), bias = floats(F);
    compare([&](int64_t threads) {
        Floats y(N * F), dx(N * F), again(N * F), dbias(F);
        bgpt::bias_gelu(x.data(), bias.data(), y.data(), N, F, threads, isa);
        bgpt::bias_gelu_backward(y.data(), x.data(), bias.data(), dx.data(), again.data(), dbias.data(), N, F, threads,
                                 isa);
        y.insert(y.end(), dx.begin(), dx.end());
        y.insert(y.end(), dbias.begin(), dbias.end());
        return y;
    });
#elif defined(BGPT_TEST_layer_norm)
    const int64_t N = 3000, D = 200;
    const Floats x = floats(N * D), weight = floats(D);
    compare([&](int64_t threads) {
        Floats y(N * D), total(N * D), mean(N), rstd(N), dtotal(N * D), dx(N * D), dweight(D), dbias(D), sum(D);
        bgpt::layer_norm_forward({x.data(), x.data(), total.data(), y.data(), weight.data(), weight.data(), mean.data(),
                                  rstd.data(), N, D, 1e-5f, false, false},
                                 threads, isa);
        bgpt::layer_norm_backward(
            {y.data(), x.data(), total.data(), dtotal.data(), dx.data(), weight.data(), mean.data(), rstd.data(),
             dweight.data(), dbias.data(), sum.data(), N, D, false, false},
            threads, isa);
        for (const Floats& part : {total, dtotal, dx, dweight, dbias, sum}) y.insert(y.end(), part.begin(), part.end());
        return y;
    });
#elif defined(BGPT_TEST_invariant_linear)
    const int64_t M = 64, K = 300, N = 2000;
    const Floats x = floats(M * K), weight = floats(K * N), bias = floats(N);
    compare([&](int64_t threads) {
        Floats y(M * N);
        bgpt::invariant_linear({x.data(), weight.data(), bias.data(), y.data(), M, K, N, true}, threads, isa);
        return y;
    });
#elif defined(BGPT_TEST_patch_attention)
    const int64_t B = 400, S = 16, H = 4, d = 16, D = H * d;
    const Floats qkv = floats(B * S * 3 * D);
    compare([&](int64_t threads) {
        Floats y(B * S * D), dqkv(B * S * 3 * D);
        const bgpt::Sequences sequences{B, S, nullptr};
        const float* from = qkv.data();
        float* into = dqkv.data();
        const bgpt::QKV<const float> in{from, from + D, from + 2 * D, 3 * D};
        const bgpt::QKV<float> out{into, into + D, into + 2 * D, 3 * D};
        bgpt::short_attention(in, y.data(), sequences, H, d, threads);
        bgpt::short_attention_backward(y.data(), in, out, sequences, H, d, threads);
        y.insert(y.end(), dqkv.begin(), dqkv.end());
        return y;
    });
#elif defined(BGPT_TEST_byte_embed)
    const int64_t T = 300, S = 16, D = 96, V = 257;
    const Floats features = floats(T * D), wte = floats(V * D), wpe = floats(S * D), dx = floats(T * S * D);
    std::vector<int16_t> patches(T * S);
    for (int64_t i = 0; i < T * S; ++i) patches[i] = static_cast<int16_t>(i * 7 % V);
    compare([&](int64_t threads) {
        Floats x(T * S * D), dfeatures(T * D), dwte(V * D), dwpe(S * D);
        bgpt::byte_embed(features.data(), patches.data(), wte.data(), wpe.data(), x.data(), T, S, D, threads, isa);
        bgpt::byte_embed_backward(dx.data(), patches.data(), dfeatures.data(), dwte.data(), dwpe.data(), T, S, D,
                                  threads, isa);
        for (const Floats& gradient : {dfeatures, dwte, dwpe}) x.insert(x.end(), gradient.begin(), gradient.end());
        return x;
    });
#elif defined(BGPT_TEST_patch_embed)
    const int64_t P = 1000, S = 16, D = 96, V = 257;
    const Floats table = floats(S * V * D), bias = floats(D), dy = floats(P * D);
    std::vector<int16_t> patches(P * S);
    for (int64_t i = 0; i < P * S; ++i) patches[i] = static_cast<int16_t>(i * 7 % V);
    compare([&](int64_t threads) {
        Floats y(P * D), gradient(S * V * D);
        const float* none = nullptr;
        bgpt::patch_embed(patches.data(), table.data(), bias.data(), none, nullptr, y.data(), P, S, D, V, threads, isa);
        bgpt::patch_embed_backward(dy.data(), patches.data(), gradient.data(), P, S, D, V, threads, isa);
        y.insert(y.end(), gradient.begin(), gradient.end());
        return y;
    });
#elif defined(BGPT_TEST_linear_cross_entropy)
    const int64_t N = 2000, V = 257;
    const Floats logits = floats(N * V), dnats = floats(N);
    std::vector<int64_t> targets(N);
    for (int64_t n = 0; n < N; ++n) targets[n] = n * 7 % V;
    compare([&](int64_t threads) {
        Floats y(N * V), nats(N), lse(N);
        bgpt::cross_entropy(logits.data(), targets.data(), nats.data(), lse.data(), N, V, threads, isa);
        bgpt::cross_entropy_backward(logits.data(), targets.data(), dnats.data(), y.data(), N, V, threads, isa);
        y.insert(y.end(), nats.begin(), nats.end());
        return y;
    });
#elif defined(BGPT_TEST_matrix_product)
    const int64_t M = 200, N = 100, K = 300;
    const Floats a = floats(M * K), b = floats(K * N);
    compare([&](int64_t threads) {
        Floats y(2 * M * N);
        bgpt::matrix_product({a.data(), K, 1, b.data(), N, 1, nullptr, y.data(), M, N, K}, threads, isa);
        bgpt::matrix_product({b.data(), 1, N, a.data(), 1, K, nullptr, y.data() + M * N, N, M, K}, threads, isa);
        return y;
    });
#elif defined(BGPT_TEST_symmetric_product)
    const int64_t M = 3, n = 50, K = 300;
    const Floats x = floats(M * n * K);
    compare([&](int64_t threads) {
        Floats y(M * n * n);
        bgpt::symmetric_product({x.data(), x.data(), nullptr, y.data(), M, n, K, n, 1, 1.0f, 0.0f, 0.0f}, threads, isa);
        return y;
    });
#elif defined(BGPT_TEST_cached_attention)
    const int64_t T = 600, H = 8, d = 32, L = 300, B = 2;
    const Floats qkv = floats(T * 3 * H * d);
    std::vector<int64_t> slots(T), positions(T);
    for (int64_t t = 0; t < T; ++t) slots[t] = t / L, positions[t] = t % L;
    compare([&](int64_t threads) {
        Floats keys(B * H * d * L), values(B * H * d * L), y(T * H * d);
        bgpt::cached_attention(
            {qkv.data(), keys.data(), values.data(), slots.data(), positions.data(), y.data(), T, H, d, L, B}, threads,
            isa);
        return y;
    });
#elif defined(BGPT_TEST_patches)
    const std::vector<uint8_t> content(3'000'000, 7);
    const std::vector<bgpt::Document> documents(2, {content.data(), 3, content.data(), 3'000'000, true});
    const auto offsets = bgpt::patch_offsets(documents, 16);
    compare([&](int64_t threads) {
        std::vector<int16_t> tokens(offsets.back() * 16);
        bgpt::pack_patches(documents, offsets, 16, tokens.data(), threads);
        return tokens;
    });
#elif defined(BGPT_TEST_cpu_states)
    const bgpt::cpu_states::Options options{10, 256, 1, 30, 0};
    const int64_t count = 5000;
    compare([&](int64_t threads) {
        using namespace bgpt::cpu_states;
        std::vector<int64_t> indices(count), offsets(count + 1);
        select(options, 5, 0, count, Split::all, threads, indices.data(), offsets.data());
        std::vector<uint8_t> traces(offsets[count]);
        write_selected(options, 5, indices.data(), offsets.data(), count, traces.data(), threads);
        std::vector<uint64_t> hashes(count);
        hash_programs(traces.data(), offsets.data(), count, 10, 256, hashes.data(), threads);
        if (find_invalid(traces.data(), offsets.data(), count, 10, 256, threads) != -1) std::exit(1);
        for (const uint64_t hash : hashes) traces.push_back(static_cast<uint8_t>(hash));
        return traces;
    });
#endif
}

}  // namespace

int main() {
    for (int i = 0; i < 3; ++i) check();
    std::printf("equal\n");
}
