// SPDX-License-Identifier: GPL-2.0-only
//! Searches beside inserts: alone they wait for the index, so that their answer depends on the data only; beside somebody who
//! inserts they wait for nothing.

mod volume;

use std::cell::RefCell;
use std::rc::Rc;
use vexfs_client::{Client, IndexKind, Insert, Metric, Schema, Search, Transport};
use volume::*;

const DIM: u32 = 16;

/// Keeps a request instead of sending it.
struct Catch(Rc<RefCell<Vec<u8>>>);

impl Transport for Catch {
    fn call(&mut self, frame: Vec<u8>) -> std::io::Result<Vec<u8>> {
        *self.0.borrow_mut() = frame;
        Err(std::io::Error::other("kept"))
    }
}

fn frame(f: impl FnOnce(&mut Client<Catch>)) -> Vec<u8> {
    let kept = Rc::default();
    f(&mut Client::new(Catch(Rc::clone(&kept))));
    kept.take()
}

fn insert(seed: u64) -> Vec<u8> {
    let vectors = floats(seed, 400 * DIM as usize);
    frame(|c| drop(c.insert(&Insert { dim: DIM, vectors: &vectors, ..Insert::default() })))
}

fn search() -> Vec<u8> {
    let q = floats(1, DIM as usize);
    frame(|c| drop(c.search(&Search { dim: DIM, queries: &q, k: 5, ..Search::default() })))
}

/// I/O, but no background work.
fn io(r: &mut Run) {
    while let Some(mut io) = r.v.poll_io() {
        match io.kind {
            IoKind::Read => r.d.read(io.block, &mut io.buf),
            IoKind::Write | IoKind::WriteDurable => r.d.write(io.block, &io.buf),
            _ => {}
        }
        r.v.complete(r.now, io.id, Ok(()), io.buf);
    }
    while let Some((id, reply)) = r.v.poll_reply() {
        r.replies.insert(id, reply);
    }
}

#[test]
fn searches_wait_for_the_index_only_while_nobody_inserts() {
    let mut r = Run::open(Disk::new(1 << 14, 2));
    let dir = r.make(ROOT, "c", 0o040755);
    r.client(dir).create(&Schema::new(DIM, Metric::L2, IndexKind::Hnsw)).unwrap();
    let cred = Cred::default;
    let put = |r: &mut Run, seed| {
        let id = r.v.submit(r.now, Op::Request { dir, cred: cred(), frame: insert(seed) }).unwrap();
        io(r);
        assert!(r.replies.remove(&id).unwrap().is_ok());
    };
    let ask = |r: &mut Run| {
        let id = r.v.submit(r.now, Op::Query { dir, cred: cred(), frame: search() }).unwrap();
        io(r);
        id
    };
    put(&mut r, 7);
    // Nobody inserts: it waits for the index, and has its answer when that has everything.
    let alone = ask(&mut r);
    assert!(!r.replies.contains_key(&alone));
    r.pump();
    assert!(r.replies.remove(&alone).unwrap().is_ok());
    assert_eq!(r.v.loaded_collection(dir).unwrap().pending(), 0);
    // An insert comes while it waits: it goes on with what there is, and so do others from now on.
    put(&mut r, 8);
    let disturbed = ask(&mut r);
    assert!(!r.replies.contains_key(&disturbed));
    put(&mut r, 9);
    assert!(r.replies.remove(&disturbed).unwrap().is_ok());
    let beside = ask(&mut r);
    assert!(r.replies.remove(&beside).unwrap().is_ok());
    assert!(r.v.loaded_collection(dir).unwrap().pending() > 0);
    // That ends.
    r.now.sec += 60;
    let later = ask(&mut r);
    assert!(!r.replies.contains_key(&later));
    r.pump();
    assert!(r.replies.remove(&later).unwrap().is_ok());
}
