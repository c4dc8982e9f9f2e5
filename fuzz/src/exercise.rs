// SPDX-License-Identifier: GPL-2.0-only
//! Uses a volume: reads everything, changes something, and holds what it hears against what was written.

use crate::base::{bytes, vector, Base, DIR, FILE};
use crate::machine::{Dir, Machine};
use std::collections::{BTreeSet, VecDeque};
use vexfs_client::{
    AttrValue, Attrs, Client, Error as ClientError, FileRef, IndexKind, IndexParams, Insert, List, Metric, Schema,
    Search, Want,
};
use vexfs_core::op::{Op, Reply, SetAttr, Time, ROOT};
use vexfs_core::Error;

/// An error must be one of the volume's; these mean that the core contradicts itself.
fn fine<T>(r: Result<T, Error>, what: &str) -> Option<T> {
    match r {
        Ok(v) => Some(v),
        Err(Error::NotVexfs | Error::Truncated) => panic!("{what}: an error that only opening may give"),
        Err(_) => None,
    }
}

/// A reply of the protocol must be one, whatever it says.
fn reply<T>(r: Result<T, ClientError>, what: &str) -> Option<T> {
    match r {
        Ok(v) => Some(v),
        Err(ClientError::Protocol(e)) => panic!("{what}: {e}"),
        Err(_) => None,
    }
}

/// Most entries and bytes that one pass looks at.
const ENTRIES: usize = 1500;
const READ: usize = 16 << 10;
const FILES: usize = 12;

/// Walks the tree and reads everything in it; inodes and collections that were found.
pub fn read_all(m: &mut Machine) -> (Vec<u64>, Vec<u64>) {
    let mut dirs = VecDeque::from([ROOT]);
    let mut seen = BTreeSet::new();
    let mut collections = Vec::new();
    let mut files = Vec::new();
    let mut count = 0;
    fine(m.call(Op::StatFs), "statfs");
    while let Some(dir) = dirs.pop_front() {
        if !seen.insert(dir) {
            continue;
        }
        fine(m.call(Op::Parent { dir }), "parent");
        let mut cookie = 0;
        // A wrong entry may point anywhere, but listing goes forward.
        while let Some(Reply::Entries(list)) =
            fine(m.call(Op::ReadDir { dir, cookie, max: 4096, attrs: true }), "readdir")
        {
            if list.is_empty() || count > ENTRIES {
                break;
            }
            for e in list {
                assert!(e.cookie > cookie, "readdir does not move on");
                cookie = e.cookie;
                count += 1;
                if count % 4 == 0 {
                    fine(m.call(Op::Lookup { dir, name: e.name.clone() }), "lookup");
                }
                let Some(Reply::Attr(a)) = fine(m.call(Op::GetAttr { ino: e.ino }), "getattr") else { continue };
                fine(m.call(Op::ByHandle { ino: e.ino, generation: a.generation }), "by handle");
                match a.mode & 0o170000 {
                    0o040000 => {
                        dirs.push_back(e.ino);
                        if a.flags & 1 != 0 {
                            collections.push(e.ino);
                        }
                    }
                    0o120000 => {
                        fine(m.call(Op::ReadLink { ino: e.ino }), "readlink");
                    }
                    _ => files.push(e.ino),
                }
                if count < 50 {
                    xattrs(m, e.ino);
                }
            }
        }
    }
    // The newest first: those of a changed volume are at the end.
    for ino in files.iter().rev().take(FILES) {
        read_file(m, *ino);
    }
    for dir in &collections {
        search(m, *dir);
    }
    (files, collections)
}

fn xattrs(m: &mut Machine, ino: u64) {
    let Some(Reply::Bytes(names)) = fine(m.call(Op::ListXattr { ino }), "listxattr") else { return };
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()).take(20) {
        fine(m.call(Op::GetXattr { ino, name: name.to_vec() }), "getxattr");
    }
}

