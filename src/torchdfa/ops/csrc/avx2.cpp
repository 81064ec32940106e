// AVX2 and FMA (desktops since 2013): 8 look-ups in one instruction, and a sign.
#include "job.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define PRODUCT product_avx2
#define UPDATE update_avx2
#define UPDATE_VECTORS 2
#define MULTIPLY_ADD(a, b, c) (Vector)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))

namespace {

constexpr int WIDTH = 32, ENTRIES = 8, ROWS = 4, TILES_OF_ONE = 1;

// The group's last sign is -1 here. What has it +1 is the negative of its complement's sum, exactly.
INLINE void table(const float *e, float *t) {
    const __m256 s0 = _mm256_setr_ps(-1, 1, -1, 1, -1, 1, -1, 1), s1 = _mm256_setr_ps(-1, -1, 1, 1, -1, -1, 1, 1);
    const __m256 s2 = _mm256_setr_ps(-1, -1, -1, -1, 1, 1, 1, 1);
    __m256 a = _mm256_fmadd_ps(s1, _mm256_set1_ps(e[1]), _mm256_mul_ps(s0, _mm256_set1_ps(e[0])));
    __m256 b = _mm256_fmsub_ps(s2, _mm256_set1_ps(e[2]), _mm256_set1_ps(e[3]));
    _mm256_store_ps(t, _mm256_add_ps(a, b));
}

template <int R, int C>
INLINE void look_up(__m256 (&sum)[R][C], __m256i (&x)[C], const float *tables) {
    // A product with ±1 and an addition, in one instruction: it rounds as adding ± the sum does.
    const __m256 plus = _mm256_set1_ps(1.0f), minus = _mm256_set1_ps(-1.0f);
    __m256 s[C];
    UNROLL for (int c = 0; c < C; c++) {
        s[c] = _mm256_blendv_ps(plus, minus, _mm256_castsi256_ps(_mm256_slli_epi32(x[c], 28)));
    }
    UNROLL for (int r = 0; r < R; r++) {
        const __m256 t = _mm256_load_ps(tables + r * GROUPS * ENTRIES);
        UNROLL for (int c = 0; c < C; c++) {
            sum[r][c] = _mm256_fmadd_ps(_mm256_permutevar8x32_ps(t, x[c]), s[c], sum[r][c]);
        }
    }
    UNROLL for (int c = 0; c < C; c++) x[c] = _mm256_srli_epi32(x[c], 4);
}

template <int R, int C>
INLINE void columns_of_tile(const uint32_t *tile, int groups, const float *tables, float *out, int64_t ld, bool first) {
    __m256 sum[R][C];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) sum[r][c] = _mm256_setzero_ps();
    for (; groups > 0; groups -= 8, tile += TILE, tables += 8 * ENTRIES) {
        __m256i x[C];
        UNROLL for (int c = 0; c < C; c++) x[c] = _mm256_load_si256((const __m256i *)(tile + 8 * c));
        if (groups >= 8) {
            UNROLL for (int g = 0; g < 8; g++) look_up<R, C>(sum, x, tables + g * ENTRIES);
        } else {
            for (int g = 0; g < groups; g++) look_up<R, C>(sum, x, tables + g * ENTRIES);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) {
        float *const to = out + r * ld + 8 * c;
        _mm256_storeu_ps(to, first ? sum[r][c] : _mm256_add_ps(_mm256_loadu_ps(to), sum[r][c]));
    }
}

template <int R, int>
INLINE void micro(const uint32_t *tile, int groups, const float *tables, float *out,
                                                 int64_t ld, bool first) {
    constexpr int C = R == 4 ? 2 : 4;  // as many as 16 registers hold
    for (int n = 0; n < TILE; n += 8 * C) columns_of_tile<R, C>(tile + n, groups, tables, out + n, ld, first);
}

#define PAIR(name, instruction)                                                                                     \
    template <class V>                                                                                              \
    INLINE V name(V a, V b) {                                                        \
        return (V)instruction((__m256i)a, (__m256i)b);                                                              \
    }
PAIR(interleave8_low, _mm256_unpacklo_epi8)
PAIR(interleave8_high, _mm256_unpackhi_epi8)
PAIR(interleave16_low, _mm256_unpacklo_epi16)
PAIR(interleave16_high, _mm256_unpackhi_epi16)
PAIR(interleave32_low, _mm256_unpacklo_epi32)
PAIR(interleave32_high, _mm256_unpackhi_epi32)
PAIR(interleave64_low, _mm256_unpacklo_epi64)
PAIR(interleave64_high, _mm256_unpackhi_epi64)

template <class V>
INLINE void store_columns(V a, V b, V c, V d, uint32_t *p, int stride) {
    const V ab[4] = {a, b, c, d};
    UNROLL for (int i = 0; i < 4; i += 2) {
        const __m256i low = _mm256_permute2x128_si256((__m256i)ab[i], (__m256i)ab[i + 1], 0x20);
        const __m256i high = _mm256_permute2x128_si256((__m256i)ab[i], (__m256i)ab[i + 1], 0x31);
        _mm256_store_si256((__m256i *)(p + 4 * i), low);
        _mm256_store_si256((__m256i *)(p + stride + 4 * i), high);
    }
}

}  // namespace

#include "product.h"
#include "update_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
