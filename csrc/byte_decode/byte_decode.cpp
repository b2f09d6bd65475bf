#include "byte_decode/byte_decode.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <vector>

namespace bgpt {
namespace {

constexpr int64_t kTokens = 256;  // tokens whose activations are in memory at once

// Drafts go on as long as the chance that all of them are right, by the drafter's own estimate, is at least this.
constexpr double kDraftConfidence = 0.3;

// A decoder with the keys and values of a chunk's patches.
class DecoderRun {
  public:
    DecoderRun(const ByteDecoder& decoder, const float* features, int64_t rows, Team& team, Isa isa)
        : a(decoder),
          features(features),
          team(team),
          isa(isa),
          cache(a.transformer, rows, a.S),
          workspace(a.transformer, std::min(kTokens, rows * a.S)),
          logits(aligned<float>(workspace.rows * decoder.V)) {}

    // Runs the tokens at (slots, positions): slot i is the call's row first + i, and previous_token(t) the token one
    // position before t. Calls visit(t, logits, scratch) for each, on the team, `grain` of them at a time or more.
    template <class PreviousToken, class Visit>
    void run(const std::vector<int64_t>& slots, const std::vector<int64_t>& positions, int64_t first, int64_t grain,
             const PreviousToken& previous_token, const Visit& visit) {
        const int64_t D = a.transformer.D, V = a.V, total = static_cast<int64_t>(slots.size());
        for (int64_t at = 0; at < total; at += workspace.rows) {
            const int64_t T = std::min(workspace.rows, total - at);
            for (int64_t t = 0; t < T; ++t) {
                const float* x = positions[at + t] == 0 ? features + (first + slots[at + t]) * D
                                                        : a.wte.data() + previous_token(at + t) * D;
                std::copy_n(x, D, workspace.x.get() + t * D);
            }
            run_layers(a.transformer, cache, workspace, slots.data() + at, positions.data() + at, T, team, isa);
            linear({&a.head, workspace.inputs.get(), workspace.input_row, T, logits.get(), V, Epilogue::store}, team,
                   isa);
            team.for_each(T, grain, [&](int64_t begin, int64_t end) {
                Scratch scratch;
                for (int64_t t = begin; t < end; ++t) visit(at + t, logits.get() + t * V, scratch);
            });
        }
    }

  private:
    const ByteDecoder& a;
    const float* features;
    Team& team;
    const Isa isa;
    Cache cache;
    Workspace workspace;
    Aligned<float> logits;
};

// Patches [first, first + N) of a call.
class Chunk {
  public:
    Chunk(const ByteDecoder& decoder, const ByteDecodeCall& call, Team& team, Isa isa, int64_t rows)
        : V(decoder.V), S(decoder.S), call(call), model(decoder, call.features, rows, team, isa), expected(rows * S) {
        if (call.drafter != nullptr) drafter.emplace(*call.drafter, call.draft_features, rows, team, isa);
    }

    void write(int64_t begin, int64_t N) {
        first = begin;
        for (int64_t i = 0; i < N * S; ++i) {
            const int16_t prefix_token = call.prefix_tokens[first * S + i];
            expected[i] = prefix_token >= 0 || call.drafts == nullptr ? prefix_token : call.drafts[first * S + i];
        }
        next.assign(N, 0);
        drafter_next.assign(N, 0);
        ends.resize(N);
        std::vector<int64_t> active(N);
        std::iota(active.begin(), active.end(), 0);
        while (!active.empty()) {
            // Expected tokens run in one pass, with one more token, which follows from the last of them.
            for (const int64_t n : active) {
                ends[n] = next[n];
                while (can_extend(n) && expected[n * S + ends[n]] >= 0) ++ends[n];
            }
            const std::vector<int64_t> known = ends;
            if (drafter) draft(active);
            slots.clear();
            positions.clear();
            for (const int64_t n : active) add_positions(n, next[n]);
            sample_tokens();
            int64_t t = 0;
            std::erase_if(active, [&](int64_t n) {
                const int64_t from = t;
                t += ends[n] + 1 - next[n];
                return !accept_tokens(n, from, known[n]);
            });
        }
    }

  private:
    // Whether another token after those up to ends[n] can be expected: the last one follows from the others.
    bool can_extend(int64_t n) const { return ends[n] < call.max_tokens[first + n] - 1; }

    void add_positions(int64_t n, int64_t begin) {
        for (int64_t s = begin; s <= ends[n]; ++s) {
            slots.push_back(n);
            positions.push_back(s);
        }
    }

    int32_t previous_token(int64_t t) const { return expected[slots[t] * S + positions[t] - 1]; }

    int32_t choose_token(int64_t t, const float* logits, Scratch& scratch) const {
        const int64_t n = first + slots[t];
        return choose(logits, V, call.sampling, call.rng_streams[n],
                      call.byte_offsets[n] + static_cast<uint64_t>(positions[t]), scratch);
    }

