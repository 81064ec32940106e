// The product over a range of columns, for the instruction set of the file that includes this one.
//
// Four rows of signs select one of 16 signed sums of four errors. For each batch row and each group of four rows these
// sums stand in a table, and each column looks its own up: one look-up and one addition do four multiply-adds.
//
// Every instruction set adds in the same order: (±e0 ± e1) + (±e2 ± e3) in a group, the groups of 256 rows one after
// another from zero, these sums one after another within 4,096 rows, and theirs. Results therefore agree bit for bit,
// whatever the batch, the number of threads or the machine. No file that includes this one may use the C++ library: a template of it, compiled for
// AVX-512, could be the copy that the linker keeps for all.
//
// The includer defines, in its own anonymous namespace:
//     WIDTH                  bytes of a vector: 16, 32 or 64
//     ENTRIES                of a table: 16, or 8 and the sign of the group's last row
//     table(e, t)            writes the table of e[0..3]
//     micro<R, T>(...)       R batch rows, T tiles
//     ROWS                   largest R
//     TILES_OF_ONE           T for a single row: with few sums under way each waits for its last addition
//     interleave*            as unpack instructions do, within each 16 bytes
//     store_columns(a, b, c, d, p, s)   writes the first 16 bytes of each to p, the second to p + s, ...
#include <stdlib.h>
#include <string.h>

