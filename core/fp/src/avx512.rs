// SPDX-License-Identifier: GPL-2.0-only
//! All kernels with AVX-512 (F, BW, VNNI): the eight f64 lanes in one register, the 32 f32 lanes in two. As everywhere,
//! multiplications and additions are separate instructions.
#![allow(clippy::incompatible_msrv)] // compiled only where the compiler has them (build.rs)

use crate::avx2::fetch;
use crate::rough::LANES;
use crate::sift::{Sieve, SIFT_PANELS, SLACK};
use crate::{finish, reduce, rough, Row, IP, L2};
use core::arch::x86_64::{
    __cpuid, __cpuid_count, __m256, __m512, __m512d, __m512i, _mm256_add_ps, _mm256_castpd_ps, _mm256_castps256_ps128,
    _mm256_extractf128_ps, _mm256_loadu_ps, _mm512_abs_ps, _mm512_add_pd, _mm512_add_ps, _mm512_castps512_ps256,
    _mm512_castps_pd, _mm512_cmp_ps_mask, _mm512_cvtepi32_ps, _mm512_cvtps_pd, _mm512_dpbusd_epi32,
    _mm512_extractf64x4_pd, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_maskz_loadu_ps, _mm512_mul_pd, _mm512_mul_ps,
    _mm512_reduce_add_epi32, _mm512_set1_epi32, _mm512_set1_epi8, _mm512_set1_ps, _mm512_setzero_pd, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_pd, _mm512_sub_epi32, _mm512_sub_pd, _mm512_sub_ps, _mm512_xor_si512,
    _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_shuffle_ps, _xgetbv, _CMP_NGT_UQ, _CMP_NLT_UQ,
};

/// Whether the CPU has what is used here and the operating system keeps its registers.
pub(crate) fn available() -> bool {
    // F, BW; VNNI.
    const EBX: u32 = 1 << 16 | 1 << 30;
    const ECX: u32 = 1 << 11;
    // SAFETY: every x86-64 CPU has cpuid; leaf 7 is there where AVX2 is, and OSXSAVE as well.
    #[allow(unused_unsafe)]
    unsafe {
        if !crate::avx2::available() || __cpuid(0).eax < 7 || !registers_kept() {
            return false;
        }
        let leaf = __cpuid_count(7, 0);
        leaf.ebx & EBX == EBX && leaf.ecx & ECX == ECX
    }
}

/// # Safety
/// The CPU has OSXSAVE.
#[target_feature(enable = "xsave")]
unsafe fn registers_kept() -> bool {
    // SAFETY: the caller promises OSXSAVE.
    #[allow(unused_unsafe)]
    unsafe {
        _xgetbv(0) & 0xe6 == 0xe6
    }
}

/// Eight elements from `p` as f64.
///
/// # Safety
/// `p` holds eight f32.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn eight(p: *const u32) -> __m512d {
    // SAFETY: the caller promises the memory; the load is unaligned.
    #[allow(unused_unsafe)]
    unsafe {
        let x: __m256 = _mm256_loadu_ps(p.cast());
        _mm512_cvtps_pd(x)
    }
}

/// Adds one step of the canonical kernel.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn step<const SQUARE: bool>(s: __m512d, q: __m512d, v: __m512d) -> __m512d {
    // SAFETY: registers only.
    #[allow(unused_unsafe)]
    unsafe {
        if SQUARE {
            let d = _mm512_sub_pd(q, v);
            _mm512_add_pd(s, _mm512_mul_pd(d, d))
        } else {
            _mm512_add_pd(s, _mm512_mul_pd(q, v))
        }
    }
}

