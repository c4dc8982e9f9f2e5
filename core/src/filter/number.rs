// SPDX-License-Identifier: GPL-2.0-only
//! Numbers without floating point: decimal text to i64 or to f64 bits, correctly rounded (to nearest, ties to
//! even), and exact comparison of i64 and f64. The kernel has neither floats nor `str::parse::<f64>`.

use core::cmp::Ordering;

/// A number: an integer that fits i64, or f64 bits (finite).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// An integer.
    I64(i64),
    /// f64 bits, finite.
    F64(u64),
}

/// Why a text is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberError {
    /// It does not look like one.
    Syntax,
    /// It is beyond the largest f64.
    TooLarge,
}

/// Significant digits that are kept; if there are others, whether all of them are zero is enough: no
/// tie between two f64 has more than 767 digits.
const DIGITS: usize = 770;

/// A natural number of at most 2816 bits, in limbs from the lowest on.
struct Big {
    limbs: [u32; Big::LIMBS],
    len: usize,
}

impl Big {
    // Enough for 771 digits (2562 bits), and for 66 bits above 5^1101 (2557 bits).
    const LIMBS: usize = 88;

    const fn zero() -> Big {
        Big { limbs: [0; Big::LIMBS], len: 0 }
    }

    /// `self = self * m + a`; `None` if it does not fit.
    fn mul_add(&mut self, m: u32, a: u32) -> Option<()> {
        let mut carry = u64::from(a);
        for l in self.limbs.get_mut(..self.len)? {
            // At most (2^32 - 1)^2 + 2^32 - 1: no overflow.
            let x = u64::from(*l).wrapping_mul(u64::from(m)).wrapping_add(carry);
            *l = x as u32;
            carry = x >> 32;
        }
        if carry != 0 {
            *self.limbs.get_mut(self.len)? = carry as u32;
            self.len = self.len.wrapping_add(1);
        }
        Some(())
    }

    /// `self = self / d`; the remainder.
    fn div(&mut self, d: u32) -> Option<u32> {
        let d = u64::from(d);
        let mut rem = 0u64;
        for l in self.limbs.get_mut(..self.len)?.iter_mut().rev() {
            let x = (rem << 32) | u64::from(*l);
            *l = x.checked_div(d)? as u32;
            rem = x.checked_rem(d)?;
        }
        while self.len > 0 && self.limbs.get(self.len.wrapping_sub(1)) == Some(&0) {
            self.len = self.len.wrapping_sub(1);
        }
        Some(rem as u32)
    }

    /// Number of bits.
    fn bits(&self) -> u32 {
        match self.len.checked_sub(1).and_then(|i| self.limbs.get(i)) {
            None => 0,
            Some(top) => (self.len as u32).wrapping_mul(32).wrapping_sub(top.leading_zeros()),
        }
    }

    /// `self = self << n`; `None` if it does not fit.
    fn shift_left(&mut self, n: u32) -> Option<()> {
        self.mul_add(1u32.checked_shl(n % 32)?, 0)?;
        let whole = (n / 32) as usize;
        let len = self.len.checked_add(whole)?;
        if self.len == 0 || whole == 0 {
            return Some(());
        }
        self.limbs.get_mut(..len)?.rotate_right(whole);
        self.len = len;
        Some(())
    }

    /// The 64 bits from bit `from` on, and whether a bit below is set.
    fn window(&self, from: u32) -> (u64, bool) {
        let limb = |i: usize| u128::from(self.limbs.get(i).copied().unwrap_or(0));
        let i = (from / 32) as usize;
        let three = limb(i) | limb(i.wrapping_add(1)) << 32 | limb(i.wrapping_add(2)) << 64;
        let low = from % 32;
        let below = self.limbs.get(..i.min(self.len)).is_some_and(|s| s.iter().any(|l| *l != 0));
        // `low` is below 32.
        let cut = three & (1u128 << low).wrapping_sub(1) != 0;
        ((three >> low) as u64, below || cut)
    }
}

/// Rounds `(m + s) * 2^e` to f64 bits without a sign, where `s` is 0 or, if `sticky`, something between 0 and 1.
/// The top bit of `m` is set. `None`: too large.
fn round(m: u64, sticky: bool, e: i32) -> Option<u64> {
    // m in [2^63, 2^64): the value is 1.… * 2^(e + 63). Normal from exponent -1022 on.
    let exp = e.checked_add(63)?;
    let (drop, biased) = if exp >= -1022 {
        (11u32, exp.checked_add(1023)?)
    } else {
        (11u32.saturating_add((-1022i32).saturating_sub(exp) as u32), 0)
    };
    let (kept, lost) = match drop {
        0..=63 => (m >> drop, m & (1u64 << drop).wrapping_sub(1)),
        // Below half of the smallest: at 64 the first lost bit is the top one.
        64 => (0, m),
        _ => (0, 1),
    };
    let half = if drop <= 64 { 1u64 << drop.saturating_sub(1).min(63) } else { u64::MAX };
    let up = match lost.cmp(&half) {
        Ordering::Greater => true,
        Ordering::Less => false,
        Ordering::Equal => sticky || kept & 1 == 1,
    };
    // With the implicit bit of a normal number in place, a carry moves on into the exponent as it should.
    let implicit = if biased > 0 { 1u64 << 52 } else { 0 };
    let base = u64::try_from(biased).ok()?.checked_shl(52)?;
    let bits = if biased > 2046 { return None } else { base.checked_add(kept.checked_sub(implicit)?)? };
    let bits = bits.checked_add(u64::from(up))?;
    if bits >= 0x7ff0_0000_0000_0000 {
        return None;
    }
    Some(bits)
}

