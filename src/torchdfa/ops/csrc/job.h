// What one product is, and the function that each instruction set offers to compute a range of its columns.
//
//     out[m, n] = sum over k of (scale * e[m, k]) * sign[k, n]
//
// The signs are bits along the columns, one row after another: bit n % 8 of byte n / 8, set for +1
// (torchdfa/feedback/bits.py owns this layout and the hash that makes generated bits).
#pragma once
#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bits are read as little-endian words; torchdfa falls back to torch on this machine"
#endif

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE inline __attribute__((always_inline))

struct Job {
    const float *e;         // (rows, errors), `stride` floats from row to row
    int64_t rows, stride, errors;
    int64_t first;          // the row of signs that belongs to the first error
    const uint8_t *packed;  // (first + errors, ceil(columns / 8)); null where the bits are generated from `key`
    uint64_t key;
    float scale;
    float *out;             // (rows, columns), contiguous
    int64_t columns;
};

enum {
    TILE = 64,    // columns of a tile: what a micro-kernel writes at a time
    BLOCK = 32,   // rows whose bits make one index word of a column
    BATCH = 64,   // batch rows whose tables are kept at a time
    CHUNK = 256,  // rows that are summed in a fresh accumulator before it is added to the output
    SPAN = 4096,  // rows that are summed apart, so that threads can share a long sum
    GROUPS = CHUNK / 4,
    BLOCKS = CHUNK / BLOCK,
};

// Compute columns [begin, end); begin is a multiple of TILE. Returns 0, or 1 where memory ran out.
typedef int Range(const Job &job, int64_t begin, int64_t end);
Range product_avx512, product_avx2, product_neon, product_portable;
