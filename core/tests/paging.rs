// SPDX-License-Identifier: GPL-2.0-only
//! Collections larger than the memory that they may take: everything is as with all of them in memory, and memory stays
//! within its limit.

mod volume;

use vexfs_client::{IndexKind, IndexParams, Insert, List, Metric, Schema, Search, Want};
use volume::*;

const DIM: u32 = 64;
const COUNT: usize = 6000;
/// A tenth of the vectors.
const LIMIT: usize = COUNT * DIM as usize * 4 / 10;
/// What one operation may have in use beyond the limit.
const IN_USE: usize = 1 << 20;

const KINDS: [IndexKind; 5] = [IndexKind::Flat, IndexKind::Hnsw, IndexKind::Ivf, IndexKind::Pq, IndexKind::Lsh];

fn search<'a>(queries: &'a [f32], k: u32, exact: bool) -> Search<'a> {
    Search { dim: DIM, queries, k, exact, ..Search::default() }
}

/// A volume with one collection, made with the cache limit `cache`.
fn made(kind: IndexKind, cache: usize) -> (Run, u64) {
    let mut r = Run::open(Disk::new(1 << 15, 2));
    r.v.set_cache_bytes(cache);
    let c = r.make(ROOT, "c", 0o040755);
    r.client(c).create(&Schema::new(DIM, Metric::L2, kind)).unwrap();
    for i in 0..COUNT / 500 {
        let vectors = floats(i as u64 * 31 + 7, 500 * DIM as usize);
        r.client(c).insert(&Insert { dim: DIM, vectors: &vectors, ..Insert::default() }).unwrap();
        r.op(Op::Checkpoint).unwrap();
    }
    (r, c)
}

fn reopened(r: Run, cache: usize) -> Run {
    let mut r = Run::open(r.close());
    r.v.set_cache_bytes(cache);
    r
}

type Hits = Vec<Vec<(u64, u64)>>;

fn hits(r: &mut Run, c: u64, s: &Search<'_>) -> (Hits, u64) {
    let f = r.client(c).search(s).unwrap();
    let of = |q: &vexfs_client::QueryResult| q.hits.iter().map(|h| (h.id, h.distance.to_bits())).collect();
    (f.queries.iter().map(of).collect(), f.reads)
}

fn vectors(r: &Run) -> usize {
    r.v.stats().vector_bytes as usize
}

#[test]
fn a_tenth_of_the_memory_suffices() {
    for kind in KINDS {
        let (small, c) = made(kind, LIMIT);
        assert!(vectors(&small) <= LIMIT + IN_USE, "{kind:?}: {} bytes", vectors(&small));
        let (large, same) = made(kind, 64 << 20);
        assert_eq!(c, same);
        // What the index is must not depend on memory.
        let (mut small, mut large) = (reopened(small, LIMIT), reopened(large, 64 << 20));
        let queries = floats(4711, 40 * DIM as usize);
        let mut reads = 0;
        for some in queries.chunks(8 * DIM as usize) {
            for exact in [false, true] {
                let (want, _) = hits(&mut large, c, &search(some, 10, exact));
                let (got, n) = hits(&mut small, c, &search(some, 10, exact));
                assert_eq!(got, want, "{kind:?}, exact {exact}");
                assert!(vectors(&small) <= LIMIT + IN_USE, "{kind:?}: {} bytes", vectors(&small));
                reads += n;
            }
        }
        println!("{kind:?}: {reads} pages read");
        assert!(reads > 0);
        // Other pages: by id, in order, and all that is written over.
        let ids: Vec<u64> = (0..200).map(|i| i * 7919 % COUNT as u64).collect();
        let want = Want { vectors: true, ..Want::default() };
        let (a, b) = (small.client(c).get(&ids, want).unwrap(), large.client(c).get(&ids, want).unwrap());
        assert_eq!(a.records, b.records);
        let listed = |r: &mut Run| {
            let (mut all, mut cursor) = (Vec::new(), Some(0));
            while let Some(at) = cursor {
                let page = r.client(c).list(&List { cursor: at, want, ..List::default() }).unwrap();
                all.extend(page.records);
                cursor = page.next;
            }
            all
        };
        let (a, b) = (listed(&mut small), listed(&mut large));
        assert!(a == b && a.len() == COUNT, "{kind:?}: {} records listed", a.len());
        let fresh = floats(5, 200 * DIM as usize);
        for r in [&mut small, &mut large] {
            r.client(c).delete(&(0..COUNT as u64).step_by(3).collect::<Vec<_>>(), false).unwrap();
            r.client(c).insert(&Insert { dim: DIM, vectors: &fresh, ids: Some(&ids), ..Insert::default() }).unwrap();
        }
        let (want, _) = hits(&mut large, c, &search(&queries, 20, true));
        let (got, _) = hits(&mut small, c, &search(&queries, 20, true));
        assert!(got == want, "{kind:?}: after deletes and updates");
        let (mut small, mut large) = (reopened(small, LIMIT), reopened(large, 64 << 20));
        let (want, _) = hits(&mut large, c, &search(&queries, 20, true));
        let (got, _) = hits(&mut small, c, &search(&queries, 20, true));
        assert!(got == want, "{kind:?}: after that and a reopening");
        assert_clean(&mut small.close(), "a volume used with little memory");
    }
}

