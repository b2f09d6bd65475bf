// The alphabets of patches. bGPT's: the 256 bytes, and one token that fills the patch up where a file has ended.
// NotaGen's: 128 symbols. GPU kernels are compiled for each number V of tokens.
#pragma once

#include <stdexcept>

namespace bgpt {

constexpr int kEndOfPatch = 256;  // bGPT's
constexpr int kVocabSize = 257;   // bGPT's, the most
constexpr int kNotaGenVocabSize = 128;

// Calls f.operator()<V>() for an alphabet of V tokens.
template <class F>
void with_vocab_size(long long V, const F& f) {
    if (V == kVocabSize) return f.template operator()<kVocabSize>();
    if (V == kNotaGenVocabSize) return f.template operator()<kNotaGenVocabSize>();
    throw std::invalid_argument("expected 257 or 128 tokens");
}

}  // namespace bgpt
