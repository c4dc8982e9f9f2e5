// SPDX-License-Identifier: GPL-2.0-only
//! The floating-point leaf of VexFS: distance kernels behind pointers and integers.
//!
//! Kernel code is soft-float, so all floating point of VexFS is in this crate, which is compiled as a
//! hard-float object of its own. Its functions take pointers and integers, give results through pointers or as
//! integers, call nothing outside the crate and cannot panic.
//!
//! **The canonical kernel.** One definition of each distance, which every path computes bit for bit:
//! elements are converted to f64 (exact); element `i` goes to lane `i % 8`; a lane adds its terms in
//! order of `i`, a separate multiplication and addition each (never fused); the lanes are summed as
//! `((s0+s4) + (s2+s6)) + ((s1+s5) + (s3+s7))`. Then
//!
//! - l2: the sum of `(q−v)·(q−v)`;
//! - ip: minus the sum of `q·v`;
//! - cosine: `1 − (sum·inv_q)·inv_v`, with `inv = 1/sqrt(sum of squares)`.
//!
//! In f64 no sum of at most 65,536 terms of f32 can overflow, and products of f32 are exact.
//!
//! **The rough kernels** are for finding, not for reporting; every path computes them bit for bit as well.
//!
//! - *f32* ([`vexfs_fp_rough`]): element `i` goes to lane `i % 32`; in a lane a multiplication and an addition each,
//!   rounded to f32; the lanes are summed by adding the upper half onto the lower one until one is left. The end
//!   (norms) is computed in f64. [`vexfs_fp_bounds`] gives a proven lower bound of the canonical kernel's key with
//!   it (see `rough::bound`).
//! - *codes* ([`vexfs_fp_codes`]): an element is the nearest multiple of a 127th of the vector's largest one
//!   ([`vexfs_fp_encode`]); products of codes are summed exactly in integers.
//! - *sifting* ([`vexfs_fp_sift`]): such codes of 16 vectors side by side, with a proven bound of what they leave out (see
//!   `sift`).
//!
//! **Keys.** A distance leaves the crate as a `u64` that orders as the distances do: the f64's bits with
//! the sign bit flipped, or all bits if it is negative. −0.0 becomes 0.0, NaN (only from damaged inverse
//! norms) the largest key. Rough distances leave it as the same of an f32, in a `u32`.
#![no_std]

#[cfg(test)]
extern crate std;

// The kernel's side compiles this crate once more for its soft-float target, for the interface only; there the vector
// instructions do not exist.
#[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(target_os = "none"), vexfs_avx512))]
mod avx512;
mod cluster;
mod fastscan;
#[cfg(all(target_arch = "x86_64", not(target_os = "none"), vexfs_avx512))]
mod fastscan512;
mod rough;
mod scalar;
mod sift;

pub use cluster::*;
pub use fastscan::*;
pub use sift::{panel_size, Sieve, SIFT_DIM_MAX, SIFT_PANELS, SIFT_ROWS};

/// One stored vector.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its elements, f32 bits.
    pub words: *const u32,
    /// Bits of its f64 inverse norm; only cosine looks at it.
    pub inv_norm: u64,
}

/// What [`vexfs_fp_check`] finds out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// 0 acceptable; 1 an element is NaN or infinite; 2 the squared norm is out of range.
    pub status: u32,
    /// 1 if all elements are zero.
    pub zero: u32,
    /// Bits of the f64 inverse norm; 0 if zero or not acceptable.
    pub inv_norm: u64,
}

/// What stands behind the codes of a vector.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Bits of the f32 that a code is multiplied by; under cosine by the inverse norm as well.
    pub scale: u32,
    /// Bits of the f32 squared norm of what the codes stand for (l2), else 0.
    pub norm: u32,
    /// Sum of the codes.
    pub sum: i32,
    /// 1 if the codes are a poor likeness of the vector.
    pub coarse: u32,
}

/// Bytes of [`Terms`].
pub const TERMS_SIZE: usize = 16;

/// The codes of a row, without its terms, are a multiple of so many bytes.
pub const CODES_ALIGN: usize = 64;

/// Squared Euclidean distance (metric numbers are those of the on-disk format).
pub const L2: u32 = 1;
/// 1 − cosine similarity.
pub const COSINE: u32 = 2;
/// − inner product.
pub const IP: u32 = 3;

/// Path: portable code.
pub const SCALAR: u32 = 0;
/// Path: AVX2. Only where [`vexfs_fp_best`] gives it.
pub const AVX2: u32 = 1;
/// Path: AVX-512 with VNNI, where the compiler has it. Only where [`vexfs_fp_best`] gives it.
pub const AVX512: u32 = 2;

