/* CRC-32C for short buffers: the processor's instruction where there is one, four tables elsewhere. One stream only: an
 * entry of a few hundred bytes is over before three streams, which long buffers want, would have paid for being joined. */
#ifndef JOURNAL_CRC32C_H
#define JOURNAL_CRC32C_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#define JOURNAL_CRC_INSTRUCTION 1
#include <nmmintrin.h>
#endif

static uint32_t journal_crc_table[4][256]; /* row k: a byte, and k zero bytes after it */
static int journal_crc_has_instruction;

/* Call once, before anything else here. */
static void journal_crc_prepare(void)
{
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t remainder = value;
        for (int bit = 0; bit < 8; bit++)
            remainder = remainder & 1 ? remainder >> 1 ^ 0x82f63b78u : remainder >> 1;
        journal_crc_table[0][value] = remainder;
    }
    for (int row = 1; row < 4; row++)
        for (int value = 0; value < 256; value++) {
            uint32_t before = journal_crc_table[row - 1][value];
            journal_crc_table[row][value] = before >> 8 ^ journal_crc_table[0][before & 255];
        }
#ifdef JOURNAL_CRC_INSTRUCTION
    journal_crc_has_instruction = __builtin_cpu_supports("sse4.2") != 0;
#endif
}

static uint32_t journal_crc_by_tables(uint32_t state, const unsigned char *data, size_t size)
{
    for (; size >= 4; data += 4, size -= 4) {
        state ^= data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
        state = journal_crc_table[3][state & 255] ^ journal_crc_table[2][state >> 8 & 255] ^
                journal_crc_table[1][state >> 16 & 255] ^ journal_crc_table[0][state >> 24];
    }
    for (; size; data++, size--)
        state = state >> 8 ^ journal_crc_table[0][(state ^ *data) & 255];
    return state;
}

#ifdef JOURNAL_CRC_INSTRUCTION
__attribute__((target("sse4.2"))) static uint32_t
journal_crc_by_instruction(uint32_t state, const unsigned char *data, size_t size)
{
    uint64_t wide = state;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    state = (uint32_t)wide;
    for (; size; data++, size--)
        state = _mm_crc32_u8(state, *data);
    return state;
}
#endif

/* The CRC-32C of `data` after bytes whose CRC-32C is `crc` (0: none). */
static inline uint32_t journal_crc(uint32_t crc, const void *data, size_t size, int portable)
{
#ifdef JOURNAL_CRC_INSTRUCTION
    if (journal_crc_has_instruction && !portable)
        return ~journal_crc_by_instruction(~crc, (const unsigned char *)data, size);
#endif
    (void)portable;
    return ~journal_crc_by_tables(~crc, (const unsigned char *)data, size);
}
#endif
