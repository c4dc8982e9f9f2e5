// SPDX-License-Identifier: GPL-2.0-only
//! Arithmetic of the clustering and hashing indexes: products with a matrix, sums for centroids, lookup tables.
//! Nothing here is ever reported: results come from the canonical kernel. But every path gives the same bits, so that
//! an index depends on its seed and its vectors only.
//!
//! A matrix is kept in **panels** of [`PANEL`] columns: element `(i, c)` is word `((c / 16) · dim + i) · 16 + c % 16`. A
//! product with a column is a plain f32 sum in order of `i`; columns are the lanes of a register, so there is no
//! reduction whose order could differ. Multiplication and addition are separate.

/// Columns of a panel.
pub const PANEL: usize = 16;
/// Largest entry of a lookup table: two of them fit 16 bits.
pub const ENTRY_MAX: u32 = 32_767;

/// An order-preserving integer for an f32; NaN is the largest.
#[inline(always)]
pub(crate) fn key(v: f32) -> u32 {
    if v.is_nan() {
        return u32::MAX;
    }
    let bits = (v + 0.0).to_bits();
    if bits >> 31 != 0 {
        !bits
    } else {
        bits | 1 << 31
    }
}

#[inline(always)]
fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 != 0 { key ^ 1 << 31 } else { !key })
}

/// The factor that an inverse norm is: 0 stands for 1.
#[inline(always)]
fn factor(inv_norm: u64) -> f32 {
    if inv_norm == 0 {
        1.0
    } else {
        f64::from_bits(inv_norm) as f32
    }
}

/// Writes the keys of a panel from its sums.
///
/// # Safety
/// `bias` is null or holds 16 words, `out` has room for 16.
#[inline(always)]
pub(crate) unsafe fn finish(sums: [f32; PANEL], scale: f32, bias: *const u32, out: *mut u32) {
    for (c, s) in sums.into_iter().enumerate() {
        // SAFETY: `c < 16`.
        unsafe {
            let b = if bias.is_null() { 0.0 } else { f32::from_bits(*bias.add(c)) };
            out.add(c).write(key(b - scale * s));
        }
    }
}

/// Portable [`vexfs_fp_project`].
///
/// # Safety
/// As there.
unsafe fn project(x: *const u32, dim: usize, scale: f32, m: *const u32, n: usize, bias: *const u32, out: *mut u32) {
    let mut p = 0;
    while p < n {
        let mut sums = [0.0f32; PANEL];
        let mut i = 0;
        // SAFETY: `i < dim`, `p < n`, all offsets are inside the arrays that the caller promised.
        unsafe {
            while i < dim {
                let q = f32::from_bits(*x.add(i));
                let row = m.add((p * dim + i) * PANEL);
                for (c, s) in sums.iter_mut().enumerate() {
                    *s += q * f32::from_bits(*row.add(c));
                }
                i += 1;
            }
            let b = if bias.is_null() { bias } else { bias.add(p * PANEL) };
            finish(sums, scale, b, out.add(p * PANEL));
        }
        p += 1;
    }
}

/// For every column of `n` panels the key of `bias − scale · (x · column)`, where scale is the f32 nearest to the f64
/// bits `inv_norm`, or 1 if they are 0. With half a squared norm as bias the smallest key is the nearest column.
///
/// # Safety
/// `x` holds `dim` words, `m` `n` panels of that dimension, `bias` `16n` words or is null, `out` has room for `16n`;
/// `path` as for [`crate::vexfs_fp_distances`]. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_project(
    path: u32,
    x: *const u32,
    dim: usize,
    inv_norm: u64,
    m: *const u32,
    n: usize,
    bias: *const u32,
    out: *mut u32,
) {
    let scale = factor(inv_norm);
    // Whoever has AVX-512 has AVX2.
    #[cfg(target_arch = "x86_64")]
    if path != crate::SCALAR {
        // SAFETY: the caller promises the pointers and that the CPU has AVX2.
        unsafe { wide::project(x, dim, scale, m, n, bias, out) };
        return;
    }
    let _ = path;
    // SAFETY: the caller promises the pointers.
    unsafe { project(x, dim, scale, m, n, bias, out) };
}

