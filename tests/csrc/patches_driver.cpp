// Packs random documents into a buffer of exactly the right size and compares with the simplest loop; run by
// tests/csrc/test_sanitizers.py under the sanitizers. Arguments: documents, seed, and "overrun" to pass a buffer that
// is one token short.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>

#include "patches/patches.h"

namespace {

struct Source {
    std::vector<uint8_t> extension, content;
    bool end_of_file;
};

std::vector<int16_t> plain(const std::vector<Source>& sources, int64_t S) {
    std::vector<int16_t> tokens;
    auto pad = [&] {
        while (tokens.size() % S != 0) tokens.push_back(256);
    };
    for (const Source& source : sources) {
        tokens.insert(tokens.end(), source.extension.begin(), source.extension.end());
        if (source.extension.empty()) tokens.insert(tokens.end(), S, 256);
        pad();
        tokens.insert(tokens.end(), source.content.begin(), source.content.end());
        pad();
        if (source.end_of_file) tokens.insert(tokens.end(), S, 256);
    }
    return tokens;
}

int64_t fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

// One batch; returns its number of documents.
int64_t check(std::mt19937& draw, int64_t max_documents, bool overrun) {
    auto below = [&](uint32_t n) { return static_cast<int64_t>(draw() % n); };
    const int64_t S = 1 + below(20);
    // Sometimes a document so large that several threads share it.
    const bool large = below(500) == 0;
    std::vector<Source> sources(1 + below(static_cast<uint32_t>(std::min<int64_t>(max_documents, 200))));
    for (Source& source : sources) {
        source.extension.resize(below(static_cast<uint32_t>(S + 1)));
        source.content.resize(below(4) == 0 ? 0 : below(100));
        if (large && &source == &sources.back()) source.content.resize(1'500'000);
        for (auto* bytes : {&source.extension, &source.content}) {
            for (uint8_t& byte : *bytes) byte = static_cast<uint8_t>(draw());
        }
        source.end_of_file = below(3) != 0;
    }
    std::vector<bgpt::Document> documents;
    for (const Source& source : sources) {
        documents.push_back({source.extension.data(), static_cast<int64_t>(source.extension.size()),
                             source.content.data(), static_cast<int64_t>(source.content.size()), source.end_of_file});
    }
    const std::vector<int32_t> offsets = bgpt::patch_offsets(documents, S);
    const std::vector<int16_t> expected = plain(sources, S);
    if (static_cast<int64_t>(expected.size()) != offsets.back() * S) fail("wrong number of patches");
    std::unique_ptr<int16_t[]> tokens(new int16_t[expected.size() - overrun]);
    bgpt::pack_patches(documents, offsets, S, tokens.get(), 1 + below(4));
    for (size_t i = 0; i < expected.size() - overrun; ++i) {
        if (tokens[i] != expected[i]) fail("wrong token");
    }
    return static_cast<int64_t>(sources.size());
}

template <class Error>
void check_refused(bgpt::Document document, int copies, const char* what) {
    try {
        bgpt::patch_offsets(std::vector<bgpt::Document>(copies, document), 4);
    } catch (const Error&) {
        return;
    }
    fail(what);
}

}  // namespace

int main(int argc, char** argv) {
    const int64_t count = std::atoll(argv[1]);
    std::mt19937 draw(static_cast<uint32_t>(std::atoll(argv[2])));
    int64_t done = 0;
    while (done < count) done += check(draw, count - done, argc > 3);
    check_refused<std::invalid_argument>({nullptr, 5, nullptr, 0, true}, 1, "a long extension was accepted");
    check_refused<std::overflow_error>({nullptr, 0, nullptr, int64_t{1} << 33, true}, 1, "2^31 patches were accepted");
    check_refused<std::overflow_error>({nullptr, 0, nullptr, int64_t{1} << 32, true}, 2, "2^31 patches were accepted");
    std::printf("%lld documents\n", static_cast<long long>(done));
}