fn read_file(m: &mut Machine, ino: u64) {
    let Some(Reply::Attr(a)) = fine(m.call(Op::GetAttr { ino }), "getattr") else { return };
    for offset in [0, a.size.saturating_sub(10), u64::MAX - 5] {
        if let Some(Reply::Bytes(b)) = fine(m.call(Op::Read { ino, offset, len: READ }), "read") {
            let most = a.size.saturating_sub(offset).min(READ as u64);
            assert_eq!(b.len() as u64, most, "read at {offset} of {}", a.size);
        }
        for hole in [false, true] {
            fine(m.call(Op::Seek { ino, offset, hole }), "seek");
        }
    }
    fine(m.call(Op::Extents { ino, offset: 0, len: u64::MAX, max: 100 }), "extents");
}

/// Everything that a collection can be asked.
pub fn search(m: &mut Machine, dir: u64) {
    let mut c = Client::new(Dir { machine: m, ino: dir });
    let Some(info) = reply(c.info(), "info") else { return };
    let dim = info.schema.dim;
    reply(c.list(&List { want: Want::ALL, max_records: 40, ..List::default() }), "list");
    reply(c.collections(true), "collections");
    reply(c.stats(), "stats");
    if dim > 4096 {
        return;
    }
    let query = vector(99, dim as usize);
    for filter in [None, Some("n >= 20 and s = \"s2\" or not exists(half)")] {
        for exact in [false, true] {
            let s = Search { dim, queries: &query, k: 10, filter, paths: true, exact, ..Search::default() };
            if let Some(f) = reply(c.search(&s), "search") {
                let hits = &f.queries[0].hits;
                assert!(hits.len() <= 10, "more results than asked for");
                let sorted = hits.windows(2).all(|w| (w[0].distance, w[0].id) < (w[1].distance, w[1].id));
                assert!(sorted, "results are not in order: {hits:?}");
            }
        }
    }
    let s = Search { dim, queries: &query, k: 1000, radius: Some(1.0), ..Search::default() };
    if let Some(f) = reply(c.search(&s), "range search") {
        assert!(f.queries[0].hits.iter().all(|h| h.distance <= 1.0), "a result beyond the radius");
    }
}

/// Files and vectors of the image are what they were, or cannot be had. A repair that had to give something up may have
/// made records anew from their vectors, without attributes; `repaired` says that there was one.
pub fn compare(m: &mut Machine, base: &Base, repaired: bool) {
    'files: for f in &base.files {
        let mut ino = ROOT;
        for name in &f.path {
            match fine(m.call(Op::Lookup { dir: ino, name: name.clone() }), "lookup") {
                Some(Reply::Attr(a)) => ino = a.ino,
                _ => continue 'files,
            }
        }
        if let Some(Reply::Bytes(b)) = fine(m.call(Op::Read { ino, offset: 0, len: 1 << 20 }), "read") {
            assert!(b.is_empty() || b == f.bytes, "wrong bytes in {:?}", String::from_utf8_lossy(&f.path.concat()));
        }
    }
    for k in &base.collections {
        let Some(Reply::Attr(a)) = fine(m.call(Op::Lookup { dir: ROOT, name: k.name.to_vec() }), "lookup") else {
            continue;
        };
        let mut c = Client::new(Dir { machine: m, ino: a.ino });
        let ids: Vec<u64> = (0..k.vectors.len() as u64).collect();
        let Some(records) = reply(c.get(&ids, Want::ALL), "get") else { continue };
        for r in records.records.iter().filter(|r| r.present && !r.damaged) {
            assert_eq!(r.vector, k.vectors[r.id as usize], "wrong vector of record {}", r.id);
            // Record 3 of the image with a log was inserted anew, without attributes.
            let none = r.attrs.is_empty() && (repaired || r.id == 3);
            let right = r.attrs.get("n") == Some(&AttrValue::I64(r.id as i64));
            assert!(none || right, "wrong attributes of record {}: {:?}", r.id, r.attrs);
        }
        let query = vector(77, k.dim);
        let s = Search { dim: k.dim as u32, queries: &query, k: 20, ..Search::default() };
        let Some(found) = reply(c.search(&s), "search") else { continue };
        for h in found.queries[0].hits.iter().filter(|h| h.ino().is_none()) {
            let v = &k.vectors[h.id as usize];
            let want = distance(&query, v, k.dim == 8);
            assert!((h.distance - want).abs() < 1e-6, "record {} is {} away, not {}", h.id, want, h.distance);
        }
    }
}