/// The key of a distance, from the sum over the lanes.
#[inline(always)]
pub(crate) fn finish(metric: u32, sum: f64, inv_q: u64, inv_v: u64) -> u64 {
    let d = match metric {
        L2 => sum,
        COSINE => 1.0 - (sum * f64::from_bits(inv_q)) * f64::from_bits(inv_v),
        _ => -sum,
    };
    if d.is_nan() {
        return u64::MAX;
    }
    // Adding +0.0 turns −0.0 into +0.0 and changes nothing else.
    let bits = (d + 0.0).to_bits();
    if bits >> 63 != 0 {
        !bits
    } else {
        bits | 1 << 63
    }
}

/// The fixed order in which the eight lanes are summed.
#[inline(always)]
pub(crate) fn reduce(s: [f64; 8]) -> f64 {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = s;
    ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))
}

/// Keys of the distances from `query` to `n` rows of `dim` elements.
///
/// # Safety
/// `query` and every row hold `dim` readable u32; `rows` holds `n` rows, `keys` room for `n` keys; `path` is
/// [`SCALAR`] or one that [`vexfs_fp_best`] gave on this CPU. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_distances(
    path: u32,
    metric: u32,
    query: *const u32,
    inv_norm: u64,
    dim: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u64,
) {
    #[cfg(all(target_arch = "x86_64", not(target_os = "none"), vexfs_avx512))]
    if path == AVX512 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX-512.
        unsafe { avx512::distances(metric, query, inv_norm, dim, rows, n, keys) };
        return;
    }
    #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
    if path == AVX2 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX2.
        unsafe { avx2::distances(metric, query, inv_norm, dim, rows, n, keys) };
        return;
    }
    let _ = path;
    // SAFETY: the caller promises the pointers.
    unsafe { scalar::distances(metric, query, inv_norm, dim, rows, n, keys) };
}

/// Rough keys of the distances from `query` to `n` rows of `dim` elements, with the f32 kernel.
///
/// # Safety
/// As [`vexfs_fp_distances`].
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_rough(
    path: u32,
    metric: u32,
    query: *const u32,
    inv_norm: u64,
    dim: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u32,
) {
    #[cfg(all(target_arch = "x86_64", not(target_os = "none"), vexfs_avx512))]
    if path == AVX512 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX-512.
        unsafe { avx512::rough(metric, query, inv_norm, dim, rows, n, keys) };
        return;
    }
    #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
    if path == AVX2 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX2.
        unsafe { avx2::rough(metric, query, inv_norm, dim, rows, n, keys) };
        return;
    }
    let _ = path;
    // SAFETY: the caller promises the pointers.
    unsafe { scalar::rough(metric, query, inv_norm, dim, rows, n, keys) };
}

/// Keys that those of [`vexfs_fp_distances`] are not below, computed with the f32 kernel. The inverse norms must be
/// those of the vectors.
///
/// # Safety
/// As [`vexfs_fp_distances`].
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_bounds(
    path: u32,
    metric: u32,
    query: *const u32,
    inv_norm: u64,
    dim: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u64,
) {
    #[cfg(all(target_arch = "x86_64", not(target_os = "none"), vexfs_avx512))]
    if path == AVX512 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX-512.
        unsafe { avx512::bounds(metric, query, inv_norm, dim, rows, n, keys) };
        return;
    }
    #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
    if path == AVX2 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX2.
        unsafe { avx2::bounds(metric, query, inv_norm, dim, rows, n, keys) };
        return;
    }
    let _ = path;
    // SAFETY: the caller promises the pointers.
    unsafe { scalar::bounds(metric, query, inv_norm, dim, rows, n, keys) };
}

/// Rough keys of the distances from a query to `n` rows, all as codes of `len` bytes with their [`Terms`] behind them.
///
/// # Safety
/// `query` and every row hold `len` readable bytes, a multiple of [`CODES_ALIGN`] and at most 65,536, and terms behind
/// them, aligned to 4 bytes; the rest as in [`vexfs_fp_distances`].
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_codes(
    path: u32,
    metric: u32,
    query: *const u8,
    len: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u32,
) {
    #[cfg(all(target_arch = "x86_64", not(target_os = "none"), vexfs_avx512))]
    if path == AVX512 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX-512.
        unsafe { avx512::codes(metric, query, len, rows, n, keys) };
        return;
    }
    #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
    if path == AVX2 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX2.
        unsafe { avx2::codes(metric, query, len, rows, n, keys) };
        return;
    }
    let _ = path;
    // SAFETY: the caller promises the pointers.
    unsafe { scalar::codes(metric, query, len, rows, n, keys) };
}

