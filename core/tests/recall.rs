// SPDX-License-Identifier: GPL-2.0-only
//! Recall and cost of the indexes on real embeddings: the sample in `bench/data`, or another set with
//! `VEXFS_TEST_DATA=PREFIX` (`PREFIX.base.npy`, `PREFIX.query.npy`, `PREFIX.gt100.ivecs`).

mod sample;

use sample::{build, build_bits, build_with, data, env, prefix, Data};
use std::collections::HashSet;
use vexfs_core::coll::{Collection, Hit, SearchParams, SearchScratch};
use vexfs_core::dist::Metric;
use vexfs_core::format::Slot;

/// Recall at 10 and distances per query.
fn measure(c: &Collection, d: &Data, ef: usize) -> (f64, f64) {
    let (mut scratch, mut out) = (SearchScratch::new(), Vec::<Hit>::new());
    let (mut right, mut cost) = (0, 0);
    for (q, truth) in d.query.iter().zip(&d.truth) {
        let req = SearchParams { query: q, k: 10, ef, radius: None, exact: false };
        cost += c.search(&env(), &req, None, &mut scratch, &mut out).unwrap().distances;
        assert_eq!(out.len(), 10);
        let want: HashSet<u64> = truth[..10].iter().copied().collect();
        right += out.iter().filter(|h| want.contains(&h.id)).count();
    }
    let n = d.query.len() as f64;
    (right as f64 / n / 10.0, cost as f64 / n)
}

#[test]
fn flat_is_exact() {
    let Some(d) = data() else { return eprintln!("skipped: no data at {}", prefix()) };
    let c = build(&d.base, 1);
    let (recall, cost) = measure(&c, &d, 0);
    assert_eq!(recall, 1.0);
    // A bound for each vector, and the canonical kernel for those that it does not rule out.
    let n = d.base.len() as f64;
    println!("{cost:.0} evaluations for {n} vectors");
    assert!(cost >= n && cost < 1.1 * n);
}

#[test]
fn hnsw_recall_and_cost() {
    let Some(d) = data() else { return eprintln!("skipped: no data at {}", prefix()) };
    let start = std::time::Instant::now();
    let c = build(&d.base, 2);
    println!("{} vectors built in {:.1?}: {:?}", d.base.len(), start.elapsed(), c.info());
    let mut last = (0.0, 0.0);
    for ef in [10, 16, 32, 64, 128, 256, 512] {
        let start = std::time::Instant::now();
        let (recall, cost) = measure(&c, &d, ef);
        let time = start.elapsed() / d.query.len() as u32;
        println!("ef {ef}: recall@10 {recall:.4}, {cost:.0} distances, {time:.1?} a query");
        assert!(cost > last.1 && recall >= last.0 - 0.002, "both rise with ef");
        assert!(ef < 64 || recall >= 0.95);
        assert!(ef < 256 || recall >= 0.99);
        assert!(ef > 64 || d.base.len() < 20_000 || cost < 0.1 * d.base.len() as f64);
        last = (recall, cost);
    }
}

/// Recall and cost of an index at some efforts; both rise. 0 is the default.
fn sweep(index: u32, bits: u32, efforts: &[usize]) {
    let Some(d) = data() else { return eprintln!("skipped: no data at {}", prefix()) };
    let start = std::time::Instant::now();
    let c = build_bits(&d.base, index, Metric::Cosine, bits);
    println!("{} vectors built in {:.1?}: {:?}", d.base.len(), start.elapsed(), c.info());
    assert!(c.info().parts > 0 && c.info().pending == 0);
    let mut last = (0.0, 0.0);
    for effort in efforts.iter().chain(&[0]) {
        let start = std::time::Instant::now();
        let (recall, cost) = measure(&c, &d, *effort);
        let time = start.elapsed() / d.query.len() as u32;
        println!("effort {effort}: recall@10 {recall:.4}, {cost:.0} distances, {time:.1?} a query");
        if *effort == 0 {
            assert!(recall >= 0.95, "the default");
            assert!(cost < 0.7 * d.base.len() as f64);
        } else {
            assert!(cost > last.1 && recall >= last.0 - 0.002, "both rise");
        }
        last = (recall, cost);
    }
}

#[test]
fn ivf_recall_and_cost() {
    sweep(3, 0, &[1, 2, 4, 8, 16, 32]);
}

#[test]
fn pq_recall_and_cost() {
    for bits in [4, 8] {
        sweep(4, bits, &[10, 20, 50, 100, 200, 400]);
    }
}

#[test]
fn lsh_recall_and_cost() {
    sweep(5, 0, &[50, 100, 200, 400, 800, 1600]);
}

