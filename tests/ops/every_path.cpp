// Prints a hash of the product's bits for some sizes on each path: the same line wherever it is built and run.
// Fails if an update is not the formula's, to rounding.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <vector>

#include "../../src/torchdfa/ops/csrc/library.h"

// `bytes` of a number of the velocity: 0 without one.
static bool update_is_right(int64_t n, int64_t rows, int64_t columns, int bytes) {
    std::vector<float> w(rows * columns), v(rows * columns), error(n * rows), x(n * columns);
    uint32_t state = 1;
    for (auto *all : {&w, &v, &error, &x})
        for (auto &value : *all) value = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f;
    std::vector<uint16_t> half(v.size());
    if (bytes == 2)
        for (size_t i = 0; i < v.size(); i++) {
            uint32_t word;
            memcpy(&word, &v[i], 4);
            half[i] = (uint16_t)(word >> 16);
            word &= 0xFFFF0000u;
            memcpy(&v[i], &word, 4);
        }
    const auto w0 = w, v0 = v;
    const double lr = 0.25, mu = bytes ? 0.875 : 0.0, decay = 0.125;
    void *const velocity = bytes == 0 ? nullptr : bytes == 2 ? (void *)half.data() : v.data();
    torchdfa_update(w.data(), velocity, bytes, rows, columns, error.data(), rows, x.data(), columns, n, (float)lr,
                    (float)mu, (float)decay, 2);
    for (size_t i = 0; bytes == 2 && i < v.size(); i++) {
        const uint32_t word = (uint32_t)half[i] << 16;
        memcpy(&v[i], &word, 4);
    }
    for (int64_t o = 0; o < rows; o++)
        for (int64_t i = 0; i < columns; i++) {
            const int64_t at = o * columns + i;
            double step = decay * w0[at] + mu * v0[at];
            for (int64_t k = 0; k < n; k++) step += (double)error[k * rows + o] * x[k * columns + i];
            const double kept = bytes == 2 ? 1e-5 + fabs(step) / 256 : 1e-5;
            if (fabs(w[at] - (w0[at] - lr * step)) > 1e-5 || (bytes && fabs(v[at] - step) > kept)) return false;
        }
    return true;
}

int main() {
    const int64_t sizes[][3] = {{1, 3, 5}, {2, 10, 70}, {5, 33, 600}, {9, 300, 130}, {70, 257, 65}, {4, 1000, 1030}, {2, 24600, 70}};
    char names[64];
    strcpy(names, torchdfa_paths());
    fprintf(stderr, "%s\n", names);
    for (char *name = strtok(names, " "); name; name = strtok(nullptr, " ")) {
        torchdfa_choose(name);
        uint64_t hash = 14695981039346656037ull, state = 1;
        for (auto &size : sizes) {
            const int64_t n = size[0], k = size[1], h = size[2];
            std::vector<float> e(n * k), out(n * h);
            std::vector<uint8_t> packed(k * ((h + 7) / 8));
            auto next = [&] { return (state = state * 6364136223846793005ull + 1442695040888963407ull) >> 33; };
            for (auto &x : e) x = (float)next() / 1073741824.0f - 1.0f;
            for (auto &x : packed) x = (uint8_t)next();
            const float scale = 0.3f;
            const int64_t key = 0x123456789ABCDEF;
            for (int threads = 1; threads <= 2; threads++)
                for (int generated = 0; generated < 2; generated++) {
                    if (generated)
                        torchdfa_seeded(e.data(), n, k, k, &key, &scale, out.data(), h, threads);
                    else
                        torchdfa_packed(e.data(), n, k, k, packed.data(), &scale, out.data(), h, threads);
                    for (float x : out) {
                        uint32_t word;
                        memcpy(&word, &x, 4);
                        hash = (hash ^ word) * 1099511628211ull;
                    }
                }
        }
        printf("%016llx\n", (unsigned long long)hash);
        for (auto &size : sizes)
            for (int bytes = 0; bytes <= 4; bytes += 2)
                if (!update_is_right(size[0], size[1], size[2], bytes)) {
                    fprintf(stderr, "%s: update (%d, %d, %d) is wrong\n", name, (int)size[0], (int)size[1], (int)size[2]);
                    return 1;
                }
    }
}
