// SPDX-License-Identifier: GPL-2.0-only
use super::*;
use std::format;
use std::string::{String, ToString};

struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What std makes of the text, in our terms.
fn by_std(s: &str) -> Option<Number> {
    if s.bytes().any(|c| c.is_ascii_alphabetic() && !matches!(c, b'e' | b'E')) {
        return None; // inf, nan
    }
    if let Ok(i) = s.parse::<i64>() {
        return Some(Number::I64(i));
    }
    let f = s.parse::<f64>().ok()?;
    f.is_finite().then_some(Number::F64(f.to_bits()))
}

#[track_caller]
fn same(s: &str) {
    assert_eq!(parse(s.as_bytes()), by_std(s), "{s}");
}

#[test]
fn spelling() {
    for s in [
        "",
        "+",
        "-",
        ".",
        "e5",
        ".e5",
        "1e",
        "1e+",
        "--1",
        "1.2.3",
        "1 ",
        " 1",
        "0x10",
        "1_0",
        "inf",
        "nan",
        "-inf",
        "infinity",
        "NaN",
        "0",
        "-0",
        "+0",
        "00",
        "-0.0",
        "0e0",
        "0e999999999",
        "1.",
        ".5",
        "5.e3",
        "+.5e-3",
        "1E5",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "-9223372036854775809",
        "18446744073709551616",
        "1e400",
        "-1e400",
        "1e-400",
        "1e99999999999999999999",
        "1e-99999999999999999999",
    ] {
        same(s);
    }
    assert_eq!(parse(b"1e400"), None);
    assert_eq!(prefix(b"1e400"), Err(NumberError::TooLarge));
    assert_eq!(prefix(b"12abc"), Ok((Number::I64(12), 2)));
    assert_eq!(prefix(b"abc"), Err(NumberError::Syntax));
}

#[test]
fn borders_of_rounding() {
    for s in [
        "4.9406564584124654e-324",
        "2.4703282292062327e-324",
        "2.4703282292062328e-324",
        "2.2250738585072011e-308",
        "2.2250738585072012e-308",
        "2.2250738585072014e-308",
        "1.7976931348623157e308",
        "1.7976931348623158e308",
        "1.7976931348623159e308",
        "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330286416692887910946555547851940402630657488671505820681908902000708383676273854845817711531764475730270069855571366959622842914819860834936475292719074168444365510704342711559699508093042880",
        "9007199254740993",
        "9007199254740993.0000000000000000000000000001",
        "9007199254740992.9999999999999999999999999999",
        "0.1",
        "0.30000000000000004",
        "123456789012345678901234567890",
        "8.41e21",
        "6.631236871469758276785396630275967242733e-311",
        "1090544144181609348671888949248",
    ] {
        same(s);
        same(&format!("-{s}"));
    }
}

/// The exact decimal of the point halfway between a float and its upper neighbour, and its close neighbours.
#[test]
fn exact_ties() {
    let mut r = Rng(11);
    for _ in 0..3000 {
        let bits = r.next() & 0x7fff_ffff_ffff_ffff;
        let bits = match r.below(4) {
            0 => bits & 0x000f_ffff_ffff_ffff,                             // subnormal
            1 => bits % 0x7fe0_0000_0000_0000,                             // anything
            2 => (bits & 0xf_ffff_ffff_ffff) | (1000 + r.below(60)) << 52, // near 1
            _ => (bits & 0xf_ffff_ffff_ffff) | (2 + r.below(2)) << 52,     // smallest normals
        };
        if bits >= 0x7fe0_0000_0000_0000 {
            continue;
        }
        let tie = halfway(bits);
        same(&tie);
        same(&format!("{tie}00000"));
        same(&format!("{tie}0000000000000000000000000000000000000000000001"));
        let mut below = tie.into_bytes();
        // The last digit of a binary fraction is 5, of a large integer anything.
        let last = below.len() - 1;
        if below[last] > b'0' {
            below[last] -= 1;
        }
        same(&String::from_utf8(below).unwrap());
    }
}

