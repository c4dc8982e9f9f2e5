// SPDX-License-Identifier: GPL-2.0-only
//! Storing and loading a collection: round trips, older indexes, replay, damage, arbitrary bytes.

use super::*;

#[test]
fn round_trip_is_identical() {
    for (dim, seed) in [(5usize, 5u64), (100, 6), (1030, 8)] {
        let mut rng = Rng(seed);
        let mut w = World::new(dim as u32, Metric::Cosine, 2);
        for round in 0..400 {
            match rng.below(5) {
                0 => w.delete(rng.below(200)),
                _ => w.put(rng.below(200), random(&mut rng, dim)),
            }
            if round % 7 == 0 {
                w.c.work(&env(), &Absent::new(0), 5).unwrap();
            }
        }
        // Also in the middle of a consolidation.
        for pause in 0..6 {
            let queries: Vec<Words> = (0..10).map(|_| random(&mut rng, dim)).collect();
            let ask = |w: &World| -> Vec<_> {
                let req = |q| SearchParams { query: q, k: 10, ef: 40, radius: None, exact: false };
                queries.iter().map(|q| w.search(&req(q))).collect()
            };
            let (before, pending) = (ask(&w), w.c.pending());
            let index = w.index();
            w.reload(index.as_ref(), [if dim < 50 { 1 } else { 300 }, 7 * dim / 5, 64, 1000][pause % 4]);
            w.check_slots();
            assert_eq!(w.c.pending(), pending);
            assert_eq!(w.c.index_changes(), 0);
            assert_eq!(ask(&w), before, "results and cost");
            for _ in 0..pause {
                w.c.work(&env(), &Absent::new(0), 1).unwrap();
            }
            for _ in 0..20 {
                w.delete(rng.below(300));
            }
        }
        w.settle();
        all_found(&w);
    }
}

#[test]
fn reconciles_with_an_older_index() {
    for seed in 0..6 {
        let mut rng = Rng(20 + seed);
        let mut w = World::new(8, Metric::L2, 2);
        for id in 0..600 {
            w.put(id, clustered(&mut rng, 8, 30));
        }
        w.settle();
        let index = w.index();
        // The collection goes on: deletes, updates, consolidations, slots used again.
        for round in 0..[5, 50, 300, 600, 1000, 3000][seed as usize] {
            match rng.below(3) {
                0 => w.delete(rng.below(700)),
                _ => w.put(rng.below(700), clustered(&mut rng, 8, 30)),
            }
            if round % 20 == 0 {
                w.c.work(&env(), &Absent::new(0), 30).unwrap();
            }
        }
        w.reload(index.as_ref(), 50);
        w.check_slots();
        // At once, and while it mends itself, every search is right.
        let mut steps = 0;
        loop {
            for _ in 0..3 {
                let q = clustered(&mut rng, 8, 30);
                w.check_search(&q, 10, 60);
            }
            steps += 1;
            if !w.c.work(&env(), &Absent::new(0), 10).unwrap() {
                break;
            }
        }
        assert!(seed == 0 || steps > 1);
        w.check_slots();
        all_found(&w);
        assert!(w.c.index_changes() > 0);
        // What is free is really free: fill it.
        for id in 1000..1600 {
            w.put(id, clustered(&mut rng, 8, 30));
        }
        w.check_slots();
        w.settle();
        all_found(&w);
    }
}

#[test]
fn replay_over_a_loaded_index() {
    // A log is replayed over streams and index of the last checkpoint: puts hit slots that the loaded graph holds.
    let mut rng = Rng(31);
    let mut w = World::new(8, Metric::L2, 2);
    for id in 0..400 {
        w.put(id, random(&mut rng, 8));
    }
    w.settle();
    let (streams, index) = (w.streams(), w.index());
    let mut log: Vec<(u64, Option<(Slot, Words)>)> = Vec::new();
    for _ in 0..800 {
        let id = rng.below(400);
        if rng.below(3) == 0 {
            if let Some(slot) = w.c.slot_of(id) {
                log.push((slot, None));
            }
            w.delete(id);
        } else {
            let old = w.c.slot_of(id);
            w.put(id, random(&mut rng, 8));
            let slot = w.c.slot_of(id).unwrap();
            log.push((slot, Some((*w.c.slot_head(slot).unwrap(), w.model[&id].clone()))));
            log.extend(old.map(|o| (o, None)));
        }
        if rng.below(10) == 0 {
            w.c.work(&env(), &Absent::new(0), 60).unwrap();
        }
    }
    w.c = w.load(&streams.0, &streams.1, index.as_ref(), 100);
    for (slot, put) in log {
        match put {
            Some((head, v)) => w.c.put(slot, head, &v).unwrap(),
            None => w.c.drop_slot(slot),
        }
    }
    w.check_slots();
    for _ in 0..30 {
        w.check_search(&random(&mut rng, 8), 10, 50);
    }
    w.settle();
    w.check_slots();
    all_found(&w);
}

