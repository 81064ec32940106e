// The library's C interface. It knows nothing of Python; module.cpp is what Python calls, and calls it.
#pragma once
#include <stdint.h>

extern "C" {
// Which paths run here, best first, as one string with spaces between.
const char *torchdfa_paths();

// Choose a path by name; 0, or 1 if it does not run here.
int torchdfa_choose(const char *name);

// Take threads from an OpenMP runtime, of which this is GOMP_parallel.
void torchdfa_use_pool(void *gomp_parallel);

// Products with stored and with generated signs; 0, or 1 where memory ran out. `stride` floats lie from row to row of e.
int torchdfa_packed(const float *e, int64_t rows, int64_t stride, int64_t errors, const uint8_t *packed,
                    const float *scale, float *out, int64_t columns, int threads);
int torchdfa_seeded(const float *e, int64_t rows, int64_t stride, int64_t errors, const int64_t *key,
                    const float *scale, float *out, int64_t columns, int threads);

// A step of SGD on the gradient transpose(error) @ x; 0, or 1 where memory ran out. `velocity` may be null; its numbers
// are float32, or bfloat16 where `velocity_bytes` is 2.
int torchdfa_update(float *weight, void *velocity, int velocity_bytes, int64_t rows, int64_t columns,
                    const float *error, int64_t error_stride, const float *x, int64_t x_stride, int64_t batch, float lr,
                    float momentum, float decay, int threads);
}