/// Adds `scale · x` to `sums` (f32 bits).
///
/// # Safety
/// Both hold `dim` words and do not overlap. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_accumulate(x: *const u32, dim: usize, inv_norm: u64, sums: *mut u32) {
    let scale = factor(inv_norm);
    let mut i = 0;
    while i < dim {
        // SAFETY: `i < dim`.
        unsafe {
            let s = f32::from_bits(*sums.add(i)) + scale * f32::from_bits(*x.add(i));
            sums.add(i).write(s.to_bits());
        }
        i += 1;
    }
}

/// Writes `sums / count` into a column of the panel at `panel`, and half its squared norm to `bias`.
///
/// # Safety
/// `sums` holds `dim` words, `panel` is one of that dimension, `column < 16`, `bias` has room for one word. In a kernel:
/// inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_centroid(
    sums: *const u32,
    dim: usize,
    count: u32,
    panel: *mut u32,
    column: usize,
    bias: *mut u32,
) {
    let n = if count == 0 { 1.0 } else { count as f32 };
    let mut square = 0.0f32;
    let mut i = 0;
    while i < dim {
        // SAFETY: `i < dim`.
        unsafe {
            let v = f32::from_bits(*sums.add(i)) / n;
            square += v * v;
            panel.add(i * PANEL + column).write(v.to_bits());
        }
        i += 1;
    }
    // SAFETY: the caller promises the place.
    unsafe { bias.write((0.5 * square).to_bits()) };
}

/// The factor (f32 bits) with which the widest of `n` ranges of keys becomes [`ENTRY_MAX`]; 0 if there is none.
///
/// # Safety
/// `least` and `most` hold `n` keys. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_spread(least: *const u32, most: *const u32, n: usize) -> u32 {
    let mut widest = 0.0f32;
    let mut i = 0;
    while i < n {
        // SAFETY: `i < n`.
        let w = unsafe { value(*most.add(i)) - value(*least.add(i)) };
        if w > widest {
            widest = w;
        }
        i += 1;
    }
    let scale = ENTRY_MAX as f32 / widest;
    if widest > 0.0 && scale.is_finite() {
        scale.to_bits()
    } else {
        0
    }
}

/// Entries of a lookup table: how far each of `n` keys is above `least`, in units that [`vexfs_fp_spread`] gave.
///
/// # Safety
/// `keys` holds `n` keys, `out` has room for as many entries. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_entries(keys: *const u32, n: usize, least: u32, scale: u32, out: *mut u16) {
    let (least, scale) = (value(least), f32::from_bits(scale));
    let mut i = 0;
    while i < n {
        // SAFETY: `i < n`.
        unsafe {
            // The conversion saturates, and makes 0 of a NaN.
            let e = ((value(*keys.add(i)) - least) * scale + 0.5) as u32;
            out.add(i).write(if e > ENTRY_MAX { ENTRY_MAX as u16 } else { e as u16 });
        }
        i += 1;
    }
}

/// For each of `n` codes of `len` bytes, at least one, the sum over its bytes of the table entry: integers, exact in any order.
///
/// # Safety
/// `tables` holds `256 · len` entries, `codes` `n · len` bytes, `out` has room for `n` sums. In a kernel: inside an FPU
/// section (the compiler may use vector registers).
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_lookup(tables: *const u16, len: usize, codes: *const u8, n: usize, out: *mut u32) {
    if len == 0 {
        return;
    }
    let mut r = 0;
    // SAFETY: `r + 3 < n` and `b < len`, or `r < n`; a byte is an index below 256.
    unsafe {
        // Four codes at a time: their chains of additions run side by side.
        while n - r >= 4 {
            let (a, b) = (codes.add(r * len), codes.add((r + 1) * len));
            let (c, d) = (codes.add((r + 2) * len), codes.add((r + 3) * len));
            let (mut s0, mut s1, mut s2, mut s3) = (0u32, 0u32, 0u32, 0u32);
            let mut i = 0;
            while i < len {
                let t = tables.add(i * 256);
                s0 = s0.wrapping_add(u32::from(*t.add(usize::from(*a.add(i)))));
                s1 = s1.wrapping_add(u32::from(*t.add(usize::from(*b.add(i)))));
                s2 = s2.wrapping_add(u32::from(*t.add(usize::from(*c.add(i)))));
                s3 = s3.wrapping_add(u32::from(*t.add(usize::from(*d.add(i)))));
                i += 1;
            }
            out.add(r).write(s0);
            out.add(r + 1).write(s1);
            out.add(r + 2).write(s2);
            out.add(r + 3).write(s3);
            r += 4;
        }
        while r < n {
            let mut s = 0u32;
            let mut i = 0;
            while i < len {
                s = s.wrapping_add(u32::from(*tables.add(i * 256 + usize::from(*codes.add(r * len + i)))));
                i += 1;
            }
            out.add(r).write(s);
            r += 1;
        }
    }
}

