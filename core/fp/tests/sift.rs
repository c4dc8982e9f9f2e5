// SPDX-License-Identifier: GPL-2.0-only
//! Sifting gives the same on all paths, and never takes a vector out that is within the limit.

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

/// Vectors near `from`, or not, of many sizes.
fn vector(rng: &mut Rng, dim: usize, kind: u64, from: &[f32]) -> Vec<f32> {
    let size = match rng.next() % 9 {
        0 => 1e-30,
        1 => 1e-9,
        2 => 1e9,
        3 => 1e17,
        4 => 3e18,
        _ => 1.0,
    };
    (0..dim)
        .map(|i| match kind {
            0 => rng.unit(),
            // As near as codes cannot tell.
            1 => from[i] + rng.unit() * 1e-4 * from[i].abs(),
            2 => from[i] * (1.0 + f32::EPSILON * (rng.next() % 3) as f32),
            3 => rng.unit() * size,
            // One large element, the rest below half a step.
            4 => {
                if i == 0 {
                    1.0
                } else {
                    rng.unit() * 0.0039
                }
            }
            5 => {
                if i % 2 == 0 {
                    1e-38
                } else {
                    rng.unit() * 1e-12
                }
            }
            // In the middle between two steps.
            6 => {
                if i == 0 {
                    127.0
                } else {
                    (rng.next() % 253) as f32 - 126.5
                }
            }
            7 => -from[i],
            8 => 0.0,
            _ => from[i] * size,
        })
        .collect()
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

fn check(w: &[u32]) -> Checked {
    let mut c = Checked::default();
    unsafe { vexfs_fp_check(w.as_ptr(), w.len(), &mut c) };
    c
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

#[test]
fn nothing_within_the_limit_is_sifted_out() {
    let mut rng = Rng(99);
    let (mut out, mut all) = (0u64, 0u64);
    for dim in (1..=40).chain([63, 64, 127, 128, 129, 384, 385, 1000, 1999, 2000, 4096]) {
        for metric in [L2, COSINE, IP] {
            for round in 0..6u64 {
                let mut queries: Vec<Vec<f32>> = Vec::new();
                while queries.len() < 11 {
                    let first = queries.first().cloned().unwrap_or(vec![1.0; dim]);
                    let kind = if queries.is_empty() { round % 7 } else { rng.next() % 10 };
                    queries.push(vector(&mut rng, dim, kind, &first));
                }
                let n = SIFT_PANELS.min(1 + round as usize);
                let mut rows: Vec<Vec<f32>> = Vec::new();
                while rows.len() < n * SIFT_ROWS {
                    let near = queries[rng.next() as usize % queries.len()].clone();
                    let kind = rng.next() % 10;
                    rows.push(vector(&mut rng, dim, kind, &near));
                }
                let fine = |v: &Vec<f32>| {
                    let c = check(&bits(v));
                    c.status == 0 && (metric != COSINE || c.zero == 0)
                };
                queries.retain(fine);
                if queries.is_empty() {
                    continue;
                }
                for r in &mut rows {
                    if !fine(r) {
                        *r = queries[0].clone();
                    }
                }
                let queries: Vec<Vec<u32>> = queries.iter().map(|v| bits(v)).collect();
                let rows: Vec<Vec<u32>> = rows.iter().map(|v| bits(v)).collect();
                let inv = |w: &[u32]| if metric == COSINE { check(w).inv_norm } else { 0 };
                let lines = panel_size(dim) / 64;
                let mut memory = vec![Line([0; 64]); lines * n];
                for (i, r) in rows.iter().enumerate() {
                    let panel = memory[i / SIFT_ROWS * lines..].as_mut_ptr().cast();
                    unsafe { vexfs_fp_panel_put(metric, r.as_ptr(), dim, inv(r), panel, i % SIFT_ROWS) };
                }
                let panels: Vec<*const u8> = (0..n).map(|p| memory[p * lines..].as_ptr().cast()).collect();
                let steps = dim.div_ceil(4);
                let mut codes = vec![vec![0i8; steps * 4]; queries.len()];
                let mut keys = Vec::new();
                let mut sieves = Vec::new();
                for (q, c) in queries.iter().zip(&mut codes) {
                    let raw: Vec<Row> = rows.iter().map(|r| Row { words: r.as_ptr(), inv_norm: inv(r) }).collect();
                    let mut k = vec![0u64; raw.len()];
                    unsafe {
                        vexfs_fp_distances(
                            vexfs_fp_best(),
                            metric,
                            q.as_ptr(),
                            inv(q),
                            dim,
                            raw.as_ptr(),
                            raw.len(),
                            k.as_mut_ptr(),
                        );
                        let mut s = std::mem::MaybeUninit::<Sieve>::uninit();
                        vexfs_fp_sieve(metric, q.as_ptr(), dim, inv(q), c.as_mut_ptr(), s.as_mut_ptr());
                        sieves.push(s.assume_init());
                    }
                    keys.push(k);
                }
                // The limit is each of the distances in turn: the hardest case.
                for nth in 0..rows.len().min(12) {
                    for (s, k) in sieves.iter_mut().zip(&keys) {
                        let mut sorted = k.clone();
                        sorted.sort_unstable();
                        s.wanted = sorted[nth];
                    }
                    let mut want = None;
                    for path in SCALAR..=vexfs_fp_best() {
                        let mut masks = vec![0u16; sieves.len() * SIFT_PANELS];
                        unsafe {
                            vexfs_fp_sift(
                                path,
                                metric,
                                panels.as_ptr(),
                                n,
                                steps,
                                sieves.as_mut_ptr(),
                                sieves.len(),
                                masks.as_mut_ptr(),
                            )
                        };
                        let same = want.get_or_insert(masks.clone());
                        assert_eq!(*same, masks, "path {path}, dim {dim}, metric {metric}");
                    }
                    let masks = want.unwrap();
                    for (j, k) in keys.iter().enumerate() {
                        let mut sorted = k.clone();
                        sorted.sort_unstable();
                        for (i, key) in k.iter().enumerate() {
                            let stays = masks[j * SIFT_PANELS + i / SIFT_ROWS] >> (i % SIFT_ROWS) & 1 != 0;
                            assert!(stays || *key > sorted[nth], "dim {dim}, metric {metric}, query {j}, row {i}");
                            all += 1;
                            out += u64::from(!stays);
                        }
                    }
                }
            }
        }
    }
    // It is of use.
    assert!(out * 4 > all, "{out} of {all} sifted out");
}
