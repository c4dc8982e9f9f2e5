// SPDX-License-Identifier: GPL-2.0-only
//! Sums of codes of four bits with tables in registers (André, Kermarrec and Le Scouarnec 2015; "Quicker ADC", 2019).
//! Owns the scan of a block; promises the same integers on every path.
//!
//! A block holds the codes of [`BLOCK_CODES`] vectors, interleaved: byte `b · 64 + v` is byte `b` of vector `v`. Its lower
//! four bits choose among the 16 entries of table `2b`, the upper ones among those of table `2b + 1`: a byte shuffle
//! looks up as many vectors as a register has bytes. Sums of at most [`GROUP`] bytes fit 16 bits; groups add up in 32.

/// Vectors in a block.
pub const BLOCK_CODES: usize = 64;
/// Bytes of a code whose sums of entries fit 16 bits.
pub(crate) const GROUP: usize = 128;

/// Portable sums of a block.
///
/// # Safety
/// As [`vexfs_fp_fast_scan`], for one block.
unsafe fn block(tables: *const u8, len: usize, codes: *const u8, limit: u32, out: *mut u32) -> u64 {
    let mut mask = 0u64;
    let mut v = 0;
    while v < BLOCK_CODES {
        let mut sum = 0u32;
        let mut b = 0;
        // SAFETY: `b < len` and `v < 64`; four bits are an index below 16.
        unsafe {
            while b < len {
                let c = usize::from(*codes.add(b * BLOCK_CODES + v));
                let t = tables.add(b * 32);
                sum = sum.wrapping_add(u32::from(*t.add(c & 15)) + u32::from(*t.add(16 + (c >> 4))));
                b += 1;
            }
            out.add(v).write(sum);
        }
        mask |= u64::from(sum <= limit) << v;
        v += 1;
    }
    mask
}

/// For each of 64 codes of `len` bytes, at most 65,536, in each of `n` blocks: the sum of its entries into `out`, and into
/// `masks` a bit for each that is at most `limit`.
///
/// # Safety
/// `tables` holds `32 · len` bytes, `codes` `64 · len · n`; `out` has room for `64 · n` sums, `masks` for `n`; `path` as for
/// [`crate::vexfs_fp_distances`]. In a kernel: inside an FPU section.
#[no_mangle]
#[allow(clippy::too_many_arguments)] // an interface of pointers
pub unsafe extern "C" fn vexfs_fp_fast_scan(
    path: u32,
    tables: *const u8,
    len: usize,
    codes: *const u8,
    n: usize,
    limit: u32,
    out: *mut u32,
    masks: *mut u64,
) {
    // No sum is larger, and it compares as a signed number.
    let limit = if limit > i32::MAX as u32 { i32::MAX as u32 } else { limit };
    let mut i = 0;
    while i < n {
        // SAFETY: `i < n`; the caller promises the rest.
        unsafe {
            let (codes, out) = (codes.add(i * len * BLOCK_CODES), out.add(i * BLOCK_CODES));
            masks.add(i).write(one(path, tables, len, codes, limit, out));
        }
        i += 1;
    }
}

/// One block on a path.
///
/// # Safety
/// As [`vexfs_fp_fast_scan`].
#[inline(always)]
unsafe fn one(path: u32, tables: *const u8, len: usize, codes: *const u8, limit: u32, out: *mut u32) -> u64 {
    #[cfg(all(target_arch = "x86_64", not(target_os = "none"), vexfs_avx512))]
    if path == crate::AVX512 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX-512.
        return unsafe { crate::fastscan512::block(tables, len, codes, limit, out) };
    }
    #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
    if path != crate::SCALAR {
        // SAFETY: the caller promises the pointers; every path but the scalar one has AVX2.
        return unsafe { wide::block(tables, len, codes, limit, out) };
    }
    let _ = path;
    // SAFETY: the caller promises the pointers.
    unsafe { block(tables, len, codes, limit, out) }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
