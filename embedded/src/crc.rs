// SPDX-License-Identifier: GPL-2.0-only
//! CRC-32C with the processor's instruction where there is one, else the core's portable code.

/// CRC-32C (Castagnoli) of `bytes`, going on from `crc` (0 to start).
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instruction.
        return unsafe { sse42(crc, bytes) };
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("crc") {
        // SAFETY: the processor has the instruction.
        return unsafe { aarch64(crc, bytes) };
    }
    vexfs_core::checksum::crc32c(crc, bytes)
}

/// Bytes of one of the three streams that run side by side: a third of what is left of a block.
#[cfg(target_arch = "x86_64")]
const STRIDE: usize = 1360;

/// `SHIFT[i][b]`: what the byte `b` at position `i` of a checksum becomes after [`STRIDE`] zero bytes.
#[cfg(target_arch = "x86_64")]
static SHIFT: [[u32; 256]; 4] = shift_table();

#[cfg(target_arch = "x86_64")]
const fn shift_table() -> [[u32; 256]; 4] {
    // The checksum is linear: the table of single bits gives all others.
    let mut bits = [0u32; 32];
    let mut i = 0;
    while i < 32 {
        let mut c = 1u32 << i;
        let mut n = 0;
        while n < STRIDE * 8 {
            c = if c & 1 != 0 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 };
            n += 1;
        }
        bits[i] = c;
        i += 1;
    }
    let mut t = [[0u32; 256]; 4];
    let mut k = 0;
    while k < 4 {
        let mut b = 0;
        while b < 256 {
            let mut j = 0;
            while j < 8 {
                if b >> j & 1 != 0 {
                    t[k][b] ^= bits[k * 8 + j];
                }
                j += 1;
            }
            b += 1;
        }
        k += 1;
    }
    t
}

#[cfg(target_arch = "x86_64")]
fn shift(c: u32) -> u32 {
    let [a, b, d, e] = c.to_le_bytes();
    SHIFT[0][a as usize] ^ SHIFT[1][b as usize] ^ SHIFT[2][d as usize] ^ SHIFT[3][e as usize]
}

/// The instruction takes three cycles but one can start in every cycle, so three streams run side by side
/// and are joined with a table.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
unsafe fn sse42(crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u64, _mm_crc32_u8};
    let word = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap_or([0; 8]));
    let mut c = !crc;
    let mut rest = bytes;
    while rest.len() >= 3 * STRIDE {
        let (head, tail) = rest.split_at(3 * STRIDE);
        let (x, yz) = head.split_at(STRIDE);
        let (y, z) = yz.split_at(STRIDE);
        let (mut cx, mut cy, mut cz) = (u64::from(c), 0u64, 0u64);
        let mut at = 0;
        while at < STRIDE {
            cx = _mm_crc32_u64(cx, word(x, at));
            cy = _mm_crc32_u64(cy, word(y, at));
            cz = _mm_crc32_u64(cz, word(z, at));
            at += 8;
        }
        c = shift(shift(cx as u32) ^ cy as u32) ^ cz as u32;
        rest = tail;
    }
    let mut chunks = rest.chunks_exact(8);
    let mut w = u64::from(c);
    for chunk in &mut chunks {
        w = _mm_crc32_u64(w, word(chunk, 0));
    }
    let mut c = w as u32;
    for b in chunks.remainder() {
        c = _mm_crc32_u8(c, *b);
    }
    !c
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "crc")]
unsafe fn aarch64(crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::aarch64::{__crc32cb, __crc32cd};
    let mut c = !crc;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        c = __crc32cd(c, u64::from_le_bytes(chunk.try_into().unwrap_or([0; 8])));
    }
    for b in chunks.remainder() {
        c = __crc32cb(c, *b);
    }
    !c
}

#[cfg(test)]
mod tests {
    #[test]
    fn equals_the_portable_code() {
        let mut x = 7u64;
        let data: Vec<u8> = (0..40_000)
            .map(|_| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (x >> 56) as u8
            })
            .collect();
        let portable = vexfs_core::checksum::crc32c;
        for (start, len) in
            [(0, 0), (1, 1), (3, 7), (0, 8), (5, 4096), (0, 4080), (1, 4081), (0, 8192), (2, 12_345), (0, 40_000)]
        {
            let part = &data[start..(start + len).min(data.len())];
            assert_eq!(super::crc32c(0, part), portable(0, part), "{start} {len}");
            assert_eq!(super::crc32c(0x1234_5678, part), portable(0x1234_5678, part), "{start} {len}");
        }
        assert_eq!(super::crc32c(0, b"123456789"), 0xe306_9283);
    }
}