#[test]
fn damaged_vectors_are_reported_and_never_found() {
    let mut rng = Rng(6);
    for index in [1, 2] {
        let mut w = World::new(40, Metric::Cosine, index);
        for id in 0..500 {
            w.put(id, random(&mut rng, 40));
        }
        w.settle();
        for id in 0..60 {
            w.delete(id * 3);
        }
        let stored = w.index();
        let (slots, mut vectors) = w.streams();
        let mut hurt = BTreeSet::new();
        for _ in 0..20 {
            let slot = rng.below(500);
            vectors[slot as usize * 160 + rng.below(160) as usize] ^= 1 << rng.below(8);
            hurt.insert(slot);
        }
        // And the end is missing.
        let cut = vectors.len() - 4096;
        hurt.extend((cut as u64 / 160)..500);
        let c = w.load(&slots, &vectors[..cut], stored.as_ref(), 33);
        let dead: BTreeSet<u64> = hurt.iter().copied().filter(|s| is_live(w.c.slot_head(*s).unwrap())).collect();
        // Two flips of one bit may undo each other.
        let undone = dead.iter().filter(|s| !c.is_damaged(**s)).count();
        assert!(undone <= 1);
        assert!(c.damaged().all(|s| dead.contains(&s)) && c.damaged().count() + undone == dead.len());
        assert_eq!(c.live(), w.model.len() as u64);
        assert_eq!(c.info().damaged, c.damaged().count() as u64);
        w.c = c;
        for slot in w.c.damaged().collect::<Vec<_>>() {
            let id = w.c.slot_head(slot).unwrap().id;
            assert_eq!(w.c.slot_of(id), Some(slot));
            assert!(w.c.vector(&Absent::new(0), slot, false).is_none());
            w.model.remove(&id);
        }
        for _ in 0..20 {
            w.check_search(&random(&mut rng, 40), 10, 64);
        }
        w.settle();
        all_found(&w);
        // A damaged record can be replaced or deleted.
        for slot in w.c.damaged().collect::<Vec<_>>() {
            let id = w.c.slot_head(slot).unwrap().id;
            if slot % 2 == 0 {
                w.put(id, random(&mut rng, 40));
            } else {
                w.c.drop_slot(slot);
            }
        }
        assert_eq!(w.c.damaged().count(), 0);
        w.settle();
        w.check_slots();
        all_found(&w);
    }
}

#[test]
fn a_large_slot_table_without_vectors() {
    let mut w = World::new(60_000, Metric::L2, 2);
    let v: Words = vec![1f32.to_bits(); 60_000];
    let head = w.head(7, &v);
    let mut slots = vec![0; 32 * 100_000];
    head.emit(&mut slots[32 * 90_000..]);
    Slot { id: 8, ..head }.emit(&mut slots[32 * 30_000..]);
    let mut c = Collection::new(9, w.c.schema).unwrap();
    c.load_slots(&slots).unwrap();
    c.expect_vectors();
    let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
    c.load_vector_bytes(&env(), 90_000 * 240_000, &bytes).unwrap();
    c.load_index(&env(), None).unwrap();
    assert!(c.memory() < 16 << 20, "{}", c.memory());
    assert!(c.damaged().eq([30_000]) && c.live() == 2);
    while c.work(&env(), &Absent::new(0), 5).unwrap() {}
    let (mut s, mut out) = (SearchScratch::new(), Vec::new());
    let req = SearchParams { query: &v, k: 5, ef: 0, radius: None, exact: false };
    c.search(&env(), &req, None, &mut s, &mut out).unwrap();
    assert_eq!(out.iter().map(|h| h.id).collect::<Vec<_>>(), [7]);
    let mut b = [1; BLOCK];
    c.vector_block_bytes(30_000 * 240_000 / 4096, &mut b);
    assert_eq!(b, [0; BLOCK]);
    c.vector_block_bytes(90_000 * 240_000 / 4096 + 1, &mut b);
    assert_eq!(b[..4], 1f32.to_le_bytes());
}

#[test]
fn any_bytes_as_index() {
    // With 48 elements and more there are codes behind the links.
    for dim in [4, 48] {
        any_bytes_as_index_of(dim);
    }
}

