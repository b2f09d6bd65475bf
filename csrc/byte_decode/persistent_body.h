// The body of the persistent byte decoder, for a GPU and, in tests, for the host, where a thread stands for a warp.
// Grid has block, blocks, warp and warps; sync(), the block's barrier; arrive() and wait(), the two halves of the
// grid's, each of which is a barrier of the block too.
//
// A byte takes four or five phases a layer and one for the head, each split over all blocks by outputs. After each
// comes a barrier of the grid, and while a block waits, it already loads the weights of the next phase to registers.
// Every block computes the norms for itself. With few patches attention is part of the projection after it: a block
// computes the heads that its part of the projection reads, which saves a barrier a layer.
//
// Every sum has one order: an output is its bias, the residual first where there is one, plus a sum for each segment of
// up to 256 inputs, which is a chain of 8 FMAs a lane and a fixed tree over the lanes. So the bits of a patch depend
// neither on the other patches of the launch, nor on its row, nor on the number of blocks.
//
// Offsets have 32 bits, which takes half the registers: within kPersistentRows and the shapes that
// persistent_supports() accepts, none exceeds 2^26.
#pragma once

#include "byte_decode/persistent_attention.h"
#include "byte_decode/persistent_block.h"
#include "byte_decode/persistent_residual.h"
#include "byte_decode/persistent_steps.h"
#include "byte_decode/weight_fragment.h"

namespace bgpt {

BGPT_DEVICE float gelu_tanh(float x) { return x / (1.0f + expf(-1.5957691216057308f * fmaf(0.044715f * x * x, x, x))); }

template <class W, class Grid>
class Persistent {
  public:
    BGPT_DEVICE Persistent(const PersistentPlan& plan, const PersistentWeights<W>& weights, const PersistentCall& call,
                           const PersistentWorkspace& workspace, Grid& grid, unsigned char* shared)
        : b{plan, weights, call, workspace, grid, shared} {}

    BGPT_DEVICE void run() {
        Lanes<Fragment<W>> fragment;
        b.for_each(b.call.N, [&](int32_t n) { b.active()[n] = 1; });
        Step step = {Phase::qkv, 0};
        fetch_first(fragment, step);
        for (int32_t s = 0; s < b.plan.S;) {
            product(fragment, step, s);
            const Step next = step_after(b.plan, step);
            b.grid.arrive();
            if (step.phase != Phase::head) fetch_first(fragment, next);
            b.grid.wait();
            if (next.phase == Phase::project) {
                attend(b, step.layer, s);
                b.grid.arrive();
                b.grid.wait();
            }
            if (step.phase == Phase::head) {
                if (!choose(s++)) return;
                fetch_first(fragment, next);
            }
            step = next;
        }
    }

  private:
    BGPT_DEVICE void fetch_first(Lanes<Fragment<W>>& fragment, const Step& step) const {
        const Matrix<W> m = matrix_of(b, step);
        fetch(b, fragment, m, m.begin);
    }

    // The block's part of a step for all rows; `fragment` holds the first weights.
    BGPT_DEVICE void product(Lanes<Fragment<W>>& fragment, const Step& step, int32_t s) const {
        const Matrix<W> m = matrix_of(b, step);
        const int32_t chunk = chunk_of(b, m), own = b.grid.warp * kLanes, threads = b.grid.warps * kLanes;
        for (int32_t begin = m.begin; begin < m.end; begin += chunk) {
            if (begin != m.begin) fetch(b, fragment, m, begin);
            const Task task = task_of(b, m, begin);
            const int32_t outputs = m.end - begin < chunk ? m.end - begin : chunk;
            for (int32_t row = 0; row < b.call.N; row += kRowTile) {
                const int32_t rows = b.call.N - row < kRowTile ? b.call.N - row : kRowTile, count = rows * outputs;
                // Of each thread's first output, loaded while the inputs are.
                Lanes<ProductStart> start;
                for_each_lane([&](int lane) {
                    const int32_t i = own + lane < count ? own + lane : count - 1;
                    start[lane].load(b, step, row + i / outputs, begin + i % outputs);
                });
                if (begin == m.begin || b.call.N > kRowTile) load(step, m, s, row, rows);
                b.grid.sync();
                multiply(b, fragment, m, task, rows);
                b.grid.sync();
                for (int32_t first = own; first < count; first += threads) {
                    for_each_lane([&](int lane) {
                        const int32_t i = first + lane, n = row + i / outputs, c = i % outputs;
                        if (i >= count) return;
                        if (first != own) start[lane].load(b, step, n, begin + c);
                        const float* const segment_sums = b.sums() + ((n - row) * chunk + c) * m.segments;
                        float y = start[lane].value(b, step, n, begin + c);
                        for (int32_t segment = 0; segment < m.segments; ++segment) y += segment_sums[segment];
                        store(step, s, n, begin + c, y);
                    });
                }
            }
        }
    }

