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
//! **Keys.** A distance leaves the crate as a `u64` that orders as the distances do: the f64's bits with
//! the sign bit flipped, or all bits if it is negative. −0.0 becomes 0.0, NaN (only from damaged inverse
//! norms) the largest key.
#![no_std]

#[cfg(test)]
extern crate std;

#[cfg(target_arch = "x86_64")]
mod avx2;
mod cluster;
mod scalar;

pub use cluster::*;

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
    #[cfg(target_arch = "x86_64")]
    if path == AVX2 {
        // SAFETY: the caller promises the pointers and that the CPU has AVX2.
        unsafe { avx2::distances(metric, query, inv_norm, dim, rows, n, keys) };
        return;
    }
    let _ = path;
    // SAFETY: the caller promises the pointers.
    unsafe { scalar::distances(metric, query, inv_norm, dim, rows, n, keys) };
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
    #[cfg(target_arch = "x86_64")]
    if avx2::available() {
        return AVX2;
    }
    SCALAR
}