fn distance(a: &[f32], b: &[f32], cosine: bool) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    if cosine {
        1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    } else {
        dot(a, a) - 2.0 * dot(a, b) + dot(b, b)
    }
}

/// A change, chosen by the fuzzer. Numbers pick among the inodes that were found.
#[derive(arbitrary::Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Change {
    Create { dir: u8, kind: u8 },
    Write { file: u8, offset: u32, len: u16 },
    Truncate { file: u8, size: u64 },
    Unlink { name: u8 },
    Rename { name: u8, to: u8, flags: u8 },
    Link { file: u8 },
    Xattr { file: u8, len: u16 },
    Fallocate { file: u8, mode: u8, offset: u32, len: u32 },
    OpenAndRemove { name: u8 },
    Insert { collection: u8, count: u8, id: Option<u64> },
    Delete { collection: u8, id: u64, all: bool },
    Attrs { collection: u8, id: u64 },
    Embed { file: u8, dim: u8 },
    Reindex { collection: u8, index: u8 },
    CreateCollection { dim: u8, populated: bool },
    Drop { collection: u8 },
    Sync,
    Checkpoint,
    Times { file: u8, sec: i64 },
}

/// Carries changes out; errors are fine, contradictions are not.
pub fn change(m: &mut Machine, changes: &[Change], files: &[u64], collections: &[u64]) {
    let file = |n: u8| files.get(usize::from(n) % files.len().max(1)).copied().unwrap_or(2);
    let coll = |n: u8| collections.get(usize::from(n) % collections.len().max(1)).copied().unwrap_or(ROOT);
    let names: [&[u8]; 8] = [b"small", b"large", b"dir", b"many", b"hnsw", b"late", b"made 0", b"empty"];
    let name = |n: u8| names[usize::from(n) % names.len()].to_vec();
    for (i, c) in changes.iter().enumerate() {
        match *c {
            Change::Create { dir, kind } => {
                let mode = [FILE, DIR, 0o010600, 0o020600][usize::from(kind) % 4];
                let dir = if dir == 0 { ROOT } else { coll(dir) };
                let op = Op::Make { dir, name: format!("made {i}").into_bytes(), mode, uid: 1, gid: 2, rdev: 3 };
                if let (Some(Reply::Attr(a)), true) = (fine(m.call(op), "make"), mode == FILE) {
                    probe(m, a.ino, 0, 9000);
                }
            }
            Change::Write { file: f, offset, len } => probe(m, file(f), u64::from(offset), usize::from(len)),
            Change::Truncate { file: f, size } => {
                let set = SetAttr { size: Some(size), kill_suid: true, ..SetAttr::default() };
                fine(m.call(Op::SetAttr { ino: file(f), set }), "truncate");
                read_file(m, file(f));
            }
            Change::Times { file: f, sec } => {
                let set =
                    SetAttr { mtime: Some(Time { sec, nsec: 999_999_999 }), mode: Some(0o7777), ..SetAttr::default() };
                fine(m.call(Op::SetAttr { ino: file(f), set }), "setattr");
            }
            Change::Unlink { name: n } => {
                fine(m.call(Op::Unlink { dir: ROOT, name: name(n) }), "unlink");
                fine(m.call(Op::Rmdir { dir: ROOT, name: name(n) }), "rmdir");
            }
            Change::Rename { name: n, to, flags } => {
                let new_dir = if to & 128 != 0 { coll(to) } else { ROOT };
                let op =
                    Op::Rename { dir: ROOT, name: name(n), new_dir, new_name: name(to), flags: u32::from(flags % 4) };
                fine(m.call(op), "rename");
            }
            Change::Link { file: f } => {
                fine(m.call(Op::Link { ino: file(f), dir: coll(f), name: format!("link {i}").into_bytes() }), "link");
            }
            Change::Xattr { file: f, len } => {
                let (ino, name, value) = (file(f), b"user.fuzz".to_vec(), bytes(1, usize::from(len)));
                let op = Op::SetXattr { ino, name: name.clone(), value: value.clone(), flags: 0 };
                if fine(m.call(op), "setxattr").is_some() {
                    if let Some(Reply::Bytes(b)) = fine(m.call(Op::GetXattr { ino, name: name.clone() }), "getxattr") {
                        assert_eq!(b, value, "an attribute that was just set");
                    }
                }
                fine(m.call(Op::RemoveXattr { ino, name }), "removexattr");
            }
            Change::Fallocate { file: f, mode, offset, len } => {
                let mode = [0, 1, 3, 0x10, 0x11][usize::from(mode) % 5];
                let op = Op::Fallocate { ino: file(f), mode, offset: u64::from(offset), len: u64::from(len) };
                fine(m.call(op), "fallocate");
            }
            Change::OpenAndRemove { name: n } => {
                if let Some(Reply::Attr(a)) = fine(m.call(Op::Lookup { dir: ROOT, name: name(n) }), "lookup") {
                    fine(m.call(Op::Open { ino: a.ino }), "open");
                    fine(m.call(Op::Unlink { dir: ROOT, name: name(n) }), "unlink");
                    read_file(m, a.ino);
                    fine(m.call(Op::Release { ino: a.ino }), "release");
                }
            }
            Change::Insert { collection, count, id } => insert(m, coll(collection), u64::from(count % 40) + 1, id),
            Change::Delete { collection, id, all } => {
                let mut c = Client::new(Dir { machine: m, ino: coll(collection) });
                if all {
                    reply(c.delete_where("not n = 7", false), "delete where");
                } else {
                    reply(c.delete(&[id % 300, id], true), "delete");
                }
            }
            Change::Attrs { collection, id } => {
                let mut c = Client::new(Dir { machine: m, ino: coll(collection) });
                let a = Attrs::from([("n".into(), AttrValue::Remove), ("new".into(), true.into())]);
                reply(c.update_attrs(&[id % 300], &[a], id % 2 == 0, false), "update");
            }
            Change::Embed { file: f, dim } => {
                let (ino, dir) = (file(f), coll(f));
                let v = vector(5, usize::from(dim));
                let mut c = Client::new(Dir { machine: m, ino: dir });
                let embed = if dim == 0 {
                    c.remove_embedding(FileRef::Ino(ino), false)
                } else {
                    c.embed(FileRef::Ino(ino), &v, false)
                };
                if reply(embed, "embed").is_some() && dim > 0 {
                    if let Some(e) = reply(c.embedding(FileRef::Ino(ino)), "embedding") {
                        assert_eq!(e.vector, v, "an embedding that was just set");
                    }
                }
            }
            Change::Reindex { collection, index } => {
                let mut c = Client::new(Dir { machine: m, ino: coll(collection) });
                let kind = IndexKind::ALL[usize::from(index) % IndexKind::ALL.len()];
                // Few vectors are enough to train with these.
                let none = IndexParams::default();
                let params = match kind {
                    IndexKind::Flat => none,
                    IndexKind::Hnsw => IndexParams { m: 4, ..none },
                    IndexKind::Ivf => IndexParams { lists: 3, ..none },
                    IndexKind::Pq => IndexParams { bits: 4, ..none },
                    IndexKind::Lsh => IndexParams { tables: 3, bits: 4, ..none },
                    _ => none,
                };
                reply(c.reindex(Some(kind), &params), "reindex");
                search(m, coll(collection));
            }
            Change::CreateCollection { dim, populated } => {
                let dir = if populated { ROOT } else { coll(dim) };
                let mut c = Client::new(Dir { machine: m, ino: dir });
                reply(c.create(&Schema::new(u32::from(dim), Metric::Ip, IndexKind::Hnsw)), "create");
                search(m, dir);
            }
            Change::Drop { collection } => {
                let mut c = Client::new(Dir { machine: m, ino: coll(collection) });
                reply(c.drop_collection(), "drop");
            }
            Change::Sync => drop(fine(m.call(Op::Sync), "sync")),
            Change::Checkpoint => drop(fine(m.call(Op::Checkpoint), "checkpoint")),
        }
    }
    m.settle();
}