/// The middle between a positive float and the next one, in full.
fn halfway(bits: u64) -> String {
    let exp = (bits >> 52) & 0x7ff;
    let (m, e) = if exp == 0 {
        (bits & 0xf_ffff_ffff_ffff, -1074)
    } else {
        (bits & 0xf_ffff_ffff_ffff | 1 << 52, exp as i64 - 1075)
    };
    let (m, e) = (m * 2 + 1, e - 1);
    // Decimal digits of m * 2^e, lowest first, by schoolbook doubling and halving.
    let mut whole: std::vec::Vec<u8> = m.to_string().bytes().rev().map(|c| c - b'0').collect();
    let mut point = 0usize;
    for _ in 0..e.max(0) {
        let mut carry = 0;
        for d in &mut whole {
            let x = *d * 2 + carry;
            *d = x % 10;
            carry = x / 10;
        }
        if carry > 0 {
            whole.push(carry);
        }
    }
    for _ in 0..(-e).max(0) {
        // Times 5, one more digit behind the point.
        let mut carry = 0;
        for d in &mut whole {
            let x = *d * 5 + carry;
            *d = x % 10;
            carry = x / 10;
        }
        while carry > 0 {
            whole.push(carry % 10);
            carry /= 10;
        }
        point += 1;
    }
    while whole.len() <= point {
        whole.push(0);
    }
    let mut s = String::new();
    for (i, d) in whole.iter().enumerate().rev() {
        s.push((b'0' + d) as char);
        if i == point && point > 0 {
            s.push('.');
        }
    }
    s
}

#[test]
fn random_texts() {
    let mut r = Rng(7);
    for round in 0..600_000u64 {
        let s = match round % 6 {
            // The shortest text of a random float comes back.
            0 => {
                let f = f64::from_bits(r.next());
                if !f.is_finite() {
                    continue;
                }
                let s = format!("{f:e}");
                assert_eq!(by_std(&s).map(|n| cmp(n, Number::F64(f.to_bits()))), Some(Some(Ordering::Equal)));
                s
            }
            1 => format!("{}e{}", r.next(), r.below(700) as i64 - 350),
            2 => format!("{}.{}", r.next(), r.next()),
            3 => format!("{}{}{}e-{}", r.next(), r.next(), r.next(), r.below(400)),
            4 => format!("{}.{:019}{:019}e{}", r.below(1000), r.next() >> 1, r.next() >> 1, r.below(640) as i64 - 330),
            _ => {
                let n = 1 + r.below(12);
                (0..n).map(|_| b"0123456789+-.eE"[r.below(15) as usize] as char).collect()
            }
        };
        same(&s);
    }
}

#[test]
fn very_long_texts() {
    let mut r = Rng(3);
    for n in [100usize, 769, 770, 771, 772, 1000, 5000, 65000] {
        for _ in 0..20 {
            let digits: String = (0..n).map(|_| (b'0' + r.below(10) as u8) as char).collect();
            same(&format!("0.{digits}"));
            same(&format!("{digits}e-{}", n + r.below(40) as usize));
            same(&format!("0.{}{}e{}", "0".repeat(n), r.next(), n as u64 + r.below(10)));
            same(&format!("1{}e-{}", "0".repeat(n), n));
            same(&format!("1{}1e-{}", "0".repeat(n), n));
        }
    }
}

/// Exact comparison in another way: both sides as multiples of 2^-1074 do not fit anything, but floor and rest do.
fn slow_cmp(i: i64, f: f64) -> Ordering {
    if f >= 9223372036854775808.0 {
        return Ordering::Less;
    }
    if f < -9223372036854775808.0 {
        return Ordering::Greater;
    }
    let floor = f.floor();
    match i128::from(i).cmp(&(floor as i128)) {
        Ordering::Equal if f > floor => Ordering::Less,
        o => o,
    }
}

#[test]
fn integers_and_floats() {
    let mut r = Rng(5);
    let edge = [0i64, 1, -1, i64::MAX, i64::MIN, i64::MAX - 1, i64::MIN + 1, 1 << 53, (1 << 53) + 1, -(1 << 53) - 1];
    let floats = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.0,
        -1.0,
        5e-324,
        -5e-324,
        f64::MAX,
        f64::MIN,
        9223372036854775808.0,
        -9223372036854775808.0,
        -9223372036854777856.0,
        9223372036854774784.0,
        9007199254740992.0,
        4503599627370496.5,
        f64::INFINITY,
        f64::NEG_INFINITY,
    ];
    for i in edge {
        for f in floats {
            assert_eq!(cmp_i64_f64(i, f.to_bits()), Some(slow_cmp(i, f)), "{i} {f}");
        }
        assert_eq!(cmp_i64_f64(i, f64::NAN.to_bits()), None);
    }
    for _ in 0..2_000_000 {
        let i = r.next() as i64 >> r.below(64);
        let f = match r.below(4) {
            0 => i as f64,
            1 => f64::from_bits((i as f64).to_bits() ^ (1 << r.below(4))),
            2 => i as f64 + 0.5,
            _ => f64::from_bits(r.next()),
        };
        let want = if f.is_nan() { None } else { Some(slow_cmp(i, f)) };
        assert_eq!(cmp_i64_f64(i, f.to_bits()), want, "{i} {f}");
        let g = f64::from_bits(if r.below(2) == 0 { r.next() } else { f.to_bits() ^ (1 << 63) });
        assert_eq!(cmp_f64(f.to_bits(), g.to_bits()), f.partial_cmp(&g), "{f} {g}");
    }
}
