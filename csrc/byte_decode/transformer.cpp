#include "byte_decode/transformer.h"

#include <algorithm>
#include <cstring>

#include "cached_attention/cached_attention.h"
#include "common/bf16.h"
#include "common/check_index.h"

namespace bgpt {
namespace {

// Multiplications that are worth giving to another thread: some 3 us of one core's work.
constexpr int64_t kGrain = int64_t{1} << 17;
// An odd number of cache lines from row to row, so that the rows of a tile do not evict one another from the cache.
constexpr int64_t kLine = 32;
constexpr int64_t kHeadTokens = 16;  // tokens of a head that are stored and attended from together

int64_t padded(int64_t width) { return (width + kLine - 1) / kLine / 2 * 2 * kLine + kLine; }

int64_t input_size(Precision precision) { return precision == Precision::float32 ? 4 : 2; }

int64_t grain(int64_t count, int64_t work, const Team& team) {
    const int64_t min_count = kGrain / std::max<int64_t>(work, 1) + 1;
    return std::max(min_count, count / (team.size() * 8));
}

// Normalises the rows of `from` [T, D] to the inputs of a next layer.
void normalize_rows(const Transformer& a, const Norm& norm, const float* from, unsigned char* to, int64_t to_row,
                    int64_t T, Team& team, Isa isa) {
    team.for_each(T, grain(T, 4 * a.D, team), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            layer_norm_row({from + t * a.D, norm.weight.data(), norm.bias.data(), a.D, a.eps}, a.precision,
                           to + t * to_row * input_size(a.precision), isa);
        }
    });
}

// Whether no token attends to another one of the same call.
bool are_independent(const CachedAttention& call) {
    for (int64_t t = 1; t < call.T; ++t) {
        if (call.slots[t] <= call.slots[t - 1]) return false;
    }
    return true;
}

// Calls body(h, first, last) for the tokens [first, last) at head h, until each token has had each head. Heads outside,
// tokens inside: the tokens of one sequence read its keys from the processor's cache.
template <class Body>
void for_each_head(const CachedAttention& call, int64_t work, Team& team, const Body& body) {
    team.for_each(call.H * call.T, grain(call.H * call.T, work, team), [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t h = begin / call.T, stop = std::min({end, (h + 1) * call.T, begin + kHeadTokens});
            body(h, begin - h * call.T, stop - h * call.T);
            begin = stop;
        }
    });
}

void attention(const Transformer& a, const CachedAttention& call, unsigned char* inputs, int64_t row, Team& team,
               Isa isa) {
    const int64_t d = call.d, size = input_size(a.precision);
    // Independent tokens are stored right before attention from them, a few at a time, so that their slots, which are
    // large, are read from memory once.
    const bool independent = are_independent(call);
    if (!independent) {
        for_each_head(call, 2 * d, team,
                      [&](int64_t h, int64_t first, int64_t last) { store_keys_values(call, h, first, last); });
    }
    for_each_head(call, 4 * d * attended_positions(call) / call.T, team, [&](int64_t h, int64_t first, int64_t last) {
        if (independent) store_keys_values(call, h, first, last);
        attend(call, h, first, last, isa);
        for (int64_t t = first; t < last; ++t) {
            to_inputs(call.y + t * a.D + h * d, d, a.precision, inputs + (t * row + h * d) * size);
        }
    });
}

}  // namespace

Layer::Layer(const LayerWeights<float>& from, int64_t D, int64_t F, Precision precision)
    : ln_1(from.ln_1_weight, from.ln_1_bias, D),
      ln_2(from.ln_2_weight, from.ln_2_bias, D),
      attn(from.attn_weight, 3 * D, 1, from.attn_bias, D, 3 * D, precision),
      attn_proj(from.attn_proj_weight, D, 1, from.attn_proj_bias, D, D, precision),
      fc(from.fc_weight, F, 1, from.fc_bias, D, F, precision),
      mlp_proj(from.mlp_proj_weight, D, 1, from.mlp_proj_bias, F, D, precision) {}

void Transformer::finish(const float* ln_f_weight, const float* ln_f_bias, const float* from, int64_t count) {
    ln_f = std::make_unique<Norm>(ln_f_weight, ln_f_bias, D);
    wpe.assign(from, from + count * D);
    positions = count;
}

