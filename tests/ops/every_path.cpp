// Prints a hash of the product's bits for some sizes on each path: the same line wherever it is built and run.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <vector>

extern "C" {
const char *torchdfa_paths();
int torchdfa_choose(const char *);
int torchdfa_packed(const float *, int64_t, int64_t, int64_t, const uint8_t *, const float *, float *, int64_t, int);
int torchdfa_seeded(const float *, int64_t, int64_t, int64_t, const int64_t *, const float *, float *, int64_t, int);
}

int main() {
    const int64_t sizes[][3] = {{1, 3, 5}, {2, 10, 70}, {5, 33, 600}, {9, 300, 130}, {70, 257, 65}, {4, 1000, 1030}};
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
    }
}