/// The parts of a decimal number.
struct Decimal<'a> {
    negative: bool,
    /// Digits before and after the point.
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: i32,
    /// Without point and exponent.
    integer: bool,
}

/// How many of the first bytes are digits.
fn digits(b: &[u8]) -> usize {
    b.iter().take_while(|c| c.is_ascii_digit()).count()
}

/// Takes a number from the start of `b`; how long it is.
fn scan(b: &[u8]) -> Option<(Decimal<'_>, usize)> {
    let sign = usize::from(matches!(b.first(), Some(b'+' | b'-')));
    let negative = b.first() == Some(&b'-');
    let rest = b.get(sign..)?;
    let (whole, rest) = rest.split_at_checked(digits(rest))?;
    let mut integer = true;
    let (mut fraction, mut after): (&[u8], &[u8]) = (&[], rest);
    if rest.first() == Some(&b'.') {
        integer = false;
        let r = rest.get(1..)?;
        (fraction, after) = r.split_at_checked(digits(r))?;
    }
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut exponent = 0i32;
    if matches!(after.first(), Some(b'e' | b'E')) {
        let r = after.get(1..)?;
        let minus = r.first() == Some(&b'-');
        let r = r.get(usize::from(matches!(r.first(), Some(b'+' | b'-')))..)?;
        let (ds, end) = r.split_at_checked(digits(r))?;
        if ds.is_empty() {
            return None;
        }
        integer = false;
        after = end;
        // Saturates far outside of what a text of 64 KiB can balance with digits.
        for d in ds {
            exponent = exponent.saturating_mul(10).saturating_add(i32::from(d.wrapping_sub(b'0')));
        }
        if minus {
            exponent = exponent.saturating_neg();
        }
    }
    let len = b.len().checked_sub(after.len())?;
    Some((Decimal { negative, whole, fraction, exponent, integer }, len))
}

impl Decimal<'_> {
    fn to_i64(&self) -> Option<i64> {
        let mut n = 0i64;
        for d in self.whole {
            let d = i64::from(d.wrapping_sub(b'0'));
            n = n.checked_mul(10)?;
            n = if self.negative { n.checked_sub(d)? } else { n.checked_add(d)? };
        }
        Some(n)
    }

    #[inline(never)]
    fn to_f64(&self) -> Result<u64, NumberError> {
        let sign = if self.negative { 1u64 << 63 } else { 0 };
        let mut all = self.whole.iter().chain(self.fraction).copied().peekable();
        let mut leading = 0i32;
        while all.next_if_eq(&b'0').is_some() {
            leading = leading.saturating_add(1);
        }
        // The value is 0.d1d2d3… * 10^point with d1 not zero.
        let whole = i32::try_from(self.whole.len()).map_err(|_| NumberError::TooLarge)?;
        let point = whole.saturating_sub(leading).saturating_add(self.exponent);
        if all.peek().is_none() || point < -330 {
            return Ok(sign);
        }
        if point > 310 {
            return Err(NumberError::TooLarge);
        }
        let mut n = Big::zero();
        let mut count = 0i32;
        for d in all.by_ref().take(DIGITS) {
            n.mul_add(10, u32::from(d.wrapping_sub(b'0'))).ok_or(NumberError::TooLarge)?;
            count = count.saturating_add(1);
        }
        if all.any(|d| d != b'0') {
            n.mul_add(10, 1).ok_or(NumberError::TooLarge)?;
            count = count.saturating_add(1);
        }
        let scaled = scale(&mut n, point.saturating_sub(count));
        Ok(scaled.ok_or(NumberError::TooLarge)? | sign)
    }
}

/// 5^13, the largest power of 5 in a u32.
const FIVE_13: u32 = 1_220_703_125;

