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

#include <algorithm>

#include "byte_decode/lanes.h"
#include "byte_decode/persistent.h"
#include "byte_decode/warp_choose.h"
#include "common/host_device.h"

namespace bgpt {

constexpr int32_t kSegment = 256;   // 8 inputs a lane
constexpr int32_t kRowTile = 8;     // patches whose inputs are in shared memory at once
constexpr int32_t kJoinedRows = 2;  // patches up to which attention is part of the projection, by arithmetic

// Outputs that a warp computes at once: their weights, 8 a lane, fit 32 registers.
template <class W>
constexpr int kColumns = sizeof(W) == 2 ? 8 : 4;

BGPT_HOST_DEVICE inline int32_t segments_of(int32_t inputs) { return (inputs + kSegment - 1) / kSegment; }

// Heads whose outputs are one segment of the projection after them: as many as fit, a divisor of all.
BGPT_HOST_DEVICE inline int32_t heads_a_group(const PersistentShape& shape) {
    const int32_t d = shape.D / shape.H;
    int32_t heads = 1;
    for (int32_t more = 2; more <= shape.H && more * d <= kSegment; ++more) {
        if (shape.H % more == 0) heads = more;
    }
    return heads;
}

// What follows from a shape, a number of patches and a launch; computed on the host, so that it takes no registers.
struct PersistentPlan : PersistentShape {
    int32_t heads, groups;  // heads whose outputs are one segment of the projection; such groups
    int32_t joined;         // is attention part of the projection?
    int32_t parts;          // if so: into how many parts each group's outputs of the projection are split
    int32_t sums_at;        // offset of the products in shared memory, in bytes
    int32_t rows_at;        // … and of the state of each row
    int32_t shared;         // bytes of shared memory
};

template <class W>
PersistentPlan plan_of(const PersistentShape& shape, int32_t N, int32_t blocks, int32_t warps) {
    PersistentPlan plan{};
    static_cast<PersistentShape&>(plan) = shape;
    plan.heads = heads_a_group(shape);
    plan.groups = shape.H / plan.heads;
    plan.joined = N <= kJoinedRows && blocks >= plan.groups ? 1 : 0;
    plan.parts = blocks / plan.groups;
    const int32_t segments = std::max({segments_of(shape.F), segments_of(shape.D), plan.groups});
    plan.sums_at = std::max(4 * kRowTile * kSegment * segments, 8 * warps * kLanes * kTokensPerLane);
    plan.rows_at = plan.sums_at + 4 * kRowTile * warps * kColumns<W>;
    plan.shared = plan.rows_at + 8 * kPersistentRows;
    return plan;
}

// Eight neighbouring weights, read past the L1 cache: each is used once.
template <class W>
struct Octet {
    uint32_t words[2 * sizeof(W)];

    BGPT_DEVICE float at(int i) const {
        if constexpr (sizeof(W) == 4) return float_from_bits(words[i]);
        return float_from_bits(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
    }

    BGPT_DEVICE void load(const W* from) {
#if defined(__CUDACC__)
        BGPT_UNROLL
        for (int i = 0; i < static_cast<int>(2 * sizeof(W)); i += 4) {
            asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3])
                         : "l"(reinterpret_cast<const uint32_t*>(from) + i));
        }
#else
        std::memcpy(words, from, sizeof words);
#endif
    }

    // A copy that the compiler converts to fp32 anew: kept converted for all rows, bf16 weights would take twice the
    // registers.
    BGPT_DEVICE Octet reloaded() const {
        Octet copy = *this;
#if defined(__CUDACC__)
        BGPT_UNROLL
        for (uint32_t& word : copy.words) asm volatile("" : "+r"(word));
#endif
        return copy;
    }

    BGPT_DEVICE void clear() {
        BGPT_UNROLL
        for (uint32_t& word : words) word = 0;
    }
};

template <class W>
struct Fragment {
    Octet<W> columns[kColumns<W>];
};

// A block's part of a linear layer.
template <class W>
struct Matrix {
    const W* weight;         // [outputs, stride]
    int32_t stride, inputs;  // elements from row to row; inputs of the layer
    int32_t width;           // inputs a segment
    int32_t segments;
    int32_t begin, end;  // outputs
};

// What the blocks do between two barriers of the grid, named after its matrix.
enum class Phase { qkv, attend_and_project, project, mlp_fc, mlp_project, head };

