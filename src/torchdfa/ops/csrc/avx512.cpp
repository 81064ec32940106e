// AVX-512 (F, BW, DQ, VL: servers since 2017, Zen 4): 16 look-ups in one instruction.
#include "job.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define PRODUCT product_avx512
#define UPDATE update_avx512
#define UPDATE_VECTORS 4
#define MULTIPLY_ADD(a, b, c) (Vector)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))

namespace {

constexpr int WIDTH = 64, ENTRIES = 16, ROWS = 4, TILES_OF_ONE = 2;

INLINE void table(const float *e, float *t) {
    const __m512 minus = _mm512_set1_ps(-1.0f), plus = _mm512_set1_ps(1.0f);
    const __m512 s0 = _mm512_mask_mov_ps(minus, 0xAAAA, plus), s1 = _mm512_mask_mov_ps(minus, 0xCCCC, plus);
    const __m512 s2 = _mm512_mask_mov_ps(minus, 0xF0F0, plus), s3 = _mm512_mask_mov_ps(minus, 0xFF00, plus);
    // Products with ±1 are exact: a fused multiply-add rounds as the sum does.
    __m512 a = _mm512_fmadd_ps(s1, _mm512_set1_ps(e[1]), _mm512_mul_ps(s0, _mm512_set1_ps(e[0])));
    __m512 b = _mm512_fmadd_ps(s3, _mm512_set1_ps(e[3]), _mm512_mul_ps(s2, _mm512_set1_ps(e[2])));
    _mm512_store_ps(t, _mm512_add_ps(a, b));
}

template <int R, int C>
INLINE void look_up(__m512 (&sum)[R][C], __m512i (&x)[C], const float *tables) {
    UNROLL for (int r = 0; r < R; r++) {
        const __m512 t = _mm512_load_ps(tables + r * GROUPS * ENTRIES);
        UNROLL for (int c = 0; c < C; c++) sum[r][c] = _mm512_add_ps(sum[r][c], _mm512_permutexvar_ps(x[c], t));
    }
    UNROLL for (int c = 0; c < C; c++) x[c] = _mm512_srli_epi32(x[c], 4);
}

template <int R, int T>
INLINE void micro(const uint32_t *tile, int groups, const float *tables, float *out, int64_t ld, bool first) {
    constexpr int C = 4 * T;
    __m512 sum[R][C];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) sum[r][c] = _mm512_setzero_ps();
    for (; groups > 0; groups -= 8, tile += TILE) {
        __m512i x[C];
        UNROLL for (int c = 0; c < C; c++) x[c] = _mm512_load_si512(tile + c / 4 * BLOCKS * TILE + c % 4 * 16);
        const int n = groups < 8 ? groups : 8;
        // Not unrolled: compilers would then spill sums.
        for (int g = 0; g < n; g++, tables += ENTRIES) look_up<R, C>(sum, x, tables);
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) {
        float *const to = out + r * ld + 16 * c;
        _mm512_storeu_ps(to, first ? sum[r][c] : _mm512_add_ps(_mm512_loadu_ps(to), sum[r][c]));
    }
}

#define PAIR(name, instruction)                                                                                     \
    template <class V>                                                                                              \
    INLINE V name(V a, V b) {                                                        \
        return (V)instruction((__m512i)a, (__m512i)b);                                                              \
    }
PAIR(interleave8_low, _mm512_unpacklo_epi8)
PAIR(interleave8_high, _mm512_unpackhi_epi8)
PAIR(interleave16_low, _mm512_unpacklo_epi16)
PAIR(interleave16_high, _mm512_unpackhi_epi16)
PAIR(interleave32_low, _mm512_unpacklo_epi32)
PAIR(interleave32_high, _mm512_unpackhi_epi32)
PAIR(interleave64_low, _mm512_unpacklo_epi64)
PAIR(interleave64_high, _mm512_unpackhi_epi64)

template <class V>
INLINE void store_columns(V a, V b, V c, V d, uint32_t *p, int stride) {
    const __m512i ab = _mm512_shuffle_i32x4((__m512i)a, (__m512i)b, 0x44), cd = _mm512_shuffle_i32x4((__m512i)c, (__m512i)d, 0x44);
    const __m512i yb = _mm512_shuffle_i32x4((__m512i)a, (__m512i)b, 0xEE), yd = _mm512_shuffle_i32x4((__m512i)c, (__m512i)d, 0xEE);
    _mm512_store_si512(p, _mm512_shuffle_i32x4(ab, cd, 0x88));
    _mm512_store_si512(p + stride, _mm512_shuffle_i32x4(ab, cd, 0xDD));
    _mm512_store_si512(p + 2 * stride, _mm512_shuffle_i32x4(yb, yd, 0x88));
    _mm512_store_si512(p + 3 * stride, _mm512_shuffle_i32x4(yb, yd, 0xDD));
}

}  // namespace

#include "product.h"
#include "update_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
