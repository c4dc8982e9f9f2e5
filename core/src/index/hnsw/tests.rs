// SPDX-License-Identifier: GPL-2.0-only
//! The structure of the graph itself; what searches give is tested with the collection.

use super::*;
use crate::dist::{self, Metric};
use crate::format::{Slot, SLOT_LIVE};
use crate::index::{Absent, Bits, VectorStore};
use std::collections::BTreeSet;
use std::vec::Vec;

fn rnd(x: &mut u64) -> u64 {
    *x = x.wrapping_add(1);
    mix(x.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[test]
fn levels_are_geometric() {
    for m in [2u32, 5, 16, 64] {
        let h = Hnsw::new(m, 0, 77);
        let n = 400_000u64;
        let mut at_least = [0u64; 70];
        for seq in 1..=n {
            for l in 0..=h.draw(seq) {
                at_least[usize::from(l)] += 1;
            }
        }
        assert_eq!(at_least[0], n);
        for (l, got) in at_least.iter().enumerate().take(4) {
            let want = n as f64 / f64::from(m).powi(l as i32);
            let got = *got as f64;
            assert!((got - want).abs() < 5.0 * want.sqrt() + 1.0, "m {m}, level {l}: {got} instead of {want}");
        }
        assert_eq!(h.draw(12345), Hnsw::new(m, 0, 77).draw(12345));
    }
    let (a, b) = (Hnsw::new(4, 0, 1), Hnsw::new(4, 0, 2));
    assert!((0..1000).any(|s| a.draw(s) != b.draw(s)));
}

#[test]
fn parameters_are_brought_into_range() {
    for (m, ef, want) in [(0, 0, (16, 200)), (1, 1, (2, 2)), (9999, 5, (256, 256)), (16, u32::MAX, (16, 65_536))] {
        let h = Hnsw::new(m, ef, 0);
        assert_eq!((h.m, h.ef), want);
    }
}

/// What holds at all times; returns the number of nodes that the entry leads to on layer 0.
fn check(h: &Hnsw) -> usize {
    let n = h.states.len() as u32;
    let mut counts = [0u64; 6];
    for slot in 0..n {
        counts[usize::from(h.state(slot))] += 1;
        if h.state(slot) == EMPTY || (h.cut_off() && matches!(h.state(slot), DOOMED | DOOMED_STALE)) {
            continue;
        }
        for layer in 0..=h.level(slot) {
            let links = h.links(slot, layer);
            assert!(links.len() <= h.capacity(layer));
            assert_eq!(links.iter().collect::<BTreeSet<_>>().len(), links.len(), "no link twice");
            for to in links {
                assert!(*to != slot && h.state(*to) != EMPTY && h.level(*to) >= layer);
                assert!(!h.cut_off() || !matches!(h.state(*to), DOOMED | DOOMED_STALE), "link to what goes away");
            }
        }
    }
    assert_eq!(counts[1..], h.counts[1..]);
    let passable = |s: u32| h.passable(s) && !(h.cut_off() && h.state(s) == DOOMED);
    let Some(entry) = h.entry else {
        assert!((0..n).all(|s| !passable(s)));
        return 0;
    };
    assert!(passable(entry));
    assert_eq!(h.top, h.level(entry));
    let (mut seen, mut queue) = (BTreeSet::from([entry]), Vec::from([entry]));
    while let Some(s) = queue.pop() {
        for to in h.links(s, 0) {
            if passable(*to) && seen.insert(*to) {
                queue.push(*to);
            }
        }
    }
    seen.iter().filter(|s| h.state(**s) == LIVE).count()
}

#[test]
fn the_graph_keeps_its_shape() {
    for seed in 0..6u64 {
        let mut x = seed * 1000;
        let dim = 6;
        let mut store = VectorStore::new(dim);
        let mut h = Hnsw::new(4, 24, seed);
        let (mut meter, mut s) = (Meter::new(&dist::SCALAR), Scratch::new());
        let mut seq = 0;
        let mut free: Vec<u32> = Vec::new();
        let mut live: BTreeSet<u32> = BTreeSet::new();
        let mut sweeps = 0;
        for round in 0..4000 {
            match rnd(&mut x) % 20 {
                // Some rounds delete more than they insert.
                n if n < if round / 700 % 2 == 1 { 9 } else { 3 } => {
                    let n = rnd(&mut x) as usize % live.len().max(1);
                    if let Some(slot) = live.iter().nth(n).copied() {
                        live.remove(&slot);
                        store.head_mut(slot as usize).unwrap().flags = 0;
                        h.remove(slot);
                        // Now and then the vector is overwritten as well.
                        if rnd(&mut x) % 20 == 0 {
                            h.overwritten(slot);
                        }
                    }
                }
                0..=13 => {
                    let slot = free.pop().unwrap_or(store.len() as u32);
                    store.extend_to(slot as usize + 1).unwrap();
                    // A coarse grid: many ties.
                    for w in store.vector_mut(slot as usize).unwrap() {
                        *w = ((rnd(&mut x) % 4) as f32).to_bits();
                    }
                    seq += 1;
                    *store.head_mut(slot as usize).unwrap() =
                        Slot { id: seq, seq, flags: SLOT_LIVE, ..Slot::default() };
                    let view = View { store: &store, metric: Metric::L2, absent: &Absent::new(0) };
                    match h.insert(&view, &mut meter, &mut s, slot).unwrap() {
                        Inserted::Yes => {
                            assert!(h.finds(slot));
                            live.insert(slot);
                        }
                        Inserted::Later | Inserted::NotNow => {
                            assert!(!h.holds(slot));
                            store.head_mut(slot as usize).unwrap().flags = 0;
                            free.push(slot);
                        }
                    }
                }
                _ => {
                    let view = View { store: &store, metric: Metric::L2, absent: &Absent::new(0) };
                    if h.needs_maintenance() {
                        let whole = h.sweep.is_none();
                        h.maintain(&view, &mut meter, &mut s, 1, &mut |slot| free.push(slot)).unwrap();
                        sweeps += usize::from(whole);
                    }
                    for slot in &free {
                        assert!(!h.holds(*slot));
                    }
                }
            }
            if round % 20 == 0 {
                check(&h);
                let view = View { store: &store, metric: Metric::L2, absent: &Absent::new(0) };
                // What is written can always be read again.
                let bytes = h.bytes(&view).unwrap();
                let mut again = Hnsw::new(4, 24, seed);
                assert!(again.load(&view, encode::VERSION, &bytes, &Bits::new()).unwrap() || h.count(LIVE) < 8);
                check(&again);
                if h.count(STALE) + h.count(DOOMED_STALE) == 0 && !h.cut_off() {
                    assert!(again.bytes(&view).unwrap() == bytes);
                }
            }
        }
        assert!(sweeps > 2);
        let view = View { store: &store, metric: Metric::L2, absent: &Absent::new(0) };
        for slot in live.clone() {
            if live.len() > 200 {
                live.remove(&slot);
                h.remove(slot);
            }
        }
        // The sweep that may be under way, and one that takes out all that are gone now.
        for _ in 0..2 {
            h.maintain(&view, &mut meter, &mut s, 1, &mut |_| {}).unwrap();
            while h.sweep.is_some() {
                h.maintain(&view, &mut meter, &mut s, 1, &mut |_| {}).unwrap();
            }
        }
        assert_eq!(h.info().tombstones, 0);
        assert_eq!(h.count(LIVE), live.len() as u64, "seed {seed}");
        assert_eq!(check(&h), live.len(), "after a consolidation every live node is reached");

        // All at once, and then it can be used again.
        for slot in &live {
            h.remove(*slot);
            store.head_mut(*slot as usize).unwrap().flags = 0;
        }
        let view = View { store: &store, metric: Metric::L2, absent: &Absent::new(0) };
        for pause in 0..2 {
            h.maintain(&view, &mut meter, &mut s, 1, &mut |_| {}).unwrap();
            while h.sweep.is_some() {
                h.maintain(&view, &mut meter, &mut s, 1, &mut |_| {}).unwrap();
            }
            assert_eq!((check(&h), h.entry, h.info().tombstones), (0, None, 0), "{pause}");
        }
        for slot in &live {
            let head = store.head_mut(*slot as usize).unwrap();
            (head.flags, head.seq) = (SLOT_LIVE, head.seq + 100_000);
        }
        let view = View { store: &store, metric: Metric::L2, absent: &Absent::new(0) };
        for slot in &live {
            assert_eq!(h.insert(&view, &mut meter, &mut s, *slot), Ok(Inserted::Yes));
        }
        assert_eq!(check(&h), live.len());
    }
}

#[test]
fn fields_of_a_stored_graph() {
    // Each field in turn gets wrong values; the graph is refused, or what is read is sound.
    let mut store = VectorStore::new(3);
    let mut h = Hnsw::new(4, 16, 9);
    let (mut meter, mut s, mut x) = (Meter::new(&dist::SCALAR), Scratch::new(), 5u64);
    store.extend_to(120).unwrap();
    for slot in 0..120u32 {
        for w in store.vector_mut(slot as usize).unwrap() {
            *w = ((rnd(&mut x) % 1000) as f32).to_bits();
        }
        let seq = u64::from(slot) + 1;
        *store.head_mut(slot as usize).unwrap() = Slot { id: seq, seq, flags: SLOT_LIVE, ..Slot::default() };
        h.insert(&View { store: &store, metric: Metric::L2, absent: &Absent::new(0) }, &mut meter, &mut s, slot)
            .unwrap();
    }
    let view = View { store: &store, metric: Metric::L2, absent: &Absent::new(0) };
    let good = h.bytes(&view).unwrap();
    let load = |bytes: &[u8]| {
        let mut again = Hnsw::new(4, 16, 9);
        let fine = again.load(&view, encode::VERSION, bytes, &Bits::new()).unwrap();
        check(&again);
        assert!(fine || again.states.is_empty());
        fine.then_some(again)
    };
    assert!(load(&good).is_some());
    let second =
        GraphHead::SIZE + (0..=h.level(0)).map(|l| 4 + 4 * h.links(0, l).len()).sum::<usize>() + GraphNode::SIZE;
    assert_eq!(GraphNode::parse(&good[second..]).unwrap().slot, 1);
    for (table, base) in [(GraphHead::TABLE, 0), (GraphNode::TABLE, GraphHead::SIZE), (GraphNode::TABLE, second)] {
        for f in table.fields {
            let at = base + f.offset..base + f.offset + f.size;
            for value in [0u64, 1, 2, 3, 63, 64, 119, 120, 121, u64::from(u32::MAX), u64::MAX] {
                let mut bytes = good.clone();
                bytes[at.clone()].copy_from_slice(&value.to_le_bytes()[..f.size]);
                let again = load(&bytes);
                // A stale node is legitimate, and so is another entry of the same level; nothing else is.
                let lenient = matches!(f.name, "seq" | "entry") || bytes == good;
                assert!(again.is_none() || lenient, "{}.{} = {value}", table.name, f.name);
            }
        }
    }
    for cut in 0..good.len() {
        assert!(load(&good[..cut]).is_none());
    }
    let mut long = good.clone();
    long.extend([0; 4]);
    assert!(load(&long).is_none());
}
