// Runs the packed decoders on random models of odd shapes in buffers of exactly the right size, on every instruction
// set and on several threads, and compares all bits; run by tests/csrc/test_sanitizers.py under the
// sanitizers, and by test_instruction_sets.py, which compares the digest of all bits, on standard error, between
// machines. Arguments: models, seed, and "overrun" to pass features that are one float short or "bits"
// to leave out what tests the team of threads, or "blocks" for that and one model more, with sums and attention over
// several blocks.
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "byte_decode/byte_decode.h"

namespace {

using namespace bgpt;
using Floats = std::vector<float>;

struct Random {
    std::mt19937 engine;
    int64_t below(int64_t limit) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(limit)); }
    // Not std::normal_distribution, whose values are the C++ library's choice.
    Floats floats(int64_t count, float scale) {
        Floats values(count);
        for (float& value : values) value = (static_cast<float>(engine() >> 8) / 8388608.0f - 1.0f) * 2.0f * scale;
        return values;
    }
};

Transformer random_transformer(Random& random, int64_t D, int64_t H, int64_t F, int64_t positions,
                               Precision precision) {
    Transformer transformer(D, H, F, 1e-5f, precision);
    const int64_t sizes[12] = {D, D, D * 3 * D, 3 * D, D * D, D, D, D, D * F, F, F * D, D};
    for (int64_t layer = random.below(2) + 1; layer > 0; --layer) {
        std::vector<Floats> at;
        for (const int64_t size : sizes) at.push_back(random.floats(size, 0.3f));
        transformer.add_layer({at[0].data(), at[1].data(), at[2].data(), at[3].data(), at[4].data(), at[5].data(),
                               at[6].data(), at[7].data(), at[8].data(), at[9].data(), at[10].data(), at[11].data()});
    }
    const Floats weight = random.floats(D, 1.0f), bias = random.floats(D, 0.1f),
                 wpe = random.floats(positions * D, 0.3f);
    transformer.finish(weight.data(), bias.data(), wpe.data(), positions);
    return transformer;
}

struct Result {
    Floats features, logits;
    std::vector<int16_t> tokens;
    std::vector<int64_t> counts, drafted;
};

bool equal(const Floats& a, const Floats& b) { return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0; }

// The digest of FNV-1a, over words.
struct Digest {
    uint64_t value = 14695981039346656037u;
    void add(const Floats& floats) {
        for (const float x : floats) value = (value ^ std::bit_cast<uint32_t>(x)) * 1099511628211u;
    }
};

struct Sizes {
    int64_t H, D, F, S, L, N;
    Precision precision;
};

Sizes random_sizes(Random& random) {
    const int64_t H = random.below(3) + 1, D = H * (random.below(20) + 1), F = random.below(90) + 1;
    const int64_t S = random.below(6) + 1, L = random.below(20) + 1, N = random.below(12) + 1;
    return {H, D, F, S, L, N, static_cast<Precision>(random.below(3))};
}

