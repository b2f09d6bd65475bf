#include "byte_decode/persistent.h"

#include "byte_decode/persistent_body.h"

namespace bgpt {
namespace {

// What a block may have on every GPU from sm_80 on, for all shapes that are taken.
static_assert(4 * kRowTile * kSegment * kPersistentWarps + 4 * kRowTile * kPersistentWarps * kColumns<uint16_t> +
                  8 * kPersistentRows <=
              163 * 1024);

int64_t padded(int64_t count) { return (count + 7) / 8 * 8; }

}  // namespace

bool persistent_takes(const PersistentShape& a) {
    if (a.D % 8 != 0 || a.F % 8 != 0 || a.D / a.H % 8 != 0 || a.D / a.H > kSegment) return false;
    if (a.layers > kPersistentLayers || a.S > kPersistentPositions) return false;
    const int32_t most = kPersistentWarps * kSegment;
    return a.F <= most && a.D <= most && a.H / heads_a_group(a) <= kPersistentWarps;
}

int64_t persistent_room(const PersistentShape& a, int64_t N) {
    const int64_t cached = padded(a.layers * N * a.S * a.D), groups = a.H / heads_a_group(a);
    return 3 * padded(N * a.D) + 2 * cached + padded(groups * N * a.D) + padded(N * a.F) + padded(N * kChoices);
}

PersistentRoom persistent_room_at(float* start, const PersistentShape& a, int64_t N) {
    const auto part = [&](int64_t count) {
        float* const found = start;
        start += padded(count);
        return found;
    };
    const int64_t cached = a.layers * N * a.S * a.D;
    PersistentRoom room;
    room.x = part(N * a.D);
    room.q = part(N * a.D);
    room.keys = part(cached);
    room.values = part(cached);
    room.attended = part(N * a.D);
    room.partial = part(a.H / heads_a_group(a) * N * a.D);
    room.hidden = part(N * a.F);
    room.logits = part(N * kChoices);
    return room;
}

}  // namespace bgpt
