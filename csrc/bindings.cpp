// The Python door of the extension, and nothing else: arguments arrive validated by the Python callers,
// tensors and streams as raw addresses, so that one binary serves any torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <deque>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "attention/cached_attention.h"
#include "byte_decode/accept.h"
#include "byte_decode/byte_decode.h"
#include "byte_decode/persistent.h"
#include "common/cpu.h"
#include "cpu_states/machine.h"
#include "cpu_states/parallel_stream.h"
#include "cpu_states/released_stream.h"
#include "cpu_states/text.h"
#include "cpu_states/traces.h"
#include "linear/bias_gelu.h"
#include "linear/invariant_linear.h"
#include "patch_embed/patch_embed.h"
#include "patches/patches.h"
#include "short_attention/short_attention.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
    m.doc() = "C++ and CUDA parts of bgpt_fast";

    // common
#ifdef BGPT_FAST_WITH_CUDA
    m.attr("with_cuda") = true;
#else
    m.attr("with_cuda") = false;
#endif
    m.def("best_isa", [] { return static_cast<int>(bgpt::best_isa()); });

    // short_attention
    m.attr("short_attention_max_length") = bgpt::kMaxShortSequence;
    m.def("short_attention", [](uintptr_t q, uintptr_t k, uintptr_t v, int64_t stride, uintptr_t y, int64_t B,
                                int64_t length, uintptr_t starts, int64_t H, int64_t d, bool bf16, int64_t threads) {
        py::gil_scoped_release release;
        const bgpt::Sequences sequences{B, length, reinterpret_cast<const int32_t*>(starts)};
        auto run = [&](auto* typed) {
            using X = std::remove_pointer_t<decltype(typed)>;
            const auto in = [](uintptr_t address) { return reinterpret_cast<const X*>(address); };
            bgpt::short_attention(in(q), in(k), in(v), stride, reinterpret_cast<X*>(y), sequences, H, d, threads);
        };
        bf16 ? run(static_cast<uint16_t*>(nullptr)) : run(static_cast<float*>(nullptr));
    });
    m.def("short_attention_backward",
          [](uintptr_t dy, uintptr_t q, uintptr_t k, uintptr_t v, int64_t stride, uintptr_t dq, uintptr_t dk,
             uintptr_t dv, int64_t dstride, int64_t B, int64_t length, uintptr_t starts, int64_t H, int64_t d,
             bool bf16, int64_t threads) {
              py::gil_scoped_release release;
              const bgpt::Sequences sequences{B, length, reinterpret_cast<const int32_t*>(starts)};
              auto run = [&](auto* typed) {
                  using X = std::remove_pointer_t<decltype(typed)>;
                  const auto in = [](uintptr_t address) { return reinterpret_cast<const X*>(address); };
                  const auto out = [](uintptr_t address) { return reinterpret_cast<X*>(address); };
                  bgpt::short_attention_backward(in(dy), in(q), in(k), in(v), stride, out(dq), out(dk), out(dv),
                                                 dstride, sequences, H, d, threads);
              };
              bf16 ? run(static_cast<uint16_t*>(nullptr)) : run(static_cast<float*>(nullptr));
          });

    // patch_embed
    m.def("patches_in_range", [](uintptr_t patches, int64_t count) {
        py::gil_scoped_release release;
        return bgpt::patches_in_range(reinterpret_cast<const int16_t*>(patches), count);
    });
    m.def("positions_in_range", [](uintptr_t positions, int64_t count, int64_t L) {
        py::gil_scoped_release release;
        return bgpt::positions_in_range(reinterpret_cast<const int64_t*>(positions), count, L);
    });
    m.def("patch_embed", [](uintptr_t patches, uintptr_t rows, uintptr_t bias, uintptr_t position_rows,
                            uintptr_t positions, uintptr_t y, int64_t P, int64_t S, int64_t D, bool bf16,
                            int64_t threads) {
        py::gil_scoped_release release;
        auto run = [&](auto* typed) {
            using T = std::remove_pointer_t<decltype(typed)>;
            const auto in = [](uintptr_t address) { return reinterpret_cast<const T*>(address); };
            bgpt::patch_embed(reinterpret_cast<const int16_t*>(patches), in(rows), in(bias), in(position_rows),
                              reinterpret_cast<const int64_t*>(positions), reinterpret_cast<T*>(y), P, S, D, threads);
        };
        bf16 ? run(static_cast<uint16_t*>(nullptr)) : run(static_cast<float*>(nullptr));
    });
    m.def("patch_embed_backward",
          [](uintptr_t dy, uintptr_t patches, uintptr_t rows, int64_t P, int64_t S, int64_t D, int64_t threads) {
              py::gil_scoped_release release;
              bgpt::patch_embed_backward(reinterpret_cast<const float*>(dy), reinterpret_cast<const int16_t*>(patches),
                                         reinterpret_cast<float*>(rows), P, S, D, threads);
          });
