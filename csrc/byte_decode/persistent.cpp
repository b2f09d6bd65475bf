#include "byte_decode/persistent.h"

#include "byte_decode/persistent_body.h"

namespace bgpt {
namespace {

// The shared memory of a block on every GPU from sm_80 on, for all shapes that are supported.
static_assert(4 * kRowTile * kSegment * kPersistentWarps + 4 * kRowTile * kPersistentWarps * kColumns<uint16_t> +
                  8 * kPersistentRows <=
              163 * 1024);

int64_t padded(int64_t count) { return (count + 7) / 8 * 8; }

}  // namespace

bool persistent_supports(const PersistentShape& a) {
    if (a.D % 8 != 0 || a.F % 8 != 0 || a.D / a.H % 8 != 0 || a.D / a.H > kSegment) return false;
    if (a.layers > kPersistentLayers || a.S > kPersistentPositions) return false;
    const int32_t max_width = kPersistentWarps * kSegment;
    return a.F <= max_width && a.D <= max_width && a.H / heads_a_group(a) <= kPersistentWarps;
}

int64_t persistent_workspace_size(const PersistentShape& a, int64_t N) {
    const int64_t cached = padded(a.layers * N * a.S * a.D), groups = a.H / heads_a_group(a);
    return 3 * padded(N * a.D) + 2 * cached + padded(groups * N * a.D) + padded(N * a.F) + padded(N * kVocabSize);
}

PersistentWorkspace persistent_workspace_at(float* memory, const PersistentShape& a, int64_t N) {
    const auto part = [&](int64_t count) {
        float* const address = memory;
        memory += padded(count);
        return address;
    };
    const int64_t cached = a.layers * N * a.S * a.D;
    PersistentWorkspace workspace;
    workspace.x = part(N * a.D);
    workspace.q = part(N * a.D);
    workspace.keys = part(cached);
    workspace.values = part(cached);
    workspace.attended = part(N * a.D);
    workspace.partial = part(a.H / heads_a_group(a) * N * a.D);
    workspace.hidden = part(N * a.F);
    workspace.logits = part(N * kVocabSize);
    return workspace;
}

}  // namespace bgpt
