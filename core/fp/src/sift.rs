// SPDX-License-Identifier: GPL-2.0-only
//! Sifting: which of many stored vectors can be no nearer to a query than a limit, decided by a byte for each element. Owns
//! the layout of a panel and the proof of the bound; promises that a vector whose canonical distance is within the limit is
//! never sifted out, and that all paths give the same bits.
//!
//! A *panel* holds [`SIFT_ROWS`] vectors side by side: for each four elements 64 bytes, four of the first vector, four of
//! the second and so on, each code 128 too large; behind them three times 16 f32: scales, norms, errors. So a register
//! holds the products of one query with all vectors of the panel, and nothing has to be summed across it.
//!
//! **The bound.** A vector x (under cosine x times its inverse norm, in f64) is a + e: a code times a scale, an f32 of which a
//! is exactly that multiple, and what is left over. |e| is computed in f64 and rounded up (`error`). For a query y = b + f:
//!
//! - l2: |x − y| ≥ |a − b| − |e| − |f|. With the limit t² the vector is out if |a − b|² > (t + |e| + |f|)²;
//! - cosine: the same, as |x − y|² = 2·(1 − cos) for vectors of length 1;
//! - ip: x·y ≤ a·b + |b||e| + |f||x| (Cauchy and Schwarz). With the limit −t it is out if that is below t.
//!
//! a·b is an integer product, exact, times two scales. The rest is f32: |a − b|² = |a|² + |b|² − 2·a·b is off by at most
//! seven roundings of M = |a|² + |b|², as |2·a·b| ≤ M (conversion and two products: three roundings of it; each norm one, their
//! sum and the difference two), which is less than M·2^-21; the limit's side has M·2^-19 added. For ip the same holds
//! with |x||y|, which stands in `error` of the query. Errors, norms of ip and limits are a 2^-20 too large, which is more
//! than the roundings of what they are computed from and in. A vector whose squared norm is neither 0 nor between 2^-60
//! and 2^120 has an infinite error, so nothing overflows, and what underflows is below 2^-80 and far less than M·2^-19;
//! comparisons with a NaN keep the vector.

use crate::scalar::sqrt;
use crate::{COSINE, IP, L2};

/// Vectors in a panel.
pub const SIFT_ROWS: usize = 16;
/// Most panels in one call.
pub const SIFT_PANELS: usize = 4;
/// Most elements of a vector.
pub const SIFT_DIM_MAX: usize = 4096;

/// A query in codes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sieve {
    /// Its codes, signed bytes, as many as a panel has for each vector.
    pub(crate) codes: *const i8,
    /// Bits of the f32 that a code is multiplied by.
    pub(crate) scale: u32,
    /// l2, cosine: bits of the f32 squared norm of what the codes stand for; ip: of its norm, rounded up.
    pub(crate) norm: u32,
    /// Bits of the f32 norm of what the codes leave out, rounded up. ip: and of what roundings may add, for a vector of length 1.
    pub(crate) error: u32,
    /// 128 times the sum of the codes.
    pub(crate) bias: i32,
    /// Bits of the f32 that stands for the key `limited`.
    pub(crate) limit: u32,
    /// A quarter of the number of codes.
    pub steps: usize,
    /// Vectors with a key above this one may go. Anybody may set it.
    pub wanted: u64,
    /// The key that `limit` was made from.
    limited: u64,
}

/// Bytes of a panel.
pub const fn panel_size(dim: usize) -> usize {
    dim.div_ceil(4) * 64 + 3 * 4 * SIFT_ROWS
}

/// A little more than 1: what is rounded up is multiplied by it.
const UP: f64 = 1.0 + 1.0 / 1048576.0;
/// What all roundings of the f32 part come to at most, relative to its largest term, with room.
pub(crate) const SLACK: f32 = 1.0 / 524288.0;

/// What stands behind codes.
#[derive(Clone, Copy)]
pub(crate) struct Coded {
    scale: f32,
    norm: f32,
    error: f32,
    sum: i32,
}