#ifdef BGPT_FAST_WITH_CUDA
    m.def("patch_embed_cuda",
          [](uintptr_t patches, uintptr_t rows, uintptr_t bias, uintptr_t position_rows, uintptr_t positions,
             uintptr_t y, int64_t P, int64_t S, int64_t D, int64_t L, int dtype, uintptr_t stream) {
              const auto in = [](uintptr_t address) { return reinterpret_cast<const void*>(address); };
              bgpt::patch_embed_cuda(reinterpret_cast<const int16_t*>(patches), in(rows), in(bias), in(position_rows),
                                     reinterpret_cast<const int64_t*>(positions), reinterpret_cast<void*>(y), P, S, D,
                                     L, dtype, reinterpret_cast<void*>(stream));
          });
#endif

    // patches
    m.def("pack_patches", [](const py::list& extensions, const py::list& contents, const std::vector<bool>& ends,
                             int64_t S, uintptr_t patches, int64_t P, uintptr_t cu_seqlens, int64_t threads) {
        // Buffers stay exported while the threads read them, so that no bytearray can move under them.
        struct View : Py_buffer {
            explicit View(py::handle object) {
                if (PyObject_GetBuffer(object.ptr(), this, PyBUF_SIMPLE) != 0) throw py::error_already_set();
            }
            View(const View&) = delete;
            ~View() { PyBuffer_Release(this); }
            const uint8_t* bytes() const { return static_cast<const uint8_t*>(buf); }
        };
        if (contents.size() != extensions.size() || ends.size() != extensions.size()) {
            throw std::invalid_argument("pack_patches: lists of different lengths");
        }
        std::deque<View> views;
        std::vector<bgpt::Document> documents;
        for (size_t b = 0; b < ends.size(); ++b) {
            const View& extension = views.emplace_back(extensions[b]);
            const View& content = views.emplace_back(contents[b]);
            documents.push_back({extension.bytes(), extension.len, content.bytes(), content.len, ends[b]});
        }
        py::gil_scoped_release release;
        const std::vector<int32_t> offsets = bgpt::patch_offsets(documents, S);
        if (offsets.back() != P) throw std::invalid_argument("pack_patches: P is not the documents' number of patches");
        std::copy(offsets.begin(), offsets.end(), reinterpret_cast<int32_t*>(cu_seqlens));
        bgpt::pack_patches(documents, offsets, S, reinterpret_cast<int16_t*>(patches), threads);
    });

    // linear
    m.def("invariant_linear", [](uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t y, int64_t M, int64_t K,
                                 int64_t N, bool gelu, int64_t threads, int isa) {
        py::gil_scoped_release release;
        bgpt::invariant_linear({reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(weight),
                                reinterpret_cast<const float*>(bias), reinterpret_cast<float*>(y), M, K, N, gelu},
                               threads, std::min(static_cast<bgpt::Isa>(isa), bgpt::best_isa()));
    });

    m.def("bias_gelu", [](uintptr_t x, uintptr_t bias, uintptr_t y, int64_t N, int64_t F, int64_t threads, int isa) {
        py::gil_scoped_release release;
        bgpt::bias_gelu(reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(bias),
                        reinterpret_cast<float*>(y), N, F, threads,
                        std::min(static_cast<bgpt::Isa>(isa), bgpt::best_isa()));
    });
    m.def("bias_gelu_backward", [](uintptr_t dy, uintptr_t x, uintptr_t bias, uintptr_t dx, uintptr_t dbias, int64_t N,
                                   int64_t F, int64_t threads, int isa) {
        py::gil_scoped_release release;
        bgpt::bias_gelu_backward(reinterpret_cast<const float*>(dy), reinterpret_cast<const float*>(x),
                                 reinterpret_cast<const float*>(bias), reinterpret_cast<float*>(dx),
                                 reinterpret_cast<float*>(dbias), N, F, threads,
                                 std::min(static_cast<bgpt::Isa>(isa), bgpt::best_isa()));
    });

    // attention
    m.def("cached_attention",
          [](uintptr_t qkv, uintptr_t keys, uintptr_t values, uintptr_t slots, uintptr_t positions, uintptr_t y,
             int64_t T, int64_t H, int64_t d, int64_t L, int64_t B, int64_t threads, int isa) {
              py::gil_scoped_release release;
              bgpt::cached_attention(
                  {reinterpret_cast<const float*>(qkv), reinterpret_cast<void*>(keys), reinterpret_cast<void*>(values),
                   reinterpret_cast<const int64_t*>(slots), reinterpret_cast<const int64_t*>(positions),
                   reinterpret_cast<float*>(y), T, H, d, L, B},
                  threads, std::min(static_cast<bgpt::Isa>(isa), bgpt::best_isa()));
          });

    // byte_decode
    m.def("has_bf16_dot", &bgpt::has_bf16_dot);
    m.attr("byte_decode_rows") = bgpt::kByteDecodeRows;
    py::class_<bgpt::Transformer>(m, "PackedTransformer")
        .def(py::init([](int64_t D, int64_t H, int64_t F, float eps, int precision) {
            return std::make_unique<bgpt::Transformer>(D, H, F, eps, static_cast<bgpt::Precision>(precision));
        }))
        .def("add_layer",
             [](bgpt::Transformer& transformer, const std::array<uintptr_t, 12>& at) {
                 py::gil_scoped_release release;
                 const auto in = [&](int i) { return reinterpret_cast<const float*>(at[i]); };
                 transformer.add_layer(
                     {in(0), in(1), in(2), in(3), in(4), in(5), in(6), in(7), in(8), in(9), in(10), in(11)});
             })
        .def("finish",
             [](bgpt::Transformer& transformer, uintptr_t weight, uintptr_t bias, uintptr_t wpe, int64_t positions) {
                 const auto in = [](uintptr_t address) { return reinterpret_cast<const float*>(address); };
                 transformer.finish(in(weight), in(bias), in(wpe), positions);
             })
        .def_property_readonly("nbytes", &bgpt::Transformer::bytes)
        .def("features", [](const bgpt::Transformer& transformer, bgpt::Cache& cache, uintptr_t x, uintptr_t slots,
                            uintptr_t positions, int64_t T, uintptr_t y, int64_t threads, int isa) {
            py::gil_scoped_release release;
            bgpt::Team team(threads);
            bgpt::Workspace workspace(transformer, std::min<int64_t>(T, 256));
            bgpt::features(transformer, cache, workspace, reinterpret_cast<const float*>(x),
                           reinterpret_cast<const int64_t*>(slots), reinterpret_cast<const int64_t*>(positions), T,
                           reinterpret_cast<float*>(y), team, std::min(static_cast<bgpt::Isa>(isa), bgpt::best_isa()));
        });
    py::class_<bgpt::Cache>(m, "PackedCache").def(py::init<const bgpt::Transformer&, int64_t, int64_t>());
    py::class_<bgpt::ByteDecoder>(m, "PackedByteDecoder")
        .def(py::init([](const bgpt::Transformer& transformer, uintptr_t wte, int64_t S) {
                 return std::make_unique<bgpt::ByteDecoder>(transformer, reinterpret_cast<const float*>(wte), S);
             }),
             py::keep_alive<1, 2>())
        .def("decode", [](const bgpt::ByteDecoder& decoder, uintptr_t features, int64_t N, uintptr_t given,
                          uintptr_t drafts, uintptr_t verify, uintptr_t room, uintptr_t indices, uintptr_t starts,
                          double temperature, int64_t top_k, double top_p, uint64_t seed, uintptr_t tokens,
                          uintptr_t counts, uintptr_t logits, int64_t threads, int isa) {
            py::gil_scoped_release release;
            bgpt::Team team(threads);
            bgpt::byte_decode(decoder,
                              {reinterpret_cast<const float*>(features),
                               N,
                               reinterpret_cast<const int16_t*>(given),
                               reinterpret_cast<const int16_t*>(drafts),
                               reinterpret_cast<const bool*>(verify),
                               reinterpret_cast<const int64_t*>(room),
                               reinterpret_cast<const uint64_t*>(indices),
                               reinterpret_cast<const uint64_t*>(starts),
                               {temperature, top_k, top_p, seed},
                               reinterpret_cast<int16_t*>(tokens),
                               reinterpret_cast<int64_t*>(counts),
                               reinterpret_cast<float*>(logits)},
                              team, std::min(static_cast<bgpt::Isa>(isa), bgpt::best_isa()));
        });

    // byte_decode on a GPU
    using Sizes = std::array<int32_t, 5>;
    const auto shape_of = [](const Sizes& sizes, float eps) {
        return bgpt::PersistentShape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], eps};
    };
    const auto accept_of = [](const std::array<int64_t, 3>& sizes, const std::array<uintptr_t, 10>& at) {
        return bgpt::Accept{reinterpret_cast<const float*>(at[0]),
                            sizes[0],
                            sizes[1],
                            sizes[2],
                            reinterpret_cast<const int16_t*>(at[1]),
                            reinterpret_cast<const int64_t*>(at[2]),
                            reinterpret_cast<const uint64_t*>(at[3]),
                            reinterpret_cast<const uint64_t*>(at[4]),
                            reinterpret_cast<const bgpt::Sampling*>(at[5]),
                            reinterpret_cast<int16_t*>(at[6]),
                            reinterpret_cast<int64_t*>(at[7]),
                            reinterpret_cast<int64_t*>(at[8]),
                            reinterpret_cast<uint8_t*>(at[9])};
    };
    m.attr("persistent_rows") = bgpt::kPersistentRows;
    m.def("persistent_takes", [=](const Sizes& sizes) { return bgpt::persistent_takes(shape_of(sizes, 0.0f)); });
    m.def("persistent_room",
          [=](const Sizes& sizes, int64_t N) { return bgpt::persistent_room(shape_of(sizes, 0.0f), N); });
    m.def("byte_accept", [=](const std::array<int64_t, 3>& sizes, const std::array<uintptr_t, 10>& at) {
        py::gil_scoped_release release;
        bgpt::byte_accept(accept_of(sizes, at));
    });
