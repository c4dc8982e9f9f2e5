// SPDX-License-Identifier: GPL-2.0-only
//! The image that the target `image` mutates, made once by the core itself: a little of everything that the format
//! knows. In two states: cleanly closed, and as a crash leaves it, with a log to be replayed.

use crate::machine::{Dir, Disk, Machine};
use std::sync::OnceLock;
use vexfs_client::{Attrs, Client, FileRef, IndexKind, Insert, Metric, Schema};
use vexfs_core::engine::{mkfs, FormatOptions};
use vexfs_core::format::{BLOCK, VOLUME_MIN};
use vexfs_core::op::{Op, Reply, Time, ROOT};

/// Type bits and permissions of a regular file.
pub const FILE: u32 = 0o100644;
/// The same of a directory.
pub const DIR: u32 = 0o040755;

/// A file of the image: path, contents.
pub struct Known {
    /// Names from the root on.
    pub path: Vec<Vec<u8>>,
    /// Contents.
    pub bytes: Vec<u8>,
}

/// A collection of the image.
pub struct KnownCollection {
    /// Name in the root.
    pub name: &'static [u8],
    /// Dimension.
    pub dim: usize,
    /// Vectors of the bulk records, by id.
    pub vectors: Vec<Vec<f32>>,
}

/// The image.
pub struct Base {
    /// Cleanly closed.
    pub clean: Disk,
    /// After further changes, not closed.
    pub logged: Disk,
    /// Files and their contents, those of `logged` included.
    pub files: Vec<Known>,
    /// Collections.
    pub collections: Vec<KnownCollection>,
}

/// Bytes that depend on a seed.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

/// A vector that depends on a seed; no element is zero.
pub fn vector(seed: u64, dim: usize) -> Vec<f32> {
    bytes(seed ^ 0xabcd, dim).iter().map(|b| (f32::from(*b) - 127.5) / 64.0).collect()
}

struct Builder {
    m: Machine,
    files: Vec<Known>,
}

fn ok(r: Result<Reply, vexfs_core::Error>) -> Reply {
    r.expect("making the base image")
}

impl Builder {
    fn make(&mut self, dir: u64, name: &[u8], mode: u32) -> u64 {
        match ok(self.m.call(Op::Make { dir, name: name.to_vec(), mode, uid: 0, gid: 0, rdev: 0 })) {
            Reply::Attr(a) => a.ino,
            r => panic!("{r:?}"),
        }
    }

    fn file(&mut self, path: &[&[u8]], dir: u64, len: usize) -> u64 {
        let name = path[path.len() - 1];
        let ino = self.make(dir, name, FILE);
        let data = bytes(ino, len);
        if len > 0 {
            ok(self.m.call(Op::Write { ino, offset: 0, data: data.clone(), kill_suid: false, times: None }));
        }
        self.files.push(Known { path: path.iter().map(|n| n.to_vec()).collect(), bytes: data });
        ino
    }

    fn collection(
        &mut self,
        name: &'static [u8],
        dim: usize,
        metric: Metric,
        index: IndexKind,
        count: u64,
    ) -> KnownCollection {
        let ino = self.make(ROOT, name, DIR);
        let vectors: Vec<Vec<f32>> = (0..count).map(|i| vector(i, dim)).collect();
        let mut c = Client::new(Dir { machine: &mut self.m, ino });
        let mut schema = Schema::new(dim as u32, metric, index);
        schema.model = "model".into();
        schema.params.seed = 7;
        if index == IndexKind::Hnsw {
            schema.params.m = 4;
            schema.params.ef_construction = 16;
        }
        c.create(&schema).expect("create");
        let attrs: Vec<Attrs> = (0..count)
            .map(|i| {
                let s = if i % 7 == 0 { "long ".repeat(300) } else { format!("s{}", i % 5) };
                Attrs::from([
                    ("n".into(), (i as i64).into()),
                    ("s".into(), s.into()),
                    ("half".into(), (i as f64 / 2.0).into()),
                ])
            })
            .collect();
        let flat: Vec<f32> = vectors.concat();
        c.insert(&Insert { dim: dim as u32, vectors: &flat, attrs: Some(&attrs), ..Insert::default() })
            .expect("insert");
        for (i, file) in [b"x.txt".as_slice(), b"y.txt", b"z.txt"].iter().enumerate() {
            let path: [&[u8]; 2] = [name, file];
            let f = self.file(&path, ino, 100 * i + 1);
            let mut c = Client::new(Dir { machine: &mut self.m, ino });
            c.embed(FileRef::Ino(f), &vector(1000 + i as u64, dim), false).expect("embed");
        }
        KnownCollection { name, dim, vectors }
    }
}