/// Canonical sums for four rows at once.
///
/// # Safety
/// `q` and the rows hold `dim` elements; the CPU has AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn four<const SQUARE: bool>(q: *const u32, v: [*const u32; 4], dim: usize) -> [f64; 4] {
    // SAFETY: `i + 8 <= dim` inside the loop; less than eight are left behind it.
    #[allow(unused_unsafe)]
    unsafe {
        let mut s = [_mm512_setzero_pd(); 4];
        let mut i = 0;
        while dim - i >= 8 {
            let x = eight(q.add(i));
            let mut k = 0;
            while k < 4 {
                s[k] = step::<SQUARE>(s[k], x, eight(v[k].add(i)));
                k += 1;
            }
            i += 8;
        }
        if i < dim {
            // A lane is never −0.0, so adding zeros changes none.
            let mask = (1u16 << (dim - i)) - 1;
            let part = |p: *const u32| {
                let x: __m512 = _mm512_maskz_loadu_ps(mask, p.cast());
                _mm512_cvtps_pd(_mm512_castps512_ps256(x))
            };
            let x = part(q.add(i));
            let mut k = 0;
            while k < 4 {
                s[k] = step::<SQUARE>(s[k], x, part(v[k].add(i)));
                k += 1;
            }
        }
        let mut out = [0.0; 4];
        let mut k = 0;
        while k < 4 {
            let mut lanes = [0.0; 8];
            _mm512_storeu_pd(lanes.as_mut_ptr(), s[k]);
            out[k] = reduce(lanes);
            k += 1;
        }
        out
    }
}

/// See [`crate::vexfs_fp_distances`].
///
/// # Safety
/// As there; the CPU has AVX-512.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn distances(
    metric: u32,
    query: *const u32,
    inv_norm: u64,
    dim: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u64,
) {
    let mut r = 0;
    // SAFETY: row numbers are below `n`.
    #[allow(unused_unsafe)]
    unsafe {
        while r < n {
            // The last row stands in for those that are not there.
            let at = |k: usize| (*rows.add(if r + k < n { r + k } else { n - 1 })).words;
            let v = [at(0), at(1), at(2), at(3)];
            let mut k = 4;
            while k < 8 && r + k < n {
                fetch(at(k), dim);
                k += 1;
            }
            let sums = if metric == L2 { four::<true>(query, v, dim) } else { four::<false>(query, v, dim) };
            k = 0;
            while k < 4 && r + k < n {
                keys.add(r + k).write(finish(metric, sums[k], inv_norm, (*rows.add(r + k)).inv_norm));
                k += 1;
            }
            r += 4;
        }
    }
}

/// Adds 16 lanes of the f32 kernel, and what they weigh to `size` if `ABS`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn step16<const SQUARE: bool, const ABS: bool>(s: &mut __m512, size: &mut __m512, q: __m512, v: __m512) {
    // SAFETY: registers only.
    #[allow(unused_unsafe)]
    unsafe {
        let term = if SQUARE {
            let d = _mm512_sub_ps(q, v);
            _mm512_mul_ps(d, d)
        } else {
            _mm512_mul_ps(q, v)
        };
        *s = _mm512_add_ps(*s, term);
        if ABS {
            *size = _mm512_add_ps(*size, _mm512_abs_ps(term));
        }
    }
}

