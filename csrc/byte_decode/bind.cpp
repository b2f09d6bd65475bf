#include "common/bind.h"

#include "byte_decode/accept.h"
#include "byte_decode/byte_decode.h"
#include "byte_decode/persistent.h"

namespace bgpt {

namespace {

#define BGPT_ACCEPT_NAMES                                                                                          \
    "N", "S", "V", "s", "eop", "logits", "prefix_tokens", "max_tokens", "rng_streams", "byte_offsets", "sampling", \
        "tokens", "counts", "next_tokens", "active"

template <auto accept, class... Stream, size_t N>
void def_accept(py::module_& m, const char* name, const char* const (&names)[N]) {
    def(
        m, name, names,
        +[](int64_t rows, int64_t S, int64_t V, int64_t s, int32_t eop, const float* logits,
            const int16_t* prefix_tokens, const int64_t* max_tokens, const uint64_t* rng_streams,
            const uint64_t* byte_offsets, const Sampling* sampling, int16_t* tokens, int64_t* counts,
            int64_t* next_tokens, uint8_t* active, Stream... stream) {
            accept({rows, S, V, s, eop, logits, prefix_tokens, max_tokens, rng_streams, byte_offsets, sampling, tokens,
                    counts, next_tokens, active},
                   stream...);
        });
}

}  // namespace

void bind_byte_decode(py::module_& m) {
    m.def("has_bf16_dot", &has_bf16_dot);
    m.attr("byte_decode_rows") = kByteDecodeRows;

    py::class_<Transformer> transformer(m, "PackedTransformer");
    py::class_<Cache> cache(m, "PackedCache");
    def_init(
        transformer, {"D", "H", "F", "eps", "precision"},
        +[](int64_t D, int64_t H, int64_t F, float eps, int precision) {
            return std::make_unique<Transformer>(D, H, F, eps, static_cast<Precision>(precision));
        });
    def(
        transformer, "add_layer", {"addresses"}, +[](Transformer& self, const std::array<uintptr_t, 12>& addresses) {
            self.add_layer(std::bit_cast<LayerWeights<float>>(addresses));
        });
    def(transformer, "finish", {"ln_f_weight", "ln_f_bias", "wpe", "positions"}, &Transformer::finish);
    transformer.def_property_readonly("nbytes", &Transformer::bytes);
    def(
        transformer, "features", {"cache", "x", "slots", "positions", "T", "y", "threads", "isa"},
        +[](const Transformer& self, Cache& cache, const float* x, const int64_t* slots, const int64_t* positions,
            int64_t T, float* y, int64_t threads, Isa isa) {
            Team team(threads);
            Workspace workspace(self, std::min<int64_t>(T, 256));
            features(self, cache, workspace, x, slots, positions, T, y, team, isa);
        });

    def_init(
        cache, {"transformer", "slots", "length"}, +[](const Transformer& transformer, int64_t B, int64_t L) {
            return std::make_unique<Cache>(transformer, B, L);
        });

    py::class_<ByteDecoder> decoder(m, "PackedByteDecoder");
    def_init(
        decoder, {"transformer", "wte", "V", "S"},
        +[](const Transformer& transformer, const float* wte, int64_t V, int64_t S) {
            return std::make_unique<ByteDecoder>(transformer, wte, V, S);
        },
        py::keep_alive<1, 2>());
    decoder.def_property_readonly("address",
                                  [](const ByteDecoder& self) { return reinterpret_cast<uintptr_t>(&self); });
    def(
        decoder, "decode",
        {"features",    "N",       "prefix_tokens",  "drafts",  "verify",  "max_tokens", "rng_streams", "byte_offsets",
         "temperature", "top_k",   "top_p",          "seed",    "eop",     "fill",       "tokens",      "counts",
         "logits",      "drafter", "draft_features", "drafted", "threads", "isa"},
        +[](const ByteDecoder& self, const float* features, int64_t N, const int16_t* prefix_tokens,
            const int16_t* drafts, const bool* verify, const int64_t* max_tokens, const uint64_t* rng_streams,
            const uint64_t* byte_offsets, double temperature, int64_t top_k, double top_p, uint64_t seed, int32_t eop,
            int32_t fill, int16_t* tokens, int64_t* counts, float* logits, const ByteDecoder* drafter,
            const float* draft_features, int64_t* drafted, int64_t threads, Isa isa) {
            Team team(threads);
            byte_decode(self,
                        {features,
                         N,
                         prefix_tokens,
                         drafts,
                         verify,
                         max_tokens,
                         rng_streams,
                         byte_offsets,
                         {temperature, top_k, top_p, seed},
                         eop,
                         fill,
                         tokens,
                         counts,
                         logits,
                         drafter,
                         draft_features,
                         drafted},
                        team, isa);
        });

    def_accept<&byte_accept>(m, "byte_accept", {BGPT_ACCEPT_NAMES});
    def_accept<&BGPT_CUDA(byte_accept_cuda), void*>(m, "byte_accept_cuda", {BGPT_ACCEPT_NAMES, "stream"});

    // The persistent kernel of a GPU.
    m.attr("persistent_rows") = kPersistentRows;
    def(
        m, "persistent_supports", {"D", "H", "F", "S", "layers"},
        +[](int32_t D, int32_t H, int32_t F, int32_t S, int32_t layers) {
            return persistent_supports({D, H, F, S, layers, 0.0f});
        });
    def(
        m, "persistent_workspace_size", {"D", "H", "F", "S", "layers", "N"},
        +[](int32_t D, int32_t H, int32_t F, int32_t S, int32_t layers, int64_t N) {
            return persistent_workspace_size({D, H, F, S, layers, 0.0f}, N);
        });
    def(
        m, "byte_decode_cuda",
        {"D",
         "H",
         "F",
         "S",
         "layers",
         "eps",
         "dtype",
         "weights",
         "features",
         "N",
         "prefix_tokens",
         "max_tokens",
         "rng_streams",
         "byte_offsets",
         "temperature",
         "top_k",
         "top_p",
         "seed",
         "tokens",
         "counts",
         "workspace",
         "arrived",
         "stream"},
        +[](int32_t D, int32_t H, int32_t F, int32_t S, int32_t layers, float eps, int dtype,
            const std::vector<uint64_t>& weights, const float* features, int32_t N, const int16_t* prefix_tokens,
            const int64_t* max_tokens, const uint64_t* rng_streams, const uint64_t* byte_offsets, double temperature,
            int64_t top_k, double top_p, uint64_t seed, int16_t* tokens, int64_t* counts, float* workspace,
            uint32_t* arrived, void* stream) {
            if (layers < 0 || weights.size() != 12 * static_cast<size_t>(layers) + 5) {
                throw std::invalid_argument("byte_decode_cuda: weights: expected 12 addresses a layer and 5 more");
            }
            BGPT_CUDA(byte_decode_cuda)
            ({D, H, F, S, layers, eps}, dtype, weights.data(),
             {features,
              N,
              prefix_tokens,
              max_tokens,
              rng_streams,
              byte_offsets,
              {temperature, top_k, top_p, seed},
              tokens,
              counts,
              nullptr},
             workspace, arrived, stream);
        });
}

}  // namespace bgpt