/// Square root of a number that is not negative, rounded up.
fn root_up(x: f64) -> f64 {
    if x.is_normal() {
        sqrt(x) * UP
    } else if x.is_finite() {
        // Zero, or below 2^-1022.
        if x > 0.0 {
            1.5e-154
        } else {
            0.0
        }
    } else {
        f64::INFINITY
    }
}

/// Makes the codes of a vector, gives them to `put` one after the other.
///
/// # Safety
/// `words` holds `dim` elements.
#[inline(always)]
unsafe fn encode(metric: u32, words: *const u32, dim: usize, inv: u64, put: impl Fn(usize, i8)) -> Coded {
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
    let factor = if metric == COSINE { f64::from_bits(inv) } else { 1.0 };
    // Below 2^-100 the quotient would overflow: such vectors are left to others.
    let steps = if most > 7.9e-31 { 127.0 / most } else { 0.0 };
    let scale = (f64::from(most) * factor / 127.0) as f32;
    let wide = f64::from(scale);
    let (mut sum, mut squares) = (0i32, 0u32);
    // Eight lanes, so that they are computed side by side.
    let (mut left, mut whole) = ([0.0f64; 8], [0.0f64; 8]);
    i = 0;
    while i < dim {
        // Adding 1.5·2^23 rounds to the nearest integer and leaves it in the low bits.
        let n = (at(i) * steps + 12_582_912.0).to_bits() as i8;
        put(i, n);
        sum = sum.wrapping_add(i32::from(n));
        squares = squares.wrapping_add((i32::from(n) * i32::from(n)) as u32);
        let x = f64::from(at(i)) * factor;
        let rest = x - wide * f64::from(n);
        left[i % 8] += rest * rest;
        whole[i % 8] += x * x;
        i += 1;
    }
    let (left, whole) = (crate::reduce(left), crate::reduce(whole));
    // 2^-60 and 2^120; also false for a NaN.
    let usable = whole == 0.0 || (8.673617379884035e-19..=1.329227995784916e36).contains(&whole);
    let norm = if metric == IP { root_up(whole) * UP } else { wide * wide * f64::from(squares) };
    let error = if usable { root_up(left) * UP } else { f64::INFINITY };
    Coded { scale, norm: if usable { norm as f32 } else { 0.0 }, error: error as f32, sum }
}

/// See [`crate::vexfs_fp_panel_put`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn put(metric: u32, words: *const u32, dim: usize, inv: u64, panel: *mut u8, lane: usize) {
    // SAFETY: the caller promises the panel; `i` is below `dim` rounded up to four.
    let to = |i: usize| unsafe { panel.add(i / 4 * 64 + lane * 4 + i % 4) };
    // SAFETY: as above.
    let c = unsafe { encode(metric, words, dim, inv, |i, n| to(i).write((n as u8) ^ 128)) };
    let mut i = dim;
    while i % 4 != 0 {
        // Volatile, so that no call of memset is made of it: this crate calls nothing.
        // SAFETY: as above.
        unsafe { to(i).write_volatile(128) };
        i += 1;
    }
    let end = dim.div_ceil(4) * 64;
    for (k, term) in [c.scale, c.norm, c.error].into_iter().enumerate() {
        // SAFETY: behind the codes there are three times 16 f32, aligned to 64.
        unsafe { panel.add(end + k * 64 + lane * 4).cast::<u32>().write(term.to_bits()) };
    }
}

/// See [`crate::vexfs_fp_sieve`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn sieve(metric: u32, words: *const u32, dim: usize, inv: u64, codes: *mut i8) -> Sieve {
    // SAFETY: the caller promises room for `dim` codes, rounded up to four.
    let c = unsafe { encode(metric, words, dim, inv, |i, n| codes.add(i).write(n)) };
    let mut i = dim;
    while i % 4 != 0 {
        // SAFETY: as above.
        unsafe { codes.add(i).write_volatile(0) };
        i += 1;
    }
    let error = if metric == IP {
        // |f| and the roundings, both times the vector's length, of which `norm` is not below. |b| is at most |y| + |f|.
        (f64::from(c.error) + (f64::from(c.norm) + f64::from(c.error)) * f64::from(SLACK)) * UP
    } else {
        f64::from(c.error)
    };
    let norm = if metric == IP { (f64::from(c.norm) + f64::from(c.error)) * UP } else { f64::from(c.norm) };
    Sieve {
        codes,
        scale: c.scale.to_bits(),
        norm: (norm as f32).to_bits(),
        error: (error as f32).to_bits(),
        bias: c.sum.wrapping_mul(128),
        limit: limit(metric, u64::MAX, error as f32),
        steps: dim.div_ceil(4),
        wanted: u64::MAX,
        limited: u64::MAX,
    }
}