    // Extends the expected tokens of active rows by what the drafter chooses, with the row's own random numbers.
    void draft(std::vector<int64_t> rows) {
        std::erase_if(rows, [&](int64_t n) { return !can_extend(n); });
        std::vector<double> confidence(ends.size(), 1.0), chances;
        while (!rows.empty()) {
            slots.clear();
            positions.clear();
            for (const int64_t n : rows) add_positions(n, drafter_next[n]);
            const size_t total = slots.size();
            sampled.resize(total);
            chances.resize(total);
            drafter->run(
                slots, positions, first, 2, [&](int64_t t) { return previous_token(t); },
                [&](int64_t t, const float* logits, Scratch& scratch) {
                    if (positions[t] < ends[slots[t]]) return;  // a token that is known
                    sampled[t] = choose_token(t, logits, scratch);
                    chances[t] = sampled[t] < 0 ? 0.0 : chance(logits, sampled[t]);
                });
            int64_t t = -1;
            std::erase_if(rows, [&](int64_t n) {
                t += ends[n] + 1 - drafter_next[n];
                drafter_next[n] = ends[n] + 1;
                confidence[n] *= chances[t];
                if (sampled[t] < 0 || sampled[t] == call.eop || confidence[n] < kDraftConfidence) return true;
                expected[n * S + ends[n]++] = static_cast<int16_t>(sampled[t]);
                return !can_extend(n);
            });
        }
    }

    // The probability of a token, at the temperature where it is sampled.
    double chance(const float* logits, int32_t token) const {
        const float scale = call.sampling.temperature > 0 ? static_cast<float>(1 / call.sampling.temperature) : 1.0f;
        float sum = 0;
        for (int64_t v = 0; v < V; ++v) sum += std::exp(scale * (logits[v] - logits[token]));
        return 1.0 / sum;
    }

    // Fills `sampled` for the tokens at (slots, positions).
    void sample_tokens() {
        sampled.resize(slots.size());
        model.run(
            slots, positions, first, call.sampling.temperature == 0 ? 64 : 2,
            [&](int64_t t) { return previous_token(t); },
            [&](int64_t t, const float* logits, Scratch& scratch) {
                if (call.logits != nullptr) {
                    const int64_t at = (first + slots[t]) * S + positions[t];
                    std::copy_n(logits, V, call.logits + at * V);
                }
                sampled[t] = choose_token(t, logits, scratch);
            });
    }

    // Writes row n's tokens from next[n] on, of which the first is sampled[t], up to the first that was not expected;
    // those from `known` on are drafts. Whether the row has another.
    bool accept_tokens(int64_t n, int64_t t, int64_t known) {
        bool continues = true, is_right = true;
        int64_t s = next[n], right = 0;
        for (; s <= ends[n] && continues && is_right; ++s, ++t) {
            const int32_t draft = expected[n * S + s];
            continues = accept(n, s, sampled[t]);
            is_right = s == ends[n] || expected[n * S + s] == draft;
            right += s >= known && s < ends[n] && is_right;
        }
        clear_logits(first + n, s, ends[n] + 1);
        if (call.drafted != nullptr) {
            call.drafted[2 * (first + n)] += ends[n] - known;
            call.drafted[2 * (first + n) + 1] += right;
        }
        std::fill(expected.begin() + n * S + s, expected.begin() + (n + 1) * S, int16_t{-1});
        next[n] = s;
        drafter_next[n] = std::min(drafter_next[n], s);
        return continues && (call.verify == nullptr || !call.verify[first + n]);
    }

    // Writes the token of row n at s; whether the row has another.
    bool accept(int64_t n, int64_t s, int32_t sampled_token) {
        const int64_t at = (first + n) * S + s;
        const auto accepted = accept_token(static_cast<int32_t>(s), sampled_token, call.prefix_tokens[at],
                                           call.max_tokens[first + n], call.eop);
        if (accepted.token >= 0) call.tokens[at] = expected[n * S + s] = static_cast<int16_t>(accepted.token);
        call.counts[first + n] = accepted.count;
        return accepted.continues;
    }

    // The logits after a wrong draft are those of another file.
    void clear_logits(int64_t n, int64_t begin, int64_t end) {
        if (call.logits == nullptr) return;
        std::fill(call.logits + (n * S + begin) * V, call.logits + (n * S + end) * V, NAN);
    }

    const int64_t V, S;
    const ByteDecodeCall& call;
    DecoderRun model;
    std::optional<DecoderRun> drafter;
    int64_t first = 0;
    std::vector<int16_t> expected;  // [rows, S]: tokens that are known or drafted; -1 where there is none
    std::vector<int64_t> next, ends, drafter_next;  // a row's first position that is not known, not expected, not run
    std::vector<int64_t> slots, positions;
    std::vector<int32_t> sampled;
};

}  // namespace

void byte_decode(const ByteDecoder& a, const ByteDecodeCall& call, Team& team, Isa isa) {
    std::fill_n(call.tokens, call.N * a.S, static_cast<int16_t>(call.fill));
    if (call.drafted != nullptr) std::fill_n(call.drafted, 2 * call.N, 0);
    const int64_t rows = std::min(call.N, kByteDecodeRows);
    if (rows == 0) return;
    Chunk chunk(a, call, team, isa, rows);
    for (int64_t first = 0; first < call.N; first += rows) chunk.write(first, std::min(rows, call.N - first));
}

}  // namespace bgpt
