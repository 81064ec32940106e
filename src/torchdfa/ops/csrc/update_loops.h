// The update of a range of rows, for the instruction set of the file that includes this one.
//
// A block of ROWS × TILE weights is read once and written once. In between its gradient is summed in registers, sample
// by sample, from ROWS errors and a tile of the input. Each weight's sum has its own order, that of the samples: the
// split over threads does not change it. As in product.h, the C++ library must not be used here.
//
// The includer defines WIDTH, the bytes of a vector; UPDATE, the function's name; UPDATE_VECTORS, so that
// ROWS × UPDATE_VECTORS sums, a tile and a factor fit the registers; and MULTIPLY_ADD(a, b, c), a * b + c.
#include "update.h"

#include <stdlib.h>
#include <string.h>

namespace {
namespace update {

typedef float Vector __attribute__((vector_size(WIDTH)));
typedef float Unaligned __attribute__((vector_size(WIDTH), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(WIDTH / 2)));

constexpr int ROWS = 4, VECTORS = UPDATE_VECTORS, LANES = WIDTH / 4, TILE = VECTORS * LANES;
constexpr int64_t GROUP = 1 << 16;  // floats of the input that stay in the cache while all rows pass over them

INLINE Vector load(const float *p) { return (Vector) * (const Unaligned *)p; }
// Subtracting zero changes no float, so that no instruction is made of it; adding it would change -0.
INLINE Vector all(float value) { return value - Vector{}; }
INLINE void store(float *p, Vector v) { *(Unaligned *)p = (Unaligned)v; }

// A velocity's numbers, beside float: bfloat16, the upper half of a float32; or none.
struct Half {
    uint16_t bits;
};
struct None {};
template <class Number>
constexpr bool MOMENTUM = sizeof(Number) > 1;

INLINE Vector load(const Half *p) {
    Halves upper;
    memcpy(&upper, p, sizeof upper);
    return (Vector)(__builtin_convertvector(upper, Bits) << 16);
}
INLINE void store(Half *p, Vector v) {
    const Bits bits = (Bits)v, no_number = (Bits)(v != v);
    const Bits even = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    const Halves upper = __builtin_convertvector((even & ~no_number) | (no_number & 0x7FC0u), Halves);
    memcpy(p, &upper, sizeof upper);
}
INLINE Vector load(const None *) { return Vector{}; }
INLINE void store(None *, Vector) {}

// One block. `stride` floats lie between its rows; the next block of these columns is `ahead` floats on, if not 0.
template <int R, class Number>
INLINE void block(const Update &u, float *weight, Number *velocity, int64_t stride, const float *error, const float *x,
                  int64_t ahead) {
    Vector sum[R][VECTORS];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < VECTORS; c++) sum[r][c] = Vector{};
    if (ahead) {
        UNROLL for (int r = 0; r < R; r++) {
            UNROLL for (int c = 0; c < TILE; c += 16) __builtin_prefetch(weight + r * stride + ahead + c);
            if (!MOMENTUM<Number>) continue;
            UNROLL for (int c = 0; c < TILE; c += 64 / (int)sizeof(Number)) {
                __builtin_prefetch(velocity + r * stride + ahead + c);
            }
        }
    }
    for (int64_t n = 0; n < u.batch; n++) {
        Vector tile[VECTORS];
        UNROLL for (int c = 0; c < VECTORS; c++) tile[c] = load(x + n * TILE + c * LANES);
        UNROLL for (int r = 0; r < R; r++) {
            const Vector e = all(error[n * R + r]);
            UNROLL for (int c = 0; c < VECTORS; c++) sum[r][c] = MULTIPLY_ADD(tile[c], e, sum[r][c]);
        }
    }
    const Vector decay = all(u.decay), momentum = all(u.momentum), minus_lr = all(-u.lr);
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < VECTORS; c++) {
        float *const w = weight + r * stride + c * LANES;
        Number *const v = velocity + r * stride + c * LANES;
        const Vector before = load(w);
        Vector step = MULTIPLY_ADD(before, decay, sum[r][c]);
        if (MOMENTUM<Number>) {
            step = MULTIPLY_ADD(load(v), momentum, step);
            store(v, step);
        }
        store(w, MULTIPLY_ADD(step, minus_lr, before));
    }
}