mod wide {
    use super::{BLOCK_CODES, GROUP};
    use core::arch::x86_64::{
        __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_broadcastsi128_si256,
        _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmpgt_epi32, _mm256_cvtepu16_epi32,
        _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_movemask_ps, _mm256_set1_epi32, _mm256_set1_epi8,
        _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srli_epi16, _mm256_storeu_si256,
        _mm256_sub_epi16, _mm256_unpackhi_epi16, _mm256_unpacklo_epi16, _mm_loadu_si128,
    };

    /// # Safety
    /// As [`super::vexfs_fp_fast_scan`], for one block; the CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn block(tables: *const u8, len: usize, codes: *const u8, limit: u32, out: *mut u32) -> u64 {
        // SAFETY: `b < len`; a column is 64 bytes, two registers.
        #[allow(unused_unsafe)]
        unsafe {
            let low = _mm256_set1_epi8(15);
            let mut start = 0;
            let mut first = true;
            while first || start < len {
                let end = if len - start > GROUP { start + GROUP } else { len };
                // For both halves: sums of words as they are, and of their upper bytes.
                let mut all = [_mm256_setzero_si256(); 2];
                let mut odd = [_mm256_setzero_si256(); 2];
                let mut b = start;
                while b < end {
                    let t0 = _mm256_broadcastsi128_si256(_mm_loadu_si128(tables.add(b * 32).cast()));
                    let t1 = _mm256_broadcastsi128_si256(_mm_loadu_si128(tables.add(b * 32 + 16).cast()));
                    for (h, (all, odd)) in all.iter_mut().zip(odd.iter_mut()).enumerate() {
                        let c: __m256i = _mm256_loadu_si256(codes.add(b * BLOCK_CODES + h * 32).cast());
                        let x = _mm256_shuffle_epi8(t0, _mm256_and_si256(c, low));
                        let y = _mm256_shuffle_epi8(t1, _mm256_and_si256(_mm256_srli_epi16::<4>(c), low));
                        *all = _mm256_add_epi16(*all, _mm256_add_epi16(x, y));
                        let upper = _mm256_add_epi16(_mm256_srli_epi16::<8>(x), _mm256_srli_epi16::<8>(y));
                        *odd = _mm256_add_epi16(*odd, upper);
                    }
                    b += 1;
                }
                for (h, (all, odd)) in all.into_iter().zip(odd).enumerate() {
                    // Modulo 2^16 the upper bytes count 256 times in `all`.
                    let even = _mm256_sub_epi16(all, _mm256_slli_epi16::<8>(odd));
                    let (lo, hi) = (_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd));
                    let o = out.add(h * 32);
                    add(o, _mm256_cvtepu16_epi32(_mm256_castsi256_si128(lo)), first);
                    add(o.add(8), _mm256_cvtepu16_epi32(_mm256_castsi256_si128(hi)), first);
                    add(o.add(16), _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(lo)), first);
                    add(o.add(24), _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(hi)), first);
                }
                first = false;
                start = end;
            }
            let limit = _mm256_set1_epi32(limit as i32);
            let mut mask = 0u64;
            let mut v = 0;
            while v < BLOCK_CODES {
                let over = _mm256_cmpgt_epi32(_mm256_loadu_si256(out.add(v).cast()), limit);
                mask |= u64::from(!_mm256_movemask_ps(_mm256_castsi256_ps(over)) as u32 & 0xff) << v;
                v += 8;
            }
            mask
        }
    }

    /// Writes eight sums, or adds them to what is there.
    ///
    /// # Safety
    /// `out` has room for eight.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(out: *mut u32, x: __m256i, first: bool) {
        // SAFETY: the caller promises the place.
        #[allow(unused_unsafe)]
        unsafe {
            let x = if first { x } else { _mm256_add_epi32(x, _mm256_loadu_si256(out.cast())) };
            _mm256_storeu_si256(out.cast(), x);
        }
    }
}