namespace {

typedef uint8_t Bytes __attribute__((vector_size(WIDTH)));
typedef uint32_t Words __attribute__((vector_size(WIDTH)));
typedef uint64_t Quads __attribute__((vector_size(WIDTH)));

constexpr int PANEL = 512;                       // columns of a panel: one cache line of bits a row

constexpr int64_t TABLES = GROUPS * ENTRIES;     // floats of a batch row's tables

// ---- where a row's bits come from: WIDTH bytes at a byte offset

struct Stored {
    const uint8_t *bits, *end;
    int64_t row_bytes;
    explicit Stored(const Job &job)
        : bits(job.packed + job.first * ((job.columns + 7) / 8)),
          end(bits + job.errors * ((job.columns + 7) / 8)),
          row_bytes((job.columns + 7) / 8) {}
    INLINE Quads load(int64_t k, int64_t byte) const {
        const uint8_t *p = bits + k * row_bytes + byte;
        Quads v = {};
        if (__builtin_expect(p + WIDTH <= end, 1)) {
            memcpy(&v, p, WIDTH);
        } else if (p < end) {
            memcpy(&v, p, (size_t)(end - p));
        }
        return v;
    }
    INLINE void prefetch(int64_t k, int rows, int64_t byte) const {
        // To the second level: rows that are a power of two of bytes apart would push one another out of the first.
        for (int i = 0; i < rows; i++) __builtin_prefetch(bits + (k + i) * row_bytes + byte, 0, 2);
    }
};

struct Generated {
    uint32_t low, high, words_per_row, start;
    explicit Generated(const Job &job)
        : low((uint32_t)job.key),
          high((uint32_t)(job.key >> 32)),
          words_per_row((uint32_t)((job.columns + 31) / 32)),
          start((uint32_t)job.first * words_per_row) {}
    static INLINE Words mix(Words w) {
        w = (w ^ (w >> 16)) * 0x7FEB352Du;
        w = (w ^ (w >> 15)) * 0x846CA68Bu;
        return w ^ (w >> 16);
    }
    INLINE Quads load(int64_t k, int64_t byte) const {
        Words index;
        for (int i = 0; i < WIDTH / 4; i++) index[i] = i;
        index += start + (uint32_t)k * words_per_row + (uint32_t)(byte / 4);
        return (Quads)mix(mix(index ^ low) ^ high);
    }
    INLINE void prefetch(int64_t, int, int64_t) const {}
};

// ---- turning rows of bits into an index word a column

// Exchange the bits of `a` under mask << shift with those of `b` under mask.
INLINE void exchange(Quads &a, Quads &b, int shift, uint64_t mask) {
    const Quads t = ((a >> shift) ^ b) & mask;
    b ^= t;
    a ^= t << shift;
}

// Eight rows become eight columns: byte j of v[c] has the bits of column 8 j + c, the first row's lowest.
INLINE void transpose8(Quads *v) {
    if (ENTRIES == 8) {
        // Half a table serves for a group: where the last row's sign is +1, it has the negative sum of the complement.
        UNROLL for (int i = 0; i < 8; i++) if (i % 4 != 3) v[i] ^= v[i | 3];
    }
    UNROLL for (int i = 0; i < 4; i++) exchange(v[i], v[i + 4], 4, 0x0F0F0F0F0F0F0F0Full);
    UNROLL for (int i = 0; i < 8; i++) if (!(i & 2)) exchange(v[i], v[i + 2], 2, 0x3333333333333333ull);
    UNROLL for (int i = 0; i < 8; i += 2) exchange(v[i], v[i + 1], 1, 0x5555555555555555ull);
}

// The rows of bits, and the byte of each, that the panel after this one is made of.
struct Ahead {
    int64_t k;
    int rows;
    int64_t byte;
};

// Index words of up to CHUNK rows from k and up to PANEL columns from n: panel[tile][block][column].
template <class Source>
INLINE void fill_panel(const Source &source, int64_t k, int rows, int64_t n, int columns, Ahead ahead,
                       uint32_t *panel) {
    for (int b = 0; b * BLOCK < rows; b++) {
        // A block at a time: so many misses at once would wait for one another.
        const int more = ahead.rows - b * BLOCK;
        if (more > 0) source.prefetch(ahead.k + b * BLOCK, more < BLOCK ? more : (int)BLOCK, ahead.byte);
        for (int pass = 0; pass < columns; pass += 8 * WIDTH) {
            const int64_t byte = (n + pass) / 8, first = k + b * BLOCK;
            const int left = rows - b * BLOCK;
            Quads v[4][8];
            for (int q = 0; q < 4; q++) {
                if (8 * q + 8 <= left) {
                    UNROLL for (int i = 0; i < 8; i++) v[q][i] = source.load(first + 8 * q + i, byte);
                } else {
                    for (int i = 0; i < 8; i++) {
                        v[q][i] = 8 * q + i < left ? source.load(first + 8 * q + i, byte) : Quads{};
                    }
                }
                if (8 * q < left) transpose8(v[q]);
            }
            uint32_t *const to = panel + (pass / TILE * BLOCKS + b) * TILE;
            UNROLL for (int half = 0; half < 2; half++) {
                Words d[2][8];
                UNROLL for (int c = 0; c < 8; c++) {  // the four bytes of a column, of 8 in each 16 bytes
                    const Bytes r0 = (Bytes)v[0][c], r1 = (Bytes)v[1][c], r2 = (Bytes)v[2][c], r3 = (Bytes)v[3][c];
                    const Bytes a = half ? interleave8_high(r0, r1) : interleave8_low(r0, r1);
                    const Bytes z = half ? interleave8_high(r2, r3) : interleave8_low(r2, r3);
                    d[0][c] = (Words)interleave16_low(a, z);
                    d[1][c] = (Words)interleave16_high(a, z);
                }
                UNROLL for (int u = 0; u < 2; u++) {
                    Words w[4][2];  // four columns in each 16 bytes: 8 i and 4 h on, and 128 from one 16 to the next
                    UNROLL for (int h = 0; h < 2; h++) {
                        const Words *const e = d[u] + 4 * h;
                        const Words a = interleave32_low(e[0], e[1]), y = interleave32_high(e[0], e[1]);
                        const Words b = interleave32_low(e[2], e[3]), z = interleave32_high(e[2], e[3]);
                        w[0][h] = interleave64_low(a, b);
                        w[1][h] = interleave64_high(a, b);
                        w[2][h] = interleave64_low(y, z);
                        w[3][h] = interleave64_high(y, z);
                    }
                    // 32 columns: half a tile.
                    uint32_t *const p = to + half * BLOCKS * TILE + 32 * u;
                    store_columns(w[0][0], w[0][1], w[1][0], w[1][1], p, 2 * BLOCKS * TILE);
                    store_columns(w[2][0], w[2][1], w[3][0], w[3][1], p + 16, 2 * BLOCKS * TILE);
                }
            }
        }
    }
}

// ---- the loops

void fill_tables(const float *e, int rows, float scale, float *tables) {
    float scaled[CHUNK];
    for (int k = 0; k < rows; k++) scaled[k] = e[k] * scale;
    for (int k = rows; k % 4; k++) scaled[k] = 0.0f;
    for (int g = 0; 4 * g < rows; g++) table(scaled + 4 * g, tables + g * ENTRIES);
}

template <int R>
INLINE void rows_of_panel(const uint32_t *panel, int groups, const float *tables,
                                                         float *out, int64_t ld, int columns, bool first) {
    int n = 0;
    constexpr int T = R == 1 ? TILES_OF_ONE : 1;
    for (; n + T * TILE <= columns; n += T * TILE) micro<R, T>(panel + n * BLOCKS, groups, tables, out + n, ld, first);
    for (; n + TILE <= columns; n += TILE) micro<R, 1>(panel + n * BLOCKS, groups, tables, out + n, ld, first);
    if (n == columns) return;
    alignas(64) float sums[R * TILE];
    micro<R, 1>(panel + n * BLOCKS, groups, tables, sums, TILE, true);
    for (int r = 0; r < R; r++) {
        float *const to = out + r * ld + n;
        const float *const from = sums + r * TILE;
        for (int i = 0; i < columns - n; i++) to[i] = first ? from[i] : to[i] + from[i];
    }
}

// Batch rows [m0, m0 + rows), errors [from, to) and columns [begin, end), into `out`, `ld` floats from row to row.
template <class Source>
INLINE void sum_span(const Source &source, const Job &job, int64_t m0, int64_t rows, int64_t from, int64_t to,
                     int64_t begin, int64_t end, float *tables, float *out, int64_t ld) {
    alignas(64) uint32_t panel[PANEL / TILE * BLOCKS * TILE];
    for (int64_t k = from; k < to; k += CHUNK) {
        const int depth = to - k < CHUNK ? (int)(to - k) : (int)CHUNK, groups = (depth + 3) / 4;
        const int64_t after = job.errors - k - depth;
        const bool first = k == from;
        for (int64_t m = 0; m < rows; m++) {
            fill_tables(job.e + (m0 + m) * job.stride + k, depth, job.scale, tables + m * TABLES);
        }
        for (int64_t n = begin; n < end; n += PANEL) {
            const int columns = (int)(end - n < PANEL ? end - n : PANEL);
            float *const to_panel = out + (n - begin);
            const Ahead beside = {k, depth, (n + PANEL) / 8};
            const Ahead below = {k + depth, (int)(after < CHUNK ? after : CHUNK), begin / 8};
            fill_panel(source, k, depth, n, columns, n + PANEL < end ? beside : below, panel);
            int64_t m = 0;
            for (; m + ROWS <= rows; m += ROWS) {
                rows_of_panel<ROWS>(panel, groups, tables + m * TABLES, to_panel + m * ld, ld, columns, first);
            }
            for (; m + 2 <= rows; m += 2) {
                rows_of_panel<2>(panel, groups, tables + m * TABLES, to_panel + m * ld, ld, columns, first);
            }
            for (; m < rows; m++) {
                rows_of_panel<1>(panel, groups, tables + m * TABLES, to_panel + m * ld, ld, columns, first);
            }
        }
    }
}

template <class Source>
int product(const Job &job, int64_t begin, int64_t end) {
    const Source source(job);
    source.prefetch(0, job.errors < CHUNK ? (int)job.errors : (int)CHUNK, begin / 8);
    const int64_t batch = job.rows < BATCH ? job.rows : (int64_t)BATCH, width = end - begin;
    const int64_t apart = job.errors > SPAN ? batch * width : 0;  // floats of a later span's sums
    void *memory = malloc((size_t)((batch * TABLES + apart) * 4 + 64));
    if (!memory) return 1;
    float *const tables = (float *)(((uintptr_t)memory + 63) & ~(uintptr_t)63), *const sums = tables + batch * TABLES;
    for (int64_t m0 = 0; m0 < job.rows; m0 += BATCH) {
        const int64_t rows = job.rows - m0 < BATCH ? job.rows - m0 : (int64_t)BATCH;
        float *const out = job.out + m0 * job.columns + begin;
        for (int64_t from = 0; from < job.errors; from += SPAN) {
            const int64_t to = job.errors - from < SPAN ? job.errors : from + SPAN;
            if (from == 0) {
                sum_span(source, job, m0, rows, from, to, begin, end, tables, out, job.columns);
                continue;
            }
            sum_span(source, job, m0, rows, from, to, begin, end, tables, sums, width);
            for (int64_t m = 0; m < rows; m++) {
                for (int64_t n = 0; n < width; n++) out[m * job.columns + n] += sums[m * width + n];
            }
        }
    }
    free(memory);
    return 0;
}

}  // namespace

int PRODUCT(const Job &job, int64_t begin, int64_t end) {
    return job.packed ? product<Stored>(job, begin, end) : product<Generated>(job, begin, end);
}