fn any_bytes_as_index_of(dim: u32) {
    let mut rng = Rng(7);
    let mut w = World::new(dim, Metric::L2, 2);
    for id in 0..200 {
        w.put(id, random(&mut rng, dim as usize));
    }
    w.settle();
    for id in 0..30 {
        w.delete(id);
    }
    let (slots, vectors) = w.streams();
    let (root, good) = w.index().unwrap();
    let (mut used, mut refused) = (0, 0);
    for round in 0..1000 {
        let mut bytes = good.clone();
        match round % 4 {
            0 => {
                let n = rng.below(300) as usize;
                bytes = (0..n).map(|_| rng.next() as u8).collect();
            }
            1 => bytes.truncate(rng.below(good.len() as u64) as usize),
            // Plausible numbers in plausible places.
            2 => {
                let at = rng.below(bytes.len() as u64 / 4) as usize * 4;
                let v = [0, 1, 2, 7, 16, 199, 200, u32::MAX, rng.below(200) as u32][rng.below(9) as usize];
                bytes[at..at + 4].copy_from_slice(&v.to_le_bytes());
            }
            _ => {
                for _ in 0..1 + rng.below(3) {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << rng.below(8);
                }
            }
        }
        // The checksum is right: what is tested is the reader. (With a wrong one nothing is even read.)
        let root = IndexRoot { len: bytes.len() as u64, crc: crc32c(0, &bytes), ..root };
        w.c = w.load(&slots, &vectors, Some(&(root, bytes)), 400);
        if w.c.pending() < 100 {
            used += 1;
        } else {
            refused += 1;
        }
        w.check_search(&random(&mut rng, dim as usize), 5, 20);
        if round % 50 < 4 {
            w.settle();
            w.check_slots();
            all_found(&w);
        }
    }
    println!("{used} used, {refused} refused");
    assert!(used > 50 && refused > 500);
    for bad in [
        IndexRoot { crc: root.crc ^ 1, ..root },
        IndexRoot { kind: 1, ..root },
        IndexRoot { version: root.version + 1, ..root },
        IndexRoot { len: root.len + 1, ..root },
        IndexRoot { len: u64::MAX, ..root },
        IndexRoot { len: 0, ..root },
    ] {
        w.c = w.load(&slots, &vectors, Some(&(bad, good.clone())), 400);
        assert_eq!(w.c.pending(), w.model.len());
    }
    // Another seed, M, or metric: built anew.
    for s in [
        Schema { seed: 2, ..w.c.schema },
        Schema { m: 9, ..w.c.schema },
        Schema { ef_construction: 65, ..w.c.schema },
        Schema { metric: 3, ..w.c.schema },
    ] {
        let mut c = Collection::new(9, s).unwrap();
        c.load_slots(&slots).unwrap();
        c.expect_vectors();
        c.load_vector_bytes(&env(), 0, &vectors).unwrap();
        c.load_index(&env(), Some((&root, &good))).unwrap();
        assert_eq!(c.pending(), w.model.len());
    }
}

#[test]
fn any_bytes_as_slots() {
    let mut rng = Rng(17);
    for _ in 0..300 {
        let mut c = Collection::new(9, schema(3, Metric::Cosine, 2)).unwrap();
        let n = rng.below(100) as usize;
        let mut slots = vec![0u8; n * 32];
        for b in &mut slots {
            *b = if rng.below(2) == 0 { 0 } else { rng.next() as u8 };
        }
        let vectors: Vec<u8> = (0..n * 12).map(|_| rng.next() as u8).collect();
        // Right checksums, so that the vectors are believed: NaN, wrong norms, equal ids and all.
        for i in 0..n {
            let crc = crc32c(0, &vectors[i * 12..i * 12 + 12]);
            if rng.below(4) > 0 {
                slots[i * 32 + 28..i * 32 + 32].copy_from_slice(&crc.to_le_bytes());
                slots[i * 32] = rng.below(40) as u8;
                slots[i * 32 + 1..i * 32 + 8].fill(0);
            }
        }
        c.load_slots(&slots).unwrap();
        c.expect_vectors();
        c.load_vector_bytes(&env(), 0, &vectors).unwrap();
        c.load_index(&env(), None).unwrap();
        while c.work(&env(), &Absent::new(0), 20).unwrap() {}
        let (mut s, mut out) = (SearchScratch::new(), Vec::new());
        let q = [1f32.to_bits(); 3];
        let req = SearchParams { query: &q, k: 10, ef: 12, radius: None, exact: false };
        c.search(&env(), &req, None, &mut s, &mut out).unwrap();
        assert_eq!(out.len() as u64, 10.min(c.live() - c.info().damaged));
        let ids: BTreeSet<u64> = c.live_slots(0).map(|(_, h)| h.id).collect();
        assert_eq!(ids.len(), c.live_slots(0).count());
    }
    let mut c = Collection::new(9, schema(3, Metric::L2, 2)).unwrap();
    assert!(c.load_slots(&[0; 33]).is_err());
    assert!(c.load_vector_bytes(&env(), 2, &[0; 4]).is_err());
    c.load_vector_bytes(&env(), u64::MAX - 3, &[0; 4]).unwrap();
}

