// SPDX-License-Identifier: GPL-2.0-only
//! Clustering arithmetic: all paths give the same bits, and the right ones.

use vexfs_fp::*;

fn random(seed: u64, n: usize) -> Vec<u32> {
    let mut v = vec![0; n];
    unsafe { vexfs_fp_normal(seed, v.as_mut_ptr(), n) };
    v
}

fn float(key: u32) -> f32 {
    f32::from_bits(if key >> 31 != 0 { key ^ 1 << 31 } else { !key })
}

#[test]
fn projections_are_bit_equal_and_right() {
    for dim in [1usize, 2, 3, 7, 16, 33, 384] {
        for n in 0..=9 {
            let (x, m) = (random(1, dim), random(2, dim * n * PANEL));
            let bias = random(3, n * PANEL);
            for (bias, inv) in [(std::ptr::null(), 0), (bias.as_ptr(), 0.25f64.to_bits()), (bias.as_ptr(), 0)] {
                let mut outs = Vec::new();
                for path in SCALAR..=vexfs_fp_best() {
                    let mut out = vec![0; n * PANEL];
                    unsafe {
                        vexfs_fp_project(path, x.as_ptr(), dim, inv, m.as_ptr(), n, bias, out.as_mut_ptr());
                    }
                    outs.push(out);
                }
                assert!(outs.windows(2).all(|w| w[0] == w[1]), "dim {dim}, {n} panels");
                let scale = if inv == 0 { 1.0 } else { f64::from_bits(inv) };
                for (c, key) in outs[0].iter().enumerate() {
                    let f = |w: u32| f64::from(f32::from_bits(w));
                    let dot: f64 = (0..dim).map(|i| f(x[i]) * f(m[((c / PANEL) * dim + i) * PANEL + c % PANEL])).sum();
                    let b = if bias.is_null() { 0.0 } else { f(unsafe { *bias.add(c) }) };
                    assert!((f64::from(float(*key)) - (b - scale * dot)).abs() < 1e-3);
                }
            }
        }
    }
}

#[test]
fn normal_numbers() {
    let v = random(7, 100_000);
    let f = |w: &u32| f64::from(f32::from_bits(*w));
    let mean = v.iter().map(f).sum::<f64>() / 1e5;
    let variance = v.iter().map(|w| f(w) * f(w)).sum::<f64>() / 1e5;
    assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    assert_eq!(v, random(7, 100_000));
    assert_ne!(v, random(8, 100_000));
}

#[test]
fn centroids() {
    let (a, b) = ([1f32, 2.0, 3.0].map(f32::to_bits), [3f32, 2.0, -1.0].map(f32::to_bits));
    let mut sums = [0u32; 3];
    let (mut panel, mut bias) = ([0u32; 48], 0u32);
    unsafe {
        vexfs_fp_accumulate(a.as_ptr(), 3, 0, sums.as_mut_ptr());
        vexfs_fp_accumulate(b.as_ptr(), 3, 1f64.to_bits(), sums.as_mut_ptr());
        vexfs_fp_centroid(sums.as_ptr(), 3, 2, panel.as_mut_ptr(), 5, &mut bias);
    }
    assert_eq!([5, 21, 37].map(|i| f32::from_bits(panel[i])), [2.0, 2.0, 1.0]);
    assert_eq!(panel.iter().filter(|w| **w != 0).count(), 3);
    assert_eq!(f32::from_bits(bias), 4.5);
}

#[test]
fn tables_and_codes() {
    let key = |v: f32| {
        let bits = v.to_bits();
        if bits >> 31 != 0 {
            !bits
        } else {
            bits | 1 << 31
        }
    };
    let keys: Vec<u32> = (0..256).map(|i| key(i as f32 - 100.0)).collect();
    let scale = unsafe { vexfs_fp_spread([keys[0], key(5.0)].as_ptr(), [keys[255], key(6.0)].as_ptr(), 2) };
    let mut table = vec![0u16; 256];
    unsafe { vexfs_fp_entries(keys.as_ptr(), 256, keys[0], scale, table.as_mut_ptr()) };
    assert!(table[0] == 0 && u32::from(table[255]) == ENTRY_MAX && table.windows(2).all(|w| w[0] < w[1]));
    // Nothing to tell apart, and numbers that are none.
    assert_eq!(unsafe { vexfs_fp_spread(keys.as_ptr(), keys.as_ptr(), 1) }, 0);
    assert_eq!(unsafe { vexfs_fp_spread(keys.as_ptr(), [u32::MAX].as_ptr(), 1) }, 0);
    for len in [1usize, 3, 48] {
        let tables: Vec<u16> = (0..256 * len).map(|i| (i * 7919 % 40_000) as u16).collect();
        for n in 0..10 {
            let codes: Vec<u8> = (0..n * len).map(|i| (i * 31 % 251) as u8).collect();
            let mut out = vec![0u32; n];
            unsafe { vexfs_fp_lookup(tables.as_ptr(), len, codes.as_ptr(), n, out.as_mut_ptr()) };
            for (r, s) in out.iter().enumerate() {
                let want: u32 = (0..len).map(|i| u32::from(tables[i * 256 + usize::from(codes[r * len + i])])).sum();
                assert_eq!(*s, want);
            }
        }
    }
}

#[test]
fn fast_scans_are_bit_equal_and_right() {
    // Around the length at which sums of 16 bits are full, with the largest entries among others.
    for len in [0usize, 1, 2, 48, 127, 128, 129, 300] {
        for most in [255u32, 256] {
            let tables: Vec<u8> =
                (0..32 * len as u32).map(|i| if most == 255 { 255 } else { ((i * 7919) >> 3) as u8 }).collect();
            let n = 3;
            let codes: Vec<u8> = (0..n * len * BLOCK_CODES).map(|i| ((i * 2_654_435) >> 7) as u8).collect();
            let want: Vec<u32> = (0..n * BLOCK_CODES)
                .map(|v| {
                    let byte =
                        |b: usize| usize::from(codes[(v / BLOCK_CODES * len + b) * BLOCK_CODES + v % BLOCK_CODES]);
                    let entry = |t: usize, e: usize| u32::from(tables[t * 16 + e]);
                    (0..len).map(|b| entry(2 * b, byte(b) & 15) + entry(2 * b + 1, byte(b) >> 4)).sum()
                })
                .collect();
            let mut sorted = want.clone();
            sorted.sort_unstable();
            for limit in [0, sorted[20], sorted[100], u32::MAX] {
                for path in SCALAR..=vexfs_fp_best() {
                    let (mut out, mut masks) = (vec![7u32; n * BLOCK_CODES], vec![7u64; n]);
                    unsafe {
                        vexfs_fp_fast_scan(
                            path,
                            tables.as_ptr(),
                            len,
                            codes.as_ptr(),
                            n,
                            limit,
                            out.as_mut_ptr(),
                            masks.as_mut_ptr(),
                        );
                    }
                    assert_eq!(out, want, "path {path}, {len} bytes");
                    for (v, s) in want.iter().enumerate() {
                        assert_eq!(masks[v / 64] >> (v % 64) & 1 == 1, *s <= limit, "path {path}, {len} bytes");
                    }
                }
            }
        }
    }
}