/// Fills `n` words with normally distributed numbers (the sum of eight uniform ones, mean 0, variance 1), drawn from
/// `seed`.
///
/// # Safety
/// `out` has room for `n` words. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_normal(seed: u64, out: *mut u32, n: usize) {
    let mut i = 0;
    while i < n {
        let mut sum = 0i64;
        let mut half = 0;
        while half < 2 {
            // splitmix64
            let x = seed.wrapping_add((2 * i as u64 + half + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let x = x ^ (x >> 31);
            sum += (x & 0xffff) as i64 + (x >> 16 & 0xffff) as i64 + (x >> 32 & 0xffff) as i64 + (x >> 48) as i64;
            half += 1;
        }
        // Eight uniform numbers in 0..65536 have the variance 8 · 2^32 / 12.
        let v = (sum - 4 * 65_535) as f32 * 1.868_807_2e-5;
        // SAFETY: `i < n`.
        unsafe { out.add(i).write(v.to_bits()) };
        i += 1;
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{finish, PANEL};
    use core::arch::x86_64::{
        __m256, _mm256_add_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };

    /// Sums for the two halves of `K` panels.
    ///
    /// # Safety
    /// As [`project`]; `K` panels from `m` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn panels<const K: usize>(x: *const u32, dim: usize, m: *const u32) -> [[__m256; 2]; K] {
        // SAFETY: `i < dim`; panel `k` begins `k · dim · 16` words behind `m`.
        #[allow(unused_unsafe)]
        unsafe {
            let mut s = [[_mm256_setzero_ps(); 2]; K];
            let mut i = 0;
            while i < dim {
                let q = _mm256_set1_ps(f32::from_bits(*x.add(i)));
                for (k, [lo, hi]) in s.iter_mut().enumerate() {
                    let row: *const f32 = m.add((k * dim + i) * PANEL).cast();
                    *lo = _mm256_add_ps(*lo, _mm256_mul_ps(q, _mm256_loadu_ps(row)));
                    *hi = _mm256_add_ps(*hi, _mm256_mul_ps(q, _mm256_loadu_ps(row.add(8))));
                }
                i += 1;
            }
            s
        }
    }

    /// # Safety
    /// As [`super::vexfs_fp_project`]; the CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn project(
        x: *const u32,
        dim: usize,
        scale: f32,
        m: *const u32,
        n: usize,
        bias: *const u32,
        out: *mut u32,
    ) {
        let mut p = 0;
        // SAFETY: `p < n`, and `p + 3 < n` where four panels are taken.
        #[allow(unused_unsafe)]
        unsafe {
            while p < n {
                let at = m.add(p * dim * PANEL);
                if n - p >= 4 {
                    for (k, s) in panels::<4>(x, dim, at).into_iter().enumerate() {
                        end(s, scale, bias, out, p + k);
                    }
                    p += 4;
                } else {
                    let [s] = panels::<1>(x, dim, at);
                    end(s, scale, bias, out, p);
                    p += 1;
                }
            }
        }
    }

    /// # Safety
    /// Panel `p` has its place in `bias` (unless null) and `out`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn end(s: [__m256; 2], scale: f32, bias: *const u32, out: *mut u32, p: usize) {
        let mut sums = [0.0f32; PANEL];
        let [lo, hi] = s;
        // SAFETY: `sums` has room for 16; the caller promises the rest.
        #[allow(unused_unsafe)]
        unsafe {
            _mm256_storeu_ps(sums.as_mut_ptr(), lo);
            _mm256_storeu_ps(sums.as_mut_ptr().add(8), hi);
            let b = if bias.is_null() { bias } else { bias.add(p * PANEL) };
            finish(sums, scale, b, out.add(p * PANEL));
        }
    }
}