struct Step {
    Phase phase;
    int32_t layer;
};

// A warp's part of a matrix: some neighbouring outputs, one segment.
struct Task {
    int32_t segment, first, count;
};

// The index of input `offset` of a segment in shared memory: a lane's 8 are two runs of 4, without bank conflicts.
BGPT_DEVICE int32_t shared_index(int32_t offset) { return ((offset & 4) << 5) | ((offset & 0xF8) >> 1) | (offset & 3); }

BGPT_DEVICE float gelu_tanh(float x) { return x / (1.0f + expf(-1.5957691216057308f * fmaf(0.044715f * x * x, x, x))); }

template <class W, class Grid>
class Persistent {
  public:
    BGPT_DEVICE Persistent(const PersistentPlan& plan, const PersistentWeights<W>& weights, const PersistentCall& call,
                           const PersistentWorkspace& workspace, Grid& grid, unsigned char* shared)
        : a(plan), weights(weights), call(call), workspace(workspace), grid(grid), shared(shared) {}

    BGPT_DEVICE void run() {
        Lanes<Fragment<W>> fragment;
        for_each(call.N, [&](int32_t n) { active()[n] = 1; });
        Step step = {Phase::qkv, 0};
        fetch(fragment, matrix_of(step), matrix_of(step).begin);
        for (int32_t s = 0; s < a.S;) {
            product(fragment, step, s);
            const Step next = step_after(step);
            grid.arrive();
            if (step.phase != Phase::head) fetch(fragment, matrix_of(next), matrix_of(next).begin);
            grid.wait();
            if (next.phase == Phase::project) {
                attend(step.layer, s);
                grid.arrive();
                grid.wait();
            }
            if (step.phase == Phase::head) {
                if (!choose(s++)) return;
                fetch(fragment, matrix_of(next), matrix_of(next).begin);
            }
            step = next;
        }
    }

  private:
    // Shared memory: inputs [kRowTile, segments, kSegment], whose memory serves as each warp's scratch for sampling;
    // products [kRowTile, outputs at once, segments]; of each row its last token, and whether it is active.
    BGPT_DEVICE float* inputs() const { return reinterpret_cast<float*>(shared); }
    BGPT_DEVICE double* ranked() const {
        return reinterpret_cast<double*>(shared) + grid.warp * kLanes * kTokensPerLane;
    }
    BGPT_DEVICE float* sums() const { return reinterpret_cast<float*>(shared + a.sums_at); }
    BGPT_DEVICE int32_t* token() const { return reinterpret_cast<int32_t*>(shared + a.rows_at); }
    BGPT_DEVICE int32_t* active() const { return token() + kPersistentRows; }

    // f(i) for each i below `count`, distributed over the block.
    template <class F>
    BGPT_DEVICE void for_each(int32_t count, const F& f) {
        for (int32_t first = grid.warp * kLanes; first < count; first += grid.warps * kLanes) {
            for_each_lane([&](int lane) {
                if (first + lane < count) f(first + lane);
            });
        }
    }

    BGPT_DEVICE int32_t first_of(int32_t outputs, int32_t part, int32_t all) const { return outputs * part / all; }

    BGPT_DEVICE Matrix<W> split(const W* weight, int32_t inputs, int32_t outputs, int32_t width) const {
        return {weight,
                inputs,
                inputs,
                width,
                (inputs + width - 1) / width,
                first_of(outputs, grid.block, grid.blocks),
                first_of(outputs, grid.block + 1, grid.blocks)};
    }

    // The step after another one of a byte; after the last one the first of the next byte.
    BGPT_DEVICE Step step_after(const Step& step) const {
        switch (step.phase) {
            case Phase::qkv:
                return {a.joined != 0 ? Phase::attend_and_project : Phase::project, step.layer};
            case Phase::attend_and_project:
            case Phase::project:
                return {Phase::mlp_fc, step.layer};
            case Phase::mlp_fc:
                return {Phase::mlp_project, step.layer};
            case Phase::mlp_project:
                return step.layer + 1 < a.layers ? Step{Phase::qkv, step.layer + 1} : Step{Phase::head, 0};
            default:
                return {Phase::qkv, 0};
        }
    }

