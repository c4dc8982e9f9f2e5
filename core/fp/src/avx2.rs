// SPDX-License-Identifier: GPL-2.0-only
//! The canonical kernel with AVX2: lanes 0 to 3 and 4 to 7 in one register each. Multiplications and
//! additions are separate instructions, so the result equals the scalar path's bit for bit.

use crate::rough::LANES;
use crate::sift::{Sieve, SIFT_PANELS, SLACK};
use crate::{finish, reduce, rough, Row, IP, L2};
use core::arch::x86_64::{
    __cpuid, __cpuid_count, __m128, __m256, __m256d, __m256i, _mm256_add_epi32, _mm256_add_pd, _mm256_add_ps,
    _mm256_andnot_ps, _mm256_castps256_ps128, _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cmpgt_epi32,
    _mm256_cvtepi32_ps, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16, _mm256_cvtps_pd, _mm256_extractf128_ps,
    _mm256_extracti128_si256, _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_madd_epi16, _mm256_maskload_ps,
    _mm256_movemask_ps, _mm256_mul_pd, _mm256_mul_ps, _mm256_permute4x64_epi64, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_pd, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_storeu_pd,
    _mm256_sub_epi16, _mm256_sub_epi32, _mm256_sub_pd, _mm256_sub_ps, _mm_add_epi32, _mm_add_ps, _mm_add_ss,
    _mm_cvtsi128_si32, _mm_cvtss_f32, _mm_loadu_ps, _mm_loadu_si128, _mm_movehl_ps, _mm_prefetch, _mm_set1_epi32,
    _mm_shuffle_epi32, _mm_shuffle_ps, _xgetbv, _CMP_NGT_UQ, _CMP_NLT_UQ, _MM_HINT_T0,
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
pub(crate) unsafe fn fetch(p: *const u32, dim: usize) {
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

/// Four registers of the f32 kernel: lanes 0 to 7, 8 to 15, 16 to 23, 24 to 31.
type Lanes = [__m256; 4];

/// Adds a term of eight lanes, and what it weighs to `size` if `ABS`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn step8<const SQUARE: bool, const ABS: bool>(s: &mut __m256, size: &mut __m256, q: __m256, v: __m256) {
    // SAFETY: registers only.
    #[allow(unused_unsafe)]
    unsafe {
        let term = if SQUARE {
            let d = _mm256_sub_ps(q, v);
            _mm256_mul_ps(d, d)
        } else {
            _mm256_mul_ps(q, v)
        };
        *s = _mm256_add_ps(*s, term);
        if ABS {
            *size = _mm256_add_ps(*size, _mm256_andnot_ps(_mm256_set1_ps(-0.0), term));
        }
    }
}

/// The first `n` (at most eight) elements of `p`, zeros behind them.
///
/// # Safety
/// `p` holds `n` elements.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn part(p: *const u32, n: usize) -> __m256 {
    // SAFETY: the mask leaves out what is behind the end.
    #[allow(unused_unsafe)]
    unsafe {
        let n = if n < 8 { n as i32 } else { 8 };
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        _mm256_maskload_ps(p.cast(), mask)
    }
}

/// Sums the lanes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn reduce32(s: Lanes) -> f32 {
    // SAFETY: registers only.
    #[allow(unused_unsafe)]
    unsafe {
        let [s0, s1, s2, s3] = s;
        let eight = _mm256_add_ps(_mm256_add_ps(s0, s2), _mm256_add_ps(s1, s3));
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Sum of the f32 kernel for a row; the second value is 0 unless `ABS`.
///
/// # Safety
/// `q` and `v` hold `dim` elements; the CPU has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn row32<const SQUARE: bool, const ABS: bool>(q: *const u32, v: *const u32, dim: usize) -> (f32, f32) {
    // SAFETY: `i + 32 <= dim` inside the loop.
    #[allow(unused_unsafe)]
    unsafe {
        let zero = [_mm256_setzero_ps(); 4];
        let (mut s, mut size) = (zero, zero);
        let mut i = 0;
        while dim - i >= LANES {
            let mut k = 0;
            while k < 4 {
                let (a, b) = (_mm256_loadu_ps(q.add(i + 8 * k).cast()), _mm256_loadu_ps(v.add(i + 8 * k).cast()));
                step8::<SQUARE, ABS>(&mut s[k], &mut size[k], a, b);
                k += 1;
            }
            i += LANES;
        }
        // A lane is never −0.0, so adding zeros changes none.
        let mut k = 0;
        while k < 4 && i < dim {
            let (a, b) = (part(q.add(i), dim - i), part(v.add(i), dim - i));
            step8::<SQUARE, ABS>(&mut s[k], &mut size[k], a, b);
            i += 8;
            k += 1;
        }
        (reduce32(s), if ABS { reduce32(size) } else { 0.0 })
    }
}

