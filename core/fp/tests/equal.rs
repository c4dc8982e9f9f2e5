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
