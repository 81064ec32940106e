// What library.h offers: the choice of the instruction set, and threads.
#include "job.h"
#include "library.h"
#include "update.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

namespace {

struct Path {
    const char *name;
    Range *range;
    UpdateRows *update;
};

// Best first. A path that this machine can't run is left out of `paths`.
Path paths[4];
int count = 0;
const Path *chosen = nullptr;

void find_paths() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        paths[count++] = {"avx512", product_avx512, update_avx512};
    if (avx2) paths[count++] = {"avx2", product_avx2, update_avx2};
#elif defined(__aarch64__)
    paths[count++] = {"neon", product_neon, update_neon};
#endif
    paths[count++] = {"portable", product_portable, update_portable};
    chosen = &paths[0];
}

// A process that was forked has only one of its parent's threads: the runtime's pool would wait for ever.
bool forked = false;
void on_fork() { forked = true; }

__attribute__((constructor)) void start() {
    find_paths();
    pthread_atfork(nullptr, nullptr, on_fork);
}

// GOMP_parallel of the OpenMP runtime that torch uses: its threads serve here too. With a pool of our own, two pools
// would spin against each other.
typedef void Parallel(void (*)(void *), void *, unsigned, unsigned);
Parallel *parallel = nullptr;

// A call's work, in parts that any thread may take: part i of n. Returns 0, or 1 where memory ran out.
typedef int Part(const void *job, const Path &path, int64_t i, int64_t n);

struct Shared {
    Part *part;
    const void *job;
    const Path *path;
    int parts, next, failed;
};

void work(void *data) {
    Shared &shared = *(Shared *)data;
    // A runtime may give fewer threads than it was asked for: parts are taken, not assigned.
    for (int i; (i = __atomic_fetch_add(&shared.next, 1, __ATOMIC_RELAXED)) < shared.parts;) {
        if (shared.part(shared.job, *shared.path, i, shared.parts)) __atomic_store_n(&shared.failed, 1, __ATOMIC_RELAXED);
    }
}

void *work_apart(void *data) {
    work(data);
    return nullptr;
}

// Products below which a thread does not pay: some 5 to 10 µs of work.
constexpr double SHARE = 1 << 20;
// The same where threads must be started for the call.
constexpr double SHARE_STARTED = 1 << 25;
constexpr int MOST = 256;

// How many of the threads pay.
int useful(double products, int threads) {
    const double shares = products / (parallel && !forked ? SHARE : SHARE_STARTED);
    if (shares < threads) threads = (int)shares;
    return threads < 1 ? 1 : threads < MOST ? threads : MOST;
}

int run(Part *part, const void *job, int64_t parts, int threads) {
    Shared shared = {part, job, chosen, (int)parts, 0, 0};
    if (parts < threads) threads = (int)parts;
    if (threads > 1 && parallel && !forked) {
        parallel(work, &shared, (unsigned)threads, 0);
        return shared.failed;
    }
    pthread_t started[MOST];
    int n = 0;
    while (n < threads - 1 && pthread_create(&started[n], nullptr, work_apart, &shared) == 0) n++;
    work(&shared);
    while (n) pthread_join(started[--n], nullptr);
    return shared.failed;
}

int tiles_of_product(const void *data, const Path &path, int64_t i, int64_t n) {
    const Job &job = *(const Job *)data;
    const int64_t tiles = (job.columns + TILE - 1) / TILE;
    const int64_t begin = tiles * i / n * TILE, end = tiles * (i + 1) / n * TILE;
    return path.range(job, begin, end < job.columns ? end : job.columns);
}

int rows_of_product(const void *data, const Path &path, int64_t i, int64_t n) {
    Job job = *(const Job *)data;
    const int64_t blocks = (job.rows + BATCH - 1) / BATCH;
    const int64_t begin = blocks * i / n * BATCH, end = blocks * (i + 1) / n * BATCH;
    job.rows = (end < job.rows ? end : job.rows) - begin;
    job.e += begin * job.stride;
    job.out += begin * job.columns;
    return path.range(job, 0, job.columns);
}

// A long sum, span by span: the first one's into the output, the others' into `sums`.
struct Spans {
    const Job *job;
    float *sums;
};

