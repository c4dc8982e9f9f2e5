// SPDX-License-Identifier: GPL-2.0-only
//! CRC-32C in portable code (a driver may supply a faster one with the same result) and the keyed
//! hash for names, SipHash-2-4 (Aumasson and Bernstein, 2012).

const POLY: u32 = 0x82f6_3b78;

#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)] // runs at compile time only
const fn table() -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut k = 0;
        while k < 8 {
            c = if c & 1 != 0 { (c >> 1) ^ POLY } else { c >> 1 };
            k += 1;
        }
        t[0][i] = c;
        i += 1;
    }
    let mut j = 1;
    while j < 8 {
        let mut i = 0;
        while i < 256 {
            let c = t[j - 1][i];
            t[j][i] = (c >> 8) ^ t[0][(c & 255) as usize];
            i += 1;
        }
        j += 1;
    }
    t
}

static TABLE: [[u32; 256]; 8] = table();

fn at(j: usize, byte: u32) -> u32 {
    TABLE.get(j).and_then(|t| t.get((byte & 255) as usize)).copied().unwrap_or(0)
}

/// CRC-32C (Castagnoli) of `bytes`, going on from `crc` (0 to start). Eight bytes a step.
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    let mut c = !crc;
    let mut chunks = bytes.chunks_exact(8);
    for w in &mut chunks {
        let lo = u32::from_le_bytes(w.get(..4).and_then(|s| s.try_into().ok()).unwrap_or([0; 4])) ^ c;
        let hi = u32::from_le_bytes(w.get(4..).and_then(|s| s.try_into().ok()).unwrap_or([0; 4]));
        c = at(7, lo)
            ^ at(6, lo >> 8)
            ^ at(5, lo >> 16)
            ^ at(4, lo >> 24)
            ^ at(3, hi)
            ^ at(2, hi >> 8)
            ^ at(1, hi >> 16)
            ^ at(0, hi >> 24);
    }
    for b in chunks.remainder() {
        c = (c >> 8) ^ at(0, c ^ u32::from(*b));
    }
    !c
}

/// SipHash-2-4 of `bytes` under `key`.
pub fn siphash(key: &[u8; 16], bytes: &[u8]) -> u64 {
    let half =
        |r: core::ops::Range<usize>| u64::from_le_bytes(key.get(r).and_then(|s| s.try_into().ok()).unwrap_or([0; 8]));
    let (k0, k1) = (half(0..8), half(8..16));
    let mut v = (
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    );
    let round = |v: &mut (u64, u64, u64, u64)| {
        v.0 = v.0.wrapping_add(v.1);
        v.1 = v.1.rotate_left(13) ^ v.0;
        v.0 = v.0.rotate_left(32);
        v.2 = v.2.wrapping_add(v.3);
        v.3 = v.3.rotate_left(16) ^ v.2;
        v.0 = v.0.wrapping_add(v.3);
        v.3 = v.3.rotate_left(21) ^ v.0;
        v.2 = v.2.wrapping_add(v.1);
        v.1 = v.1.rotate_left(17) ^ v.2;
        v.2 = v.2.rotate_left(32);
    };
    let mut chunks = bytes.chunks_exact(8);
    for w in &mut chunks {
        let m = u64::from_le_bytes(w.try_into().unwrap_or([0; 8]));
        v.3 ^= m;
        round(&mut v);
        round(&mut v);
        v.0 ^= m;
    }
    let mut m = (bytes.len() as u64) << 56;
    for (i, b) in chunks.remainder().iter().enumerate() {
        m |= u64::from(*b) << ((i as u32).wrapping_mul(8) & 63);
    }
    v.3 ^= m;
    round(&mut v);
    round(&mut v);
    v.0 ^= m;
    v.2 ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v.0 ^ v.1 ^ v.2 ^ v.3
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_answers() {
        assert_eq!(super::crc32c(0, b"123456789"), 0xe306_9283);
        let (a, b) = b"123456789".split_at(4);
        assert_eq!(super::crc32c(super::crc32c(0, a), b), 0xe306_9283);
        let key: [u8; 16] = core::array::from_fn(|i| i as u8);
        let text: [u8; 15] = core::array::from_fn(|i| i as u8);
        assert_eq!(super::siphash(&key, &text), 0xa129_ca61_49be_45e5);
    }
}