    BGPT_DEVICE Matrix<W> matrix_of(const Step& step) const {
        const LayerWeights<W>& at = weights.layers[step.layer];
        const int32_t width = a.heads * (a.D / a.H);
        switch (step.phase) {
            case Phase::qkv:
                return split(at.attn_weight, a.D, 3 * a.D, kSegment);
            case Phase::attend_and_project: {
                const int32_t group = grid.block % a.groups, part = grid.block / a.groups;
                const bool has_part = part < a.parts;
                return {at.attn_proj_weight + group * width,
                        a.D,
                        width,
                        width,
                        1,
                        has_part ? first_of(a.D, part, a.parts) : 0,
                        has_part ? first_of(a.D, part + 1, a.parts) : 0};
            }
            case Phase::project:
                return split(at.attn_proj_weight, a.D, a.D, width);
            case Phase::mlp_fc:
                return split(at.fc_weight, a.D, a.F, kSegment);
            case Phase::mlp_project:
                return split(at.mlp_proj_weight, a.F, a.D, kSegment);
            default:
                return split(weights.head, a.D, kVocabSize, kSegment);
        }
    }

    // Outputs that the block's warps compute at once.
    BGPT_DEVICE int32_t chunk_of(const Matrix<W>& m) const { return grid.warps / m.segments * kColumns<W>; }

    BGPT_DEVICE Task task_of(const Matrix<W>& m, int32_t begin) const {
        const int32_t sets = grid.warps / m.segments, remaining = m.end - begin, chunk = sets * kColumns<W>;
        const int32_t outputs = remaining < chunk ? remaining : chunk, each = (outputs + sets - 1) / sets;
        const int32_t set = grid.warp / m.segments, first = set * each, remaining_after = outputs - first;
        const bool idle = set >= sets || remaining_after <= 0;
        return {grid.warp % m.segments, first, idle ? 0 : remaining_after < each ? remaining_after : each};
    }

    // Loads the warp's weights of the outputs from `begin` on.
    BGPT_DEVICE void fetch(Lanes<Fragment<W>>& fragment, const Matrix<W>& m, int32_t begin) const {
        const Task task = task_of(m, begin);
        for_each_lane([&](int lane) {
            const int32_t offset = 8 * lane, k = task.segment * m.width + offset;
            const bool counts = offset < m.width && k < m.inputs;
            const W* from = m.weight + (begin + task.first) * m.stride + k;
            BGPT_UNROLL
            for (int c = 0; c < kColumns<W>; ++c) {
                if (counts && c < task.count) {
                    fragment[lane].columns[c].load(from + c * m.stride);
                } else {
                    fragment[lane].columns[c].clear();
                }
            }
        });
    }

    // The warp's sums for `rows` rows of inputs.
    BGPT_DEVICE void multiply(const Lanes<Fragment<W>>& fragment, const Matrix<W>& m, const Task& task, int32_t rows) {
        constexpr int slots = kColumns<W>;
        if (task.count == 0) return;
        const int32_t chunk = chunk_of(m);
        BGPT_ROLLED
        for (int32_t r = 0; r < rows; ++r) {
            const float* row = inputs() + (r * m.segments + task.segment) * kSegment;
            Lanes<float> products[slots];
            for_each_lane([&](int lane) {
                const Four low = *reinterpret_cast<const Four*>(row + 4 * lane);
                const Four high = *reinterpret_cast<const Four*>(row + kSegment / 2 + 4 * lane);
                const float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
                BGPT_UNROLL
                for (int c = 0; c < slots; ++c) {
                    const Octet<W> weight = fragment[lane].columns[c].reloaded();
                    float sum = 0.0f;
                    BGPT_UNROLL
                    for (int i = 0; i < 8; ++i) sum = fmaf(x[i], weight.at(i), sum);
                    products[c][lane] = sum;
                }
            });
            const Lanes<float> totals = lane_sums(products);
            for_each_lane([&](int lane) {
                const int slot = lane / (kLanes / slots);
                if (lane % (kLanes / slots) == 0 && slot < task.count) {
                    sums()[(r * chunk + task.first + slot) * m.segments + task.segment] = totals[lane];
                }
            });
        }
    }