#[test]
fn filters_keep_recall() {
    for (index, bits) in [(2, 0), (3, 0), (4, 4), (4, 8), (5, 0)] {
        filters(index, bits);
    }
}

fn filters(index: u32, bits: u32) {
    let Some(d) = data() else { return eprintln!("skipped: no data at {}", prefix()) };
    let c = build_bits(&d.base, index, Metric::Cosine, bits);
    let (mut scratch, mut out, mut exact) = (SearchScratch::new(), Vec::new(), Vec::new());
    // By id (spread over the data), and by the first element (a region of it).
    let threshold = {
        let mut firsts: Vec<f32> = d.base.iter().map(|v| f32::from_bits(v[0])).collect();
        firsts.sort_by(f32::total_cmp);
        move |permille: usize| firsts[firsts.len() * permille / 1000]
    };
    for permille in [500, 200, 100, 50, 20, 10, 5] {
        let limit = threshold(permille);
        for by_region in [false, true] {
            let pass = |id: u64| {
                if by_region {
                    f32::from_bits(d.base[id as usize][0]) < limit
                } else {
                    (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % 1000 < permille as u64
                }
            };
            let (mut right, mut all, mut asked, mut cost) = (0, 0, 0, 0);
            for q in &d.query {
                let mut req =
                    SearchParams { query: q, k: 10, ef: if index == 2 { 64 } else { 0 }, radius: None, exact: false };
                let mut seen = HashSet::new();
                let mut accept = |slot: u64, head: &Slot| {
                    assert!(seen.insert(slot), "asked twice");
                    asked += 1;
                    Ok(pass(head.id))
                };
                cost += c.search(&env(), &req, Some(&mut accept), &mut scratch, &mut out).unwrap().distances;
                req.exact = true;
                let mut accept = |_: u64, head: &Slot| Ok(pass(head.id));
                c.search(&env(), &req, Some(&mut accept), &mut scratch, &mut exact).unwrap();
                assert_eq!(out.len(), exact.len());
                assert!(out.iter().all(|h| pass(h.id)));
                all += exact.len();
                right += out.iter().filter(|h| exact.contains(h)).count();
            }
            let recall = right as f64 / all as f64;
            let n = d.query.len();
            println!(
                "index {index}, {bits} bits, {permille} per mille, region {by_region}: {recall:.4}, {} distances, {} asked",
                cost / n as u64,
                asked / n
            );
            assert!(recall >= 0.95);
        }
    }
}

/// Vectors of which codes of a byte for each element are a poor likeness: the graph has to do without them.
#[test]
fn recall_where_codes_are_poor() {
    let mut x = 1u64;
    let mut unit = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let (dim, n) = (64, 3000);
    let centres: Vec<Vec<f32>> = (0..6).map(|_| (0..dim).map(|_| unit()).collect()).collect();
    type Make<'a> = Box<dyn FnMut(usize, usize) -> f32 + 'a>;
    let unit = std::cell::RefCell::new(&mut unit);
    let draw = || unit.borrow_mut()();
    let sets: [(&str, Make); 4] = [
        ("tight clusters", Box::new(|row, i| centres[row % 6][i] + draw() * 1e-3)),
        ("far from the origin", Box::new(|_, i| 100.0 + i as f32 + draw())),
        ("one large element", Box::new(|_, i| if i == 7 { 500.0 + draw() } else { draw() })),
        ("some with a large element", Box::new(|row, i| if i == 7 && row % 5 == 0 { 300.0 } else { draw() })),
    ];
    for (name, mut make) in sets {
        for metric in [Metric::L2, Metric::Cosine] {
            let rows: Vec<Vec<u32>> = (0..n + 100).map(|r| (0..dim).map(|i| make(r, i).to_bits()).collect()).collect();
            let (base, queries) = rows.split_at(n);
            let c = build_with(base, 2, metric);
            let (mut scratch, mut out, mut exact) = (SearchScratch::new(), Vec::new(), Vec::new());
            let (mut right, mut cost) = (0, 0);
            for q in queries {
                let mut req = SearchParams { query: q, k: 10, ef: 64, radius: None, exact: false };
                cost += c.search(&env(), &req, None, &mut scratch, &mut out).unwrap().distances;
                req.exact = true;
                c.search(&env(), &req, None, &mut scratch, &mut exact).unwrap();
                right += out.iter().filter(|h| exact.contains(h)).count();
            }
            let recall = right as f64 / 1000.0;
            println!("{name}, {metric:?}: {recall:.3}, {} distances", cost / 100);
            assert!(recall >= 0.93 || (name == "tight clusters" && recall > 0.86), "{name}, {metric:?}: {recall}");
        }
    }
}
