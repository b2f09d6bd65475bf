#include "common/bind.h"

#include "cpu_states/machine.h"
#include "cpu_states/philox_stream.h"
#include "cpu_states/python_stream.h"
#include "cpu_states/text.h"
#include "cpu_states/traces.h"
#include "patches/patches.h"

namespace bgpt {

void bind_cpu_states(py::module_& m) {
    using namespace cpu_states;
    using Bytes = std::span<const uint8_t>;

    m.def("cpu_states_instructions", [] {
        std::vector<std::tuple<const char*, int, int>> instructions;
        for (int32_t op = 0; op < kOpcodes; ++op) {
            instructions.emplace_back(mnemonic(op), min_operands(op), max_operands(op));
        }
        return instructions;
    });
    m.def("cpu_states_faults", [] {
        return std::vector<const char*>{"none",           "opcode",   "operand_missing", "operand_surplus",
                                        "register_range", "pc_range", "no_halt"};
    });

    py::class_<Options> options(m, "CpuStatesOptions");
    def_init(
        options, {"num_registers", "memory_size", "min_program", "max_program", "small_values"},
        +[](int32_t R, int32_t M, int32_t min_program, int32_t max_program, double small_values) {
            if (R < 1 || R > kMaxRegisters || min_program < 0 || max_program < min_program ||
                std::max(max_program, 1) > M / kInstruction || std::min(max_program, M / kInstruction - 1) > kMaxPc ||
                !(small_values >= 0.0 && small_values <= 1.0)) {
                throw std::invalid_argument("CpuStatesOptions: out of range");
            }
            return Options{R, M, min_program, max_program, static_cast<int64_t>(small_values * 0x1p32)};
        });
    py::class_<PythonStream> stream(m, "CpuStatesPythonStream");
    def_init(
        stream, {"key", "options"}, +[](const std::vector<uint32_t>& key, const Options& options) {
            if (key.empty()) throw std::invalid_argument("CpuStatesPythonStream: an empty key");
            return PythonStream(key, options);
        });
    def(stream, "skip", {"count"}, &PythonStream::skip);
    def(stream, "fill", {"out", "capacity", "offsets", "count"}, &PythonStream::fill);

    def(
        m, "cpu_states_select", {"options", "seed", "start", "count", "split", "threads", "indices", "offsets"},
        +[](const Options& options, uint64_t seed, int64_t start, int64_t count, int split, int64_t threads,
            int64_t* indices, int64_t* offsets) {
            return select(options, seed, start, count, static_cast<Split>(split), threads, indices, offsets);
        });
    def(m, "cpu_states_write", {"options", "seed", "indices", "offsets", "count", "out", "threads"}, &write_selected);
    def(m, "cpu_states_sizes_cuda", {"options", "seed", "start", "count", "sizes", "stream"}, &BGPT_CUDA(sizes_cuda));
    def(m, "cpu_states_write_cuda",
        {"options", "seed", "start", "count", "offsets", "out", "capacity", "in_eval", "stream"},
        &BGPT_CUDA(write_cuda));

    def(
        m, "cpu_states_check_program", {"program", "num_registers", "memory_size"},
        +[](Bytes program, int32_t R, int64_t M) {
            const auto check = check_program(program.data(), static_cast<int64_t>(program.size()), R, M);
            return std::pair(check.instructions, static_cast<int>(check.fault));
        });
    m.def(
        "cpu_states_run",
        [](Bytes memory, Bytes values) {
            const int32_t R = static_cast<int32_t>(values.size()) - 1, M = static_cast<int32_t>(memory.size());
            const auto check = check_program(memory.data(), M, R, M);
            if (R < 1 || R > kMaxRegisters || check.fault != Fault::none) {
                throw std::invalid_argument("cpu_states_run: not a program");
            }
            std::vector<uint8_t> end_values(values.begin(), values.end());
            std::vector<uint8_t> states(trace_size(R, 0, check.instructions));
            run(memory.data(), M, R, end_values.data(), states.data());
            return py::bytes(reinterpret_cast<const char*>(states.data()), states.size());
        },
        py::arg("memory"), py::arg("values"));
    def(
        m, "cpu_states_disassemble", {"program", "num_registers", "separator"},
        +[](Bytes program, int32_t R, const std::string& separator) {
            const int64_t size = static_cast<int64_t>(program.size());
            return disassemble(program.data(), check_program(program.data(), size, R, size).instructions, separator);
        });

    def(m, "cpu_states_find_invalid", {"data", "offsets", "count", "num_registers", "memory_size", "threads"},
        &find_invalid);
    def(m, "cpu_states_hash_programs",
        {"data", "offsets", "count", "num_registers", "memory_size", "hashes", "threads"}, &hash_programs);
    def(m, "cpu_states_is_eval", {"hash"}, +[](uint64_t hash) { return is_eval(hash); });
    def(
        m, "cpu_states_pack", {"data", "offsets", "count", "extension", "S", "patches", "P", "cu_seqlens", "threads"},
        +[](const uint8_t* data, const int64_t* offsets, int64_t count, Bytes extension, int64_t S, int16_t* patches,
            int64_t P, int32_t* cu_seqlens, int64_t threads) {
            std::vector<Document> documents;
            for (int64_t i = 0; i < count; ++i) {
                documents.push_back({extension.data(), static_cast<int64_t>(extension.size()), data + offsets[i],
                                     offsets[i + 1] - offsets[i], true});
            }
            pack_patches(documents, S, patches, P, cu_seqlens, threads);
        });
}

}  // namespace bgpt
