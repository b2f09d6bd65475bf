#include "cpu_states/philox_stream.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "common/threads.h"

namespace bgpt::cpu_states {
namespace {

constexpr int64_t kGrain = 64;  // instances worth a thread
// Where this many instances are examined for each one selected, the split is taken to have next to none.
constexpr int64_t kMaxExamined = 1 << 16;

}  // namespace

int64_t select(const Options& options, uint64_t seed, int64_t start, int64_t count, Split split, int64_t threads,
               int64_t* indices, int64_t* offsets) {
    std::vector<int32_t> lengths;  // of a window of instances; 0 for those of the other split
    int64_t selected = 0;
    int64_t next = start;
    offsets[0] = 0;
    while (selected < count) {
        const int64_t first = next;
        const int64_t remaining = count - selected;
        const int64_t window = std::clamp<int64_t>(split == Split::eval ? 64 * remaining : remaining, 64, 1 << 20);
        lengths.resize(window);
        parallel_for(window, threads, kGrain, [&](int64_t begin, int64_t end) {
            std::vector<uint8_t> program;
            for (int64_t i = begin; i < end; ++i) {
                const uint64_t index = static_cast<uint64_t>(first + i);
                lengths[i] = draw_length(options, seed, index);
                if (split == Split::all) continue;
                program.assign(int64_t{kInstruction} * lengths[i], 0);
                draw_program(options, seed, index, lengths[i], program.data());
                if (is_eval(program_hash(program.data(), lengths[i])) != (split == Split::eval)) lengths[i] = 0;
            }
        });
        for (int64_t i = 0; i < window && selected < count; ++i) {
            next = first + i + 1;
            if (lengths[i] == 0) continue;
            indices[selected] = first + i;
            offsets[selected + 1] =
                offsets[selected] + trace_size(options.num_registers, options.memory_size, lengths[i]);
            ++selected;
        }
        if (next - start > kMaxExamined * (selected + 1)) {
            throw std::domain_error(
                "generate: split: fewer than one of 65536 such programs belongs to it; allow longer programs "
                "(max_program) or use split=None");
        }
    }
    return next;
}

void write_selected(const Options& options, uint64_t seed, const int64_t* indices, const int64_t* offsets,
                    int64_t count, uint8_t* out, int64_t threads) {
    parallel_for(count, threads, kGrain, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            write_instance(options, seed, static_cast<uint64_t>(indices[i]), out + offsets[i]);
        }
    });
}

}  // namespace bgpt::cpu_states