/// Sums the 32 lanes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn reduce32(low: __m512, high: __m512) -> f32 {
    // SAFETY: registers only.
    #[allow(unused_unsafe)]
    unsafe {
        let s = _mm512_add_ps(low, high);
        let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(s)));
        let eight = _mm256_add_ps(_mm512_castps512_ps256(s), upper);
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Sum of the f32 kernel for a row; the second value is 0 unless `ABS`.
///
/// # Safety
/// `q` and `v` hold `dim` elements; the CPU has AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn row32<const SQUARE: bool, const ABS: bool>(q: *const u32, v: *const u32, dim: usize) -> (f32, f32) {
    // SAFETY: `i + 32 <= dim` inside the loop; the masks leave out what is behind the end.
    #[allow(unused_unsafe)]
    unsafe {
        let zero = _mm512_setzero_ps();
        let (mut s0, mut s1, mut size0, mut size1) = (zero, zero, zero, zero);
        let mut i = 0;
        while dim - i >= LANES {
            let load = |p: *const u32| _mm512_loadu_ps(p.cast());
            step16::<SQUARE, ABS>(&mut s0, &mut size0, load(q.add(i)), load(v.add(i)));
            step16::<SQUARE, ABS>(&mut s1, &mut size1, load(q.add(i + 16)), load(v.add(i + 16)));
            i += LANES;
        }
        if i < dim {
            // A lane is never −0.0, so adding zeros changes none.
            let mask = (1u32 << (dim - i)) - 1;
            let load = |mask: u32, p: *const u32| _mm512_maskz_loadu_ps(mask as u16, p.cast());
            step16::<SQUARE, ABS>(&mut s0, &mut size0, load(mask, q.add(i)), load(mask, v.add(i)));
            let (mask, q, v) = (mask >> 16, q.wrapping_add(i + 16), v.wrapping_add(i + 16));
            step16::<SQUARE, ABS>(&mut s1, &mut size1, load(mask, q), load(mask, v));
        }
        (reduce32(s0, s1), if ABS { reduce32(size0, size1) } else { 0.0 })
    }
}

/// Gives the sums of all rows to `out`: (row number, row, sum, size). One after the other: rows of a scan lie behind each
/// other, and the processor's own prefetcher wants to see that.
///
/// # Safety
/// As [`distances`].
#[inline]
#[target_feature(enable = "avx512f")]
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
/// As there; the CPU has AVX-512.
#[target_feature(enable = "avx512f")]
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
/// As there; the CPU has AVX-512.
#[target_feature(enable = "avx512f")]
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

/// See [`crate::vexfs_fp_codes`].
///
/// # Safety
/// As there; the CPU has AVX-512 with BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(crate) unsafe fn codes(metric: u32, query: *const u8, len: usize, rows: *const Row, n: usize, keys: *mut u32) {
    let mut r = 0;
    // SAFETY: row numbers are below `n`; `i + 64 <= len`, which is a multiple of 64.
    #[allow(unused_unsafe)]
    unsafe {
        let terms = rough::terms(query, len);
        let flip = _mm512_set1_epi8(-128);
        while r < n {
            // The last row stands in for those that are not there.
            let at = |k: usize| (*rows.add(if r + k < n { r + k } else { n - 1 })).words.cast::<u8>();
            let v = [at(0), at(1), at(2), at(3)];
            let mut s: [__m512i; 4] = [_mm512_setzero_si512(); 4];
            let mut i = 0;
            while i < len {
                let q = _mm512_xor_si512(_mm512_loadu_si512(query.add(i).cast()), flip);
                let mut k = 0;
                while k < 4 {
                    // Four products of a stored code (unsigned) with one of the query (signed) each, not saturated.
                    s[k] = _mm512_dpbusd_epi32(s[k], _mm512_loadu_si512(v[k].add(i).cast()), q);
                    k += 1;
                }
                i += 64;
            }
            let mut k = 0;
            while k < 4 && r + k < n {
                let key = rough::finish_codes(metric, _mm512_reduce_add_epi32(s[k]), terms, rough::terms(v[k], len));
                keys.add(r + k).write(key);
                k += 1;
            }
            r += 4;
        }
    }
}