    // The block's part of a step for all rows; `fragment` holds the first weights.
    BGPT_DEVICE void product(Lanes<Fragment<W>>& fragment, const Step& step, int32_t s) {
        const Matrix<W> m = matrix_of(step);
        const int32_t chunk = chunk_of(m);
        for (int32_t begin = m.begin; begin < m.end; begin += chunk) {
            if (begin != m.begin) fetch(fragment, m, begin);
            const Task task = task_of(m, begin);
            const int32_t outputs = m.end - begin < chunk ? m.end - begin : chunk;
            for (int32_t row = 0; row < call.N; row += kRowTile) {
                const int32_t rows = call.N - row < kRowTile ? call.N - row : kRowTile;
                if (begin == m.begin || call.N > kRowTile) load(step, m, s, row, rows);
                grid.sync();
                multiply(fragment, m, task, rows);
                grid.sync();
                for_each(rows * outputs, [&](int32_t i) {
                    const int32_t r = i / outputs, c = i % outputs;
                    const float* const segment_sums = sums() + (r * chunk + c) * m.segments;
                    float y = start(step, row + r, begin + c);
                    for (int32_t segment = 0; segment < m.segments; ++segment) y += segment_sums[segment];
                    store(step, s, row + r, begin + c, y);
                });
            }
        }
    }

    // Fills `inputs` with what a step's matrix multiplies.
    BGPT_DEVICE void load(const Step& step, const Matrix<W>& m, int32_t s, int32_t row, int32_t rows) {
        const LayerWeights<W>& at = weights.layers[step.layer];
        if (step.phase == Phase::attend_and_project) return load_attended(step.layer, s, row, rows);
        if (step.phase == Phase::project) return load_rows(workspace.attended, m, row, rows);
        if (step.phase == Phase::mlp_project) return load_rows(workspace.hidden, m, row, rows);
        if (step.phase == Phase::qkv && step.layer == 0) store_embeddings(s, row, rows);
        const bool first = step.phase == Phase::qkv, last = step.phase == Phase::head;
        load_normed(step, s, row, rows,
                    last    ? weights.ln_f_weight
                    : first ? at.ln_1_weight
                            : at.ln_2_weight,
                    last    ? weights.ln_f_bias
                    : first ? at.ln_1_bias
                            : at.ln_2_bias);
    }

    // What a step's products are added to.
    BGPT_DEVICE float start(const Step& step, int32_t n, int32_t c) const {
        const LayerWeights<W>& at = weights.layers[step.layer];
        switch (step.phase) {
            case Phase::qkv:
                return at.attn_bias[c];
            case Phase::project:
                return load_fresh(workspace.x + n * a.D + c) + at.attn_proj_bias[c];
            case Phase::mlp_fc:
                return at.fc_bias[c];
            case Phase::mlp_project:
                return after_attention(step.layer, n, c) + at.mlp_proj_bias[c];
            default:
                return 0.0f;
        }
    }

    BGPT_DEVICE void store(const Step& step, int32_t s, int32_t n, int32_t c, float y) const {
        const int32_t D = a.D;
        switch (step.phase) {
            case Phase::qkv:
                if (c < D) {
                    workspace.q[n * D + c] = y;
                } else if (c < 2 * D) {
                    cached(workspace.keys, step.layer, n)[s * D + c - D] = y;
                } else {
                    cached(workspace.values, step.layer, n)[s * D + c - 2 * D] = y;
                }
                return;
            case Phase::attend_and_project:
                workspace.partial[(grid.block % a.groups * call.N + n) * D + c] = y;
                return;
            case Phase::mlp_fc:
                workspace.hidden[n * a.F + c] = gelu_tanh(y);
                return;
            case Phase::head:
                workspace.logits[n * kVocabSize + c] = y;
                return;
            default:
                workspace.x[n * D + c] = y;
        }
    }

    // The residual stream as the input of a step's norm.
    BGPT_DEVICE float stream(const Step& step, int32_t s, int32_t n, int32_t k) const {
        if (step.phase == Phase::mlp_fc) return after_attention(step.layer, n, k);
        if (step.phase == Phase::qkv && step.layer == 0) return embedding(s, n, k);
        return load_fresh(workspace.x + n * a.D + k);
    }

    BGPT_DEVICE float embedding(int32_t s, int32_t n, int32_t k) const {
        const float* const from = s == 0 ? call.features + n * a.D : weights.wte + token()[n] * a.D;
        return from[k] + weights.wpe[s * a.D + k];
    }