// Rows [begin, end), R at a time, and tiles [first, last). `tiles` is the input, tile by tile, padded with zeros.
template <int R, class Number>
INLINE void rows_and_tiles(const Update &u, int64_t begin, int64_t end, int64_t first, int64_t last, const float *tiles,
                           float *error) {
    for (int64_t o = begin; o < end; o += R) {
        for (int64_t n = 0; n < u.batch; n++) {
            UNROLL for (int r = 0; r < R; r++) error[n * R + r] = u.error[n * u.error_stride + o + r];
        }
        const int64_t ahead = o + R < end ? R * u.columns : 0;
        for (int64_t t = first; t < last; t++) {
            const int64_t column = t * TILE, at = o * u.columns + column;
            float *const weight = u.weight + at;
            Number *const velocity = MOMENTUM<Number> ? (Number *)u.velocity + at : (Number *)weight;
            const float *const x = tiles + t * u.batch * TILE;
            if (column + TILE <= u.columns) {
                block<R>(u, weight, velocity, u.columns, error, x, ahead);
                continue;
            }
            float w[R][TILE] = {};
            Number v[R][TILE] = {};
            const size_t rest = (size_t)(u.columns - column);
            for (int r = 0; r < R; r++) {
                memcpy(w[r], weight + r * u.columns, rest * sizeof(float));
                if (MOMENTUM<Number>) memcpy(v[r], velocity + r * u.columns, rest * sizeof(Number));
            }
            block<R>(u, w[0], v[0], TILE, error, x, 0);
            for (int r = 0; r < R; r++) {
                memcpy(weight + r * u.columns, w[r], rest * sizeof(float));
                if (MOMENTUM<Number>) memcpy(velocity + r * u.columns, v[r], rest * sizeof(Number));
            }
        }
    }
}

template <class Number>
int rows(const Update &u, int64_t begin, int64_t end) {
    const int64_t count = (u.columns + TILE - 1) / TILE;
    void *const memory = malloc((size_t)(u.batch * (count * TILE + ROWS)) * sizeof(float) + 64);
    if (!memory) return 1;
    float *const tiles = (float *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);  // no vector lies across cache lines
    float *const error = tiles + u.batch * count * TILE;
    for (int64_t t = 0; t < count; t++) {
        const int64_t column = t * TILE, here = u.columns - column < TILE ? u.columns - column : TILE;
        for (int64_t n = 0; n < u.batch; n++) {
            float *const to = tiles + (t * u.batch + n) * TILE;
            memcpy(to, u.x + n * u.x_stride + column, (size_t)here * sizeof(float));
            for (int64_t i = here; i < TILE; i++) to[i] = 0.0f;
        }
    }
    const int64_t whole = begin + (end - begin) / ROWS * ROWS, fit = GROUP / (u.batch * TILE), group = fit ? fit : 1;
    for (int64_t first = 0; first < count; first += group) {
        const int64_t last = first + group < count ? first + group : count;
        rows_and_tiles<ROWS, Number>(u, begin, whole, first, last, tiles, error);
        rows_and_tiles<1, Number>(u, whole, end, first, last, tiles, error);
    }
    free(memory);
    return 0;
}

}  // namespace update
}  // namespace

int UPDATE(const Update &u, int64_t begin, int64_t end) {
    if (!u.velocity) return update::rows<update::None>(u, begin, end);
    return u.velocity_bytes == 2 ? update::rows<update::Half>(u, begin, end) : update::rows<float>(u, begin, end);
}
