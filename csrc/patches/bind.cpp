#include "common/bind.h"

#include "patches/patches.h"

namespace bgpt {
namespace {

// The memory of a bytes-like object, exported for as long as this lives, so that no bytearray can move meanwhile.
struct Buffer {
    Buffer() = default;
    Buffer(Buffer&& other) noexcept : view(std::exchange(other.view, {})) {}
    ~Buffer() {
        if (view.obj != nullptr) PyBuffer_Release(&view);
    }
    Py_buffer view{};
};

}  // namespace
}  // namespace bgpt

namespace pybind11::detail {

template <>
struct type_caster<bgpt::Buffer> {
    PYBIND11_TYPE_CASTER(bgpt::Buffer, const_name("bytes | bytearray | memoryview"));
    bool load(handle source, bool) {
        if (PyObject_GetBuffer(source.ptr(), &value.view, PyBUF_SIMPLE) == 0) return true;
        throw error_already_set();
    }
};

}  // namespace pybind11::detail

namespace bgpt {

void bind_patches(py::module_& m) {
    def(
        m, "pack_patches", {"extensions", "contents", "ends", "S", "patches", "P", "cu_seqlens", "threads"},
        +[](const std::vector<Buffer>& extensions, const std::vector<Buffer>& contents, const std::vector<bool>& ends,
            int64_t S, int16_t* patches, int64_t P, int32_t* cu_seqlens, int64_t threads) {
            if (contents.size() != extensions.size() || ends.size() != extensions.size()) {
                throw std::invalid_argument("pack_patches: lists of different lengths");
            }
            std::vector<Document> documents;
            for (size_t b = 0; b < ends.size(); ++b) {
                const Py_buffer &extension = extensions[b].view, &content = contents[b].view;
                documents.push_back({static_cast<const uint8_t*>(extension.buf), extension.len,
                                     static_cast<const uint8_t*>(content.buf), content.len, ends[b]});
            }
            pack_patches(documents, S, patches, P, cu_seqlens, threads);
        });
}

}  // namespace bgpt
