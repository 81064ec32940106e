// Any other machine: look-ups one by one. The bits are turned by 16-byte vectors, which GCC and Clang build of what
// there is.
#include "job.h"

#define PRODUCT product_portable
#define UPDATE update_portable
#define UPDATE_VECTORS 2
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))

namespace {

constexpr int WIDTH = 16, ENTRIES = 16, ROWS = 4, TILES_OF_ONE = 1;

inline void table(const float *e, float *t) {
    const float a[4] = {-e[0] - e[1], e[0] - e[1], e[1] - e[0], e[0] + e[1]};
    const float b[4] = {-e[2] - e[3], e[2] - e[3], e[3] - e[2], e[2] + e[3]};
    for (int i = 0; i < 16; i++) t[i] = a[i & 3] + b[i >> 2];
}

template <int R, int C>
INLINE void columns_of_tile(const uint32_t *tile, int groups, const float *tables,
                                                           float *out, int64_t ld, bool first) {
    float sum[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sum[r][c] = 0.0f;
    for (int done = 0; done < groups; done += 8, tile += TILE) {
        uint32_t x[C];
        for (int c = 0; c < C; c++) x[c] = tile[c];
        const int n = groups - done < 8 ? groups - done : 8;
        for (int g = 0; g < n; g++) {
            for (int c = 0; c < C; c++) {
                const float *t = tables + (done + g) * ENTRIES + (x[c] & 15);
                for (int r = 0; r < R; r++) sum[r][c] += t[r * GROUPS * ENTRIES];
                x[c] >>= 4;
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) {
            float *to = out + r * ld + c;
            *to = first ? sum[r][c] : *to + sum[r][c];
        }
}

template <int R, int>
INLINE void micro(const uint32_t *tile, int groups, const float *tables, float *out,
                                                 int64_t ld, bool first) {
    constexpr int C = 8 / R;  // enough sums under way to hide an addition's latency
    for (int n = 0; n < TILE; n += C) columns_of_tile<R, C>(tile + n, groups, tables, out + n, ld, first);
}

typedef uint8_t B16 __attribute__((vector_size(16)));
typedef uint16_t H8 __attribute__((vector_size(16)));
typedef uint32_t W4 __attribute__((vector_size(16)));
typedef uint64_t Q2 __attribute__((vector_size(16)));
#if defined(__clang__)
#define SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, type{__VA_ARGS__})
#endif
#define PAIR(name, type, ...)                                                                                       \
    template <class V>                                                                                              \
    INLINE V name(V a, V b) {                                                        \
        return (V)SHUFFLE(type, (type)a, (type)b, __VA_ARGS__);                                                     \
    }
PAIR(interleave8_low, B16, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
PAIR(interleave8_high, B16, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
PAIR(interleave16_low, H8, 0, 8, 1, 9, 2, 10, 3, 11)
PAIR(interleave16_high, H8, 4, 12, 5, 13, 6, 14, 7, 15)
PAIR(interleave32_low, W4, 0, 4, 1, 5)
PAIR(interleave32_high, W4, 2, 6, 3, 7)
PAIR(interleave64_low, Q2, 0, 2)
PAIR(interleave64_high, Q2, 1, 3)

template <class V>
INLINE void store_columns(V a, V b, V c, V d, uint32_t *p, int) {
    const V all[4] = {a, b, c, d};
    __builtin_memcpy(p, all, sizeof all);
}

}  // namespace

#include "product.h"
#include "update_loops.h"