#[test]
fn an_index_is_built_with_little_memory() {
    let (r, c) = made(IndexKind::Flat, LIMIT);
    let mut r = reopened(r, LIMIT);
    let queries = floats(99, 20 * DIM as usize);
    let (want, _) = hits(&mut r, c, &search(&queries, 10, true));
    for kind in [IndexKind::Ivf, IndexKind::Pq, IndexKind::Lsh, IndexKind::Hnsw, IndexKind::Flat] {
        r.client(c).reindex(Some(kind), &IndexParams::default()).unwrap();
        r.pump();
        let info = r.client(c).info().unwrap();
        assert!(info.pending == 0 && !info.catching_up, "{kind:?}: {} pending", info.pending);
        assert!(vectors(&r) <= LIMIT + IN_USE, "{kind:?}: {} bytes", vectors(&r));
        let s = Search { ef: 400, nprobe: 1000, rerank: 3000, ..search(&queries, 10, false) };
        let (got, _) = hits(&mut r, c, &s);
        let found: usize = got.iter().zip(&want).map(|(g, w)| g.iter().filter(|h| w.contains(h)).count()).sum();
        println!("{kind:?}: {found} of 200");
        assert!(found >= 180, "{kind:?}: {found} of 200");
        assert_eq!(hits(&mut r, c, &search(&queries, 10, true)).0, want, "{kind:?}");
    }
}