    // Stores the block's part of the embeddings in the residual stream.
    BGPT_DEVICE void store_embeddings(int32_t s, int32_t row, int32_t rows) {
        const int32_t first = first_of(a.D, grid.block, grid.blocks);
        const int32_t count = first_of(a.D, grid.block + 1, grid.blocks) - first;
        for_each(rows * count, [&](int32_t i) {
            const int32_t n = row + i / count, k = first + i % count;
            workspace.x[n * a.D + k] = embedding(s, n, k);
        });
    }

    // The residual stream after attention: x, to which the partial sums of the groups of heads may still have to be
    // added.
    BGPT_DEVICE float after_attention(int32_t layer, int32_t n, int32_t k) const {
        float x = load_fresh(workspace.x + n * a.D + k);
        if (a.joined == 0) return x;
        x += weights.layers[layer].attn_proj_bias[k];
        for (int32_t group = 0; group < a.groups; ++group)
            x += load_fresh(workspace.partial + (group * call.N + n) * a.D + k);
        return x;
    }

    // Normalises rows of the residual stream into `inputs`.
    BGPT_DEVICE void load_normed(const Step& step, int32_t s, int32_t row, int32_t rows, const float* weight,
                                 const float* bias) {
        const int32_t D = a.D, padded = segments_of(D) * kSegment;
        for (int32_t r = grid.warp; r < rows; r += grid.warps) {
            float* const to = inputs() + r * padded;
            const auto at = [&](int32_t k) -> float& {
                return to[(k & ~(kSegment - 1)) + shared_index(k & (kSegment - 1))];
            };
            Lanes<float> part;
            for_each_lane([&](int lane) {
                part[lane] = 0.0f;
                BGPT_UNROLL_4
                for (int32_t k = lane; k < D; k += kLanes) {
                    const float x = stream(step, s, row + r, k);
                    at(k) = x;
                    part[lane] += x;
                }
            });
            const float mean = lane_sum(part) / static_cast<float>(D);
            for_each_lane([&](int lane) {
                part[lane] = 0.0f;
                for (int32_t k = lane; k < D; k += kLanes) part[lane] += (at(k) - mean) * (at(k) - mean);
            });
            const float scale = 1.0f / sqrtf(lane_sum(part) / static_cast<float>(D) + a.eps);
            for_each_lane([&](int lane) {
                BGPT_UNROLL_4
                for (int32_t k = lane; k < D; k += kLanes) at(k) = fmaf((at(k) - mean) * scale, weight[k], bias[k]);
                for (int32_t k = D + lane; k < padded; k += kLanes) at(k) = 0.0f;
            });
        }
    }

    // Loads `rows` rows of `from` [N, m.inputs] into `inputs`.
    BGPT_DEVICE void load_rows(const float* from, const Matrix<W>& m, int32_t row, int32_t rows) {
        const int32_t fours = m.segments * kSegment / 4;
        for_each(rows * fours, [&](int32_t i) {
            const int32_t r = i / fours, segment = i % fours / (kSegment / 4), offset = i % (kSegment / 4) * 4;
            const int32_t k = segment * m.width + offset;
            Four x = {0.0f, 0.0f, 0.0f, 0.0f};
            if (offset < m.width && k < m.inputs) x = load_four_fresh(from + (row + r) * m.inputs + k);
            *reinterpret_cast<Four*>(inputs() + (r * m.segments + segment) * kSegment + shared_index(offset)) = x;
        });
    }

    BGPT_DEVICE float* cached(float* of, int32_t layer, int32_t n) const {
        return of + (layer * call.N + n) * a.S * a.D;
    }