impl Sieve {
    /// Makes the limit from the key that is wanted.
    pub(crate) fn renew(&mut self, metric: u32) {
        if self.wanted != self.limited {
            self.limit = limit(metric, self.wanted, f32::from_bits(self.error));
            self.limited = self.wanted;
        }
    }
}

/// The limit for a key: of |a − b|, with the error of the query, or of a·b. All stay with the key of a NaN.
fn limit(metric: u32, key: u64, error: f32) -> u32 {
    let bar = f64::from_bits(if key >> 63 != 0 { key ^ 1 << 63 } else { !key });
    let all = if metric == IP { f32::NEG_INFINITY } else { f32::INFINITY };
    if bar.is_nan() {
        return all.to_bits();
    }
    let limit = match metric {
        // Two of the f32 downwards, whatever the sign.
        IP => {
            let t = -bar;
            let low = t - (if t < 0.0 { -t } else { t }) * (UP - 1.0);
            low as f32
        }
        _ => {
            let bar = if bar > 0.0 { bar } else { 0.0 };
            // The inverse norms are rounded: 2^-30 is more than that matters.
            let square = if metric == L2 { bar } else { 2.0 * bar + 9.313225746154785e-10 };
            ((root_up(square) + f64::from(error)) * UP) as f32
        }
    };
    if limit.is_nan() {
        all.to_bits()
    } else {
        limit.to_bits()
    }
}

/// Whether the vector with this product and these terms stays: always if there is a NaN.
#[allow(clippy::neg_cmp_op_on_partial_ord)]
#[inline(always)]
pub(crate) fn stays(metric: u32, product: i32, s: &Sieve, scale: f32, norm: f32, error: f32) -> bool {
    let f = f32::from_bits;
    let p = (product.wrapping_sub(s.bias) as f32 * f(s.scale)) * scale;
    if metric == IP {
        let up = p + (f(s.norm) * error + f(s.error) * norm);
        !(up < f(s.limit))
    } else {
        let both = f(s.norm) + norm;
        let t = f(s.limit) + error;
        !(both - (p + p) > t * t + both * SLACK)
    }
}

/// See [`crate::vexfs_fp_sift`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn sift(
    metric: u32,
    panels: *const *const u8,
    n: usize,
    steps: usize,
    sieves: *const Sieve,
    m: usize,
    masks: *mut u16,
) {
    let mut q = 0;
    while q < m {
        let mut p = 0;
        while p < n {
            // SAFETY: `q < m`, `p < n`; the caller promises the panels and the codes.
            unsafe {
                let (s, panel) = (&*sieves.add(q), *panels.add(p));
                let term =
                    |k: usize, row: usize| f32::from_bits(*panel.add(steps * 64 + k * 64 + row * 4).cast::<u32>());
                let (mut mask, mut row) = (0u16, 0);
                while row < SIFT_ROWS {
                    let (mut product, mut i) = (0i32, 0);
                    while i < steps * 4 {
                        let v = *panel.add(i / 4 * 64 + row * 4 + i % 4);
                        product = product.wrapping_add(i32::from(v) * i32::from(*s.codes.add(i)));
                        i += 1;
                    }
                    if stays(metric, product, s, term(0, row), term(1, row), term(2, row)) {
                        mask |= 1 << row;
                    }
                    row += 1;
                }
                masks.add(q * SIFT_PANELS + p).write(mask);
            }
            p += 1;
        }
        q += 1;
    }
}
