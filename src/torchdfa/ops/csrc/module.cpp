// The Python module torchdfa.ops._native (its functions are described in _native.pyi).
//
// It is written in Python's limited API of 3.10, so that one build serves all later versions, and needs no header of
// torch's: torch describes a tensor by the function of its DLPack exchange table, whose layout is fixed for all versions
// 1.x of DLPack.
#include <Python.h>

#include "library.h"

namespace {

// Multiply-adds from which a call lets other Python threads run; letting go and taking back costs more than a small one.
constexpr double LONG = 1 << 18;

// ---- DLPack 1.x, as far as it is read here (https://dmlc.github.io/dlpack)

struct View {
    void *data;
    int32_t device_type, device_index, dimensions;
    uint8_t type, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
enum { CPU = 1, INTEGER = 0, UNSIGNED = 1, FLOAT = 2 };

struct Exchange {
    uint32_t major, minor;
    void *previous, *allocate, *export_owned, *import_owned;
    int (*view)(void *tensor, View *view);
};

// ---- what Python hands over: see connect()

const Exchange *exchange = nullptr;
PyObject *tensor_type, *is_neg, *modes, *tracing, *threads, *allocate, *float32, *requires_grad;

bool is_true(PyObject *answer) {
    const int yes = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    if (yes < 0) PyErr_Clear();  // what can't be asked is taken for a yes: torch's own way then says why
    return yes != 0;
}

bool has_neg_bit(PyObject *tensor) { return is_true(PyObject_CallFunctionObjArgs(is_neg, tensor, nullptr)); }

// Whether nothing watches or wraps a call: no autograd, no mode, no tracing.
bool unwatched(PyObject *e) {
    if (is_true(PyObject_GetAttr(e, requires_grad)) || is_true(PyObject_CallObject(modes, nullptr))) return false;
    PyObject *state = PyObject_CallObject(tracing, nullptr);
    if (!state) PyErr_Clear();
    Py_XDECREF(state);
    return state == Py_None;
}

// Describe a tensor that is plainly laid out in this machine's memory; false for any other.
bool plain(PyObject *object, View &view, int type, int bits) {
    if ((PyObject *)Py_TYPE(object) != tensor_type) return false;
    if (exchange->view(object, &view)) {  // within torch.func: no memory of its own
        PyErr_Clear();
        return false;
    }
    // No memory: empty, or zeros that are nowhere.
    if (view.device_type != CPU || view.type != type || view.bits != bits || view.lanes != 1 || !view.data) return false;
    view.data = (char *)view.data + view.byte_offset;
    int64_t expected = 1;
    for (int i = view.dimensions - 1; i >= 0; expected *= view.shape[i--])
        if (view.shape[i] != 1 && view.strides && view.strides[i] != expected) return false;
    return true;
}

int64_t size_of(const View &view) {
    int64_t size = 1;
    for (int i = 0; i < view.dimensions; i++) size *= view.shape[i];
    return size;
}

// Product of the shape (rows, columns), not yet computed.
PyObject *make(int64_t rows, int64_t columns, View &view) {
    const int64_t numbers[4] = {rows, columns, columns, 1};
    PyObject *pairs[2] = {PyTuple_New(2), PyTuple_New(2)}, *out = nullptr;
    if (pairs[0] && pairs[1]) {
        bool all = true;
        for (int i = 0; i < 4; i++) {
            PyObject *number = PyLong_FromLongLong(numbers[i]);
            all = all && number;
            PyTuple_SetItem(pairs[i / 2], i % 2, number);
        }
        if (all) out = PyObject_CallFunctionObjArgs(allocate, pairs[0], pairs[1], float32, nullptr);
    }
    Py_XDECREF(pairs[0]);
    Py_XDECREF(pairs[1]);
    if (out && exchange->view(out, &view)) Py_CLEAR(out);
    return out;
}

template <class Work>
bool run(double products, const Work &work) {
    if (products < LONG) return work() == 0;
    PyThreadState *state = PyEval_SaveThread();
    const int failed = work();
    PyEval_RestoreThread(state);
    return failed == 0;
}

// ---- products of tensors: (e, source, scale, columns)

typedef int Packed(const float *, int64_t, int64_t, int64_t, const uint8_t *, const float *, float *, int64_t, int);
typedef int Seeded(const float *, int64_t, int64_t, int64_t, const int64_t *, const float *, float *, int64_t, int);

// A product takes its signs from a source: bytes that hold them, or an integer, their key. What does not fit is not
// refused here: torch's way is, with a message.
template <class Source, class Product>
PyObject *direct(Product *product, PyObject *const *arguments, Py_ssize_t count) {
    constexpr bool stored = sizeof(Source) == 1;
    if (count != 4) return PyErr_Format(PyExc_TypeError, "expected 4 arguments, found %zd", count);
    PyObject *const e = arguments[0];
    View errors, source, scale, out;
    if (!exchange || !plain(e, errors, FLOAT, 32) || errors.dimensions != 2 ||
        !plain(arguments[1], source, stored ? UNSIGNED : INTEGER, 8 * sizeof(Source)) ||
        !plain(arguments[2], scale, FLOAT, 32) || size_of(scale) != 1 || !unwatched(e) || has_neg_bit(e) ||
        has_neg_bit(arguments[2]))
        Py_RETURN_NONE;
    const int64_t rows = errors.shape[0], depth = errors.shape[1];
    const int64_t columns = PyLong_AsLongLong(arguments[3]);
    if (columns < 0) {
        if (PyErr_Occurred()) PyErr_Clear();
        Py_RETURN_NONE;
    }
    const bool fits = stored ? source.dimensions == 2 && source.shape[0] == depth && source.shape[1] == (columns + 7) / 8
                             : size_of(source) == 1;
    if (!fits) Py_RETURN_NONE;
    PyObject *result = make(rows, columns, out);
    if (!result) return nullptr;
    const double products = (double)rows * depth * columns;
    int count_of_threads = 1;
    if (products >= LONG) {
        PyObject *answer = PyObject_CallObject(threads, nullptr);
        count_of_threads = answer ? (int)PyLong_AsLong(answer) : -1;
        Py_XDECREF(answer);
        if (PyErr_Occurred()) {
            Py_DECREF(result);
            return nullptr;
        }
    }
    const auto work = [&] {
        return product((const float *)errors.data, rows, depth, depth, (const Source *)source.data,
                       (const float *)scale.data, (float *)out.data, columns, count_of_threads);
    };
    if (run(products, work)) return result;
    Py_DECREF(result);
    return PyErr_Format(PyExc_MemoryError, "binary product (%lld, %lld) @ (%lld, %lld): out of memory.",
                        (long long)rows, (long long)depth, (long long)depth, (long long)columns);
}

PyObject *packed(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    return direct<uint8_t, Packed>(torchdfa_packed, arguments, count);
}

PyObject *seeded(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    return direct<int64_t, Seeded>(torchdfa_seeded, arguments, count);
}

// ---- the same on addresses, as Python's side of the operators has them

// Reads one argument after another; `bad` after the first that is none.
struct Reader {
    PyObject *const *next;
    bool bad;
    Reader(PyObject *const *arguments, Py_ssize_t count, Py_ssize_t expected) : next(arguments), bad(count != expected) {
        if (bad) PyErr_Format(PyExc_TypeError, "expected %zd arguments, found %zd", expected, count);
    }
    int64_t number() { return bad ? 0 : check(PyLong_AsLongLong(*next++)); }
    float real() { return bad ? 0 : (float)check(PyFloat_AsDouble(*next++)); }
    template <class T>
    operator T *() {
        return bad ? nullptr : (T *)check(PyLong_AsVoidPtr(*next++));
    }
    template <class T>
    T check(T value) {
        bad = PyErr_Occurred() != nullptr;
        return value;
    }
};

template <class Source, class Product>
PyObject *at_addresses(Product *product, PyObject *const *arguments, Py_ssize_t count) {
    Reader read(arguments, count, 9);
    const float *const e = read;
    const int64_t rows = read.number(), stride = read.number(), errors = read.number();
    const Source *const source = read;
    const float *const scale = read;
    float *const out = read;
    const int64_t columns = read.number(), threads = read.number();
    if (read.bad) return nullptr;
    const auto work = [&] { return product(e, rows, stride, errors, source, scale, out, columns, (int)threads); };
    return PyBool_FromLong(run((double)rows * errors * columns, work));
}

PyObject *packed_at(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    return at_addresses<uint8_t, Packed>(torchdfa_packed, arguments, count);
}

PyObject *seeded_at(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    return at_addresses<int64_t, Seeded>(torchdfa_seeded, arguments, count);
}

PyObject *update_at(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    Reader read(arguments, count, 14);
    float *const weight = read;
    uint8_t *const velocity = read;
    const int velocity_bytes = (int)read.number();
    const int64_t rows = read.number(), columns = read.number();
    const float *const error = read;
    const int64_t error_stride = read.number();
    const float *const x = read;
    const int64_t x_stride = read.number(), batch = read.number();
    const float lr = read.real(), momentum = read.real(), decay = read.real();
    const int64_t threads = read.number();
    if (read.bad) return nullptr;
    const auto work = [&] {
        return torchdfa_update(weight, velocity, velocity_bytes, rows, columns, error, error_stride, x, x_stride,
                               batch, lr, momentum, decay, (int)threads);
    };
    return PyBool_FromLong(run((double)rows * columns * (batch + 32), work));
}

// ---- the rest

PyObject *paths(PyObject *, PyObject *) { return PyUnicode_FromString(torchdfa_paths()); }

PyObject *choose(PyObject *, PyObject *name) {
    PyObject *bytes = PyUnicode_AsUTF8String(name);
    if (!bytes) return nullptr;
    const char *text = PyBytes_AsString(bytes);
    const int refused = text ? torchdfa_choose(text) : 1;
    Py_DECREF(bytes);
    return PyErr_Occurred() ? nullptr : PyBool_FromLong(!refused);
}

PyObject *use_pool(PyObject *, PyObject *address) {
    void *const pool = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred()) return nullptr;
    torchdfa_use_pool(pool);
    Py_RETURN_NONE;
}

PyObject *connect(PyObject *, PyObject *arguments) {
    PyObject *type, *neg, *stack, *trace, *number, *maker, *single;
    if (!PyArg_ParseTuple(arguments, "OOOOOOO", &type, &neg, &stack, &trace, &number, &maker, &single)) return nullptr;
    PyObject *capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
    if (!capsule) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    const Exchange *const found = (const Exchange *)PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    Py_DECREF(capsule);  // the table itself lives as long as the process
    if (!found) return nullptr;
    if (found->major != 1 || !found->view) Py_RETURN_FALSE;
    PyObject *const given[] = {type, neg, stack, trace, number, maker, single};
    PyObject **const kept[] = {&tensor_type, &is_neg, &modes, &tracing, &threads, &allocate, &float32};
    for (int i = 0; i < 7; i++) {
        Py_XDECREF(*kept[i]);
        Py_INCREF(given[i]);
        *kept[i] = given[i];
    }
    if (!requires_grad && !(requires_grad = PyUnicode_InternFromString("requires_grad"))) return nullptr;
    exchange = found;
    Py_RETURN_TRUE;
}

PyMethodDef methods[] = {
    {"packed", (PyCFunction)(void (*)())packed, METH_FASTCALL, nullptr},
    {"seeded", (PyCFunction)(void (*)())seeded, METH_FASTCALL, nullptr},
    {"packed_at", (PyCFunction)(void (*)())packed_at, METH_FASTCALL, nullptr},
    {"seeded_at", (PyCFunction)(void (*)())seeded_at, METH_FASTCALL, nullptr},
    {"update_at", (PyCFunction)(void (*)())update_at, METH_FASTCALL, nullptr},
    {"paths", paths, METH_NOARGS, nullptr},
    {"choose", choose, METH_O, nullptr},
    {"use_pool", use_pool, METH_O, nullptr},
    {"connect", connect, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "torchdfa.ops._native", nullptr, -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&definition); }