    // Fills `inputs` with what a step's matrix multiplies.
    BGPT_DEVICE void load(const Step& step, const Matrix<W>& m, int32_t s, int32_t row, int32_t rows) const {
        const LayerWeights<W>& at = b.weights.layers[step.layer];
        if (step.phase == Phase::attend_and_project) return load_attended(b, step.layer, s, row, rows);
        if (step.phase == Phase::project) return load_rows(b.workspace.attended, m, row, rows);
        if (step.phase == Phase::mlp_project) return load_rows(b.workspace.hidden, m, row, rows);
        if (step.phase == Phase::qkv && step.layer == 0) store_embeddings(b, s, row, rows);
        const bool first = step.phase == Phase::qkv, last = step.phase == Phase::head;
        load_normed(b, step, s, row, rows,
                    last    ? b.weights.ln_f_weight
                    : first ? at.ln_1_weight
                            : at.ln_2_weight,
                    last    ? b.weights.ln_f_bias
                    : first ? at.ln_1_bias
                            : at.ln_2_bias);
    }

    // Loads `rows` rows of `from` [N, m.inputs] into `inputs`.
    BGPT_DEVICE void load_rows(const float* from, const Matrix<W>& m, int32_t row, int32_t rows) const {
        const int32_t fours = m.segments * kSegment / 4;
        const auto segment_of = [&](int32_t i) { return i % fours / (kSegment / 4); };
        const auto offset_of = [&](int32_t i) { return i % (kSegment / 4) * 4; };
        const auto load_four = [&](int32_t i) {
            const int32_t k = segment_of(i) * m.width + offset_of(i);
            return load_four_fresh(from + (row + i / fours) * m.inputs + (k < m.inputs ? k : 0));
        };
        b.template for_each_loaded<4>(rows * fours, load_four, [&](int32_t i, Four x) {
            const int32_t offset = offset_of(i), k = segment_of(i) * m.width + offset;
            if (offset >= m.width || k >= m.inputs) x = {0.0f, 0.0f, 0.0f, 0.0f};
            float* const segment = b.inputs() + (i / fours * m.segments + segment_of(i)) * kSegment;
            *reinterpret_cast<Four*>(segment + shared_index(offset)) = x;
        });
    }

    BGPT_DEVICE void store(const Step& step, int32_t s, int32_t n, int32_t c, float y) const {
        const int32_t D = b.plan.D;
        switch (step.phase) {
            case Phase::qkv:
                if (c < D) {
                    b.workspace.q[n * D + c] = y;
                } else if (c < 2 * D) {
                    b.cached(b.workspace.keys, step.layer, n)[s * D + c - D] = y;
                } else {
                    b.cached(b.workspace.values, step.layer, n)[s * D + c - 2 * D] = y;
                }
                return;
            case Phase::attend_and_project:
                b.workspace.partial[(b.grid.block % b.plan.groups * b.call.N + n) * D + c] = y;
                return;
            case Phase::mlp_fc:
                b.workspace.hidden[n * b.plan.F + c] = gelu_tanh(y);
                return;
            case Phase::head:
                b.workspace.logits[n * kVocabSize + c] = y;
                return;
            default:
                b.workspace.x[n * D + c] = y;
        }
    }

    BGPT_DEVICE void store_logits(int32_t n, int32_t s, const float* logits) const {
        float* const to = b.call.logits + (n * b.plan.S + s) * kVocabSize;
        for_each_lane([&](int lane) {
            for (int32_t v = lane; v < kVocabSize; v += kLanes) to[v] = load_fresh(logits + v);
        });
    }

    // Samples the token of each active row. Every block does so for itself; the first writes the results. Returns
    // whether any row is still active.
    BGPT_DEVICE bool choose(int32_t s) {
        for (int32_t n = b.grid.warp; n < b.call.N; n += b.grid.warps) {
            if (b.active()[n] == 0) continue;
            const float* const logits = b.workspace.logits + n * kVocabSize;
            const int32_t prefix_token = b.call.prefix_tokens[n * b.plan.S + s];
            const int32_t sampled =
                choose_by_warp<kVocabSize>(logits, sampling_for(prefix_token, b.call.sampling), b.call.rng_streams[n],
                                           b.call.byte_offsets[n] + static_cast<uint32_t>(s), b.ranked());
            const Acceptance accepted = accept_token(s, sampled, prefix_token, b.call.max_tokens[n], kEndOfPatch);
            if (b.grid.block == 0 && b.call.logits != nullptr) store_logits(n, s, logits);
            sync_lanes();  // all have read whether the row is active
            for_each_lane([&](int lane) {
                if (lane != 0) return;
                // A row without a token still takes part until the others end, and needs some token's embedding.
                b.token()[n] = accepted.token < 0 ? kEndOfPatch : accepted.token;
                b.active()[n] = accepted.continues ? 1 : 0;
                if (b.grid.block != 0) return;
                if (accepted.token >= 0) b.call.tokens[n * b.plan.S + s] = static_cast<int16_t>(accepted.token);
                b.call.counts[n] = accepted.count;
            });
        }
        b.grid.sync();
        bool any = false;
        for (int32_t n = 0; n < b.call.N; ++n) any = any || b.active()[n] != 0;
        return any;
    }

    const PersistentBlock<W, Grid> b;
};

}  // namespace bgpt
