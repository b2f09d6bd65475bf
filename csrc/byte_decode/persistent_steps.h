// The phases of a byte in the persistent byte decoder (persistent_body.h), and the part of a phase's matrix that a
// block and a warp multiply by.
#pragma once

#include "byte_decode/persistent_block.h"

namespace bgpt {

// What the blocks do between two barriers of the grid, named after its matrix.
enum class Phase { qkv, attend_and_project, project, mlp_fc, mlp_project, head };

struct Step {
    Phase phase;
    int32_t layer;
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

// A warp's part of a matrix: some neighbouring outputs, one segment.
struct Task {
    int32_t segment, first, count;
};

template <class W, class Grid>
BGPT_DEVICE Matrix<W> split(const PersistentBlock<W, Grid>& b, const W* weight, int32_t inputs, int32_t outputs,
                            int32_t width) {
    return {weight,
            inputs,
            inputs,
            width,
            (inputs + width - 1) / width,
            b.first_of(outputs, b.grid.block, b.grid.blocks),
            b.first_of(outputs, b.grid.block + 1, b.grid.blocks)};
}

// The step after another one of a byte; after the last one the first of the next byte.
BGPT_DEVICE Step step_after(const PersistentPlan& plan, const Step& step) {
    switch (step.phase) {
        case Phase::qkv:
            return {plan.joined != 0 ? Phase::attend_and_project : Phase::project, step.layer};
        case Phase::attend_and_project:
        case Phase::project:
            return {Phase::mlp_fc, step.layer};
        case Phase::mlp_fc:
            return {Phase::mlp_project, step.layer};
        case Phase::mlp_project:
            return step.layer + 1 < plan.layers ? Step{Phase::qkv, step.layer + 1} : Step{Phase::head, 0};
        default:
            return {Phase::qkv, 0};
    }
}

template <class W, class Grid>
BGPT_DEVICE Matrix<W> matrix_of(const PersistentBlock<W, Grid>& b, const Step& step) {
    const LayerWeights<W>& at = b.weights.layers[step.layer];
    const int32_t width = b.plan.heads * (b.plan.D / b.plan.H);
    switch (step.phase) {
        case Phase::qkv:
            return split(b, at.attn_weight, b.plan.D, 3 * b.plan.D, kSegment);
        case Phase::attend_and_project: {
            const int32_t group = b.grid.block % b.plan.groups, part = b.grid.block / b.plan.groups;
            const bool has_part = part < b.plan.parts;
            return {at.attn_proj_weight + group * width,
                    b.plan.D,
                    width,
                    width,
                    1,
                    has_part ? b.first_of(b.plan.D, part, b.plan.parts) : 0,
                    has_part ? b.first_of(b.plan.D, part + 1, b.plan.parts) : 0};
        }
        case Phase::project:
            return split(b, at.attn_proj_weight, b.plan.D, b.plan.D, width);
        case Phase::mlp_fc:
            return split(b, at.fc_weight, b.plan.D, b.plan.F, kSegment);
        case Phase::mlp_project:
            return split(b, at.mlp_proj_weight, b.plan.F, b.plan.D, kSegment);
        default:
            return split(b, b.weights.head, b.plan.D, kVocabSize, kSegment);
    }
}

// Outputs that the block's warps compute at once.
template <class W, class Grid>
BGPT_DEVICE int32_t chunk_of(const PersistentBlock<W, Grid>& b, const Matrix<W>& m) {
    return b.grid.warps / m.segments * kColumns<W>;
}

template <class W, class Grid>
BGPT_DEVICE Task task_of(const PersistentBlock<W, Grid>& b, const Matrix<W>& m, int32_t begin) {
    const int32_t sets = b.grid.warps / m.segments, remaining = m.end - begin, chunk = sets * kColumns<W>;
    const int32_t outputs = remaining < chunk ? remaining : chunk, each = (outputs + sets - 1) / sets;
    const int32_t set = b.grid.warp / m.segments, first = set * each, remaining_after = outputs - first;
    const bool idle = set >= sets || remaining_after <= 0;
    return {b.grid.warp % m.segments, first, idle ? 0 : remaining_after < each ? remaining_after : each};
}

}  // namespace bgpt
