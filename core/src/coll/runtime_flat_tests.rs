// SPDX-License-Identifier: GPL-2.0-only
//! The exact scan over codes: the answer of the canonical kernel alone, whatever the vectors are.

use super::*;
use crate::coll::seek::Seek;

/// Vectors that are hard on a bound: as near to each other as codes cannot tell, of sizes that f32 hardly holds, with elements
/// between two steps, copies.
fn hostile(rng: &mut Rng, dim: usize, near: &[f32]) -> Vec<f32> {
    let size = [1e-18, 1e-9, 1.0, 1.0, 1.0, 1e9, 1e17][rng.below(7) as usize];
    let kind = rng.below(9);
    let mut v: Vec<f32> = (0..dim)
        .map(|i| match kind {
            0 => rng.unit(),
            1 => near[i] + rng.unit() * 1e-5,
            2 => near[i] * (1.0 + f32::EPSILON * rng.below(3) as f32),
            3 => rng.unit() * size,
            4 if i == 0 => 1.0,
            4 => rng.unit() * 0.0039,
            5 if i == 0 => 127.0,
            5 => rng.below(253) as f32 - 126.5,
            6 => -near[i],
            7 => near[i],
            _ => near[i] * size,
        })
        .collect();
    // Its square is a number that f32 holds.
    v[0] += if v.iter().all(|x| x.abs() < 1e-18) { 1e-17 } else { 0.0 };
    v
}

fn bits(v: &[f32]) -> Words {
    v.iter().map(|x| x.to_bits()).collect()
}

/// All queries in one request.
fn together(c: &Collection, queries: &[Words], k: usize, radius: Option<u64>) -> Vec<Vec<(u64, u64)>> {
    let params = SearchParams { query: &[], k, ef: 0, radius, exact: false };
    let mut seek = Seek::new(c, &params);
    for q in queries {
        seek.push(&env(), c, q).unwrap();
    }
    seek.run(&env(), c, &Absent::new(0), None, &mut SearchScratch::new()).unwrap();
    let mut out = Vec::new();
    let mut all = Vec::new();
    for i in 0..queries.len() {
        let stats = seek.hits(i, &mut out).unwrap();
        assert!(stats.scanned);
        all.push(out.iter().map(|h| (h.key, h.id)).collect());
    }
    all
}

#[test]
fn codes_change_nothing_in_an_answer() {
    let mut rng = Rng(31);
    for dim in (1..=9).chain([15, 16, 17, 31, 47, 64, 127, 128, 129, 384, 385, 999, 1536, 1999, 2000, 4096, 4097]) {
        for metric in METRICS {
            let mut w = World::new(dim as u32, metric, 1);
            let base: Vec<f32> = (0..dim).map(|_| rng.unit() + 0.01).collect();
            for id in 0..150 + rng.below(100) {
                w.put(id, bits(&hostile(&mut rng, dim, &base)));
            }
            w.settle();
            assert_eq!(w.c.index.get().codes().is_some(), dim <= 4096);
            for id in 0..40 {
                // Some have gone, of some slots the codes are old.
                match rng.below(3) {
                    0 => w.delete(id * 3),
                    _ => w.put(id * 3, bits(&hostile(&mut rng, dim, &base))),
                }
            }
            for count in [1, 2, 3, 5, 7, 17] {
                let queries: Vec<_> = (0..count).map(|_| bits(&hostile(&mut rng, dim, &base))).collect();
                let truth: Vec<_> = queries.iter().map(|q| w.brute(q, |_| true)).collect();
                for k in [1, 10, 90] {
                    for (got, want) in together(&w.c, &queries, k, None).iter().zip(&truth) {
                        assert_eq!(got[..], want[..k], "{dim} elements, {metric:?}, k {k}");
                    }
                }
                let radius = truth[0][rng.below(40) as usize].0;
                for (got, want) in together(&w.c, &queries, usize::MAX, Some(radius)).iter().zip(&truth) {
                    let want: Vec<_> = want.iter().copied().filter(|t| t.0 <= radius).collect();
                    assert_eq!(*got, want, "{dim} elements, {metric:?}, within a radius");
                }
            }
        }
    }
}

#[test]
fn codes_are_memory_that_may_go() {
    let mut rng = Rng(5);
    let mut w = World::new(64, Metric::L2, 1);
    for id in 0..1000 {
        w.put(id, random(&mut rng, 64));
    }
    let without = w.c.vector_memory();
    w.settle();
    let with = w.c.vector_memory();
    assert!(with >= without + 64_000 && with < without + without / 2);
    assert_eq!(w.c.info().vector_memory, with);
    // Nothing is stored: no page may go, but they may.
    assert_eq!(w.c.evict(1, u64::MAX), with - without);
    assert_eq!(w.c.vector_memory(), without);
    w.put(7, random(&mut rng, 64));
    assert!(!w.c.has_work());
    w.c.allow_spare(1000);
    assert!(!w.c.has_work());
    w.c.allow_spare(1 << 20);
    assert!(w.c.has_work());
    w.settle();
    assert_eq!(w.c.vector_memory(), with);
    let q = random(&mut rng, 64);
    let truth = w.brute(&q, |_| true);
    assert_eq!(w.search(&SearchParams { query: &q, k: 5, ef: 0, radius: None, exact: false }).0, truth[..5]);
}

/// A scan that was stopped in the middle of a group goes on without codes, or with codes that were not there: nothing counts twice.
#[test]
fn codes_that_come_or_go_while_a_scan_stands_change_nothing() {
    use crate::error::{Need, Stop};
    let mut rng = Rng(8);
    for (before, stop) in [true, false].into_iter().flat_map(|b| (1..60).step_by(7).map(move |s| (b, s))) {
        let mut w = World::new(64, Metric::L2, 1);
        for id in 0..300 {
            w.put(id, random(&mut rng, 64));
        }
        // Slots with gaps between them: a batch is of several groups.
        for id in 0..300 {
            if id % 5 != 0 {
                w.delete(id);
            }
        }
        if before {
            w.settle();
        }
        let q = random(&mut rng, 64);
        let params = SearchParams { query: &[], k: 30, ef: 0, radius: None, exact: false };
        let mut seek = Seek::new(&w.c, &params);
        seek.push(&env(), &w.c, &q).unwrap();
        let (mut asked, mut scratch, absent) = (0, SearchScratch::new(), Absent::new(0));
        let mut accept = |_: u64, _: &Slot| {
            asked += 1;
            if asked == stop {
                return Err(Stop::Need(Need::Space));
            }
            Ok(true)
        };
        let stopped = seek.run(&env(), &w.c, &absent, Some(&mut accept), &mut scratch).is_err();
        assert!(stopped || stop > 30);
        if before {
            w.drop_codes();
        } else {
            w.settle();
        }
        seek.run(&env(), &w.c, &absent, Some(&mut accept), &mut scratch).unwrap();
        let mut out = Vec::new();
        seek.hits(0, &mut out).unwrap();
        let got: Vec<_> = out.iter().map(|h| (h.key, h.id)).collect();
        assert_eq!(got, w.brute(&q, |_| true)[..30], "codes {before}, stopped at {stop}");
    }
}