/// Gives the sums of all rows to `out`: (row number, row, sum, size). One after the other: rows of a scan lie behind each
/// other, and the processor's own prefetcher wants to see that.
///
/// # Safety
/// As [`distances`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn run32<const SQUARE: bool, const ABS: bool>(
    query: *const u32,
    dim: usize,
    rows: *const Row,
    n: usize,
    out: impl Fn(usize, &Row, f32, f32),
) {
    let mut r = 0;
    // SAFETY: row numbers are below `n`.
    #[allow(unused_unsafe)]
    unsafe {
        while r < n {
            let row = *rows.add(r);
            let (sum, size) = row32::<SQUARE, ABS>(query, row.words, dim);
            out(r, &row, sum, size);
            r += 1;
        }
    }
}

/// See [`crate::vexfs_fp_rough`].
///
/// # Safety
/// As there; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn rough(
    metric: u32,
    query: *const u32,
    inv_norm: u64,
    dim: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u32,
) {
    // SAFETY: the caller's promises; `r < n` in `out`.
    let out = |r: usize, row: &Row, sum: f32, _: f32| unsafe {
        keys.add(r).write(rough::finish(metric, sum, inv_norm, row.inv_norm));
    };
    // SAFETY: the caller's promises.
    unsafe {
        if metric == L2 {
            run32::<true, false>(query, dim, rows, n, out);
        } else {
            run32::<false, false>(query, dim, rows, n, out);
        }
    }
}

/// See [`crate::vexfs_fp_bounds`].
///
/// # Safety
/// As there; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn bounds(
    metric: u32,
    query: *const u32,
    inv_norm: u64,
    dim: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u64,
) {
    // SAFETY: the caller's promises; `r < n` in `out`.
    let out = |r: usize, row: &Row, sum: f32, size: f32| unsafe {
        keys.add(r).write(rough::bound(metric, sum, size, dim, inv_norm, row.inv_norm));
    };
    // SAFETY: the caller's promises.
    unsafe {
        match metric {
            L2 => run32::<true, false>(query, dim, rows, n, out),
            IP => run32::<false, true>(query, dim, rows, n, out),
            _ => run32::<false, false>(query, dim, rows, n, out),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn reduce_i32(s: __m256i) -> i32 {
    // SAFETY: registers only.
    #[allow(unused_unsafe)]
    unsafe {
        let four = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256::<1>(s));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
    }
}

/// See [`crate::vexfs_fp_codes`].
///
/// # Safety
/// As there; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn codes(metric: u32, query: *const u8, len: usize, rows: *const Row, n: usize, keys: *mut u32) {
    let mut r = 0;
    // SAFETY: row numbers are below `n`; `i + 16 <= len`, which is a multiple of 16.
    #[allow(unused_unsafe)]
    unsafe {
        let terms = rough::terms(query, len);
        while r < n {
            // The last row stands in for those that are not there.
            let last = n - 1;
            let at = |k: usize| (*rows.add(if r + k < n { r + k } else { last })).words.cast::<u8>();
            let v = [at(0), at(1), at(2), at(3)];
            let mut s = [_mm256_setzero_si256(); 4];
            let mut i = 0;
            while i < len {
                let q = _mm256_cvtepu8_epi16(_mm_loadu_si128(query.add(i).cast()));
                let q = _mm256_sub_epi16(q, _mm256_set1_epi16(128));
                let mut k = 0;
                while k < 4 {
                    let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(v[k].add(i).cast()));
                    s[k] = _mm256_add_epi32(s[k], _mm256_madd_epi16(q, x));
                    k += 1;
                }
                i += 16;
            }
            let mut k = 0;
            while k < 4 && r + k < n {
                let key = rough::finish_codes(metric, reduce_i32(s[k]), terms, rough::terms(v[k], len));
                keys.add(r + k).write(key);
                k += 1;
            }
            r += 4;
        }
    }
}