int span_of_product(const void *data, const Path &path, int64_t i, int64_t) {
    const Spans &spans = *(const Spans *)data;
    Job job = *spans.job;
    job.first = i * SPAN;
    job.e += job.first;
    if (job.errors - job.first > SPAN) job.errors = SPAN;
    else job.errors -= job.first;
    if (i) job.out = spans.sums + (i - 1) * job.rows * job.columns;
    return path.range(job, 0, job.columns);
}

int run_spans(const Job &job, int64_t count, float *sums, int threads) {
    const Spans spans = {&job, sums};
    if (run(span_of_product, &spans, count, threads)) return 1;
    const int64_t size = job.rows * job.columns;
    for (int64_t i = 1; i < count; i++, sums += size) {
        for (int64_t n = 0; n < size; n++) job.out[n] += sums[n];
    }
    return 0;
}

int run_product(const Job &job, int threads) {
    if (job.rows <= 0 || job.columns <= 0) return 0;
    if (job.errors <= 0) {
        memset(job.out, 0, (size_t)(job.rows * job.columns) * sizeof(float));
        return 0;
    }
    threads = useful((double)job.rows * job.errors * job.columns, threads);
    if (threads > 1) {
        // Bits are turned anew for every block of rows, tables are made anew in every part of the columns: whole blocks
        // repeat nothing. They are few, so only where all threads get the same number.
        const int64_t blocks = job.rows / BATCH;
        if (job.rows % BATCH == 0 && blocks % threads == 0) return run(rows_of_product, &job, blocks, threads);
        // Nor do spans, whose bits lie together. Three or more a thread: the last one may be short.
        const int64_t spans = (job.errors + SPAN - 1) / SPAN;
        if (job.rows < BATCH && spans >= 3 * threads) {
            float *const sums = (float *)malloc((size_t)((spans - 1) * job.rows * job.columns) * sizeof(float));
            if (sums) {
                const int failed = run_spans(job, spans, sums, threads);
                free(sums);
                return failed;
            }
        }
    }
    const int64_t tiles = (job.columns + TILE - 1) / TILE;
    return run(tiles_of_product, &job, tiles < threads ? tiles : threads, threads);
}

int rows_of_update(const void *data, const Path &path, int64_t i, int64_t n) {
    const Update &update = *(const Update *)data;
    return path.update(update, update.rows * i / n, update.rows * (i + 1) / n);
}

}  // namespace

const char *torchdfa_paths() {
    static char names[64];
    names[0] = 0;
    for (int i = 0; i < count; i++) {
        if (i) strcat(names, " ");
        strcat(names, paths[i].name);
    }
    return names;
}

int torchdfa_choose(const char *name) {
    for (int i = 0; i < count; i++)
        if (!strcmp(paths[i].name, name)) {
            chosen = &paths[i];
            return 0;
        }
    return 1;
}

void torchdfa_use_pool(void *gomp_parallel) { parallel = (Parallel *)gomp_parallel; }

int torchdfa_packed(const float *e, int64_t rows, int64_t stride, int64_t errors, const uint8_t *packed,
                    const float *scale, float *out, int64_t columns, int threads) {
    const Job job = {e, rows, stride, errors, 0, packed, 0, *scale, out, columns};
    return run_product(job, threads);
}

int torchdfa_seeded(const float *e, int64_t rows, int64_t stride, int64_t errors, const int64_t *key,
                    const float *scale, float *out, int64_t columns, int threads) {
    const Job job = {e, rows, stride, errors, 0, nullptr, (uint64_t)*key, *scale, out, columns};
    return run_product(job, threads);
}

int torchdfa_update(float *weight, void *velocity, int velocity_bytes, int64_t rows, int64_t columns,
                    const float *error, int64_t error_stride, const float *x, int64_t x_stride, int64_t batch, float lr,
                    float momentum, float decay, int threads) {
    const Update update = {weight,   velocity, velocity_bytes, rows, columns,  error, error_stride,
                           x,        x_stride, batch,          lr,   momentum, decay};
    if (rows <= 0 || columns <= 0) return 0;
    // Reading and writing a weight takes as long as some 32 products.
    threads = useful((double)rows * columns * (batch + 32), threads);
    return run(rows_of_update, &update, rows < threads ? rows : threads, threads);
}
