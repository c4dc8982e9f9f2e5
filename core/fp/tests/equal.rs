// SPDX-License-Identifier: GPL-2.0-only
//! All paths give the same bits, and the right ones.

use vexfs_fp::*;

struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn vector(rng: &mut Rng, dim: usize, kind: u32) -> Vec<u32> {
    (0..dim)
        .map(|_| match kind {
            0 => rng.unit().to_bits(),
            // Denormal numbers.
            1 => (rng.next() as u32) & 0x807f_ffff,
            // Huge ones.
            2 => (rng.unit() * 1e38 * 3.4).to_bits(),
            // Any finite number, zeros of both signs among them.
            3 => match rng.next() % 4 {
                0 => 0x8000_0000,
                1 => 0,
                _ => {
                    let w = rng.next() as u32;
                    if w & 0x7f80_0000 == 0x7f80_0000 {
                        w & 0x80ff_ffff
                    } else {
                        w
                    }
                }
            },
            _ => 0,
        })
        .collect()
}

fn keys(path: u32, metric: u32, q: &[u32], inv: u64, rows: &[(Vec<u32>, u64)]) -> Vec<u64> {
    let raw: Vec<Row> = rows.iter().map(|(w, i)| Row { words: w.as_ptr(), inv_norm: *i }).collect();
    let mut out = vec![0; rows.len()];
    for (w, _) in rows {
        assert_eq!(w.len(), q.len());
    }
    unsafe { vexfs_fp_distances(path, metric, q.as_ptr(), inv, q.len(), raw.as_ptr(), raw.len(), out.as_mut_ptr()) };
    out
}

fn check(w: &[u32]) -> Checked {
    let mut c = Checked::default();
    unsafe { vexfs_fp_check(w.as_ptr(), w.len(), &mut c) };
    c
}

fn float(key: u64) -> f64 {
    f64::from_bits(if key >> 63 != 0 { key ^ 1 << 63 } else { !key })
}

fn paths() -> Vec<u32> {
    (SCALAR..=vexfs_fp_best()).collect()
}

#[test]
fn paths_are_bit_equal_and_right() {
    let mut rng = Rng(7);
    for dim in (1..=70).chain([384, 385, 1000, 65536]) {
        for kind in 0..5 {
            let q = vector(&mut rng, dim, kind);
            let inv_q = check(&q).inv_norm;
            let rows: Vec<_> = (0..7)
                .map(|i| {
                    let w = if i == 3 { q.clone() } else { vector(&mut rng, dim, if i == 5 { 0 } else { kind }) };
                    let inv = check(&w).inv_norm;
                    (w, inv)
                })
                .collect();
            for metric in [L2, COSINE, IP] {
                for n in 0..=rows.len() {
                    let reference = keys(SCALAR, metric, &q, inv_q, &rows[..n]);
                    for path in paths() {
                        assert_eq!(keys(path, metric, &q, inv_q, &rows[..n]), reference, "dim {dim} kind {kind}");
                    }
                    for (key, (w, inv)) in reference.iter().zip(&rows) {
                        let got = float(*key);
                        assert!(got.is_finite() && got.to_bits() != 1 << 63);
                        let f = |w: &[u32], i: usize| f64::from(f32::from_bits(w[i]));
                        let mut size = 0.0;
                        let mut sum = 0.0;
                        for i in 0..dim {
                            let t = if metric == L2 { (f(&q, i) - f(w, i)).powi(2) } else { f(&q, i) * f(w, i) };
                            sum += t;
                            size += t.abs();
                        }
                        let scale = f64::from_bits(inv_q) * f64::from_bits(*inv);
                        let (want, slack) = match metric {
                            L2 => (sum, size),
                            COSINE => (1.0 - sum * scale, 1.0 + size * scale),
                            _ => (-sum, size),
                        };
                        assert!((got - want).abs() <= slack * 1e-10, "{metric} dim {dim}: {got} {want}");
                    }
                    if metric == L2 && n > 3 {
                        assert_eq!(float(reference[3]), 0.0);
                    }
                }
            }
        }
    }
}

