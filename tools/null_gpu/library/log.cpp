#include "log.h"

#include <time.h>

#include <deque>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace null_gpu {
namespace {

// Never destroyed: libraries unload their kernels after static objects are gone.
struct State {
    std::mutex mutex;
    std::vector<Event> events;
    std::deque<std::string> names;  // whose texts do not move
    std::unordered_map<std::string, int32_t> ids;
};

State& state() {
    static State* const one = new State;
    return *one;
}

thread_local cudaError_t error_of_thread = cudaSuccess;

int64_t cpu_nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

}  // namespace

int32_t name_id(const char* name) {
    State& s = state();
    const std::lock_guard lock(s.mutex);
    const auto [place, is_new] = s.ids.try_emplace(name, static_cast<int32_t>(s.names.size()));
    if (is_new) s.names.emplace_back(name);
    return place->second;
}

void record(Event event, cudaStream_t stream) {
    event.stream = reinterpret_cast<uint64_t>(stream);
    event.cpu_ns = cpu_nanoseconds();
    if (record_captured(event, stream)) return;
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.events.push_back(event);
}

cudaError_t record_wait(const char* name, bool forbidden, int32_t later) {
    if (forbidden) return refuse(name, cudaErrorStreamCaptureUnsupported);
    record({.kind = Kind::wait, .name = name_id(name), .id = later});
    return cudaSuccess;
}

cudaError_t refuse(const char* reason, cudaError_t error) {
    Event event{.kind = Kind::refused, .name = name_id(reason)};
    event.cpu_ns = cpu_nanoseconds();
    State& s = state();
    const std::lock_guard lock(s.mutex);
    s.events.push_back(event);
    return error_of_thread = error;
}

cudaError_t take_last_error() {
    const cudaError_t error = error_of_thread;
    error_of_thread = cudaSuccess;
    return error;
}

cudaError_t last_error() { return error_of_thread; }

// Defined in streams.cpp.
const std::vector<Event>* events_of_graph(int32_t graph);

}  // namespace null_gpu

using null_gpu::Event;

int64_t null_gpu_count() {
    auto& s = null_gpu::state();
    const std::lock_guard lock(s.mutex);
    return static_cast<int64_t>(s.events.size());
}

int64_t null_gpu_read(int32_t graph, int64_t first, int64_t count, Event* into) {
    auto& s = null_gpu::state();
    const std::lock_guard lock(s.mutex);
    const std::vector<Event>* events = graph ? null_gpu::events_of_graph(graph) : &s.events;
    if (!events) return 0;
    int64_t copied = 0;
    const int64_t size = static_cast<int64_t>(events->size());
    for (int64_t i = first; i < size && copied < count; ++i) into[copied++] = (*events)[i];
    return copied;
}

const char* null_gpu_name(int32_t id) {
    auto& s = null_gpu::state();
    const std::lock_guard lock(s.mutex);
    return id >= 0 && id < static_cast<int32_t>(s.names.size()) ? s.names[id].c_str() : "";
}

void null_gpu_clear() {
    auto& s = null_gpu::state();
    const std::lock_guard lock(s.mutex);
    s.events.clear();
}
