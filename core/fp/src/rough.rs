// SPDX-License-Identifier: GPL-2.0-only
//! What all paths of the rough kernels share: keys, the error bound, codes.

use crate::{Terms, COSINE, L2};

/// Lanes of the f32 kernel.
pub(crate) const LANES: usize = 32;

/// The 32-bit key of a distance: the f32 nearest to it, ordered as distances are; NaN is the largest.
#[inline(always)]
pub(crate) fn key(d: f64) -> u32 {
    if d.is_nan() {
        return u32::MAX;
    }
    // Adding +0.0 turns −0.0 into +0.0 and changes nothing else.
    let bits = (d as f32 + 0.0).to_bits();
    if bits >> 31 != 0 {
        !bits
    } else {
        bits | 1 << 31
    }
}

/// The key of a rough distance from the f32 sum over the lanes.
#[inline(always)]
pub(crate) fn finish(metric: u32, sum: f32, inv_q: u64, inv_v: u64) -> u32 {
    let sum = f64::from(sum);
    key(match metric {
        L2 => sum,
        COSINE => 1.0 - (sum * f64::from_bits(inv_q)) * f64::from_bits(inv_v),
        _ => -sum,
    })
}

/// A key that the canonical kernel's is not below, from the sum of the f32 kernel (`sum`) and, for ip, the sum of its
/// terms' absolute values (`size`). 0 where nothing is known.
///
/// With u = 2^-24 and m = ⌈dim/32⌉, a lane rounds m − 1 times (its first addition is exact), the tree five times and a
/// term at most three times (difference and square; once for a product). So by the usual analysis (Higham, *Accuracy and
/// Stability of Numerical Algorithms*, 3.1) the f32 sum differs from the exact one by at most γ = 1.01·(m + 7)·u times
/// the sum of the terms' absolute values, and by 2^-150 for each product that is subnormal; sums of subnormal numbers are
/// exact. The canonical kernel does the same with 2^-53 in place of u, which is less than a thousandth of that. `g`
/// below is 2·(dim/32 + 16)·u, more than both and than the rounding of this function.
///
/// - l2: the terms are not negative, so the error is relative to the sum itself: sum·(1 − g);
/// - cosine: by Cauchy and Schwarz the sum of |q·v| is at most |q||v|, so times the inverse norms the error is g;
/// - ip: g times `size`, which is itself as near to its exact value (that is where half of `g` goes).
///
/// A sum that overflows gives an infinity or NaN here: 0.
#[inline(always)]
pub(crate) fn bound(metric: u32, sum: f32, size: f32, dim: usize, inv_q: u64, inv_v: u64) -> u64 {
    /// 2^-149: twice what a subnormal product can be off by.
    const TINY: f64 = 1.401298464324817e-45;
    let g = (dim as f64 / 32.0 + 16.0) * (1.0 / 8388608.0);
    let tiny = dim as f64 * TINY;
    let (q, v) = (f64::from_bits(inv_q), f64::from_bits(inv_v));
    let sum = f64::from(sum);
    let low = match metric {
        L2 => {
            let low = sum * (1.0 - g) - tiny;
            if low < 0.0 {
                0.0
            } else {
                low
            }
        }
        COSINE => (1.0 - (sum * q) * v) - g - (tiny * q) * v,
        _ => -sum - f64::from(size) * g - tiny,
    };
    if !low.is_finite() {
        return 0;
    }
    let bits = (low + 0.0).to_bits();
    if bits >> 63 != 0 {
        !bits
    } else {
        bits | 1 << 63
    }
}

/// The key of a rough distance from the exact integer product of a query's codes with the stored ones, which are
/// 128 too large.
#[inline(always)]
pub(crate) fn finish_codes(metric: u32, product: i32, q: &Terms, v: &Terms) -> u32 {
    let dot = product.wrapping_sub(q.sum.wrapping_mul(128));
    let f = |bits: u32| f64::from(f32::from_bits(bits));
    let x = f64::from(dot) * f(q.scale) * f(v.scale);
    key(match metric {
        L2 => f(q.norm) + f(v.norm) - 2.0 * x,
        COSINE => 1.0 - x,
        _ => -x,
    })
}

