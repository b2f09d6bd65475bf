#include "common/bind.h"

#include "byte_decode/accept.h"
#include "byte_decode/byte_decode.h"
#include "byte_decode/persistent.h"

namespace bgpt {
namespace {

using Sizes = std::array<int32_t, 5>;

PersistentShape shape_of(const Sizes& sizes, float eps) {
    return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], eps};
}

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Accept accept_of(const std::array<int64_t, 3>& sizes, const std::array<uintptr_t, 10>& addresses) {
    const auto& a = addresses;
    return {at<const float>(a[0]),
            sizes[0],
            sizes[1],
            sizes[2],
            at<const int16_t>(a[1]),
            at<const int64_t>(a[2]),
            at<const uint64_t>(a[3]),
            at<const uint64_t>(a[4]),
            at<const Sampling>(a[5]),
            at<int16_t>(a[6]),
            at<int64_t>(a[7]),
            at<int64_t>(a[8]),
            at<uint8_t>(a[9])};
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
            const auto in = [&](int i) { return at<const float>(addresses[i]); };
            self.add_layer({in(0), in(1), in(2), in(3), in(4), in(5), in(6), in(7), in(8), in(9), in(10), in(11)});
        });
    def(
        transformer, "finish", {"ln_f_weight", "ln_f_bias", "wpe", "positions"},
        +[](Transformer& self, const float* weight, const float* bias, const float* wpe, int64_t positions) {
            self.finish(weight, bias, wpe, positions);
        });
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
        decoder, {"transformer", "wte", "S"},
        +[](const Transformer& transformer, const float* wte, int64_t S) {
            return std::make_unique<ByteDecoder>(transformer, wte, S);
        },
        py::keep_alive<1, 2>());
    def(
        decoder, "decode",
        {"features", "N", "prefix_tokens", "drafts", "verify", "max_tokens", "rng_streams", "byte_offsets",
         "temperature", "top_k", "top_p", "seed", "tokens", "counts", "logits", "threads", "isa"},
        +[](const ByteDecoder& self, const float* features, int64_t N, const int16_t* prefix_tokens,
            const int16_t* drafts, const bool* verify, const int64_t* max_tokens, const uint64_t* rng_streams,
            const uint64_t* byte_offsets, double temperature, int64_t top_k, double top_p, uint64_t seed,
            int16_t* tokens, int64_t* counts, float* logits, int64_t threads, Isa isa) {
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
                         tokens,
                         counts,
                         logits},
                        team, isa);
        });

    // On a GPU.
    m.attr("persistent_rows") = kPersistentRows;
    def(m, "persistent_takes", {"sizes"}, +[](const Sizes& sizes) { return persistent_takes(shape_of(sizes, 0.0f)); });
    def(
        m, "persistent_room", {"sizes", "N"},
        +[](const Sizes& sizes, int64_t N) { return persistent_room(shape_of(sizes, 0.0f), N); });
    def(
        m, "byte_accept", {"sizes", "addresses"},
        +[](const std::array<int64_t, 3>& sizes, const std::array<uintptr_t, 10>& addresses) {
            byte_accept(accept_of(sizes, addresses));
        });
    def(
        m, "byte_accept_cuda", {"sizes", "addresses", "stream"},
        +[](const std::array<int64_t, 3>& sizes, const std::array<uintptr_t, 10>& addresses, void* stream) {
            BGPT_CUDA(byte_accept_cuda)(accept_of(sizes, addresses), stream);
        });
    def(
        m, "byte_decode_cuda", {"sizes", "eps", "dtype", "weights", "inputs", "sampling", "outputs", "stream"},
        +[](const Sizes& sizes, float eps, int dtype, const std::vector<uint64_t>& weights,
            const std::array<uintptr_t, 6>& in, const std::tuple<double, int64_t, double, uint64_t>& sampling,
            const std::array<uintptr_t, 4>& out, void* stream) {
            const auto [temperature, top_k, top_p, seed] = sampling;
            if (weights.size() != 12 * static_cast<size_t>(sizes[4]) + 5) {
                throw std::invalid_argument("byte_decode_cuda: not the addresses of so many layers");
            }
            BGPT_CUDA(byte_decode_cuda)
            (shape_of(sizes, eps), dtype, weights.data(),
             {at<const float>(in[0]),
              static_cast<int32_t>(in[1]),
              at<const int16_t>(in[2]),
              at<const int64_t>(in[3]),
              at<const uint64_t>(in[4]),
              at<const uint64_t>(in[5]),
              {temperature, top_k, top_p, seed},
              at<int16_t>(out[0]),
              at<int64_t>(out[1]),
              nullptr},
             at<float>(out[2]), at<uint32_t>(out[3]), stream);
        });
}

}  // namespace bgpt