void one_model(Random& random, const Sizes& sizes, bool overrun, Digest& digest) {
    const auto [H, D, F, S, L, N, precision] = sizes;
    const Transformer patch = random_transformer(random, D, H, F, L, precision);
    const Transformer byte = random_transformer(random, D, H, F, S + 1, precision);
    const int64_t V = random.below(2) == 0 ? kVocabSize : kNotaGenVocabSize;
    const Floats wte = random.floats(V * D, 0.3f);
    const ByteDecoder decoder(byte, wte.data(), V, S);
    const int64_t draft_D = H * (random.below(8) + 1);
    const Transformer draft = random_transformer(random, draft_D, H, F, S + 1, precision);
    const Floats draft_wte = random.floats(V * draft_D, 0.3f), draft_features = random.floats(N * draft_D, 1.0f);
    const ByteDecoder drafter(draft, draft_wte.data(), V, S);
    const bool is_drafted = random.below(2) == 1;

    // All positions of two slots, in one call.
    std::vector<int64_t> slots, positions;
    for (int64_t t = 0; t < 2 * L; ++t) {
        slots.push_back(t / L);
        positions.push_back(t % L);
    }
    const Floats x = random.floats(2 * L * D, 1.0f), features_in = random.floats(N * D - overrun, 1.0f);
    std::vector<int16_t> prefix_tokens(N * S, -1);
    std::vector<int16_t> drafts(N * S, -1);
    const auto verify = std::make_unique<bool[]>(N);
    std::vector<int64_t> max_tokens(N);
    std::vector<uint64_t> rng_streams(N), byte_offsets(N);
    for (int64_t n = 0; n < N; ++n) {
        max_tokens[n] = random.below(S) + 1;
        for (int64_t s = random.below(S); s > 0; --s)
            prefix_tokens[n * S + s - 1] = static_cast<int16_t>(random.below(V));
        for (int64_t s = random.below(S + 1); s > 0; --s) drafts[n * S + s - 1] = static_cast<int16_t>(random.below(4));
        verify[n] = random.below(2) == 1;
        rng_streams[n] = random.engine();
        byte_offsets[n] = random.engine();
    }
    const Sampling sampling{static_cast<double>(random.below(3)) / 2, random.below(300), random.below(12) / 10.0 + 0.1,
                            random.engine()};

    std::vector<Result> results;
    for (const auto& [threads, isa] : {std::pair{1, Isa::portable}, {4, Isa::avx2}, {3, Isa::avx512}}) {
        const Isa used = std::min(isa, best_isa());
        Team team(threads);
        Cache cache(patch, 2, L);
        Workspace workspace(patch, 7);
        Result result{Floats(2 * L * D), Floats(N * S * V, 0.0f), std::vector<int16_t>(N * S), std::vector<int64_t>(N),
                      std::vector<int64_t>(2 * N)};
        features(patch, cache, workspace, x.data(), slots.data(), positions.data(), 2 * L, result.features.data(), team,
                 used);
        byte_decode(decoder,
                    {features_in.data(), N, prefix_tokens.data(), drafts.data(), verify.get(), max_tokens.data(),
                     rng_streams.data(), byte_offsets.data(), sampling, static_cast<int32_t>(V - 1), 0,
                     result.tokens.data(), result.counts.data(), result.logits.data(), is_drafted ? &drafter : nullptr,
                     draft_features.data(), result.drafted.data()},
                    team, used);
        results.push_back(std::move(result));
    }
    for (const Result& result : results) {
        const Result& first = results.front();
        if (!equal(result.features, first.features) || !equal(result.logits, first.logits) ||
            result.tokens != first.tokens || result.counts != first.counts || result.drafted != first.drafted) {
            std::fprintf(stderr, "the bits differ: D %ld H %ld F %ld S %ld L %ld N %ld precision %d\n", long(D),
                         long(H), long(F), long(S), long(L), long(N), static_cast<int>(precision));
            std::exit(1);
        }
    }
    digest.add(results.front().features);
    digest.add(results.front().logits);
}

// Many short phases of different sizes, some of which throw.
void phases(Random& random) {
    Team team(4);
    for (int round = 0; round < 200; ++round) {
        const int64_t count = random.below(50), grain = random.below(5) + 1;
        std::vector<int> times_run(count, 0);
        bool has_thrown = false;
        try {
            team.for_each(count, grain, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) ++times_run[i];
                if (round % 7 == 0 && begin == 0) throw 1;
            });
        } catch (int) {
            has_thrown = true;
        }
        for (const int times : times_run) {
            if (times != 1) std::exit(2);
        }
        if (has_thrown != (round % 7 == 0 && count > 0)) std::exit(3);
    }
}

// Phases of few chunks and of many in turn, as short as possible, so that helpers still look for chunks of one while
// the next is set up.
void phases_in_a_row(int rounds) {
    Team team(2);
    std::vector<int> times_run(64);
    for (int round = 0; round < rounds; ++round) {
        const int64_t count = round % 2 == 0 ? 3 : 64;
        std::fill(times_run.begin(), times_run.end(), 0);
        team.for_each(count, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) ++times_run[i];
        });
        for (int64_t i = 0; i < 64; ++i) {
            if (times_run[i] != (i < count)) std::exit(4);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const int models = argc > 1 ? std::atoi(argv[1]) : 10;
    Random random{std::mt19937(argc > 2 ? std::atoi(argv[2]) : 0)};
    const std::string_view mode = argc > 3 ? argv[3] : "";
    if (mode != "bits" && mode != "blocks") {
        phases(random);
        phases_in_a_row(300000);
    }
    Digest digest;
    for (int i = 0; i < models; ++i) one_model(random, random_sizes(random), mode == "overrun", digest);
    // Wide enough that the threads of a team share its layers.
    if (mode.empty()) one_model(random, {2, 120, 600, 4, 10, 12, Precision::float32}, false, digest);
    if (mode == "blocks") one_model(random, {2, 262, 270, 3, 261, 70, Precision::float32}, false, digest);
    std::fprintf(stderr, "%016llx\n", static_cast<unsigned long long>(digest.value));
    std::printf("%d models\n", models);
}
