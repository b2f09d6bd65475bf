// The tokens of a patch: the 256 bytes, and one that fills the patch up where a file has ended.
#pragma once

namespace bgpt {

constexpr int kEndOfPatch = 256;
constexpr int kVocabSize = 257;

}  // namespace bgpt
