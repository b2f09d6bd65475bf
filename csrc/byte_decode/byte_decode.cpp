#include "byte_decode/byte_decode.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace bgpt {
namespace {

constexpr int64_t kTokens = 256;  // tokens whose activations are in memory at once

// Patches [first, first + N) of a call.
class Chunk {
  public:
    Chunk(const ByteDecoder& decoder, const ByteDecodeCall& call, Team& team, Isa isa, int64_t rows)
        : a(decoder),
          call(call),
          team(team),
          isa(isa),
          cache(a.transformer, rows, a.S),
          workspace(a.transformer, std::min(kTokens, rows * a.S)),
          logits(aligned<float>(workspace.rows * decoder.V)) {}

    void write(int64_t begin, int64_t N) {
        first = begin;
        // Prefix tokens and drafts run in one pass, with one more token, which follows from the last of them.
        std::vector<int64_t> lengths(N);
        slots.clear();
        positions.clear();
        for (int64_t n = 0; n < N; ++n) {
            while (lengths[n] < call.max_tokens[first + n] - 1 && expected_token(first + n, lengths[n]) >= 0) {
                ++lengths[n];
            }
            for (int64_t s = 0; s <= lengths[n]; ++s) {
                slots.push_back(n);
                positions.push_back(s);
            }
        }
        sample_tokens([&](int64_t t) { return expected_token(first + slots[t], positions[t] - 1); });
        const std::vector<int32_t> first_pass = sampled;
        std::vector<int64_t> active_slots, next_positions;
        for (int64_t n = 0, t = 0; n < N; t += lengths[n] + 1, ++n) {
            bool continues = true, is_right = true;
            int64_t s = 0;
            for (; s <= lengths[n] && continues && is_right; ++s) {
                continues = accept(first + n, s, first_pass[t + s]);
                is_right = s == lengths[n] || token_at(first + n, s) == expected_token(first + n, s);
            }
            clear_logits(first + n, s, lengths[n] + 1);
            if (!continues || (call.verify != nullptr && call.verify[first + n])) continue;
            active_slots.push_back(n);
            next_positions.push_back(s);
        }
        // From there one token at a time.
        while (!active_slots.empty()) {
            slots = active_slots;
            positions = next_positions;
            sample_tokens([&](int64_t t) { return token_at(first + slots[t], positions[t] - 1); });
            active_slots.clear();
            next_positions.clear();
            for (size_t t = 0; t < slots.size(); ++t) {
                if (!accept(first + slots[t], positions[t], sampled[t])) continue;
                active_slots.push_back(slots[t]);
                next_positions.push_back(positions[t] + 1);
            }
        }
    }

  private:
    // The prefix token of row n at s, or the draft's, or -1.
    int32_t expected_token(int64_t n, int64_t s) const {
        const int32_t prefix_token = call.prefix_tokens[n * a.S + s];
        return prefix_token >= 0 || call.drafts == nullptr ? prefix_token : call.drafts[n * a.S + s];
    }

    int32_t token_at(int64_t n, int64_t s) const { return call.tokens[n * a.S + s]; }

    // Fills `sampled` for the tokens at (slots, positions); previous_token(t) is the token one position before t.
    template <class PreviousToken>
    void sample_tokens(const PreviousToken& previous_token) {
        const int64_t D = a.transformer.D, V = a.V, total = static_cast<int64_t>(slots.size());
        sampled.resize(total);
        for (int64_t at = 0; at < total; at += workspace.rows) {
            const int64_t T = std::min(workspace.rows, total - at);
            for (int64_t t = 0; t < T; ++t) {
                const float* x = positions[at + t] == 0 ? call.features + (first + slots[at + t]) * D
                                                        : a.wte.data() + previous_token(at + t) * D;
                std::copy_n(x, D, workspace.x.get() + t * D);
            }
            run_layers(a.transformer, cache, workspace, slots.data() + at, positions.data() + at, T, team, isa);
            linear({&a.head, workspace.inputs.get(), workspace.input_row, T, logits.get(), V, Epilogue::store}, team,
                   isa);
            team.for_each(T, call.sampling.temperature == 0 ? 64 : 2, [&](int64_t begin, int64_t end) {
                Scratch scratch;
                for (int64_t t = begin; t < end; ++t) {
                    const int64_t n = first + slots[at + t], s = positions[at + t];
                    const float* row = logits.get() + t * V;
                    if (call.logits != nullptr) std::copy_n(row, V, call.logits + (n * a.S + s) * V);
                    sampled[at + t] = choose(row, V, call.sampling, call.rng_streams[n],
                                             call.byte_offsets[n] + static_cast<uint64_t>(s), scratch);
                }
            });
        }
    }

    // Writes the token of row n at s; whether the row has another.
    bool accept(int64_t n, int64_t s, int32_t sampled_token) {
        const int64_t at = n * a.S + s;
        const auto accepted =
            accept_token(static_cast<int32_t>(s), sampled_token, call.prefix_tokens[at], call.max_tokens[n], call.eop);
        if (accepted.token >= 0) call.tokens[at] = static_cast<int16_t>(accepted.token);
        call.counts[n] = accepted.count;
        return accepted.continues;
    }

    // The logits after a wrong draft are those of another file.
    void clear_logits(int64_t n, int64_t begin, int64_t end) {
        if (call.logits == nullptr) return;
        std::fill(call.logits + (n * a.S + begin) * a.V, call.logits + (n * a.S + end) * a.V, NAN);
    }

    const ByteDecoder& a;
    const ByteDecodeCall& call;
    Team& team;
    const Isa isa;
    Cache cache;
    Workspace workspace;
    Aligned<float> logits;
    int64_t first = 0;
    std::vector<int64_t> slots, positions;
    std::vector<int32_t> sampled;
};

}  // namespace

void byte_decode(const ByteDecoder& a, const ByteDecodeCall& call, Team& team, Isa isa) {
    std::fill_n(call.tokens, call.N * a.S, static_cast<int16_t>(call.fill));
    const int64_t rows = std::min(call.N, kByteDecodeRows);
    if (rows == 0) return;
    Chunk chunk(a, call, team, isa, rows);
    for (int64_t first = 0; first < call.N; first += rows) chunk.write(first, std::min(rows, call.N - first));
}

}  // namespace bgpt
