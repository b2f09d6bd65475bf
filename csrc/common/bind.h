// Binds functions of addresses and numbers to Python, with typed signatures. Tensors, arrays and streams arrive as the
// addresses of their memory, so that one binary serves any torch; the Python callers have validated them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "common/cpu.h"

namespace bgpt {

namespace py = pybind11;

// A pointer that Python passes as an int.
template <class T>
struct Address {
    T* pointer;
    operator T*() const { return pointer; }
};

template <class T>
using Argument = std::conditional_t<std::is_pointer_v<T>, Address<std::remove_pointer_t<T>>, T>;

// scope.def(name, f), with a name for each argument, f's pointers as ints, and without Python's lock while f runs.
// Integers are not converted: neither a float nor a tensor is one.
template <class Scope, size_t N, class R, class... A, class... Extra>
void def(Scope& scope, const char* name, const char* const (&names)[N], R (*f)(A...), const Extra&... extra) {
    constexpr size_t self = std::is_same_v<Scope, py::module_> ? 0 : 1;
    static_assert(N + self == sizeof...(A), "def: expected a name for each argument");
    constexpr bool exact[] = {std::is_integral_v<A>...};
    [&]<size_t... I>(std::index_sequence<I...>) {
        scope.def(
            name, [f](Argument<A>... a) { return f(std::forward<Argument<A>>(a)...); },
            py::call_guard<py::gil_scoped_release>(), py::arg(names[I]).noconvert(exact[I + self])..., extra...);
    }(std::make_index_sequence<N>());
}

template <class Scope, size_t N, class C, class R, class... A>
void def(Scope& scope, const char* name, const char* const (&names)[N], R (C::*f)(A...)) {
    [&]<size_t... I>(std::index_sequence<I...>) {
        scope.def(
            name, [f](C& self, Argument<A>... a) { return (self.*f)(a...); }, py::call_guard<py::gil_scoped_release>(),
            py::arg(names[I]).noconvert(std::is_integral_v<A>)...);
    }(std::make_index_sequence<N>());
}

// The same for a constructor, which `f` stands for.
template <class Class, size_t N, class R, class... A, class... Extra>
void def_init(Class& scope, const char* const (&names)[N], R (*f)(A...), const Extra&... extra) {
    static_assert(N == sizeof...(A), "def_init: expected a name for each argument");
    constexpr bool exact[] = {std::is_integral_v<A>...};
    [&]<size_t... I>(std::index_sequence<I...>) {
        scope.def(py::init([f](Argument<A>... a) { return f(std::forward<Argument<A>>(a)...); }),
                  py::call_guard<py::gil_scoped_release>(), py::arg(names[I]).noconvert(exact[I])..., extra...);
    }(std::make_index_sequence<N>());
}

// f(static_cast<T*>(nullptr)) for the element type T, float or uint16_t holding bf16.
template <class F>
void with_element_type(bool bf16, const F& f) {
    bf16 ? f(static_cast<uint16_t*>(nullptr)) : f(static_cast<float*>(nullptr));
}

#ifdef BGPT_FAST_WITH_CUDA
#define BGPT_CUDA(f) f
#else
// In place of a function that is compiled with CUDA alone: the same signature, and an error.
template <class F>
struct WithoutCuda;
template <class R, class... A>
struct WithoutCuda<R(A...)> {
    static R call(A...) { throw std::runtime_error("bgpt_fast was built without CUDA: build it where nvcc is"); }
};
#define BGPT_CUDA(f) WithoutCuda<decltype(f)>::call
#endif

}  // namespace bgpt

namespace pybind11::detail {

template <class T>
struct type_caster<bgpt::Address<T>> {
    PYBIND11_TYPE_CASTER(bgpt::Address<T>, const_name("int"));
    bool load(handle source, bool) {
        make_caster<uintptr_t> address;
        if (!address.load(source, false)) return false;
        value.pointer = reinterpret_cast<T*>(cast_op<uintptr_t>(address));
        return true;
    }
};

// 0 portable, 1 AVX2, 2 AVX-512; the processor's widest where it has not that.
template <>
struct type_caster<bgpt::Isa> {
    PYBIND11_TYPE_CASTER(bgpt::Isa, const_name("int"));
    bool load(handle source, bool) {
        make_caster<int> isa;
        if (!isa.load(source, false)) return false;
        value = static_cast<bgpt::Isa>(std::clamp(cast_op<int>(isa), 0, static_cast<int>(bgpt::best_isa())));
        return true;
    }
};

// A view of the content of `bytes`, which the call keeps alive.
template <>
struct type_caster<std::span<const uint8_t>> {
    PYBIND11_TYPE_CASTER(std::span<const uint8_t>, const_name("bytes"));
    bool load(handle source, bool) {
        if (!PyBytes_Check(source.ptr())) return false;
        value = {reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(source.ptr())),
                 static_cast<size_t>(PyBytes_GET_SIZE(source.ptr()))};
        return true;
    }
};

}  // namespace pybind11::detail