/// `n * 10^p` as f64 bits. `None`: too large. (Not inlined: its caller has the one big number on its stack.)
#[inline(never)]
fn scale(n: &mut Big, p: i32) -> Option<u64> {
    let mut sticky = false;
    let mut five = p.unsigned_abs();
    let mut e = p;
    if p < 0 {
        // Shift up so that at least 65 bits remain after the division by 5^-p (2.33 bits each).
        let want = five.checked_mul(233)?.checked_div(100)?.checked_add(67)?;
        let shift = want.saturating_sub(n.bits());
        n.shift_left(shift)?;
        e = e.checked_sub(i32::try_from(shift).ok()?)?;
    }
    while five > 0 {
        let step = five.min(13);
        let f = if step == 13 { FIVE_13 } else { 5u32.checked_pow(step)? };
        if p < 0 {
            // Dividing step by step rounds down like dividing once; a remainder anywhere is a remainder.
            sticky |= n.div(f)? != 0;
        } else {
            n.mul_add(f, 0)?;
        }
        five = five.saturating_sub(step);
    }
    // n * 2^e. Take its top 64 bits.
    let bits = n.bits();
    let below;
    let m;
    if bits >= 64 {
        let from = bits.saturating_sub(64);
        (m, below) = n.window(from);
        e = e.checked_add(i32::try_from(from).ok()?)?;
    } else {
        let up = 64u32.saturating_sub(bits);
        m = n.window(0).0.checked_shl(up)?;
        below = false;
        e = e.checked_sub(i32::try_from(up).ok()?)?;
    }
    round(m, sticky || below, e)
}

/// Reads the number at the start of `b` and says how many bytes it has: an optional sign, digits with an
/// optional point, an optional exponent. An integer that does not fit i64 becomes the nearest f64.
pub fn prefix(b: &[u8]) -> Result<(Number, usize), NumberError> {
    let (d, len) = scan(b).ok_or(NumberError::Syntax)?;
    if d.integer {
        if let Some(i) = d.to_i64() {
            return Ok((Number::I64(i), len));
        }
    }
    Ok((Number::F64(d.to_f64()?), len))
}

/// The number that `b` wholly is.
pub fn parse(b: &[u8]) -> Option<Number> {
    match prefix(b) {
        Ok((n, len)) if len == b.len() => Some(n),
        _ => None,
    }
}

/// Compares f64 bits. `None` if one is a NaN.
pub fn cmp_f64(a: u64, b: u64) -> Option<Ordering> {
    const INF: u64 = 0x7ff0_0000_0000_0000;
    const SIGN: u64 = 1 << 63;
    if a & !SIGN > INF || b & !SIGN > INF {
        return None;
    }
    // Magnitudes order like integers; both zeros become 0.
    let key = |x: u64| {
        let m = (x & !SIGN) as i64;
        if x & SIGN != 0 {
            m.wrapping_neg()
        } else {
            m
        }
    };
    Some(key(a).cmp(&key(b)))
}

/// Compares an integer with f64 bits, exactly. `None` if that is a NaN.
pub fn cmp_i64_f64(i: i64, bits: u64) -> Option<Ordering> {
    let negative = bits >> 63 == 1;
    let exp = (bits >> 52) & 0x7ff;
    let fraction = bits & ((1 << 52) - 1);
    if exp == 0x7ff && fraction != 0 {
        return None;
    }
    // From 2^63 on (2^1086 with the bias of 1023) no integer is larger, except that -2^63 is one.
    if exp >= 1086 {
        if negative && exp == 1086 && fraction == 0 && i == i64::MIN {
            return Some(Ordering::Equal);
        }
        return Some(if negative { Ordering::Greater } else { Ordering::Less });
    }
    // The magnitude is `whole`, plus a rest below 1.
    let (whole, rest) = if exp < 1023 {
        (0u64, exp != 0 || fraction != 0)
    } else {
        let m = fraction | 1 << 52;
        let e = exp.wrapping_sub(1023) as u32; // 0 ..= 62
        if e >= 52 {
            (m << e.wrapping_sub(52), false)
        } else {
            let low = 52u32.wrapping_sub(e);
            (m >> low, m & (1u64 << low).wrapping_sub(1) != 0)
        }
    };
    // Below 2^63, so it fits.
    let whole = whole as i64;
    let whole = if negative { whole.wrapping_neg() } else { whole };
    Some(i.cmp(&whole).then(match (rest, negative) {
        (false, _) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (true, true) => Ordering::Greater,
    }))
}

/// Compares two numbers, exactly. `None` if one is a NaN.
pub fn cmp(a: Number, b: Number) -> Option<Ordering> {
    match (a, b) {
        (Number::I64(a), Number::I64(b)) => Some(a.cmp(&b)),
        (Number::F64(a), Number::F64(b)) => cmp_f64(a, b),
        (Number::I64(a), Number::F64(b)) => cmp_i64_f64(a, b),
        (Number::F64(a), Number::I64(b)) => cmp_i64_f64(b, a).map(Ordering::reverse),
    }
}

#[cfg(test)]
#[path = "number_tests.rs"]
mod tests;
