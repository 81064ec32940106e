// What one update is, and the function that each instruction set offers to do a range of its rows.
//
//     g        = decay * weight[o, i] + sum over n of error[n, o] * x[n, i]
//     velocity = momentum * velocity[o, i] + g
//     weight   = weight[o, i] - lr * velocity
//
// Without a velocity g takes its place. The gradient is never stored: its sums stay in registers. A velocity in bfloat16
// is rounded to even when it is stored; the weight takes the step of before.
#pragma once
#include <stdint.h>

struct Update {
    float *weight;             // (rows, columns), contiguous
    void *velocity;            // the same, of `velocity_bytes` each: 4 for float32, 2 for bfloat16; may be null
    int velocity_bytes;
    int64_t rows, columns;
    const float *error;        // (batch, rows), `error_stride` floats from sample to sample
    int64_t error_stride;
    const float *x;            // (batch, columns), `x_stride` floats from sample to sample
    int64_t x_stride, batch;
    float lr, momentum, decay;
};

// Update rows [begin, end). Returns 0, or 1 where memory ran out, and nothing was done.
typedef int UpdateRows(const Update &update, int64_t begin, int64_t end);
UpdateRows update_avx512, update_avx2, update_neon, update_portable;