#ifdef BGPT_FAST_WITH_CUDA
    m.def("byte_accept_cuda",
          [=](const std::array<int64_t, 3>& sizes, const std::array<uintptr_t, 10>& at, uintptr_t stream) {
              bgpt::byte_accept_cuda(accept_of(sizes, at), reinterpret_cast<void*>(stream));
          });
    m.def("byte_decode_cuda",
          [=](const Sizes& sizes, float eps, int dtype, const std::vector<uint64_t>& weights,
              const std::array<uintptr_t, 6>& in, const std::tuple<double, int64_t, double, uint64_t>& sampling,
              const std::array<uintptr_t, 4>& out, uintptr_t stream) {
              const auto [temperature, top_k, top_p, seed] = sampling;
              if (weights.size() != 12 * static_cast<size_t>(sizes[4]) + 5) {
                  throw std::invalid_argument("byte_decode_cuda: not the addresses of so many layers");
              }
              bgpt::byte_decode_cuda(shape_of(sizes, eps), dtype, weights.data(),
                                     {reinterpret_cast<const float*>(in[0]),
                                      static_cast<int32_t>(in[1]),
                                      reinterpret_cast<const int16_t*>(in[2]),
                                      reinterpret_cast<const int64_t*>(in[3]),
                                      reinterpret_cast<const uint64_t*>(in[4]),
                                      reinterpret_cast<const uint64_t*>(in[5]),
                                      {temperature, top_k, top_p, seed},
                                      reinterpret_cast<int16_t*>(out[0]),
                                      reinterpret_cast<int64_t*>(out[1]),
                                      nullptr},
                                     reinterpret_cast<float*>(out[2]), reinterpret_cast<uint32_t*>(out[3]),
                                     reinterpret_cast<void*>(stream));
          });
