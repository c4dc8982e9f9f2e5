// SPDX-License-Identifier: GPL-2.0-only
//! Recall after churn: a collection of which half was replaced finds as much as one that was built of the same records
//! at once.

mod sample;

use sample::{data, empty, env, prefix, put, settle};
use std::collections::HashSet;
use vexfs_core::coll::{Collection, SearchParams, SearchScratch};
use vexfs_core::dist::Metric;

/// Recall at 10 of all queries, by what an exact search finds.
fn recall(c: &Collection, queries: &[Vec<u32>], ef: usize) -> f64 {
    let (mut scratch, mut out, mut exact) = (SearchScratch::new(), Vec::new(), Vec::new());
    let (mut right, mut all) = (0, 0);
    for q in queries {
        let mut req = SearchParams { query: q, k: 10, ef, radius: None, exact: false };
        c.search(&env(), &req, None, &mut scratch, &mut out).unwrap();
        req.exact = true;
        c.search(&env(), &req, None, &mut scratch, &mut exact).unwrap();
        let want: HashSet<u64> = exact.iter().map(|h| h.id).collect();
        right += out.iter().filter(|h| want.contains(&h.id)).count();
        all += want.len();
    }
    right as f64 / all as f64
}

/// Two thirds of the sample are put in; then half of them, spread over all, give way to the other third, `step` at a time.
fn churn(step: usize) {
    let Some(d) = data() else { return eprintln!("skipped: no data at {}", prefix()) };
    let (metric, dim) = (Metric::Cosine, d.base[0].len());
    let first = d.base.len() / 3 * 2;
    let mut order: Vec<usize> = (0..first).collect();
    order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let (gone, stay) = order.split_at(first / 2);
    let others: Vec<usize> = (first..first + gone.len()).collect();

    let mut seq = 0;
    let mut add = |c: &mut Collection, i: usize| {
        seq += 1;
        put(c, metric, i as u64, seq, &d.base[i]);
    };
    let mut old = empty(dim, 2, metric, 0);
    (0..first).for_each(|i| add(&mut old, i));
    settle(&mut old);
    for (gone, others) in gone.chunks(step).zip(others.chunks(step)) {
        for i in gone {
            let slot = old.slot_of(*i as u64).unwrap();
            old.drop_slot(slot);
        }
        others.iter().for_each(|i| add(&mut old, *i));
        settle(&mut old);
    }
    let mut fresh = empty(dim, 2, metric, 0);
    stay.iter().chain(&others).for_each(|i| add(&mut fresh, *i));
    settle(&mut fresh);
    assert_eq!((old.live(), old.pending(), fresh.live()), (first as u64, 0, first as u64));

    for ef in [10, 16, 32, 64, 128] {
        let (a, b) = (recall(&old, &d.query, ef), recall(&fresh, &d.query, ef));
        println!("{step} at a time, ef {ef}: {a:.4} after churn, {b:.4} fresh");
        assert!(a >= b - 0.01, "{step} at a time, ef {ef}: {a} after churn, {b} fresh");
    }
}

#[test]
fn recall_stays_when_half_is_replaced_bit_by_bit() {
    churn(10);
}

#[test]
fn recall_stays_when_half_is_replaced_at_once() {
    churn(usize::MAX);
}