/// Writes and reads back: the same bytes or an error.
fn probe(m: &mut Machine, ino: u64, offset: u64, len: usize) {
    let data = bytes(ino ^ offset, len);
    if let Some(Reply::Written(n)) =
        fine(m.call(Op::Write { ino, offset, data: data.clone(), kill_suid: false, times: None }), "write")
    {
        if let Some(Reply::Bytes(b)) = fine(m.call(Op::Read { ino, offset, len: n }), "read") {
            assert_eq!(b, data[..n], "bytes that were just written");
        }
    }
}

fn insert(m: &mut Machine, dir: u64, count: u64, id: Option<u64>) {
    let mut c = Client::new(Dir { machine: m, ino: dir });
    let Some(info) = reply(c.info(), "info") else { return };
    let dim = info.schema.dim;
    if dim > 4096 {
        return;
    }
    let vectors: Vec<f32> = (0..count).flat_map(|i| vector(i + 3000, dim as usize)).collect();
    let ids: Option<Vec<u64>> = id.map(|id| (0..count).map(|i| (id >> 1).wrapping_add(i) & (u64::MAX >> 1)).collect());
    let batch = Insert { dim, vectors: &vectors, ids: ids.as_deref(), ..Insert::default() };
    let Some(done) = reply(c.insert(&batch), "insert") else { return };
    let last = ids.map_or(done.first_id + count - 1, |ids| ids[count as usize - 1]);
    if let Some(r) = reply(c.get(&[last], Want::ALL), "get") {
        let want = &vectors[(count as usize - 1) * dim as usize..];
        assert!(r.records[0].present && r.records[0].vector == want, "record {last} that was just inserted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::base;

    #[test]
    fn a_sound_image_is_all_there() {
        let b = base();
        for disk in [&b.clean, &b.logged].iter().cycle().take(if std::env::var_os("PERF").is_some() { 200 } else { 2 })
        {
            let mut m = Machine::open((*disk).clone(), false).map_err(|e| e.0).unwrap();
            compare(&mut m, b, false);
            let (files, collections) = read_all(&mut m);
            assert_eq!(collections.len(), 2);
            assert!(files.len() > 40, "{}", files.len());
            let t = std::time::Instant::now();
            let changes = [
                Change::Create { dir: 0, kind: 0 },
                Change::Insert { collection: 0, count: 30, id: None },
                Change::Embed { file: 3, dim: 8 },
                Change::Reindex { collection: 1, index: 3 },
                Change::Sync,
                Change::Reindex { collection: 1, index: 1 },
                Change::Truncate { file: 2, size: 1 << 40 },
                Change::Delete { collection: 0, id: 0, all: true },
                Change::Sync,
                Change::CreateCollection { dim: 4, populated: true },
                Change::Checkpoint,
            ];
            change(&mut m, &changes, &files, &collections);
            read_all(&mut m);
            m.call(Op::Close).unwrap();
            let mut m = Machine::open(m.disk, true).map_err(|e| e.0).unwrap();
            let (_, collections) = read_all(&mut m);
            assert_eq!(collections.len(), 2);
            let mut c = Client::new(Dir { machine: &mut m, ino: ROOT });
            assert_eq!(c.info().unwrap().schema.dim, 4);
            eprintln!("{:?}", t.elapsed());
        }
    }

    /// Changes a byte of every data block behind its checksum.
    fn rot(disk: &crate::Disk) -> Machine {
        let map = crate::repair::Map::of(disk);
        let mut disk = disk.clone();
        for block in map.data.keys() {
            disk.block_mut(*block)[3] ^= 1;
        }
        map.repair(&mut disk, map.data.keys().copied().collect());
        Machine::open(disk, true).map_err(|e| e.0).unwrap()
    }

    /// The comparison can fail: bytes that are wrong and whose checksums are right are found by it alone.
    #[test]
    #[should_panic(expected = "wrong bytes in")]
    fn wrong_bytes_are_seen() {
        compare(&mut rot(&base().clean), base(), false);
    }

    /// With the checksums as they were, the volume itself refuses them.
    #[test]
    fn rotten_bytes_are_refused() {
        let b = base();
        let mut disk = b.clean.clone();
        for block in crate::repair::Map::of(&b.clean).data.keys() {
            disk.block_mut(*block)[3] ^= 1;
        }
        compare(&mut Machine::open(disk, true).map_err(|e| e.0).unwrap(), b, false);
    }
}