/// The terms behind codes.
///
/// # Safety
/// There are `len` bytes of codes and the terms at `codes`.
#[inline(always)]
pub(crate) unsafe fn terms<'a>(codes: *const u8, len: usize) -> &'a Terms {
    // SAFETY: the caller promises the memory; rows are aligned to 4 bytes and `len` is a multiple of 64.
    unsafe { &*codes.add(len).cast::<Terms>() }
}

/// See [`crate::vexfs_fp_encode`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn encode(metric: u32, words: *const u32, dim: usize, inv: u64, codes: *mut u8, len: usize) -> Terms {
    // SAFETY: callers stay below `dim`.
    let at = |i: usize| f32::from_bits(unsafe { *words.add(i) });
    let mut most = 0u32;
    let mut i = 0;
    while i < dim {
        // Without the sign, bits order as the numbers do.
        let w = at(i).to_bits() & 0x7fff_ffff;
        most = if w > most { w } else { most };
        i += 1;
    }
    let most = f32::from_bits(most);
    // Below that the quotient would overflow; nothing that may be stored is.
    let steps = if most > 1e-30 { 127.0 / most } else { 0.0 };
    let (mut sum, mut squares) = (0i32, 0u32);
    i = 0;
    while i < dim {
        // Adding 1.5·2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
        let n = (at(i) * steps + 12_582_912.0).to_bits() as i8;
        // At most 65,536 · 127²: below 2^31.
        sum = sum.wrapping_add(i32::from(n));
        squares = squares.wrapping_add((i32::from(n) * i32::from(n)) as u32);
        // SAFETY: `i < dim <= len`.
        unsafe { codes.add(i).write((n as u8) ^ 128) };
        i += 1;
    }
    while i < len {
        // Volatile, so that no call of memset is made of it: this crate calls nothing.
        // SAFETY: `i < len`.
        unsafe { codes.add(i).write_volatile(128) };
        i += 1;
    }
    let scale = f64::from(most) / 127.0;
    let factor = if metric == COSINE { scale * f64::from_bits(inv) } else { scale };
    let norm = if metric == L2 { scale * scale * f64::from(squares) } else { 0.0 };
    // The error of a code is at most half a step, about 1/√12 of one on average: coarse is an error above 2.5 % of the
    // length.
    let coarse = f64::from(squares) < dim as f64 * (1600.0 / 12.0);
    Terms {
        scale: (factor as f32).to_bits(),
        norm: (norm as f32).to_bits(),
        sum,
        coarse: u32::from(coarse && most != 0.0),
    }
}

/// See [`crate::vexfs_fp_apart`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn apart(roughs: *const u32, keys: *const u64, n: usize, near: u64, far: u32, times: u32) -> u32 {
    let single = |k: u32| f64::from(f32::from_bits(if k >> 31 != 0 { k ^ 1 << 31 } else { !k }));
    let double = |k: u64| f64::from_bits(if k >> 63 != 0 { k ^ 1 << 63 } else { !k });
    let (mut error, mut least, mut most) = (0.0, f64::INFINITY, f64::NEG_INFINITY);
    let mut i = 0;
    while i < n {
        // SAFETY: `i < n`.
        let (rough, key) = unsafe { (single(*roughs.add(i)), double(*keys.add(i))) };
        error += (rough - key).abs();
        least = if key < least { key } else { least };
        most = if key > most { key } else { most };
        i += 1;
    }
    let width = if far == 0 { most - least } else { single(far) - double(near) };
    // False with a NaN, and if both sides are 0.
    u32::from(width * n as f64 > f64::from(times) * error)
}
