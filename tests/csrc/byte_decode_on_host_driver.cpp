// Runs the body of the persistent byte decoder on the host: a thread for each warp of each block, with the same barrier
// of the grid as on a GPU. tests/csrc/test_byte_decode_on_host.py writes its input and checks its output.
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "byte_decode/grid_barrier.h"
#include "byte_decode/persistent_body.h"

namespace {

using namespace bgpt;

using Memory = std::unique_ptr<void, decltype(&std::free)>;

// Aligned as the kernel expects.
Memory memory(size_t bytes) { return Memory(std::aligned_alloc(32, (bytes + 31) / 32 * 32), &std::free); }

struct Reader {
    std::ifstream file;
    std::vector<Memory> arrays{};

    template <class T>
    T one() {
        T values;
        read(&values, 1);
        return values;
    }

    template <class T>
    void read(T* to, size_t count) {
        file.read(reinterpret_cast<char*>(to), static_cast<std::streamsize>(count * sizeof(T)));
        if (!file) {
            std::fprintf(stderr, "the input file is too short\n");
            std::exit(2);
        }
    }

    template <class T>
    T* array(size_t count) {
        T* const values = static_cast<T*>(arrays.emplace_back(memory(count * sizeof(T))).get());
        read(values, count);
        return values;
    }

    Sampling sampling() {
        Sampling sampling{};
        sampling.temperature = one<double>();
        sampling.top_k = one<int64_t>();
        sampling.top_p = one<double>();
        sampling.seed = one<uint64_t>();
        return sampling;
    }
};

struct BlockState {
    std::unique_ptr<std::barrier<>> barrier;
    Memory shared{nullptr, &std::free};
};

struct HostGrid {
    void sync() { barrier.arrive_and_wait(); }
    void arrive() {
        sync();
        if (warp == 0) grid.arrive();
    }
    void wait() {
        if (warp == 0 && !skips_wait) grid.wait();
        sync();
    }
    const int32_t block, blocks, warp, warps;
    std::barrier<>& barrier;
    GridBarrier grid;
    const bool skips_wait;  // does not wait for the other blocks
};

template <class W>
void decode(Reader& in, const std::string& fault, std::ofstream& out) {
    PersistentShape shape{};
    in.read(&shape.D, 5);
    shape.eps = in.one<float>();
    const int32_t N = in.one<int32_t>(), blocks = in.one<int32_t>(), warps = in.one<int32_t>();
    PersistentCall call{};
    call.N = N;
    call.sampling = in.sampling();

    const int64_t D = shape.D, F = shape.F;
    PersistentWeights<W> weights{};
    for (int32_t i = 0; i < shape.layers; ++i) {
        auto& layer = weights.layers[i];
        layer.ln_1_weight = in.array<float>(D);
        layer.ln_1_bias = in.array<float>(D);
        layer.attn_weight = in.array<W>(3 * D * D);
        layer.attn_bias = in.array<float>(3 * D);
        layer.attn_proj_weight = in.array<W>(D * D);
        layer.attn_proj_bias = in.array<float>(D);
        layer.ln_2_weight = in.array<float>(D);
        layer.ln_2_bias = in.array<float>(D);
        layer.fc_weight = in.array<W>(F * D);
        layer.fc_bias = in.array<float>(F);
        layer.mlp_proj_weight = in.array<W>(D * F);
        layer.mlp_proj_bias = in.array<float>(D);
    }
    weights.ln_f_weight = in.array<float>(D);
    weights.ln_f_bias = in.array<float>(D);
    weights.wpe = in.array<float>(shape.S * D);
    weights.wte = in.array<float>(kVocabSize * D);
    weights.head = in.array<W>(kVocabSize * D);
    call.features = in.array<float>(N * D);
    call.prefix_tokens = in.array<int16_t>(N * shape.S);
    call.max_tokens = in.array<int64_t>(N);
    call.rng_streams = in.array<uint64_t>(N);
    call.byte_offsets = in.array<uint64_t>(N);

    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::vector<int16_t> tokens(N * shape.S, 256);
    std::vector<int64_t> counts(N, -2);
    std::vector<float> logits(N * shape.S * kVocabSize, nan);
    call.tokens = tokens.data();
    call.counts = counts.data();
    call.logits = logits.data();

    const PersistentPlan plan = plan_of<W>(shape, N, blocks, warps);
    const int64_t size = persistent_workspace_size(shape, N) - (fault == "overrun" ? 8 : 0);
    const Memory workspace_memory = memory(size * sizeof(float));
    std::fill_n(static_cast<float*>(workspace_memory.get()), size, nan);
    const PersistentWorkspace workspace =
        persistent_workspace_at(static_cast<float*>(workspace_memory.get()), shape, N);

    uint32_t arrived = 0;
    std::vector<BlockState> block_states(blocks);
    std::vector<std::thread> threads;
    for (int32_t b = 0; b < blocks; ++b) {
        block_states[b].barrier = std::make_unique<std::barrier<>>(warps);
        block_states[b].shared = memory(plan.shared);
        std::fill_n(static_cast<float*>(block_states[b].shared.get()), plan.shared / sizeof(float), nan);
    }
    for (int32_t b = 0; b < blocks; ++b) {
        for (int32_t w = 0; w < warps; ++w) {
            threads.emplace_back([&, b, w] {
                if (fault == "barrier" && b == 1) std::this_thread::sleep_for(std::chrono::milliseconds(200));
                HostGrid grid{b,
                              blocks,
                              w,
                              warps,
                              *block_states[b].barrier,
                              GridBarrier(&arrived, static_cast<uint32_t>(blocks)),
                              fault == "barrier"};
                auto* const shared = static_cast<unsigned char*>(block_states[b].shared.get());
                Persistent<W, HostGrid>(plan, weights, call, workspace, grid, shared).run();
            });
        }
    }
    for (std::thread& thread : threads) thread.join();

    const auto write = [&](const auto& values) {
        out.write(reinterpret_cast<const char*>(values.data()),
                  static_cast<std::streamsize>(values.size() * sizeof values[0]));
    };
    write(tokens);
    write(counts);
    write(logits);
}

template <int V>
void choose(Reader& in, std::ofstream& out) {
    const int64_t N = in.one<int64_t>();
    const Sampling sampling = in.sampling();
    const float* logits = in.array<float>(N * V);
    const uint64_t* indices = in.array<uint64_t>(N);
    const uint64_t* positions = in.array<uint64_t>(N);
    std::vector<double> ranked(kLanes * kTokensPerLane);
    for (int64_t n = 0; n < N; ++n) {
        const int32_t token = choose_by_warp<V>(logits + n * V, sampling, indices[n], positions[n], ranked.data());
        out.write(reinterpret_cast<const char*>(&token), sizeof token);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) {
        std::fprintf(stderr, "expected: decode|choose INPUT OUTPUT [overrun|barrier]\n");
        return 2;
    }
    const std::string what = argv[1], fault = argc > 4 ? argv[4] : "";
    Reader in{std::ifstream(argv[2], std::ios::binary)};
    std::ofstream out(argv[3], std::ios::binary);
    if (what == "choose") {
        with_vocab_size(in.one<int32_t>(), [&]<int V>() { choose<V>(in, out); });
    } else {
        in.one<int32_t>() == 0 ? decode<float>(in, fault, out) : decode<uint16_t>(in, fault, out);
    }
    return 0;
}