/// Verdicts on eight vectors of a panel, as [`crate::sift::stays`]; `terms` are those of the first of them.
///
/// # Safety
/// `terms` lies in a panel.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn stay(metric: u32, product: __m256i, s: &Sieve, terms: *const u8) -> u16 {
    // SAFETY: three times 16 f32.
    #[allow(unused_unsafe)]
    unsafe {
        let set = |bits: u32| _mm256_set1_ps(f32::from_bits(bits));
        let scale = _mm256_loadu_ps(terms.cast());
        let norm = _mm256_loadu_ps(terms.add(64).cast());
        let error = _mm256_loadu_ps(terms.add(128).cast());
        let dot = _mm256_cvtepi32_ps(_mm256_sub_epi32(product, _mm256_set1_epi32(s.bias)));
        let p = _mm256_mul_ps(_mm256_mul_ps(dot, set(s.scale)), scale);
        let mask = if metric == IP {
            let more = _mm256_add_ps(_mm256_mul_ps(set(s.norm), error), _mm256_mul_ps(set(s.error), norm));
            _mm256_cmp_ps::<_CMP_NLT_UQ>(_mm256_add_ps(p, more), set(s.limit))
        } else {
            let both = _mm256_add_ps(set(s.norm), norm);
            let t = _mm256_add_ps(set(s.limit), error);
            let most = _mm256_add_ps(_mm256_mul_ps(t, t), _mm256_mul_ps(both, _mm256_set1_ps(SLACK)));
            _mm256_cmp_ps::<_CMP_NGT_UQ>(_mm256_sub_ps(both, _mm256_add_ps(p, p)), most)
        };
        _mm256_movemask_ps(mask) as u16
    }
}

/// Sifts a panel with `Q` queries.
///
/// # Safety
/// As [`sift`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn tile<const Q: usize>(metric: u32, panel: *const u8, steps: usize, sieves: *const Sieve, masks: *mut u16) {
    // SAFETY: `j < Q`, `i < steps`.
    #[allow(unused_unsafe)]
    unsafe {
        let mut s = [[_mm256_setzero_si256(); 4]; Q];
        let mut i = 0;
        while i < steps {
            let mut q = [_mm256_setzero_si256(); Q];
            let mut j = 0;
            while j < Q {
                let four = (*sieves.add(j)).codes.add(i * 4).cast::<i32>().read_unaligned();
                q[j] = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
                j += 1;
            }
            let mut k = 0;
            while k < 4 {
                // Four vectors, four elements each.
                let v = _mm256_cvtepu8_epi16(_mm_loadu_si128(panel.add(i * 64 + k * 16).cast()));
                j = 0;
                while j < Q {
                    s[j][k] = _mm256_add_epi32(s[j][k], _mm256_madd_epi16(v, q[j]));
                    j += 1;
                }
                k += 1;
            }
            i += 1;
        }
        let mut j = 0;
        while j < Q {
            let (sieve, terms) = (&*sieves.add(j), panel.add(steps * 64));
            // The two halves of each product; the sums of neighbours come out as 0 1 4 5 2 3 6 7.
            let low = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(s[j][0], s[j][1]));
            let high = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(s[j][2], s[j][3]));
            let mask = stay(metric, low, sieve, terms) | stay(metric, high, sieve, terms.add(32)) << 8;
            masks.add(j * SIFT_PANELS).write(mask);
            j += 1;
        }
    }
}

/// See [`crate::vexfs_fp_sift`].
///
/// # Safety
/// As there; the CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn sift(
    metric: u32,
    panels: *const *const u8,
    n: usize,
    steps: usize,
    sieves: *const Sieve,
    m: usize,
    masks: *mut u16,
) {
    let mut k = 0;
    // SAFETY: the caller's promises; a tile does not reach behind `m` queries.
    #[allow(unused_unsafe)]
    unsafe {
        while k < n {
            let panel = *panels.add(k);
            let mut j = 0;
            while j < m {
                let (s, out) = (sieves.add(j), masks.add(j * SIFT_PANELS + k));
                if m - j >= 2 {
                    tile::<2>(metric, panel, steps, s, out);
                    j += 2;
                } else {
                    tile::<1>(metric, panel, steps, s, out);
                    j += 1;
                }
            }
            k += 1;
        }
    }
}
