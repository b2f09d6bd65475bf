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
    Chunk(const ByteDecoder& decoder, const ByteDecode& call, Team& team, Isa isa, int64_t rows)
        : a(decoder),
          call(call),
          team(team),
          isa(isa),
          cache(a.transformer, rows, a.S),
          workspace(a.transformer, std::min(kTokens, rows * a.S)),
          logits(aligned<float>(workspace.rows * kVocabulary)) {}

    void write(int64_t begin, int64_t N) {
        first = begin;
        // What is given or guessed goes through at once, and one token more, which follows from the last of it.
        std::vector<int64_t> lengths(N);
        slots.clear();
        positions.clear();
        for (int64_t n = 0; n < N; ++n) {
            while (lengths[n] < call.room[first + n] - 1 && known(first + n, lengths[n]) >= 0) ++lengths[n];
            for (int64_t s = 0; s <= lengths[n]; ++s) {
                slots.push_back(n);
                positions.push_back(s);
            }
        }
        choose_tokens([&](int64_t t) { return known(first + slots[t], positions[t] - 1); });
        const std::vector<int32_t> passed = chosen;
        std::vector<int64_t> going;
        std::vector<int64_t> next;
        for (int64_t n = 0, t = 0; n < N; t += lengths[n] + 1, ++n) {
            bool goes_on = true, right = true;
            int64_t s = 0;
            for (; s <= lengths[n] && goes_on && right; ++s) {
                goes_on = accept(first + n, s, passed[t + s]);
                right = s == lengths[n] || token_at(first + n, s) == known(first + n, s);
            }
            forget_logits(first + n, s, lengths[n] + 1);
            if (!goes_on || (call.verify != nullptr && call.verify[first + n])) continue;
            going.push_back(n);
            next.push_back(s);
        }
        // From there a token at a time.
        while (!going.empty()) {
            slots = going;
            positions = next;
            choose_tokens([&](int64_t t) { return token_at(first + slots[t], positions[t] - 1); });
            going.clear();
            next.clear();
            for (size_t t = 0; t < slots.size(); ++t) {
                if (!accept(first + slots[t], positions[t], chosen[t])) continue;
                going.push_back(slots[t]);
                next.push_back(positions[t] + 1);
            }
        }
    }

  private:
    int32_t known(int64_t n, int64_t s) const {
        const int32_t given = call.given[n * a.S + s];
        return given >= 0 || call.drafts == nullptr ? given : call.drafts[n * a.S + s];
    }

    int32_t token_at(int64_t n, int64_t s) const { return call.tokens[n * a.S + s]; }

    // Fills `chosen` for the tokens at (slots, positions); `before` gives the token that stands before each.
    template <class Before>
    void choose_tokens(const Before& before) {
        const int64_t D = a.transformer.D, V = kVocabulary, total = static_cast<int64_t>(slots.size());
        chosen.resize(total);
        for (int64_t at = 0; at < total; at += workspace.rows) {
            const int64_t T = std::min(workspace.rows, total - at);
            for (int64_t t = 0; t < T; ++t) {
                const float* x = positions[at + t] == 0 ? call.features + (first + slots[at + t]) * D
                                                        : a.wte.data() + before(at + t) * D;
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
                    chosen[at + t] = choose(row, V, call.sampling, call.indices[n],
                                            call.starts[n] + static_cast<uint64_t>(s), scratch);
                }
            });
        }
    }

    // Puts the model's token, or the one that is given, at s; does the row go on?
    bool accept(int64_t n, int64_t s, int32_t token) {
        if (token < 0) {
            call.counts[n] = -1;
            return false;
        }
        const int32_t given = call.given[n * a.S + s];
        call.tokens[n * a.S + s] = static_cast<int16_t>(given >= 0 ? given : token);
        call.counts[n] = s + 1;
        return s + 1 < call.room[n] && (given >= 0 || token != kEndOfPatch);
    }

    // Logits behind a wrong guess are those of another file.
    void forget_logits(int64_t n, int64_t begin, int64_t end) {
        if (call.logits == nullptr) return;
        std::fill(call.logits + (n * a.S + begin) * kVocabulary, call.logits + (n * a.S + end) * kVocabulary, NAN);
    }

    const ByteDecoder& a;
    const ByteDecode& call;
    Team& team;
    const Isa isa;
    Cache cache;
    Workspace workspace;
    Aligned<float> logits;
    int64_t first = 0;
    std::vector<int64_t> slots, positions;
    std::vector<int32_t> chosen;
};

}  // namespace

void byte_decode(const ByteDecoder& a, const ByteDecode& call, Team& team, Isa isa) {
    std::fill_n(call.tokens, call.N * a.S, static_cast<int16_t>(kEndOfPatch));
    const int64_t rows = std::min(call.N, kByteDecodeRows);
    if (rows == 0) return;
    Chunk chunk(a, call, team, isa, rows);
    for (int64_t first = 0; first < call.N; first += rows) chunk.write(first, std::min(rows, call.N - first));
}

}  // namespace bgpt
