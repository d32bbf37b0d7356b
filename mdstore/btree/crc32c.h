/* CRC-32C (Castagnoli, reflected polynomial 0x82f63b78): carry-less multiplication (crc32c_wide.h) or the processor's instruction
 * where there is one, eight tables elsewhere. The hardware path runs three independent streams, because the instruction has a latency of three
 * cycles and a throughput of one; the streams are joined by multiplying with x^(8*n) through tables made at start. */
#ifndef MDSTORE_CRC32C_H
#define MDSTORE_CRC32C_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "crc32c_wide.h"
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#define CRC32C_POLY 0x82f63b78u
#define CRC32C_LONG 1360 /* three streams of it cover a 4 KiB page but a few bytes */
#define CRC32C_SHORT 192

static uint32_t crc32c_table[8][256];
static uint32_t crc32c_long[4][256], crc32c_short[4][256];
static int crc32c_hardware, crc32c_has_wide;

static uint32_t crc32c_software(uint32_t crc, const unsigned char *p, size_t n)
{
    while (n && ((uintptr_t)p & 7)) {
        crc = crc32c_table[0][(crc ^ *p++) & 255] ^ (crc >> 8);
        n--;
    }
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    while (n >= 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        w ^= crc;
        crc = crc32c_table[7][w & 255] ^ crc32c_table[6][(w >> 8) & 255] ^ crc32c_table[5][(w >> 16) & 255] ^
              crc32c_table[4][(w >> 24) & 255] ^ crc32c_table[3][(w >> 32) & 255] ^ crc32c_table[2][(w >> 40) & 255] ^
              crc32c_table[1][(w >> 48) & 255] ^ crc32c_table[0][w >> 56];
        p += 8;
        n -= 8;
    }
#endif
    while (n--)
        crc = crc32c_table[0][(crc ^ *p++) & 255] ^ (crc >> 8);
    return crc;
}

/* A table that advances a crc over `length` zero bytes, by linearity from its 32 single-bit values. */
static void crc32c_make_shift(uint32_t table[4][256], size_t length)
{
    uint32_t bit[32];
    for (int i = 0; i < 32; i++) {
        uint32_t crc = 1u << i;
        for (size_t k = 0; k < length; k++)
            crc = crc32c_table[0][crc & 255] ^ (crc >> 8);
        bit[i] = crc;
    }
    for (int k = 0; k < 4; k++)
        for (int v = 0; v < 256; v++) {
            uint32_t crc = 0;
            for (int i = 0; i < 8; i++)
                if (v >> i & 1)
                    crc ^= bit[8 * k + i];
            table[k][v] = crc;
        }
}

static inline uint32_t crc32c_shift(uint32_t table[4][256], uint32_t crc)
{
    return table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^ table[3][crc >> 24];
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static const unsigned char *
crc32c_three(uint64_t *crc, const unsigned char *p, size_t *n, size_t stride, uint32_t table[4][256])
{
    while (*n >= 3 * stride) {
        uint64_t a = *crc, b = 0, c = 0;
        for (size_t i = 0; i < stride; i += 8) {
            uint64_t x, y, z;
            memcpy(&x, p + i, 8);
            memcpy(&y, p + i + stride, 8);
            memcpy(&z, p + i + 2 * stride, 8);
            a = _mm_crc32_u64(a, x);
            b = _mm_crc32_u64(b, y);
            c = _mm_crc32_u64(c, z);
        }
        a = crc32c_shift(table, (uint32_t)a) ^ b;
        *crc = crc32c_shift(table, (uint32_t)a) ^ c;
        p += 3 * stride;
        *n -= 3 * stride;
    }
    return p;
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_instruction(uint32_t crc32, const unsigned char *p, size_t n)
{
    uint64_t crc = crc32;
    p = crc32c_three(&crc, p, &n, CRC32C_LONG, crc32c_long);
    p = crc32c_three(&crc, p, &n, CRC32C_SHORT, crc32c_short);
    while (n >= 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        crc = _mm_crc32_u64(crc, w);
        p += 8;
        n -= 8;
    }
    while (n--)
        crc = _mm_crc32_u8((uint32_t)crc, *p++);
    return (uint32_t)crc;
}
#endif

static void crc32c_setup(void)
{
    for (int v = 0; v < 256; v++) {
        uint32_t crc = (uint32_t)v;
        for (int i = 0; i < 8; i++)
            crc = (crc >> 1) ^ (CRC32C_POLY & (0u - (crc & 1)));
        crc32c_table[0][v] = crc;
    }
    for (int v = 0; v < 256; v++)
        for (int k = 1; k < 8; k++)
            crc32c_table[k][v] = crc32c_table[0][crc32c_table[k - 1][v] & 255] ^ (crc32c_table[k - 1][v] >> 8);
    crc32c_make_shift(crc32c_long, CRC32C_LONG);
    crc32c_make_shift(crc32c_short, CRC32C_SHORT);
#if defined(__x86_64__)
    crc32c_hardware = __builtin_cpu_supports("sse4.2");
    crc32c_has_wide = crc32c_hardware && crc32c_wide_setup(CRC32C_POLY);
#endif
}

static inline uint32_t crc32c_update(uint32_t value, const void *data, size_t n, int software)
{
    const unsigned char *p = (const unsigned char *)data;
    uint32_t crc = ~value;
#if defined(__x86_64__)
    if (crc32c_has_wide && n >= CRC32C_WIDE_MIN && !software) {
        size_t whole = n & ~(size_t)255;
        crc = crc32c_wide(crc, p, whole);
        p += whole;
        n -= whole;
    }
    if (crc32c_hardware && !software)
        return ~crc32c_instruction(crc, p, n);
#endif
    return ~crc32c_software(crc, p, n);
}
#endif
