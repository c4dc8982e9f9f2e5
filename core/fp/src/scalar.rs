// SPDX-License-Identifier: GPL-2.0-only
//! The reference: the canonical kernel in portable code. The other paths are tested against it.

use crate::rough::LANES;
use crate::{finish, reduce, rough, Checked, Row, IP, L2};

fn at(p: *const u32, i: usize) -> f64 {
    // SAFETY: callers stay below the vector's length, which their own caller promised.
    f64::from(f32::from_bits(unsafe { *p.add(i) }))
}

/// Sum over the eight lanes of `term(i)`.
fn lanes(dim: usize, term: impl Fn(usize) -> f64) -> f64 {
    let mut s = [0.0f64; 8];
    let mut i = 0;
    while dim - i >= 8 {
        for (lane, x) in s.iter_mut().enumerate() {
            *x += term(i + lane);
        }
        i += 8;
    }
    for x in &mut s {
        if i < dim {
            *x += term(i);
            i += 1;
        }
    }
    reduce(s)
}

/// See [`crate::vexfs_fp_distances`].
///
/// # Safety
/// As there.
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
    while r < n {
        // SAFETY: `r < n`.
        let row = unsafe { *rows.add(r) };
        let sum = if metric == L2 {
            lanes(dim, |i| {
                let d = at(query, i) - at(row.words, i);
                d * d
            })
        } else {
            lanes(dim, |i| at(query, i) * at(row.words, i))
        };
        // SAFETY: `r < n`.
        unsafe { keys.add(r).write(finish(metric, sum, inv_norm, row.inv_norm)) };
        r += 1;
    }
}

/// Sum over the 32 lanes of the f32 kernel.
fn lanes32(dim: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut s = [0.0f32; LANES];
    let mut i = 0;
    while dim - i >= LANES {
        for (lane, x) in s.iter_mut().enumerate() {
            *x += term(i + lane);
        }
        i += LANES;
    }
    for x in &mut s {
        if i < dim {
            *x += term(i);
            i += 1;
        }
    }
    reduce32(s)
}

/// The fixed order in which the 32 lanes are summed: halves onto each other.
fn reduce32(s: [f32; LANES]) -> f32 {
    let mut t = s;
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = t.split_at_mut(half);
        for (a, b) in low.iter_mut().zip(high) {
            *a += *b;
        }
        half /= 2;
    }
    let [sum, ..] = t;
    sum
}

fn single(p: *const u32, i: usize) -> f32 {
    // SAFETY: as in `at`.
    f32::from_bits(unsafe { *p.add(i) })
}

fn sum32(metric: u32, q: *const u32, v: *const u32, dim: usize) -> f32 {
    if metric == L2 {
        lanes32(dim, |i| {
            let d = single(q, i) - single(v, i);
            d * d
        })
    } else {
        lanes32(dim, |i| single(q, i) * single(v, i))
    }
}

/// See [`crate::vexfs_fp_rough`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn rough(
    metric: u32,
    query: *const u32,
    inv_norm: u64,
    dim: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u32,
) {
    let mut r = 0;
    while r < n {
        // SAFETY: `r < n`.
        unsafe {
            let row = *rows.add(r);
            let sum = sum32(metric, query, row.words, dim);
            keys.add(r).write(rough::finish(metric, sum, inv_norm, row.inv_norm));
        }
        r += 1;
    }
}

/// See [`crate::vexfs_fp_bounds`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn bounds(
    metric: u32,
    query: *const u32,
    inv_norm: u64,
    dim: usize,
    rows: *const Row,
    n: usize,
    keys: *mut u64,
) {
    let mut r = 0;
    while r < n {
        // SAFETY: `r < n`.
        unsafe {
            let row = *rows.add(r);
            let sum = sum32(metric, query, row.words, dim);
            let mut size = 0.0;
            if metric == IP {
                size = lanes32(dim, |i| (single(query, i) * single(row.words, i)).abs());
            }
            keys.add(r).write(rough::bound(metric, sum, size, dim, inv_norm, row.inv_norm));
        }
        r += 1;
    }
}

/// See [`crate::vexfs_fp_codes`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn codes(metric: u32, query: *const u8, len: usize, rows: *const Row, n: usize, keys: *mut u32) {
    let mut r = 0;
    while r < n {
        // SAFETY: `r < n`, `i < len`.
        unsafe {
            let row = *rows.add(r);
            let v: *const u8 = row.words.cast();
            let (mut product, mut i) = (0i32, 0);
            while i < len {
                let q = (*query.add(i) ^ 128) as i8;
                product = product.wrapping_add(i32::from(q) * i32::from(*v.add(i)));
                i += 1;
            }
            keys.add(r).write(rough::finish_codes(metric, product, rough::terms(query, len), rough::terms(v, len)));
        }
        r += 1;
    }
}

/// See [`crate::vexfs_fp_check`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn check(words: *const u32, dim: usize) -> Checked {
    let mut all = 0u32;
    let mut i = 0;
    while i < dim {
        // SAFETY: `i < dim`.
        let w = unsafe { *words.add(i) } & 0x7fff_ffff;
        if w >= 0x7f80_0000 {
            return Checked { status: 1, ..Checked::default() };
        }
        all |= w;
        i += 1;
    }
    if all == 0 {
        return Checked { status: 0, zero: 1, inv_norm: 0 };
    }
    let sum = lanes(dim, |i| at(words, i) * at(words, i));
    if !(sum as f32).is_normal() {
        return Checked { status: 2, ..Checked::default() };
    }
    Checked { status: 0, zero: 0, inv_norm: (1.0 / sqrt(sum)).to_bits() }
}

/// Correctly rounded square root of a positive normal f64, in integers: `core` has none, and a single
/// implementation is the same on every path and CPU.
pub(crate) fn sqrt(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i32 - 1023;
    let mut m = (bits & ((1 << 52) - 1)) | 1 << 52;
    if exponent & 1 != 0 {
        m <<= 1;
        exponent -= 1;
    }
    // Digit by digit (fdlibm's e_sqrt): `twice` is 2·root; root gets 53 bits and one to round by.
    let (mut twice, mut rest) = (0u64, m << 1);
    let mut bit = 1u64 << 53;
    while bit != 0 {
        let t = twice + bit;
        if rest >= t {
            twice = t + bit;
            rest -= t;
        }
        rest <<= 1;
        bit >>= 1;
    }
    // A tie cannot happen: the rounding digit counts only if something follows it.
    let root = twice >> 1;
    let root = if rest != 0 { root + (root & 1) } else { root };
    // The leading one of root >> 1 adds one to the exponent field.
    f64::from_bits(((((exponent >> 1) + 1022) as u64) << 52) + (root >> 1))
}

#[cfg(test)]
mod tests {
    #[test]
    fn square_root_is_correctly_rounded() {
        let mut x = 88172645463325252u64;
        for i in 0..300_000u64 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            // All exponents that a squared norm can have, and exact squares.
            let exponent = 700 + x % 600;
            let mantissa = if i % 3 == 0 { (x >> 20) & 0xff << 44 } else { x >> 12 };
            let v = f64::from_bits(exponent << 52 | mantissa);
            let v = if i % 5 == 0 { v * v } else { v };
            if v.is_normal() {
                assert_eq!(super::sqrt(v).to_bits(), std::primitive::f64::sqrt(v).to_bits(), "{v:e}");
            }
        }
        for n in 1..2000u32 {
            assert_eq!(super::sqrt(f64::from(n * n)), f64::from(n));
        }
    }
}
