// SPDX-License-Identifier: GPL-2.0-only
//! The scan of a block of codes of four bits ([`crate::vexfs_fp_fast_scan`]) with AVX-512 (F, BW): a column of 64 bytes is one
//! register.
#![allow(clippy::incompatible_msrv)] // compiled only where the compiler has them (build.rs)

use crate::fastscan::{BLOCK_CODES, GROUP};
use core::arch::x86_64::{
    __m512i, _mm512_add_epi16, _mm512_add_epi32, _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_castsi512_si256,
    _mm512_cmple_epi32_mask, _mm512_cvtepu16_epi32, _mm512_extracti64x4_epi64, _mm512_loadu_si512,
    _mm512_permutex2var_epi64, _mm512_set1_epi32, _mm512_set1_epi8, _mm512_setr_epi64, _mm512_setzero_si512,
    _mm512_shuffle_epi8, _mm512_slli_epi16, _mm512_srli_epi16, _mm512_storeu_si512, _mm512_sub_epi16,
    _mm512_unpackhi_epi16, _mm512_unpacklo_epi16, _mm_loadu_si128,
};

/// # Safety
/// As [`crate::vexfs_fp_fast_scan`], for one block; the CPU has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) unsafe fn block(tables: *const u8, len: usize, codes: *const u8, limit: u32, out: *mut u32) -> u64 {
    // SAFETY: `b < len`; a column is 64 bytes.
    #[allow(unused_unsafe)]
    unsafe {
        let low = _mm512_set1_epi8(15);
        let mut sums = [_mm512_setzero_si512(); 4];
        let mut start = 0;
        while start < len {
            let end = if len - start > GROUP { start + GROUP } else { len };
            // Sums of words as they are, and of their upper bytes.
            let (mut all, mut odd) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            let mut b = start;
            while b < end {
                let t0 = _mm512_broadcast_i32x4(_mm_loadu_si128(tables.add(b * 32).cast()));
                let t1 = _mm512_broadcast_i32x4(_mm_loadu_si128(tables.add(b * 32 + 16).cast()));
                let c: __m512i = _mm512_loadu_si512(codes.add(b * BLOCK_CODES).cast());
                let x = _mm512_shuffle_epi8(t0, _mm512_and_si512(c, low));
                let y = _mm512_shuffle_epi8(t1, _mm512_and_si512(_mm512_srli_epi16::<4>(c), low));
                all = _mm512_add_epi16(all, _mm512_add_epi16(x, y));
                odd = _mm512_add_epi16(odd, _mm512_add_epi16(_mm512_srli_epi16::<8>(x), _mm512_srli_epi16::<8>(y)));
                b += 1;
            }
            // Modulo 2^16 the upper bytes count 256 times in `all`.
            let even = _mm512_sub_epi16(all, _mm512_slli_epi16::<8>(odd));
            // Eight vectors of each 16 in a lane of the one, eight in the same lane of the other.
            let (lo, hi) = (_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd));
            let a = _mm512_permutex2var_epi64(lo, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), hi);
            let b = _mm512_permutex2var_epi64(lo, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), hi);
            let parts = [
                _mm512_castsi512_si256(a),
                _mm512_extracti64x4_epi64::<1>(a),
                _mm512_castsi512_si256(b),
                _mm512_extracti64x4_epi64::<1>(b),
            ];
            for (s, p) in sums.iter_mut().zip(parts) {
                *s = _mm512_add_epi32(*s, _mm512_cvtepu16_epi32(p));
            }
            start = end;
        }
        let limit = _mm512_set1_epi32(limit as i32);
        let mut mask = 0u64;
        let mut v = 0;
        for s in sums {
            _mm512_storeu_si512(out.add(v).cast(), s);
            mask |= u64::from(_mm512_cmple_epi32_mask(s, limit)) << v;
            v += 16;
        }
        mask
    }
}