#[test]
fn the_order_of_reduction_is_fixed() {
    // Written out once more, independently: lane i % 8, then the fixed tree.
    let mut rng = Rng(3);
    for dim in [1usize, 7, 8, 9, 31, 384] {
        let (q, v) = (vector(&mut rng, dim, 0), vector(&mut rng, dim, 0));
        let mut s = [0f64; 8];
        for i in 0..dim {
            s[i % 8] += f64::from(f32::from_bits(q[i])) * f64::from(f32::from_bits(v[i]));
        }
        let dot = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
        let row = [(v, 0)];
        for path in paths() {
            assert_eq!(float(keys(path, IP, &q, 0, &row)[0]).to_bits(), (-dot + 0.0).to_bits());
        }
    }
}

#[test]
fn unaligned_vectors() {
    let mut rng = Rng(5);
    let q = vector(&mut rng, 50, 0);
    let v = vector(&mut rng, 50, 0);
    for off in 0..8 {
        let mut padded = vec![0u32; off];
        padded.extend(&v);
        let row = Row { words: padded[off..].as_ptr(), inv_norm: 0 };
        for path in paths() {
            let mut key = 0;
            unsafe { vexfs_fp_distances(path, L2, q.as_ptr(), 0, 50, &row, 1, &mut key) };
            assert_eq!(key, keys(SCALAR, L2, &q, 0, &[(v.clone(), 0)])[0]);
        }
    }
}

#[test]
fn keys_order_as_distances() {
    let mut rng = Rng(9);
    let q: Vec<u32> = vec![1f32.to_bits(); 3];
    let mut all: Vec<(f64, u64)> = Vec::new();
    for _ in 0..2000 {
        let v = vector(&mut rng, 3, 3);
        let f: f64 = v.iter().map(|w| f64::from(f32::from_bits(*w))).sum();
        all.push((f, keys(SCALAR, IP, &q, 0, &[(v, 0)])[0]));
    }
    all.sort_by_key(|x| x.1);
    assert!(all.windows(2).all(|w| float(w[0].1) <= float(w[1].1)));
    // A damaged inverse norm gives the largest key.
    let v = vec![1f32.to_bits(); 3];
    assert_eq!(keys(vexfs_fp_best(), COSINE, &q, f64::NAN.to_bits(), &[(v, 0)])[0], u64::MAX);
}

#[test]
fn what_may_be_stored() {
    let b = |x: f32| x.to_bits();
    assert_eq!(check(&[0, 1 << 31]), Checked { status: 0, zero: 1, inv_norm: 0 });
    assert_eq!(check(&[b(3.0), b(4.0)]), Checked { status: 0, zero: 0, inv_norm: 0.2f64.to_bits() });
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for dim in 1..20 {
            for at in 0..dim {
                let mut v = vec![b(1.0); dim];
                v[at] = b(bad);
                assert_eq!(check(&v).status, 1);
            }
        }
    }
    // The squared norm would overflow f32, or be denormal or zero in it.
    assert_eq!(check(&[b(1e20), b(1.0)]).status, 2);
    assert_eq!(check(&[b(1.8e19)]).status, 0);
    assert_eq!(check(&[b(1e-20)]).status, 2);
    assert_eq!(check(&[b(1e-30), b(0.0)]).status, 2);
    assert_eq!(check(&[1]).status, 2);
    assert_eq!(check(&[b(1.1e-19)]).status, 0);
}

fn rough(path: u32, metric: u32, q: &[u32], inv: u64, rows: &[Row]) -> Vec<u32> {
    let mut out = vec![0; rows.len()];
    unsafe { vexfs_fp_rough(path, metric, q.as_ptr(), inv, q.len(), rows.as_ptr(), rows.len(), out.as_mut_ptr()) };
    out
}