/// Verdicts on the 16 vectors of a panel, as [`crate::sift::stays`].
///
/// # Safety
/// `terms` are those of a panel.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn stay(metric: u32, product: __m512i, s: &Sieve, terms: *const u8) -> u16 {
    // SAFETY: three times 16 f32.
    #[allow(unused_unsafe)]
    unsafe {
        let set = |bits: u32| _mm512_set1_ps(f32::from_bits(bits));
        let scale = _mm512_loadu_ps(terms.cast());
        let norm = _mm512_loadu_ps(terms.add(64).cast());
        let error = _mm512_loadu_ps(terms.add(128).cast());
        let dot = _mm512_cvtepi32_ps(_mm512_sub_epi32(product, _mm512_set1_epi32(s.bias)));
        let p = _mm512_mul_ps(_mm512_mul_ps(dot, set(s.scale)), scale);
        if metric == IP {
            let more = _mm512_add_ps(_mm512_mul_ps(set(s.norm), error), _mm512_mul_ps(set(s.error), norm));
            _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_add_ps(p, more), set(s.limit))
        } else {
            let both = _mm512_add_ps(set(s.norm), norm);
            let t = _mm512_add_ps(set(s.limit), error);
            let most = _mm512_add_ps(_mm512_mul_ps(t, t), _mm512_mul_ps(both, _mm512_set1_ps(SLACK)));
            _mm512_cmp_ps_mask::<_CMP_NGT_UQ>(_mm512_sub_ps(both, _mm512_add_ps(p, p)), most)
        }
    }
}

/// Sifts `P` panels with `Q` queries: a product of each with each in a register.
///
/// # Safety
/// As [`sift`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const P: usize, const Q: usize>(
    metric: u32,
    panels: *const *const u8,
    steps: usize,
    sieves: *const Sieve,
    masks: *mut u16,
) {
    // SAFETY: `k < P`, `j < Q`, `i < steps`.
    #[allow(unused_unsafe)]
    unsafe {
        let mut at = [core::ptr::null::<u8>(); P];
        let mut codes = [core::ptr::null::<i8>(); Q];
        let mut k = 0;
        while k < P {
            at[k] = *panels.add(k);
            k += 1;
        }
        let mut j = 0;
        while j < Q {
            codes[j] = (*sieves.add(j)).codes;
            j += 1;
        }
        let mut s = [[_mm512_setzero_si512(); P]; Q];
        let mut i = 0;
        while i < steps {
            let mut v = [_mm512_setzero_si512(); P];
            k = 0;
            while k < P {
                v[k] = _mm512_loadu_si512(at[k].add(i * 64).cast());
                k += 1;
            }
            j = 0;
            while j < Q {
                let q = _mm512_set1_epi32(codes[j].add(i * 4).cast::<i32>().read_unaligned());
                k = 0;
                while k < P {
                    s[j][k] = _mm512_dpbusd_epi32(s[j][k], v[k], q);
                    k += 1;
                }
                j += 1;
            }
            i += 1;
        }
        j = 0;
        while j < Q {
            k = 0;
            while k < P {
                let mask = stay(metric, s[j][k], &*sieves.add(j), at[k].add(steps * 64));
                masks.add(j * SIFT_PANELS + k).write(mask);
                k += 1;
            }
            j += 1;
        }
    }
}

/// See [`crate::vexfs_fp_sift`].
///
/// # Safety
/// As there; the CPU has AVX-512 with BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(crate) unsafe fn sift(
    metric: u32,
    panels: *const *const u8,
    n: usize,
    steps: usize,
    sieves: *const Sieve,
    m: usize,
    masks: *mut u16,
) {
    let mut j = 0;
    // SAFETY: the caller's promises; a tile does not reach behind `n` panels and `m` queries.
    #[allow(unused_unsafe)]
    unsafe {
        while j < m {
            let (s, out) = (sieves.add(j), masks.add(j * SIFT_PANELS));
            if n == SIFT_PANELS && m - j >= 5 {
                tile::<4, 5>(metric, panels, steps, s, out);
                j += 5;
            } else if n == SIFT_PANELS && m - j >= 3 {
                tile::<4, 3>(metric, panels, steps, s, out);
                j += 3;
            } else if n == SIFT_PANELS {
                tile::<4, 1>(metric, panels, steps, s, out);
                j += 1;
            } else {
                let mut k = 0;
                while k < n {
                    tile::<1, 1>(metric, panels.add(k), steps, s, out.add(k));
                    k += 1;
                }
                j += 1;
            }
        }
    }
}
