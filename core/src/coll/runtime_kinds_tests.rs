// SPDX-License-Identifier: GPL-2.0-only
//! What ivf, pq and lsh promise, in all metrics and odd dimensions: what a search finds is live and measured right, `k`
//! results come, also in the middle of a training; what is stored loads again, and nothing else does.

use super::*;
use crate::index::{IvfHead, LshHead, PqHead};

const KINDS: [u32; 3] = [3, 4, 5];

/// Small enough to be trained by a few dozen vectors.
fn small(dim: u32, metric: Metric, index: u32) -> Schema {
    let s = Schema { m: 0, ef_construction: 0, ..schema(dim, metric, index) };
    match index {
        3 => Schema { lists: 6, ..s },
        4 => Schema { bits: 4, ..s },
        5 => Schema { tables: 4, bits: 3, ..s },
        _ => schema(dim, metric, index),
    }
}

fn world(s: Schema) -> World {
    let metric = Metric::from_u32(s.metric).unwrap();
    World { c: Collection::new(9, s).unwrap(), model: BTreeMap::new(), seq: 0, metric }
}

#[test]
fn searches_are_right_at_all_times() {
    let mut seed = 0;
    let eight = |dim, metric| Schema { bits: 8, subvectors: 2.min(dim), ..small(dim, metric, 4) };
    for (index, wide) in [(3, false), (4, false), (5, false), (4, true)] {
        for metric in METRICS {
            for dim in [1usize, 2, 7, 33] {
                if wide && dim != 7 {
                    // Nothing that the others do not show.
                    continue;
                }
                seed += 1;
                let mut rng = Rng(7000 + seed);
                let make = if wide { eight(dim as u32, metric) } else { small(dim as u32, metric, index) };
                let mut w = world(make);
                let mut trained = false;
                // Codebooks of 256 centroids are made from twice as many vectors.
                let ids = if wide { (1200, 1000) } else { (400, 250) };
                for round in 0..if wide { 3000 } else { 1200 } {
                    let id = rng.below(if round < 3 * ids.0 / 4 { ids.0 } else { ids.1 });
                    match rng.below(10) {
                        0..=2 => w.delete(id),
                        3 => w.put(id, random(&mut rng, dim)),
                        _ => w.put(id, grid(&mut rng, dim)),
                    }
                    if rng.below(3) == 0 {
                        w.c.work(&env(), &Absent::new(0), 1).unwrap();
                    }
                    if round % 40 == 7 {
                        let q = random(&mut rng, dim);
                        for (k, effort) in [(1, 1), (5, 2), (10, 0), (300, 3)] {
                            w.check_search(&q, k, effort);
                        }
                        w.check_slots();
                        // A filter.
                        let (mut s, mut out, mut seen) = (SearchScratch::new(), Vec::new(), BTreeSet::new());
                        let mut third = |slot: u64, h: &Slot| -> Step<bool> {
                            assert!(seen.insert(slot), "asked twice");
                            Ok(h.id % 3 == 1)
                        };
                        let req = SearchParams { query: &q, k: 5, ef: 2, radius: None, exact: false };
                        w.c.search(&env(), &req, Some(&mut third), &mut s, &mut out).unwrap();
                        let want = w.brute(&q, |id| id % 3 == 1);
                        assert_eq!(out.len(), want.len().min(5));
                        assert!(out.iter().all(|h| want.contains(&(h.key, h.id))));
                    }
                    if round % 300 == 299 {
                        // Stored and loaded, at whatever stage it is.
                        let (before, pending, index) = (w.c.info(), w.c.pending(), w.index());
                        w.reload(index.as_ref(), 50);
                        if before.training {
                            // What was let in for the training's sake comes again first.
                            assert_eq!(w.c.info().parts, before.parts);
                            continue;
                        }
                        assert_eq!((w.c.pending(), w.c.info().parts), (pending, before.parts));
                        assert_eq!(w.index().map(|i| i.1), index.map(|i| i.1));
                    }
                    trained |= w.c.info().parts > 0;
                }
                assert!(trained, "index {index}");
                w.settle();
                w.check_search(&grid(&mut rng, dim), 10, 1);
                // All go, and it can be used again.
                for id in 0..ids.0 {
                    w.delete(id);
                }
                w.settle();
                assert_eq!((w.c.live(), w.c.free_slot(0)), (0, 0));
                for id in 0..60 {
                    w.put(id, grid(&mut rng, dim));
                }
                w.settle();
                w.check_search(&grid(&mut rng, dim), 10, 2);
            }
        }
    }
}

#[test]
fn recall_of_clustered_vectors() {
    for (index, bits) in [(3, 0), (4, 4), (4, 8), (5, 0)] {
        for metric in METRICS {
            let mut rng = Rng(50);
            let mut w = world(Schema { m: 0, ef_construction: 0, bits, ..schema(24, metric, index) });
            for id in 0..3000 {
                w.put(id, clustered(&mut rng, 24, 60));
            }
            w.settle();
            assert!(w.c.info().parts > 0 && !w.c.info().training);
            let (mut recall, mut cost) = (0.0, 0);
            for _ in 0..40 {
                let (r, stats) = w.check_search(&clustered(&mut rng, 24, 60), 10, 0);
                assert!(!stats.scanned);
                recall += r / 40.0;
                cost += stats.distances / 40;
            }
            println!("index {index}, {bits} bits, {metric:?}: recall {recall:.3}, {cost} distances");
            assert!(recall >= 0.95 && cost < 2400, "index {index}, {bits} bits, {metric:?}: {recall}, {cost}");
        }
    }
}