#[test]
fn only_dirty_blocks_change() {
    for dim in [1usize, 7, 100, 1024, 3000] {
        let mut rng = Rng(11);
        let mut w = World::new(dim as u32, Metric::L2, 1);
        let (mut slots, mut vectors): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
        for _ in 0..30 {
            for _ in 0..rng.below(30) {
                match rng.below(3) {
                    0 => w.delete(rng.below(200)),
                    _ => w.put(rng.below(200), random(&mut rng, dim)),
                }
            }
            slots.resize(w.c.slot_stream_blocks() as usize * BLOCK, 0);
            vectors.resize(w.c.vector_stream_blocks() as usize * BLOCK, 0);
            let mut b = [0xff; BLOCK];
            for i in w.c.dirty_slot_blocks() {
                w.c.slot_block_bytes(i, &mut b);
                slots[i as usize * BLOCK..][..BLOCK].copy_from_slice(&b);
            }
            for i in w.c.dirty_vector_blocks() {
                w.c.vector_block_bytes(i, &mut b);
                vectors[i as usize * BLOCK..][..BLOCK].copy_from_slice(&b);
            }
            w.c.mark_clean();
            assert_eq!(w.c.dirty_slot_blocks().count() + w.c.dirty_vector_blocks().count(), 0);
            let all = w.streams();
            assert!(all == (slots.clone(), vectors.clone()), "dim {dim}");
            w.c = w.load(&slots, &vectors, None, 61);
            w.check_slots();
            assert_eq!(w.c.damaged().count(), 0);
        }
    }
}

/// Slots that a transaction left out are written too: a stream is whole from its start.
#[test]
fn slots_that_were_left_out_leave_no_gap() {
    for dim in [1usize, 100, 3000] {
        let mut rng = Rng(12);
        let mut w = World::new(dim as u32, Metric::L2, 1);
        w.put(1, random(&mut rng, dim));
        w.c.mark_clean();
        let v = random(&mut rng, dim);
        let head = w.head(2, &v);
        w.c.reserve_put(1, 700).unwrap();
        w.c.put(700, head, &v).unwrap();
        let slots: Vec<u64> = w.c.dirty_slot_blocks().collect();
        let vectors: Vec<u64> = w.c.dirty_vector_blocks().collect();
        // The blocks of slot 0 are on the device.
        let first = (dim as u64 * 4).div_ceil(BLOCK as u64);
        assert_eq!(slots, (0..w.c.slot_stream_blocks()).skip_while(|b| *b < slots[0]).collect::<Vec<_>>());
        assert_eq!(vectors, (0..w.c.vector_stream_blocks()).skip_while(|b| *b < vectors[0]).collect::<Vec<_>>());
        assert!(slots[0] <= 1 && vectors[0] <= first, "dim {dim}: {} and {}", slots[0], vectors[0]);
    }
}

/// A vector that nobody could have inserted, or a head with another norm, under checksums that are right: damaged, never found.
#[test]
fn vectors_that_could_not_be_inserted_are_damaged() {
    let mut rng = Rng(40);
    for change in ["NaN", "norm"] {
        let mut w = World::new(8, Metric::Cosine, 1);
        for id in 0..20 {
            w.put(id, random(&mut rng, 8));
        }
        let (mut slots, mut vectors) = w.streams();
        if change == "NaN" {
            vectors[3 * 32..3 * 32 + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            let words: Words =
                vectors[3 * 32..4 * 32].chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
            slots[3 * 32 + 28..4 * 32].copy_from_slice(&vector_crc(&env(), &words).to_le_bytes());
        } else {
            slots[3 * 32 + 16..3 * 32 + 24].copy_from_slice(&f64::NAN.to_bits().to_le_bytes());
        }
        let c = w.load(&slots, &vectors, None, 64);
        assert!(c.damaged().eq([3]), "{change}: {:?}", c.damaged().collect::<Vec<_>>());
    }
}

/// A log in which the drop of the old slot is missing: the record has its new slot only.
#[test]
fn a_record_has_one_slot() {
    let mut w = World::new(4, Metric::L2, 1);
    w.put(7, random(&mut Rng(1), 4));
    let v = random(&mut Rng(2), 4);
    let head = w.head(7, &v);
    w.c.put(1, head, &v).unwrap();
    assert_eq!((w.c.live(), w.c.slot_of(7)), (1, Some(1)));
    let req = SearchParams { query: &v, k: 5, ef: 0, radius: None, exact: true };
    assert_eq!(w.search(&req).0.len(), 1);
}
