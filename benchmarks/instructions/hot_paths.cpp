// Calls one hot path of csrc/ by its name, on seeded inputs, on one thread: callgrind counts what `hot_path` executes.
//
//   hot_paths patch_embed        # or another name of `kPaths`; no name lists them
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "cached_attention/cached_attention.h"
#include "cpu_states/philox_stream.h"
#include "cpu_states/python_stream.h"
#include "invariant_linear/invariant_linear.h"
#include "patch_attention/short_attention.h"
#include "patch_embed/patch_embed.h"
#include "patches/patches.h"

namespace {

constexpr bgpt::cpu_states::Options kMachine{10, 1024, 1, 255, 0};  // the released generator's
constexpr int64_t kBytes = 16, kWidth = 256, kHeads = 4, kChannels = kWidth / kHeads;

std::mt19937 generator(0);

std::vector<float> floats(int64_t count) {
    std::uniform_real_distribution<float> draw(-1, 1);
    std::vector<float> values(count);
    for (float& value : values) value = draw(generator);
    return values;
}

std::vector<int16_t> tokens(int64_t count) {
    std::uniform_int_distribution<int> draw(0, 256);
    std::vector<int16_t> values(count);
    for (int16_t& value : values) value = static_cast<int16_t>(draw(generator));
    return values;
}

}  // namespace

// What callgrind collects; inputs are made before and dropped after it.
extern "C" __attribute__((noipa)) void hot_path(const std::function<void()>& act) {
    act();
    asm volatile("");  // or the call is a jump, and callgrind thinks that this function has ended
}

namespace {

void patch_embed() {
    const auto patches = tokens(64 * kBytes);
    const auto rows = floats(kBytes * bgpt::kVocabSize * kWidth), bias = floats(kWidth);
    std::vector<float> y(64 * kWidth);
    hot_path([&] {
        bgpt::patch_embed<float>(patches.data(), rows.data(), bias.data(), nullptr, nullptr, y.data(), 64, kBytes,
                                 kWidth, bgpt::kVocabSize, 1, bgpt::Isa::avx2);
    });
}

void patch_embed_backward() {
    const auto patches = tokens(64 * kBytes);
    const auto dy = floats(64 * kWidth);
    std::vector<float> rows(kBytes * bgpt::kVocabSize * kWidth);
    hot_path([&] {
        bgpt::patch_embed_backward(dy.data(), patches.data(), rows.data(), 64, kBytes, kWidth, bgpt::kVocabSize, 1,
                                   bgpt::Isa::avx2);
    });
}

template <class X>
bgpt::QKV<X> qkv_of(X* qkv) {
    return {qkv, qkv + kWidth, qkv + 2 * kWidth, 3 * kWidth};
}

void short_attention() {
    const auto qkv = floats(32 * kBytes * 3 * kWidth);
    std::vector<float> y(32 * kBytes * kWidth);
    hot_path([&] {
        bgpt::short_attention<float>(qkv_of(qkv.data()), y.data(), {32, kBytes, nullptr}, kHeads, kChannels, 1);
    });
}

void short_attention_backward() {
    const auto qkv = floats(32 * kBytes * 3 * kWidth), dy = floats(32 * kBytes * kWidth);
    std::vector<float> dqkv(qkv.size());
    hot_path([&] {
        bgpt::short_attention_backward<float>(dy.data(), qkv_of<const float>(qkv.data()), qkv_of(dqkv.data()),
                                              {32, kBytes, nullptr}, kHeads, kChannels, 1);
    });
}

void cached_attention() {
    constexpr int64_t slots = 4, length = 128;
    const auto qkv = floats(slots * 3 * kWidth);
    auto keys = floats(slots * kWidth * length), values = floats(slots * kWidth * length);
    std::vector<int64_t> slot_of(slots), positions(slots, length - 1);
    for (int64_t i = 0; i < slots; ++i) slot_of[i] = i;
    std::vector<float> y(slots * kWidth);
    bgpt::CachedAttention arguments{};
    arguments.qkv = qkv.data();
    arguments.keys = keys.data();
    arguments.values = values.data();
    arguments.slots = slot_of.data();
    arguments.positions = positions.data();
    arguments.y = y.data();
    arguments.T = arguments.B = slots;
    arguments.H = kHeads;
    arguments.d = kChannels;
    arguments.L = length;
    hot_path([&] { bgpt::cached_attention(arguments, 1, bgpt::best_isa()); });
}

void invariant_linear() {
    const auto x = floats(4 * kWidth), weight = floats(kWidth * 4 * kWidth), bias = floats(4 * kWidth);
    std::vector<float> y(4 * 4 * kWidth);
    const bgpt::LinearArguments arguments{x.data(), weight.data(), bias.data(), y.data(), 4, kWidth, 4 * kWidth, true};
    hot_path([&] { bgpt::invariant_linear(arguments, 1, bgpt::best_isa()); });
}

void bytes_to_patches() {
    const std::vector<uint8_t> content(10'001, 7), extension{'b', 'i', 'n'};
    const std::vector<bgpt::Document> documents(8, {extension.data(), 3, content.data(), 10'001, true});
    const auto offsets = bgpt::patch_offsets(documents, kBytes);
    std::vector<int16_t> out(offsets.back() * kBytes);
    hot_path([&] { bgpt::pack_patches(documents, offsets, kBytes, out.data(), 1); });
}

void python_stream() {
    const uint32_t key[] = {1};
    bgpt::cpu_states::PythonStream stream(key, kMachine);
    std::vector<uint8_t> out(1 << 21);
    std::vector<int64_t> offsets(101);
    hot_path([&] { stream.fill(out.data(), static_cast<int64_t>(out.size()), offsets.data(), 100); });
}

void philox_stream() {
    std::vector<uint8_t> out(1 << 14);
    hot_path([&] {
        for (uint64_t i = 0; i < 100; ++i) bgpt::cpu_states::write_instance(kMachine, 1, i, out.data());
    });
}

const std::pair<const char*, void (*)()> kPaths[] = {
    {"patch_embed", patch_embed},           {"patch_embed_backward", patch_embed_backward},
    {"short_attention", short_attention},   {"short_attention_backward", short_attention_backward},
    {"cached_attention", cached_attention}, {"invariant_linear", invariant_linear},
    {"bytes_to_patches", bytes_to_patches}, {"python_stream", python_stream},
    {"philox_stream", philox_stream},
};

}  // namespace

int main(int count, char** words) {
    for (const auto& [name, run] : kPaths) {
        if (count < 2) std::puts(name);
        if (count == 2 && std::strcmp(words[1], name) == 0) {
            run();
            return 0;
        }
    }
    return count < 2 ? 0 : 2;
}