/// A search that reads from the device while others change the collection gives what there was at some moment of it.
#[test]
fn a_search_is_of_one_moment_while_others_change_what_it_reads() {
    let mut changes = 0;
    for (kind, exact) in [(IndexKind::Flat, false), (IndexKind::Hnsw, false), (IndexKind::Pq, true)] {
        let (r, c) = made(kind, LIMIT);
        let disk = r.close();
        let mut model: BTreeMap<u64, Vec<f32>> = BTreeMap::new();
        for i in 0..COUNT / 500 {
            let vectors = floats(i as u64 * 31 + 7, 500 * DIM as usize);
            model.extend(vectors.chunks(DIM as usize).zip(i as u64 * 500..).map(|(v, id)| (id, v.to_vec())));
        }
        for round in 0..10u64 {
            let mut model = model.clone();
            let mut r = Run::open(disk.clone());
            r.v.set_cache_bytes(LIMIT);
            let query = floats(round + 1000, DIM as usize);
            let near = nearest(&model, &query, 40);
            let mut moments = vec![near[..10].to_vec()];
            let frame = frame_of(&search(&query, 10, exact));
            let id = r.v.submit(r.now, Op::Query { dir: c, cred: Cred::default(), frame }).unwrap();
            let mut steps = 0;
            loop {
                while let Some((id, reply)) = r.v.poll_reply() {
                    r.replies.insert(id, reply);
                }
                if r.replies.contains_key(&id) {
                    break;
                }
                assert!(one_io(&mut r) || r.v.work(), "the search does not end");
                assert!(steps < 3000, "the search does not end: {:?}", r.v);
                steps += 1;
                // Not while the collection is loaded, for which everybody waits.
                if steps % 2 != (round % 2) as usize || steps > 150 || r.v.stats().vector_reads == 0 {
                    continue;
                }
                // What is near goes, what is far comes near, something near gets another vector, and something is new.
                let n = steps / 2;
                let moved: Vec<f32> = query.iter().map(|x| x + 0.001 * (n as f32 + 1.0)).collect();
                let fresh: Vec<f32> = query.iter().map(|x| x - 0.0015 * (n as f32 + 1.0)).collect();
                let ids = [near[(n * 3) % 40], COUNT as u64 + n as u64 * 11];
                let vectors = [&moved[..], &fresh].concat();
                let insert = Insert { dim: DIM, vectors: &vectors, ids: Some(&ids), ..Insert::default() };
                change(&mut r, frame_from(|c| drop(c.insert(&insert))), c);
                model.extend([(ids[0], moved), (ids[1], fresh)]);
                moments.push(nearest(&model, &query, 10));
                let gone = near[(n * 5 + 1) % 40];
                change(&mut r, frame_from(|c| drop(c.delete(&[gone], false))), c);
                model.remove(&gone);
                moments.push(nearest(&model, &query, 10));
                changes += 1;
            }
            let Some(Ok(Reply::Bytes(reply))) = r.replies.remove(&id) else { panic!("no reply") };
            let got: Vec<u64> = parse(&reply).iter().map(|h| h.0).collect();
            let of_graph = |m: &Vec<u64>| m.iter().filter(|id| got.contains(id)).count() >= 9;
            let right = if kind == IndexKind::Hnsw { moments.iter().any(of_graph) } else { moments.contains(&got) };
            assert!(right && got.len() == 10, "{kind:?}, round {round}: {got:?}, {moments:#?}");
        }
    }
    assert!(changes > 50, "only {changes} changes came in between");
}