#[test]
fn the_same_on_all_paths_and_every_time() {
    for index in KINDS {
        let mut all = Vec::new();
        let scalar: &'static dyn Distance = &dist::SCALAR;
        for (distance, seed) in [(scalar, 1), (dist::native(), 1), (dist::native(), 1), (scalar, 2)] {
            let env = Env { distance, ..env() };
            let mut rng = Rng(13);
            let mut w = world(Schema { seed, ..small(33, Metric::Cosine, index) });
            for id in 0..400 {
                w.put(id, random(&mut rng, 33));
            }
            while w.c.work(&env, &Absent::new(0), 7).unwrap() {}
            all.push(w.c.index_bytes().unwrap().unwrap());
        }
        assert!(all[0] == all[1] && all[1] == all[2] && all[2] != all[3]);
    }
}

#[test]
fn between_all_kinds() {
    let mut rng = Rng(15);
    let mut w = World::new(9, Metric::L2, 1);
    for id in 0..500 {
        w.put(id, random(&mut rng, 9));
    }
    for index in [3, 4, 5, 2, 5, 4, 3, 1, 4, 2, 3, 5, 1] {
        w.c.rebuild(Schema { seed: 1, ..small(9, Metric::L2, index) }, usize::MAX).unwrap();
        for _ in 0..20 {
            w.c.work(&env(), &Absent::new(0), 3).unwrap();
            w.put(rng.below(600), random(&mut rng, 9));
            w.delete(rng.below(600));
            w.check_search(&random(&mut rng, 9), 7, 0);
        }
        w.check_slots();
        w.settle();
        w.check_search(&random(&mut rng, 9), 7, 3);
        // An index of another kind is left aside.
        let stored = w.index();
        w.c.schema.index = index % 5 + 1;
        w.reload(stored.as_ref(), 100);
        w.settle();
        w.check_search(&random(&mut rng, 9), 7, 3);
    }
}

#[test]
fn an_older_index_is_brought_up_to_date() {
    for index in KINDS {
        for steps in [1, 40, 600] {
            let mut rng = Rng(17);
            let mut w = world(small(5, Metric::Cosine, index));
            for id in 0..300 {
                w.put(id, random(&mut rng, 5));
            }
            w.settle();
            let stored = w.index();
            for _ in 0..steps {
                match rng.below(3) {
                    0 => w.delete(rng.below(350)),
                    _ => w.put(rng.below(350), random(&mut rng, 5)),
                }
            }
            w.reload(stored.as_ref(), 33);
            w.check_slots();
            w.check_search(&random(&mut rng, 5), 10, 2);
            w.settle();
            w.check_search(&random(&mut rng, 5), 10, 2);
            w.check_slots();
        }
    }
}

#[test]
fn wrong_bytes_are_refused() {
    for (index, table) in [(3, IvfHead::TABLE), (4, PqHead::TABLE), (5, LshHead::TABLE)] {
        for count in [20, 200] {
            let mut rng = Rng(21);
            let mut w = world(small(6, Metric::L2, index));
            for id in 0..count {
                w.put(id, random(&mut rng, 6));
            }
            w.settle();
            let (slots, vectors) = w.streams();
            let (root, good) = w.index().unwrap();
            let load = |bytes: Vec<u8>| {
                let root = IndexRoot { len: bytes.len() as u64, crc: crc32c(0, &bytes), ..root };
                w.load(&slots, &vectors, Some(&(root, bytes)), 1000)
            };
            assert_eq!(load(good.clone()).pending(), 0);
            for f in table.fields {
                for value in [0u64, 1, 2, 7, 64, u64::from(u32::MAX), u64::MAX, u64::MAX / 16] {
                    let mut bytes = good.clone();
                    bytes[f.offset..f.offset + f.size].copy_from_slice(&value.to_le_bytes()[..f.size]);
                    let c = load(bytes.clone());
                    // Ages may be wrong: they say when to train again.
                    let lenient = matches!(f.name, "trained" | "added" | "unit") || bytes == good;
                    assert!(c.pending() == count as usize || lenient, "{}.{} = {value}", table.name, f.name);
                }
            }
            for cut in (0..good.len()).step_by(if count > 50 { 97 } else { 1 }) {
                assert_eq!(load(good[..cut].to_vec()).pending(), count as usize);
            }
            // Any bytes at all: no panic, and searches stay right.
            for _ in 0..300 {
                let mut bytes = good.clone();
                for _ in 0..1 + rng.below(4) {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] = rng.next() as u8;
                }
                let mut broken = World { c: load(bytes), model: w.model.clone(), seq: w.seq, metric: w.metric };
                broken.check_search(&random(&mut rng, 6), 10, 1);
                for _ in 0..50 {
                    broken.c.work(&env(), &Absent::new(0), 4).unwrap();
                }
                broken.check_search(&random(&mut rng, 6), 10, 1);
            }
        }
    }
}

#[test]
fn the_largest_dimension() {
    for index in KINDS {
        let mut rng = Rng(23);
        let mut w = world(small(DIM_MAX, Metric::Cosine, index));
        for id in 0..70 {
            w.put(id, random(&mut rng, DIM_MAX as usize));
        }
        for _ in 0..30 {
            w.c.work(&env(), &Absent::new(0), 1).unwrap();
        }
        w.check_search(&random(&mut rng, DIM_MAX as usize), 3, 2);
    }
}