int64_t Transformer::bytes() const {
    int64_t total = 0;
    for (const auto& layer : layers) {
        total += layer->attn.bytes + layer->attn_proj.bytes + layer->fc.bytes + layer->mlp_proj.bytes;
    }
    return total;
}

Cache::Cache(const Transformer& transformer, int64_t slots, int64_t length) : B(slots), L(length) {
    for (size_t i = 0; i < transformer.layers.size(); ++i) {
        const int64_t bytes = B * L * transformer.D * input_size(transformer.precision);
        keys.push_back(aligned<unsigned char>(bytes));
        values.push_back(aligned<unsigned char>(bytes));
    }
}

Workspace::Workspace(const Transformer& transformer, int64_t count)
    : rows(count),
      input_row(padded(transformer.D)),
      hidden_row(padded(transformer.F)),
      x(aligned<float>(rows * transformer.D)),
      qkv(aligned<float>(rows * 3 * transformer.D)),
      attended(aligned<float>(rows * transformer.D)),
      inputs(aligned<unsigned char>(rows * input_row * 4)),
      hidden(aligned<unsigned char>(rows * hidden_row * 4)) {
    // The input that makes an odd width even stays 0.
    std::memset(inputs.get(), 0, rows * input_row * 4);
    std::memset(hidden.get(), 0, rows * hidden_row * 4);
}

void linear(const PackedLinearCall& call, Team& team, Isa isa) {
    const int64_t panels = call.linear->panels;
    team.for_each(panels, grain(panels, call.M * call.linear->K * kPanel, team),
                  [&](int64_t begin, int64_t end) { packed_linear(call, begin, end, isa); });
}

void run_layers(const Transformer& a, Cache& cache, Workspace& w, const int64_t* slots, const int64_t* positions,
                int64_t T, Team& team, Isa isa) {
    for (int64_t t = 0; t < T; ++t) {
        check_index("byte_decode: slots", slots[t], cache.B);
        check_index("byte_decode: positions", positions[t], std::min(cache.L, a.positions));
        const float* position = a.wpe.data() + positions[t] * a.D;
        for (int64_t i = 0; i < a.D; ++i) w.x[t * a.D + i] += position[i];
    }
    for (size_t i = 0; i < a.layers.size(); ++i) {
        const Layer& layer = *a.layers[i];
        normalize_rows(a, layer.ln_1, w.x.get(), w.inputs.get(), w.input_row, T, team, isa);
        linear({&layer.attn, w.inputs.get(), w.input_row, T, w.qkv.get(), 3 * a.D, Epilogue::store}, team, isa);
        attention(a,
                  {w.qkv.get(), cache.keys[i].get(), cache.values[i].get(), slots, positions, w.attended.get(), T, a.H,
                   a.D / a.H, cache.L, cache.B, a.precision != Precision::float32},
                  w.inputs.get(), w.input_row, team, isa);
        linear({&layer.attn_proj, w.inputs.get(), w.input_row, T, w.x.get(), a.D, Epilogue::add}, team, isa);
        normalize_rows(a, layer.ln_2, w.x.get(), w.inputs.get(), w.input_row, T, team, isa);
        linear({&layer.fc, w.inputs.get(), w.input_row, T, w.hidden.get(), w.hidden_row, Epilogue::gelu}, team, isa);
        linear({&layer.mlp_proj, w.hidden.get(), w.hidden_row, T, w.x.get(), a.D, Epilogue::add}, team, isa);
    }
    normalize_rows(a, *a.ln_f, w.x.get(), w.inputs.get(), w.input_row, T, team, isa);
}

void features(const Transformer& a, Cache& cache, Workspace& w, const float* x, const int64_t* slots,
              const int64_t* positions, int64_t T, float* y, Team& team, Isa isa) {
    for (int64_t t = 0; t < T; t += w.rows) {
        const int64_t count = std::min(w.rows, T - t);
        std::copy_n(x + t * a.D, count * a.D, w.x.get());
        run_layers(a, cache, w, slots + t, positions + t, count, team, isa);
        for (int64_t i = 0; i < count; ++i) {
            layer_norm_row({w.x.get() + i * a.D, a.ln_f->weight.data(), a.ln_f->bias.data(), a.D, a.eps},
                           Precision::float32, y + (t + i) * a.D, isa);
        }
    }
}

}  // namespace bgpt