fn build() -> Base {
    let o = FormatOptions {
        blocks: VOLUME_MIN,
        copies: 2,
        uuid: *b"fuzzing-an-image",
        hash_key: [7; 16],
        label: [0; 64],
        uid: 0,
        gid: 0,
        mode: 0o755,
    };
    let mut disk = Disk::new(VOLUME_MIN);
    let now = Time { sec: 1_700_000_000, nsec: 0 };
    for (block, b) in mkfs(crate::machine::env(), &o, now).expect("mkfs") {
        for (i, bytes) in b.chunks_exact(BLOCK).enumerate() {
            disk.block_mut(block + i as u64).copy_from_slice(bytes);
        }
    }
    let m = Machine::open(disk, false).map_err(|e| e.0).expect("open");
    let mut b = Builder { m, files: Vec::new() };
    b.file(&[b"empty"], ROOT, 0);
    let small = b.file(&[b"small"], ROOT, 10);
    b.file(&[b"large"], ROOT, 30_001);
    let dir = b.make(ROOT, b"dir", DIR);
    b.file(&[b"dir", b"inner"], dir, 5000);
    let sparse = b.make(dir, b"sparse", FILE);
    ok(b.m.call(Op::Write { ino: sparse, offset: 1 << 20, data: bytes(1, 4096), kill_suid: false, times: None }));
    ok(b.m.call(Op::Fallocate { ino: sparse, mode: 0, offset: 0, len: 65536 }));
    ok(b.m.call(Op::Symlink { dir, name: b"short".to_vec(), target: b"inner".to_vec(), uid: 1, gid: 2 }));
    ok(b.m.call(Op::Symlink { dir, name: b"long".to_vec(), target: vec![b'x'; 3000], uid: 1, gid: 2 }));
    ok(b.m.call(Op::Link { ino: small, dir, name: b"hard link".to_vec() }));
    for (name, len) in [(&b"user.short"[..], 5), (b"user.long", 5000), (b"trusted.x", 0)] {
        ok(b.m.call(Op::SetXattr { ino: small, name: name.to_vec(), value: bytes(2, len), flags: 0 }));
    }
    b.make(dir, b"fifo", 0o010600);
    let many = b.make(ROOT, b"many", DIR);
    for i in 0..40u32 {
        let name = format!("file number {i} {}", "n".repeat(5 * i as usize));
        b.file(&[b"many", name.as_bytes()], many, i as usize % 3);
    }
    let collections = vec![
        b.collection(b"hnsw", 8, Metric::Cosine, IndexKind::Hnsw, 40),
        b.collection(b"flat", 3, Metric::L2, IndexKind::Flat, 50),
    ];
    // Closing persists the index and empties the log.
    b.m.settle();
    ok(b.m.call(Op::Close));
    let clean = b.m.disk.freeze();
    b.m = Machine::open(clean.clone(), false).map_err(|e| e.0).expect("reopen");
    // Now the log: a bit of everything again.
    b.file(&[b"late"], ROOT, 9000);
    b.file(&[b"dir", b"late too"], dir, 100);
    ok(b.m.call(Op::Unlink { dir: many, name: b"file number 0 ".to_vec() }));
    b.files.retain(|f| f.path.last().is_none_or(|n| n != b"file number 0 "));
    // A file that is removed while open leaves an orphan.
    let orphan = b.make(ROOT, b"orphan", FILE);
    ok(b.m.call(Op::Write { ino: orphan, offset: 0, data: bytes(3, 20_000), kill_suid: false, times: None }));
    ok(b.m.call(Op::Open { ino: orphan }));
    ok(b.m.call(Op::Unlink { dir: ROOT, name: b"orphan".to_vec() }));
    ok(b.m.call(Op::Fallocate { ino: sparse, mode: 3, offset: 8192, len: 8192 }));
    let Reply::Attr(hnsw) = ok(b.m.call(Op::Lookup { dir: ROOT, name: b"hnsw".to_vec() })) else { panic!() };
    let mut c = Client::new(Dir { machine: &mut b.m, ino: hnsw.ino });
    c.delete(&[3, 4, 5], false).expect("delete");
    let again = vector(3, 8);
    c.insert(&Insert { dim: 8, vectors: &again, ids: Some(&[3]), ..Insert::default() }).expect("insert");
    ok(b.m.call(Op::Sync));
    let logged = b.m.disk.freeze();
    Base { clean, logged, files: b.files, collections }
}

/// The image, made on first use.
pub fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(build)
}
