// SPDX-License-Identifier: GPL-2.0-only
//! The canonical kernel with AVX2: lanes 0 to 3 and 4 to 7 in one register each. Multiplications and
//! additions are separate instructions, so the result equals the scalar path's bit for bit.

use crate::{finish, reduce, Row, L2};
use core::arch::x86_64::{
    __cpuid, __cpuid_count, __m128, __m256d, _mm256_add_pd, _mm256_cvtps_pd, _mm256_mul_pd, _mm256_setzero_pd,
    _mm256_storeu_pd, _mm256_sub_pd, _mm_loadu_ps, _mm_prefetch, _xgetbv, _MM_HINT_T0,
};

/// Whether the CPU has AVX2 and the operating system keeps its registers.
pub(crate) fn available() -> bool {
    // SAFETY: every x86-64 CPU has cpuid; leaf 7 is asked for only where it exists.
    #[allow(unused_unsafe)]
    unsafe {
        if __cpuid(0).eax < 7 {
            return false;
        }
        let c = __cpuid(1).ecx;
        // OSXSAVE and AVX.
        if c & (1 << 27) == 0 || c & (1 << 28) == 0 {
            return false;
        }
        xmm_ymm_kept() && __cpuid_count(7, 0).ebx & (1 << 5) != 0
    }
}

/// # Safety
/// The CPU has OSXSAVE.
#[target_feature(enable = "xsave")]
unsafe fn xmm_ymm_kept() -> bool {
    // SAFETY: the caller promises OSXSAVE.
    #[allow(unused_unsafe)]
    unsafe {
        _xgetbv(0) & 6 == 6
    }
}

/// Four elements from `p` as f64.
///
/// # Safety
/// `p` holds four f32.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four(p: *const u32) -> __m256d {
    // SAFETY: the caller promises the memory; the load is unaligned.
    #[allow(unused_unsafe)]
    unsafe {
        let x: __m128 = _mm_loadu_ps(p.cast());
        _mm256_cvtps_pd(x)
    }
}

/// Adds one step of four lanes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn step<const SQUARE: bool>(s: __m256d, q: __m256d, v: __m256d) -> __m256d {
    // SAFETY: registers only.
    #[allow(unused_unsafe)]
    unsafe {
        if SQUARE {
            let d = _mm256_sub_pd(q, v);
            _mm256_add_pd(s, _mm256_mul_pd(d, d))
        } else {
            _mm256_add_pd(s, _mm256_mul_pd(q, v))
        }
    }
}

/// Adds the last elements (fewer than eight) to their lanes and sums the lanes.
///
/// # Safety
/// `q` and `v` hold `dim` elements.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn end<const SQUARE: bool>(
    lo: __m256d,
    hi: __m256d,
    q: *const u32,
    v: *const u32,
    mut i: usize,
    dim: usize,
) -> f64 {
    let mut s = [0.0f64; 8];
    // SAFETY: `s` has room for eight; `i < dim` for each read.
    #[allow(unused_unsafe)]
    unsafe {
        _mm256_storeu_pd(s.as_mut_ptr(), lo);
        _mm256_storeu_pd(s.as_mut_ptr().add(4), hi);
        for x in &mut s {
            if i < dim {
                let a = f64::from(f32::from_bits(*q.add(i)));
                let b = f64::from(f32::from_bits(*v.add(i)));
                *x += if SQUARE { (a - b) * (a - b) } else { a * b };
                i += 1;
            }
        }
    }
    reduce(s)
}

/// Sums for two rows at once: two chains of additions hide each other's latency, and the query is
/// converted once.
///
/// # Safety
/// `q`, `a` and `b` hold `dim` elements; the CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn pair<const SQUARE: bool>(q: *const u32, a: *const u32, b: *const u32, dim: usize) -> (f64, f64) {
    // SAFETY: `i + 8 <= dim` inside the loop.
    #[allow(unused_unsafe)]
    unsafe {
        let (mut a0, mut a1) = (_mm256_setzero_pd(), _mm256_setzero_pd());
        let (mut b0, mut b1) = (a0, a0);
        let mut i = 0;
        while dim - i >= 8 {
            let (q0, q1) = (four(q.add(i)), four(q.add(i + 4)));
            a0 = step::<SQUARE>(a0, q0, four(a.add(i)));
            a1 = step::<SQUARE>(a1, q1, four(a.add(i + 4)));
            b0 = step::<SQUARE>(b0, q0, four(b.add(i)));
            b1 = step::<SQUARE>(b1, q1, four(b.add(i + 4)));
            i += 8;
        }
        (end::<SQUARE>(a0, a1, q, a, i, dim), end::<SQUARE>(b0, b1, q, b, i, dim))
    }
}

/// Asks for the first lines of a vector; the CPU's own prefetcher follows.
///
/// # Safety
/// None of its own: a prefetch never faults.
#[inline]
unsafe fn fetch(p: *const u32, dim: usize) {
    let mut i = 0;
    while i < dim && i < 256 {
        // SAFETY: `i < dim`, within the vector.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.add(i).cast()) };
        i += 16;
    }
}

/// # Safety
/// As [`distances`].
#[target_feature(enable = "avx2")]
unsafe fn run<const SQUARE: bool>(
    metric: u32,
    query: *const u32,
    inv_norm: u64,
    dim: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u64,
) {
    let mut r = 0;
    // SAFETY: `r` (and `r + 1`, `r + 2`, `r + 3` where they are used) are below `n`.
    #[allow(unused_unsafe)]
    unsafe {
        while r < n {
            let a = *rows.add(r);
            let second = n - r >= 2;
            let b = if second { *rows.add(r + 1) } else { a };
            if n - r >= 3 {
                fetch((*rows.add(r + 2)).words, dim);
            }
            if n - r >= 4 {
                fetch((*rows.add(r + 3)).words, dim);
            }
            let (x, y) = pair::<SQUARE>(query, a.words, b.words, dim);
            keys.add(r).write(finish(metric, x, inv_norm, a.inv_norm));
            if second {
                keys.add(r + 1).write(finish(metric, y, inv_norm, b.inv_norm));
            }
            r += 2;
        }
    }
}

/// See [`crate::vexfs_fp_distances`].
///
/// # Safety
/// As there; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn distances(
    metric: u32,
    query: *const u32,
    inv_norm: u64,
    dim: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u64,
) {
    // SAFETY: the caller's promises are those of `run`.
    unsafe {
        if metric == L2 {
            run::<true>(metric, query, inv_norm, dim, rows, n, keys);
        } else {
            run::<false>(metric, query, inv_norm, dim, rows, n, keys);
        }
    }
}
