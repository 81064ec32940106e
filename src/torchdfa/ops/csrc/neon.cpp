// NEON (every 64-bit ARM): 4 look-ups of 4 bytes in a table of 32, and a sign.
#include "job.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define PRODUCT product_neon
#define UPDATE update_neon
#define UPDATE_VECTORS 4
#define MULTIPLY_ADD(a, b, c) (Vector)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b))

namespace {

constexpr int WIDTH = 16, ENTRIES = 8, ROWS = 4, TILES_OF_ONE = 1;

// The group's last sign is -1 here. What has it +1 is the negative of its complement's sum, exactly.
INLINE void table(const float *e, float *t) {
    static const float s0[4] = {-1, 1, -1, 1}, s1[4] = {-1, -1, 1, 1};
    float32x4_t a = vaddq_f32(vmulq_n_f32(vld1q_f32(s0), e[0]), vmulq_n_f32(vld1q_f32(s1), e[1]));
    vst1q_f32(t, vaddq_f32(a, vdupq_n_f32(-e[2] - e[3])));
    vst1q_f32(t + 4, vaddq_f32(a, vdupq_n_f32(e[2] - e[3])));
}

template <int R, int C>
INLINE void look_up(float32x4_t (&sum)[R][C], uint32x4_t (&x)[C], const float *tables) {
    const uint32x4_t sign = vdupq_n_u32(0x80000000u), one = vdupq_n_u32(0x3F800000u), seven = vdupq_n_u32(7);
    const uint32x4_t four = vdupq_n_u32(0x04040404u), bytes = vdupq_n_u32(0x03020100u);
    float32x4_t s[C];
    uint8x16_t at[C];
    UNROLL for (int c = 0; c < C; c++) {
        s[c] = vreinterpretq_f32_u32(vorrq_u32(vandq_u32(vshlq_n_u32(x[c], 28), sign), one));
        at[c] = vreinterpretq_u8_u32(vmlaq_u32(bytes, vandq_u32(x[c], seven), four));
        x[c] = vshrq_n_u32(x[c], 4);
    }
    UNROLL for (int r = 0; r < R; r++) {
        const uint8_t *const t = (const uint8_t *)(tables + r * GROUPS * ENTRIES);
        const uint8x16x2_t both = {{vld1q_u8(t), vld1q_u8(t + 16)}};
        UNROLL for (int c = 0; c < C; c++) {
            // A product with ±1 and an addition, in one instruction: it rounds as adding ± the sum does.
            sum[r][c] = vfmaq_f32(sum[r][c], vreinterpretq_f32_u8(vqtbl2q_u8(both, at[c])), s[c]);
        }
    }
}

template <int R, int C>
INLINE void columns_of_tile(const uint32_t *tile, int groups, const float *tables, float *out, int64_t ld, bool first) {
    float32x4_t sum[R][C];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) sum[r][c] = vdupq_n_f32(0.0f);
    for (; groups > 0; groups -= 8, tile += TILE, tables += 8 * ENTRIES) {
        uint32x4_t x[C];
        UNROLL for (int c = 0; c < C; c++) x[c] = vld1q_u32(tile + 4 * c);
        const int n = groups < 8 ? groups : 8;
        for (int g = 0; g < n; g++) look_up<R, C>(sum, x, tables + g * ENTRIES);
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) {
        float *const to = out + r * ld + 4 * c;
        vst1q_f32(to, first ? sum[r][c] : vaddq_f32(vld1q_f32(to), sum[r][c]));
    }
}

template <int R, int>
INLINE void micro(const uint32_t *tile, int groups, const float *tables, float *out,
                                                 int64_t ld, bool first) {
    constexpr int C = 4;  // 16 accumulators of 32 registers at R = 4
    for (int n = 0; n < TILE; n += 4 * C) columns_of_tile<R, C>(tile + n, groups, tables, out + n, ld, first);
}

#define PAIR(name, type, instruction)                                                                   \
    template <class V>                                                                                              \
    INLINE V name(V a, V b) {                                                        \
        return (V)instruction((type)a, (type)b);                                                                    \
    }
PAIR(interleave8_low, uint8x16_t, vzip1q_u8)
PAIR(interleave8_high, uint8x16_t, vzip2q_u8)
PAIR(interleave16_low, uint16x8_t, vzip1q_u16)
PAIR(interleave16_high, uint16x8_t, vzip2q_u16)
PAIR(interleave32_low, uint32x4_t, vzip1q_u32)
PAIR(interleave32_high, uint32x4_t, vzip2q_u32)
PAIR(interleave64_low, uint64x2_t, vzip1q_u64)
PAIR(interleave64_high, uint64x2_t, vzip2q_u64)

template <class V>
INLINE void store_columns(V a, V b, V c, V d, uint32_t *p, int) {
    vst1q_u32(p, (uint32x4_t)a);
    vst1q_u32(p + 4, (uint32x4_t)b);
    vst1q_u32(p + 8, (uint32x4_t)c);
    vst1q_u32(p + 12, (uint32x4_t)d);
}

}  // namespace

#include "product.h"
#include "update_loops.h"
#endif