fn nearest(model: &BTreeMap<u64, Vec<f32>>, query: &[f32], k: usize) -> Vec<u64> {
    let distance = |v: &[f32]| v.iter().zip(query).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    let mut all: Vec<(f64, u64)> = model.iter().map(|(id, v)| (distance(v), *id)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all.iter().take(k).map(|x| x.1).collect()
}

/// Carries out a request while what others read is held back, unless it waits for that itself.
fn change(r: &mut Run, frame: Vec<u8>, dir: u64) {
    let mut held = Vec::new();
    while let Some(io) = r.v.poll_io() {
        assert_eq!(io.kind, IoKind::Read);
        held.push(io);
    }
    let id = r.v.submit(r.now, Op::Request { dir, cred: Cred::default(), frame }).unwrap();
    r.pump();
    for mut io in held {
        r.d.read(io.block, &mut io.buf);
        r.v.complete(r.now, io.id, Ok(()), io.buf);
        if !r.replies.contains_key(&id) {
            r.pump();
        }
    }
    assert!(r.replies.remove(&id).unwrap().is_ok());
}

#[test]
fn damage_costs_the_vectors_in_it_and_errors_pass() {
    let (r, c) = made(IndexKind::Hnsw, LIMIT);
    let mut d = r.close();
    // A block with vectors of the middle: the one that holds the bytes of a vector of them.
    let v = floats(6 * 31 + 7, 500 * DIM as usize);
    let wanted: Vec<u8> = v[100 * DIM as usize..][..DIM as usize].iter().flat_map(|x| x.to_le_bytes()).collect();
    let at = *d.blocks.iter().find(|(_, b)| b.windows(wanted.len()).step_by(4).any(|w| w == wanted)).unwrap().0;
    d.blocks.get_mut(&at).unwrap()[77] ^= 1;
    let mut r = Run::open(d);
    r.v.set_cache_bytes(LIMIT);
    let query = &v[100 * DIM as usize..][..DIM as usize];
    let (got, _) = hits(&mut r, c, &search(query, 10, true));
    let id = 3100;
    assert!(got[0].len() == 10 && got[0].iter().all(|h| h.0 != id));
    let record = &r.client(c).get(&[id], Want { vectors: true, ..Want::default() }).unwrap().records[0];
    assert!(record.present && record.damaged && record.vector.is_empty());
    // 16 vectors of 256 bytes in a block.
    let info = r.client(c).info().unwrap();
    assert_eq!((info.damaged, info.records), (16, COUNT as u64));
    // Put again, it is sound.
    r.client(c).insert(&Insert { dim: DIM, vectors: query, ids: Some(&[id]), ..Insert::default() }).unwrap();
    let (got, _) = hits(&mut r, c, &search(query, 1, false));
    assert_eq!(got, [[(id, 0)]]);
    assert_eq!(r.client(c).info().unwrap().damaged, 15);
    let mut r = reopened(r, LIMIT);
    // A device that does not answer: an error, once for each search, and none when it answers again.
    let frame = frame_of(&search(query, 10, true));
    let s = r.v.submit(r.now, Op::Query { dir: c, cred: Cred::default(), frame }).unwrap();
    while let Some(mut io) = r.v.poll_io() {
        let failed = r.v.loaded_collection(c).is_some();
        r.d.read(io.block, &mut io.buf);
        r.v.complete(r.now, io.id, if failed { Err(IoError) } else { Ok(()) }, io.buf);
    }
    r.pump();
    let Some(Ok(Reply::Bytes(reply))) = r.replies.remove(&s) else { panic!("no reply") };
    assert!(matches!(answer(&reply), Err(vexfs_client::Error::Refused(e)) if e.errno == 5));
    assert_eq!(hits(&mut r, c, &search(query, 1, false)).0, [[(id, 0)]]);
}

/// Carries out the next request for the device, if there is one.
fn one_io(r: &mut Run) -> bool {
    let Some(mut io) = r.v.poll_io() else { return false };
    match io.kind {
        IoKind::Read => r.d.read(io.block, &mut io.buf),
        IoKind::Write | IoKind::WriteDurable => r.d.write(io.block, &io.buf),
        _ => {}
    }
    r.v.complete(r.now, io.id, Ok(()), io.buf);
    true
}

/// The request frame of a search.
fn frame_of(s: &Search<'_>) -> Vec<u8> {
    frame_from(|c| drop(c.search(s)))
}

struct Keep(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

impl vexfs_client::Transport for Keep {
    fn call(&mut self, frame: Vec<u8>) -> std::io::Result<Vec<u8>> {
        *self.0.borrow_mut() = frame;
        Err(std::io::Error::other("kept"))
    }
}

/// The request frame that `ask` sends.
fn frame_from(ask: impl FnOnce(&mut vexfs_client::Client<Keep>)) -> Vec<u8> {
    let kept = std::rc::Rc::default();
    ask(&mut vexfs_client::Client::new(Keep(std::rc::Rc::clone(&kept))));
    let frame = kept.borrow().clone();
    frame
}

/// Ids and distances of the first query in a reply.
fn parse(reply: &[u8]) -> Vec<(u64, u64)> {
    answer(reply).unwrap().queries[0].hits.iter().map(|h| (h.id, h.distance.to_bits())).collect()
}

fn answer(reply: &[u8]) -> Result<vexfs_client::Found, vexfs_client::Error> {
    struct Say(Vec<u8>);
    impl vexfs_client::Transport for Say {
        fn call(&mut self, _: Vec<u8>) -> std::io::Result<Vec<u8>> {
            Ok(self.0.clone())
        }
    }
    let q = [0.5; DIM as usize];
    vexfs_client::Client::new(Say(reply.to_vec())).search(&search(&q, 10, true))
}