/// Makes the codes of a vector, `len` bytes, and their terms; `inv_norm` as in a [`Row`]. A code is stored 128 too large;
/// behind the vector's end are zeros, so 128. Gives [`Terms::coarse`].
///
/// # Safety
/// `words` holds `dim` readable u32; `codes` has room for `len >= dim` bytes, a multiple of [`CODES_ALIGN`], and the terms,
/// and is aligned to 4 bytes. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_encode(
    metric: u32,
    words: *const u32,
    dim: usize,
    inv_norm: u64,
    codes: *mut u8,
    len: usize,
) -> u32 {
    // SAFETY: the caller promises the pointers.
    unsafe {
        let terms = rough::encode(metric, words, dim, inv_norm, codes, len);
        codes.add(len).cast::<Terms>().write(terms);
        terms.coarse
    }
}

/// Puts a vector into a panel, as the one in place `lane`; `inv_norm` as in a [`Row`].
///
/// # Safety
/// `words` holds `dim` readable u32, at most [`SIFT_DIM_MAX`]; `panel` has [`panel_size`] bytes and is aligned to 64;
/// `lane < SIFT_ROWS`. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_panel_put(
    metric: u32,
    words: *const u32,
    dim: usize,
    inv_norm: u64,
    panel: *mut u8,
    lane: usize,
) {
    // SAFETY: the caller promises the pointers.
    unsafe { sift::put(metric, words, dim, inv_norm, panel, lane) };
}

/// Makes the codes of a query, a multiple of four, and what stands behind them; everything is wanted.
///
/// # Safety
/// `words` holds `dim` readable u32, at most [`SIFT_DIM_MAX`]; `codes` has room for `dim` bytes, rounded up to four; `out` room
/// for the result. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_sieve(
    metric: u32,
    words: *const u32,
    dim: usize,
    inv_norm: u64,
    codes: *mut i8,
    out: *mut Sieve,
) {
    // SAFETY: the caller promises the pointers.
    unsafe { out.write(sift::sieve(metric, words, dim, inv_norm, codes)) };
}

/// Sifts `n` panels with `m` queries: bit `r` of `masks[j * SIFT_PANELS + p]` is 0 only if vector `r` of panel `p` has a key
/// above [`Sieve::wanted`] of query `j`.
///
/// # Safety
/// `panels` holds `n <= SIFT_PANELS` pointers to panels of `4 * steps` elements, `sieves` `m` queries with as many codes; `masks`
/// has room for `m * SIFT_PANELS`; `path` as in [`vexfs_fp_distances`]. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_sift(
    path: u32,
    metric: u32,
    panels: *const *const u8,
    n: usize,
    steps: usize,
    sieves: *mut Sieve,
    m: usize,
    masks: *mut u16,
) {
    let mut j = 0;
    while j < m {
        // SAFETY: `j < m`.
        unsafe { (*sieves.add(j)).renew(metric) };
        j += 1;
    }
    #[cfg(all(target_arch = "x86_64", not(target_os = "none"), vexfs_avx512))]
    if path == AVX512 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX-512.
        unsafe { avx512::sift(metric, panels, n, steps, sieves, m, masks) };
        return;
    }
    #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
    if path == AVX2 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX2.
        unsafe { avx2::sift(metric, panels, n, steps, sieves, m, masks) };
        return;
    }
    let _ = path;
    // SAFETY: the caller promises the pointers.
    unsafe { sift::sift(metric, panels, n, steps, sieves, m, masks) };
}

/// Whether a rough key lies behind a true one by more than `times` the mean error of `n` rough keys, whose true ones are in
/// `keys`: 1 or 0. Without `far` (0) it is about the farthest of `keys` and the nearest.
///
/// # Safety
/// `roughs` and `keys` hold `n` values each. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_apart(
    roughs: *const u32,
    keys: *const u64,
    n: usize,
    near: u64,
    far: u32,
    times: u32,
) -> u32 {
    // SAFETY: the caller promises the pointers.
    unsafe { rough::apart(roughs, keys, n, near, far, times) }
}

/// Examines a vector that may be stored or searched for. Acceptable means: all elements are finite, and the
/// squared norm, rounded to f32, is finite and normal, or all elements are zero. (In f64 no squared norm of
/// f32 elements could be anything else, so the rule is about what f32 programs could compute with.)
///
/// # Safety
/// `words` holds `dim` readable u32, `out` room for the result. In a kernel: inside an FPU section.
#[no_mangle]
pub unsafe extern "C" fn vexfs_fp_check(words: *const u32, dim: usize, out: *mut Checked) {
    // SAFETY: the caller promises the pointers.
    unsafe { out.write(scalar::check(words, dim)) };
}

/// The fastest path that this CPU and operating system can run.
#[no_mangle]
pub extern "C" fn vexfs_fp_best() -> u32 {
    #[cfg(all(target_arch = "x86_64", not(target_os = "none"), vexfs_avx512))]
    if avx512::available() {
        return AVX512;
    }
    #[cfg(all(target_arch = "x86_64", not(target_os = "none")))]
    if avx2::available() {
        return AVX2;
    }
    SCALAR
}
