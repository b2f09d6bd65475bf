// Bytes of files → int16 patches, end to end. Letters: B documents, P patches, S bytes a patch.
#pragma once

#include <cstdint>
#include <vector>

namespace bgpt {

// One document: [extension patch][content patches][a patch of `<eop>`, if `end_of_file`].
struct Document {
    const uint8_t* extension;
    int64_t extension_size;  // at most S
    const uint8_t* content;
    int64_t content_size;
    bool end_of_file;
};

// Exclusive prefix sums of the documents' patches: [B + 1], the last entry is P. Throws std::invalid_argument for an
// extension over S bytes and std::overflow_error past 2^31 - 1 patches.
std::vector<int32_t> patch_offsets(const std::vector<Document>& documents, int64_t S);

// Fills patches[P * S]: bytes as they are, 256 wherever a patch has none. `offsets` is what patch_offsets returned.
void pack_patches(const std::vector<Document>& documents, const std::vector<int32_t>& offsets, int64_t S,
                  int16_t* patches, int64_t threads);

// The same with cu_seqlens [B + 1], the offsets, as a second result. Throws std::invalid_argument unless the documents
// have P patches.
void pack_patches(const std::vector<Document>& documents, int64_t S, int16_t* patches, int64_t P, int32_t* cu_seqlens,
                  int64_t threads);

}  // namespace bgpt
