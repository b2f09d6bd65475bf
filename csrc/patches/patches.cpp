#include "patches/patches.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "common/threads.h"
#include "common/tokens.h"

namespace bgpt {
namespace {

void widen(const uint8_t* bytes, int64_t count, int16_t* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = bytes[i];
}

// Patches [begin, end) of one document, counted from its extension patch.
void pack_document(const Document& document, int64_t begin, int64_t end, int64_t S, int16_t* out) {
    int16_t* const stop = out + (end - begin) * S;
    if (begin == 0) {
        widen(document.extension, document.extension_size, out);
        std::fill(out + document.extension_size, out + S, static_cast<int16_t>(kEndOfPatch));
        out += S;
        begin = 1;
    }
    const int64_t from = std::min((begin - 1) * S, document.content_size);
    const int64_t count = std::min(document.content_size - from, static_cast<int64_t>(stop - out));
    widen(document.content + from, count, out);
    std::fill(out + count, stop, static_cast<int16_t>(kEndOfPatch));
}

}  // namespace

std::vector<int32_t> patch_offsets(const std::vector<Document>& documents, int64_t S) {
    std::vector<int32_t> offsets{0};
    offsets.reserve(documents.size() + 1);
    int64_t total = 0;
    for (const Document& document : documents) {
        if (document.extension_size > S) throw std::invalid_argument("patches: an extension is longer than a patch");
        const int64_t content_patches = document.content_size / S + (document.content_size % S != 0);
        total += 1 + content_patches + document.end_of_file;
        if (total > std::numeric_limits<int32_t>::max()) {
            throw std::overflow_error("patches: more than 2147483647 patches in one batch; split it");
        }
        offsets.push_back(static_cast<int32_t>(total));
    }
    return offsets;
}

void pack_patches(const std::vector<Document>& documents, const std::vector<int32_t>& offsets, int64_t S,
                  int16_t* patches, int64_t threads) {
    // Threads share patches, not documents, so that several work on one large file.
    const int64_t grain = std::max<int64_t>(1, (1 << 18) / S);
    parallel_for(offsets.back(), threads, grain, [&, S, patches](int64_t begin, int64_t end) {
        auto next = std::upper_bound(offsets.begin(), offsets.end(), begin);
        for (int64_t b = next - offsets.begin() - 1; begin < end; ++b) {
            const int64_t stop = std::min<int64_t>(end, offsets[b + 1]);
            pack_document(documents[b], begin - offsets[b], stop - offsets[b], S, patches + begin * S);
            begin = stop;
        }
    });
}

void pack_patches(const std::vector<Document>& documents, int64_t S, int16_t* patches, int64_t P, int32_t* cu_seqlens,
                  int64_t threads) {
    const std::vector<int32_t> offsets = patch_offsets(documents, S);
    if (offsets.back() != P) throw std::invalid_argument("pack_patches: P is not the documents' number of patches");
    std::copy(offsets.begin(), offsets.end(), cu_seqlens);
    pack_patches(documents, offsets, S, patches, threads);
}

}  // namespace bgpt