fn bounds(path: u32, metric: u32, q: &[u32], inv: u64, rows: &[Row]) -> Vec<u64> {
    let mut out = vec![0; rows.len()];
    unsafe { vexfs_fp_bounds(path, metric, q.as_ptr(), inv, q.len(), rows.as_ptr(), rows.len(), out.as_mut_ptr()) };
    out
}

fn single(key: u32) -> f32 {
    f32::from_bits(if key >> 31 != 0 { key ^ 1 << 31 } else { !key })
}

/// Vectors that start at any of 16 places in a cache line.
struct Shifted(Vec<u32>, usize);
impl Shifted {
    fn new(w: &[u32], off: usize) -> Shifted {
        let mut v = vec![0x7fc0_0000; off];
        v.extend(w);
        // Behind the end is what must not be read as a number.
        v.push(0x7fc0_0000);
        Shifted(v, off)
    }
    fn row(&self, inv_norm: u64) -> Row {
        Row { words: self.0[self.1..].as_ptr(), inv_norm }
    }
}

#[test]
fn rough_paths_are_bit_equal_and_bounds_hold() {
    let mut rng = Rng(11);
    for dim in (1..=200).chain([384, 385, 768, 1000, 1536, 65536]) {
        for kind in 0..5 {
            if dim > 2000 && kind > 2 {
                continue;
            }
            let q = vector(&mut rng, dim, kind);
            let inv_q = check(&q).inv_norm;
            let all: Vec<_> = (0..7)
                .map(|i| {
                    let mut w = if i == 3 { q.clone() } else { vector(&mut rng, dim, if i == 5 { 0 } else { kind }) };
                    if i == 4 {
                        // Nearly the query.
                        w = q.clone();
                        w[dim / 2] ^= 1;
                    }
                    let inv = check(&w).inv_norm;
                    (w, inv)
                })
                .collect();
            let shifted: Vec<_> =
                all.iter().enumerate().map(|(i, (w, _))| Shifted::new(w, (i * 5 + dim) % 16)).collect();
            let rows: Vec<_> = shifted.iter().zip(&all).map(|(s, (_, inv))| s.row(*inv)).collect();
            for metric in [L2, COSINE, IP] {
                let canonical = keys(SCALAR, metric, &q, inv_q, &all);
                for n in 0..=rows.len() {
                    let want = rough(SCALAR, metric, &q, inv_q, &rows[..n]);
                    let low = bounds(SCALAR, metric, &q, inv_q, &rows[..n]);
                    for path in paths() {
                        assert_eq!(
                            rough(path, metric, &q, inv_q, &rows[..n]),
                            want,
                            "{path}: {metric} dim {dim} {kind}"
                        );
                        assert_eq!(
                            bounds(path, metric, &q, inv_q, &rows[..n]),
                            low,
                            "{path}: {metric} dim {dim} {kind}"
                        );
                    }
                    // The inverse norm of what may not be stored is 0, so Cauchy and Schwarz do not hold for it.
                    for ((low, key), (_, inv)) in low.iter().zip(&canonical).zip(&all) {
                        let sound = metric != COSINE || (*inv != 0 && inv_q != 0);
                        assert!(
                            !sound || low <= key,
                            "{metric} dim {dim} kind {kind}: {} {}",
                            float(*low),
                            float(*key)
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn bounds_are_tight_enough_to_be_of_use() {
    let mut rng = Rng(12);
    for dim in [3, 128, 384, 1536] {
        let (q, v) = (vector(&mut rng, dim, 0), vector(&mut rng, dim, 0));
        let (a, b) = (check(&q).inv_norm, check(&v).inv_norm);
        for metric in [L2, COSINE, IP] {
            let low = float(bounds(SCALAR, metric, &q, a, &[Row { words: v.as_ptr(), inv_norm: b }])[0]);
            let key = float(keys(SCALAR, metric, &q, a, &[(v.clone(), b)])[0]);
            let size = if metric == COSINE { 1.0 } else { dim as f64 };
            assert!(low <= key && key - low < 2e-5 * size, "{metric} {dim}: {low} {key}");
        }
    }
}

#[test]
fn the_bound_holds_near_the_worst_case() {
    // Long sums whose rounding errors all go one way, large terms first, and products that are subnormal.
    let b = |x: f32| x.to_bits();
    for dim in [32usize, 64, 1024, 65536] {
        for (first, rest) in
            [(1.0f32, 5.9604645e-8f32), (1.0, 2.9802322e-8), (1e-19, 3.7e-23), (1e-18, 1.1e-22), (1.0, 1.1e-7)]
        {
            let q: Vec<u32> = (0..dim).map(|i| b(if i < 32 { 1.0 } else { 1.0 - (i % 7) as f32 * 1e-7 })).collect();
            let v: Vec<u32> = (0..dim).map(|i| b(if i < 32 { first } else { rest })).collect();
            let minus: Vec<u32> = v.iter().map(|w| w ^ 1 << 31).collect();
            let zero = vec![0; dim];
            for (q, v) in [(&q, &v), (&q, &minus), (&v, &v), (&v, &minus), (&zero, &v), (&v, &zero)] {
                let (iq, iv) = (check(q).inv_norm, check(v).inv_norm);
                for metric in [L2, COSINE, IP] {
                    if metric == COSINE && (iq == 0 || iv == 0) {
                        continue;
                    }
                    let key = keys(SCALAR, metric, q, iq, &[(v.clone(), iv)])[0];
                    let row = [Row { words: v.as_ptr(), inv_norm: iv }];
                    for path in paths() {
                        let low = bounds(path, metric, q, iq, &row)[0];
                        assert!(low <= key, "{metric} dim {dim}: {:e} {:e}", float(low), float(key));
                    }
                }
            }
        }
    }
    // Overflow in f32, but not in the canonical kernel: nothing is known.
    let (q, v) = (vec![b(1.8e19); 40], vec![b(-1.8e19); 40]);
    for path in paths() {
        assert_eq!(bounds(path, L2, &q, 0, &[Row { words: v.as_ptr(), inv_norm: 0 }]), [0]);
        assert_eq!(single(rough(path, L2, &q, 0, &[Row { words: v.as_ptr(), inv_norm: 0 }])[0]), f32::INFINITY);
    }
}

#[test]
fn the_order_of_the_f32_lanes_is_fixed() {
    let mut rng = Rng(13);
    for dim in [1usize, 31, 32, 33, 100, 384] {
        let (q, v) = (vector(&mut rng, dim, 0), vector(&mut rng, dim, 0));
        let mut s = [0f32; 32];
        for i in 0..dim {
            s[i % 32] += f32::from_bits(q[i]) * f32::from_bits(v[i]);
        }
        for half in [16, 8, 4, 2, 1] {
            for i in 0..half {
                s[i] += s[i + half];
            }
        }
        for path in paths() {
            let key = rough(path, IP, &q, 0, &[Row { words: v.as_ptr(), inv_norm: 0 }])[0];
            assert_eq!(single(key).to_bits(), (-s[0] + 0.0).to_bits());
        }
    }
}

/// Codes with their terms, and both apart.
fn encode(metric: u32, w: &[u32], inv: u64) -> (Vec<u32>, Vec<u8>, Terms) {
    let len = w.len().next_multiple_of(CODES_ALIGN);
    let mut row = vec![0x0707_0707u32; (len + TERMS_SIZE) / 4];
    let coarse = unsafe { vexfs_fp_encode(metric, w.as_ptr(), w.len(), inv, row.as_mut_ptr().cast(), len) };
    let codes = row[..len / 4].iter().flat_map(|w| w.to_ne_bytes()).collect();
    let [scale, norm, sum, last] = row[len / 4..] else { panic!() };
    assert_eq!(last, coarse);
    (row, codes, Terms { scale, norm, sum: sum as i32, coarse })
}

#[test]
fn codes_are_near_and_their_paths_bit_equal() {
    let mut rng = Rng(14);
    for dim in (1..=200).chain([384, 385, 1536, 65536]) {
        for kind in 0..5 {
            for metric in [L2, COSINE, IP] {
                let q = vector(&mut rng, dim, kind);
                let (q_row, q_codes, _) = encode(metric, &q, check(&q).inv_norm);
                let all: Vec<_> = (0..9)
                    .map(|i| {
                        let w = if i == 3 { q.clone() } else { vector(&mut rng, dim, if i == 5 { 0 } else { kind }) };
                        let (row, codes, t) = encode(metric, &w, check(&w).inv_norm);
                        (w, row, codes, t)
                    })
                    .collect();
                for n in 0..=all.len() {
                    let rows: Vec<_> =
                        all[..n].iter().map(|(_, r, _, _)| Row { words: r.as_ptr(), inv_norm: 0 }).collect();
                    let run = |path| {
                        let mut out = vec![0u32; n];
                        let (q, len) = (q_row.as_ptr().cast(), q_codes.len());
                        unsafe { vexfs_fp_codes(path, metric, q, len, rows.as_ptr(), n, out.as_mut_ptr()) };
                        out
                    };
                    let want = run(SCALAR);
                    for path in paths() {
                        assert_eq!(run(path), want, "path {path} metric {metric} dim {dim} kind {kind}");
                    }
                    for (key, (w, _, codes, t)) in want.iter().zip(&all) {
                        let signed = |c: &[u8], i: usize| i64::from(c[i]) - 128;
                        assert_eq!(i64::from(t.sum), (0..dim).map(|i| signed(codes, i)).sum::<i64>());
                        assert!(codes[dim..].iter().all(|c| *c == 128));
                        if kind != 0 {
                            continue;
                        }
                        assert_eq!(t.coarse, 0);
                        let f = |w: &[u32], i: usize| f64::from(f32::from_bits(w[i]));
                        let (dot, l2) = (0..dim)
                            .fold((0.0, 0.0), |(d, l), i| (d + f(&q, i) * f(w, i), l + (f(&q, i) - f(w, i)).powi(2)));
                        let scale = f64::from_bits(check(&q).inv_norm) * f64::from_bits(check(w).inv_norm);
                        let (right, slack) = match metric {
                            L2 => (l2, dim as f64 * 0.02),
                            COSINE => (1.0 - dot * scale, 0.02),
                            _ => (-dot, dim as f64 * 0.02),
                        };
                        let got = f64::from(single(*key));
                        assert!((got - right).abs() <= slack, "{metric} dim {dim}: {got} {right}");
                    }
                }
            }
        }
    }
    // One element that drowns the others.
    let mut w = vector(&mut rng, 384, 0);
    w[5] = 40f32.to_bits();
    assert_eq!(encode(L2, &w, 0).2.coarse, 1);
    let zero = encode(L2, &[0; 100], 0);
    assert_eq!((zero.1, zero.2), (vec![128; 128], Terms::default()));
}

#[test]
fn codes_of_the_largest_dimension_do_not_overflow() {
    for (a, b) in [(1f32, 1f32), (1.0, -1.0), (-1.0, -1.0)] {
        let (q, v) = (vec![a.to_bits(); 65536], vec![b.to_bits(); 65536]);
        let (q, v) = (encode(IP, &q, 0), encode(IP, &v, 0));
        for path in paths() {
            let (mut key, row) = (0, Row { words: v.0.as_ptr(), inv_norm: 0 });
            unsafe { vexfs_fp_codes(path, IP, q.0.as_ptr().cast(), 65536, &row, 1, &mut key) };
            assert!((f64::from(single(key)) + f64::from(a * b) * 65536.0).abs() < 0.1);
        }
    }
}