#endif

    // cpu_states
    namespace cpu = bgpt::cpu_states;
    const auto unsigned_bytes = [](std::string_view view) { return reinterpret_cast<const uint8_t*>(view.data()); };
    py::list instructions;
    for (int32_t op = 0; op < cpu::kOpcodes; ++op) {
        instructions.append(py::make_tuple(cpu::mnemonic(op), cpu::min_operands(op), cpu::max_operands(op)));
    }
    m.attr("cpu_states_instructions") = instructions;
    m.attr("cpu_states_faults") =
        py::make_tuple("none", "opcode", "operand_missing", "operand_surplus", "register_range", "pc_range", "no_halt");
    py::class_<cpu::Options>(m, "CpuStatesOptions").def(py::init([](int32_t R, int32_t M, int32_t least, int32_t most) {
        if (R < 1 || R > cpu::kMaxRegisters || least < 0 || most < least || std::max(most, 1) > M / cpu::kInstruction ||
            std::min(most, M / cpu::kInstruction - 1) > cpu::kMaxPc) {
            throw std::invalid_argument("CpuStatesOptions: out of range");
        }
        return cpu::Options{R, M, least, most};
    }));
    py::class_<cpu::ReleasedStream>(m, "CpuStatesReleasedStream")
        .def(py::init([](const std::vector<uint32_t>& key, const cpu::Options& options) {
            if (key.empty()) throw std::invalid_argument("CpuStatesReleasedStream: an empty key");
            return cpu::ReleasedStream(key, options);
        }))
        .def("skip", &cpu::ReleasedStream::skip, py::call_guard<py::gil_scoped_release>())
        .def("fill", [](cpu::ReleasedStream& stream, uintptr_t out, int64_t capacity, uintptr_t offsets,
                        int64_t count) {
            py::gil_scoped_release release;
            return stream.fill(reinterpret_cast<uint8_t*>(out), capacity, reinterpret_cast<int64_t*>(offsets), count);
        });
    m.def("cpu_states_select", [](const cpu::Options& options, uint64_t seed, int64_t start, int64_t count, int split,
                                  int64_t threads, uintptr_t indices, uintptr_t offsets) {
        py::gil_scoped_release release;
        return cpu::select(options, seed, start, count, static_cast<cpu::Split>(split), threads,
                           reinterpret_cast<int64_t*>(indices), reinterpret_cast<int64_t*>(offsets));
    });
    m.def("cpu_states_write", [](const cpu::Options& options, uint64_t seed, uintptr_t indices, uintptr_t offsets,
                                 int64_t count, uintptr_t out, int64_t threads) {
        py::gil_scoped_release release;
        cpu::write_selected(options, seed, reinterpret_cast<const int64_t*>(indices),
                            reinterpret_cast<const int64_t*>(offsets), count, reinterpret_cast<uint8_t*>(out), threads);
    });
    m.def("cpu_states_check_program", [=](std::string_view program, int32_t R, int64_t M) {
        const auto check = cpu::check_program(unsigned_bytes(program), static_cast<int64_t>(program.size()), R, M);
        return py::make_tuple(check.instructions, static_cast<int>(check.fault));
    });
    m.def("cpu_states_run", [=](std::string_view memory, std::string_view values) {
        const int32_t R = static_cast<int32_t>(values.size()) - 1;
        const int32_t M = static_cast<int32_t>(memory.size());
        const auto check = cpu::check_program(unsigned_bytes(memory), M, R, M);
        if (R < 1 || R > cpu::kMaxRegisters || check.fault != cpu::Fault::none) {
            throw std::invalid_argument("cpu_states_run: not a program");
        }
        std::vector<uint8_t> own(unsigned_bytes(values), unsigned_bytes(values) + values.size());
        std::vector<uint8_t> states(cpu::trace_size(R, 0, check.instructions));
        cpu::run(unsigned_bytes(memory), M, R, own.data(), states.data());
        return py::bytes(reinterpret_cast<const char*>(states.data()), states.size());
    });
    m.def("cpu_states_disassemble", [=](std::string_view program, int32_t R, const std::string& separator) {
        const int64_t size = static_cast<int64_t>(program.size());
        const auto check = cpu::check_program(unsigned_bytes(program), size, R, size);
        return cpu::disassemble(unsigned_bytes(program), check.instructions, separator);
    });
    m.def("cpu_states_find_invalid",
          [](uintptr_t data, uintptr_t offsets, int64_t count, int32_t R, int32_t M, int64_t threads) {
              py::gil_scoped_release release;
              return cpu::find_invalid(reinterpret_cast<const uint8_t*>(data),
                                       reinterpret_cast<const int64_t*>(offsets), count, R, M, threads);
          });
    m.def("cpu_states_hash_programs", [](uintptr_t data, uintptr_t offsets, int64_t count, int32_t R, int32_t M,
                                         uintptr_t hashes, int64_t threads) {
        py::gil_scoped_release release;
        cpu::hash_programs(reinterpret_cast<const uint8_t*>(data), reinterpret_cast<const int64_t*>(offsets), count, R,
                           M, reinterpret_cast<uint64_t*>(hashes), threads);
    });
    m.def("cpu_states_is_test", [](uint64_t hash) { return cpu::is_test(hash); });
    m.def("cpu_states_pack", [=](uintptr_t data, uintptr_t offsets, int64_t count, std::string_view extension,
                                 int64_t S, uintptr_t patches, int64_t P, uintptr_t cu_seqlens, int64_t threads) {
        py::gil_scoped_release release;
        const auto* at = reinterpret_cast<const int64_t*>(offsets);
        std::vector<bgpt::Document> documents;
        for (int64_t i = 0; i < count; ++i) {
            documents.push_back({unsigned_bytes(extension), static_cast<int64_t>(extension.size()),
                                 reinterpret_cast<const uint8_t*>(data) + at[i], at[i + 1] - at[i], true});
        }
        const std::vector<int32_t> cumulative = bgpt::patch_offsets(documents, S);
        if (cumulative.back() != P) {
            throw std::invalid_argument("cpu_states_pack: P is not the traces' number of patches");
        }
        std::copy(cumulative.begin(), cumulative.end(), reinterpret_cast<int32_t*>(cu_seqlens));
        bgpt::pack_patches(documents, cumulative, S, reinterpret_cast<int16_t*>(patches), threads);
    });
#ifdef BGPT_FAST_WITH_CUDA
    m.def("cpu_states_sizes_cuda", [](const cpu::Options& options, uint64_t seed, int64_t start, int64_t count,
                                      uintptr_t sizes, uintptr_t stream) {
        cpu::sizes_cuda(options, seed, start, count, reinterpret_cast<int64_t*>(sizes),
                        reinterpret_cast<void*>(stream));
    });
    m.def("cpu_states_write_cuda",
          [](const cpu::Options& options, uint64_t seed, int64_t start, int64_t count, uintptr_t offsets, uintptr_t out,
             int64_t capacity, uintptr_t in_test, uintptr_t stream) {
              cpu::write_cuda(options, seed, start, count, reinterpret_cast<const int64_t*>(offsets),
                              reinterpret_cast<uint8_t*>(out), capacity, reinterpret_cast<bool*>(in_test),
                              reinterpret_cast<void*>(stream));
          });
#endif
}