    // Attention of one head of row n at position s, by a warp: calls store(channel, y).
    template <class Store>
    BGPT_DEVICE void attend_head(int32_t layer, int32_t n, int32_t h, int32_t s, const Store& store) {
        const int32_t D = a.D, d = D / a.H;
        const float* const query = workspace.q + n * D + h * d;
        const float* const keys = cached(workspace.keys, layer, n) + h * d;
        const float* const values = cached(workspace.values, layer, n) + h * d;
        const float scale = 1.0f / sqrtf(static_cast<float>(d));
        Lanes<float> weight;
        for_each_lane([&](int lane) {
            weight[lane] = -INFINITY;
            if (lane > s) return;
            float sum = 0.0f;
            BGPT_UNROLL_4
            for (int32_t i = 0; i < d; i += 4) {
                const Four q = load_four_fresh(query + i), k = load_four_fresh(keys + lane * D + i);
                sum = fmaf(q.x, k.x, sum);
                sum = fmaf(q.y, k.y, sum);
                sum = fmaf(q.z, k.z, sum);
                sum = fmaf(q.w, k.w, sum);
            }
            weight[lane] = scale * sum;
        });
        const float max_score = lane_max(weight);
        for_each_lane([&](int lane) { weight[lane] = lane > s ? 0.0f : expf(weight[lane] - max_score); });
        const float total = lane_sum(weight);
        for (int32_t first = 0; first < d; first += kLanes) {
            Lanes<float> y;
            for_each_lane([&](int lane) { y[lane] = 0.0f; });
            BGPT_UNROLL_4
            for (int32_t j = 0; j <= s; ++j) {
                const float weight_of_key = lane_value(weight, static_cast<int>(j));
                for_each_lane([&](int lane) {
                    if (first + lane < d)
                        y[lane] = fmaf(weight_of_key, load_fresh(values + j * D + first + lane), y[lane]);
                });
            }
            for_each_lane([&](int lane) {
                if (first + lane < d) store(first + lane, y[lane] / total);
            });
        }
    }

    // Attention as a phase of its own: a warp a row and head, over all blocks.
    BGPT_DEVICE void attend(int32_t layer, int32_t s) {
        const int32_t d = a.D / a.H;
        for (int32_t i = grid.warp * grid.blocks + grid.block; i < call.N * a.H; i += grid.warps * grid.blocks) {
            const int32_t n = i / a.H, h = i % a.H;
            attend_head(layer, n, h, s, [&](int32_t c, float y) { workspace.attended[n * a.D + h * d + c] = y; });
        }
    }

    // Attention of the block's group of heads, into `inputs`.
    BGPT_DEVICE void load_attended(int32_t layer, int32_t s, int32_t row, int32_t rows) {
        const int32_t d = a.D / a.H, group = grid.block % a.groups, width = a.heads * d, padding = kSegment - width;
        for (int32_t i = grid.warp; i < rows * a.heads; i += grid.warps) {
            const int32_t r = i / a.heads, j = i % a.heads;
            attend_head(layer, row + r, group * a.heads + j, s,
                        [&](int32_t c, float y) { inputs()[r * kSegment + shared_index(j * d + c)] = y; });
        }
        for_each(rows * padding,
                 [&](int32_t i) { inputs()[i / padding * kSegment + shared_index(width + i % padding)] = 0.0f; });
    }

    // Samples the token of each active row. Every block does so for itself; the first writes the results. Returns
    // whether any row is still active.
    BGPT_DEVICE bool choose(int32_t s) {
        for (int32_t n = grid.warp; n < call.N; n += grid.warps) {
            if (active()[n] == 0) continue;
            const float* const logits = workspace.logits + n * kVocabSize;
            const int32_t prefix_token = call.prefix_tokens[n * a.S + s];
            const int32_t sampled =
                choose_by_warp(logits, sampling_for(prefix_token, call.sampling), call.rng_streams[n],
                               call.byte_offsets[n] + static_cast<uint32_t>(s), ranked());
            const Acceptance accepted = accept_token(s, sampled, prefix_token, call.max_tokens[n]);
            sync_lanes();  // all have read whether the row is active
            for_each_lane([&](int lane) {
                if (grid.block == 0 && call.logits != nullptr) {
                    for (int32_t v = lane; v < kVocabSize; v += kLanes) {
                        call.logits[(n * a.S + s) * kVocabSize + v] = load_fresh(logits + v);
                    }
                }
                if (lane != 0) return;
                // A row without a token still takes part until the others end, and needs some token's embedding.
                token()[n] = accepted.token < 0 ? kEndOfPatch : accepted.token;
                active()[n] = accepted.continues ? 1 : 0;
                if (grid.block != 0) return;
                if (accepted.token >= 0) call.tokens[n * a.S + s] = static_cast<int16_t>(accepted.token);
                call.counts[n] = accepted.count;
            });
        }
        grid.sync();
        bool any = false;
        for (int32_t n = 0; n < call.N; ++n) any = any || active()[n] != 0;
        return any;
    }

    const PersistentPlan& a;
    const PersistentWeights<W>& weights;
    const PersistentCall& call;
    const PersistentWorkspace& workspace;
    Grid& grid;
    unsigned char* const shared;
};

}  // namespace bgpt
