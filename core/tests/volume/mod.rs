// SPDX-License-Identifier: GPL-2.0-only
//! A volume in memory that the tests of the checker make, use, damage and check.
#![allow(dead_code, unused_imports)] // each test file uses its part

pub use std::collections::{BTreeMap, HashMap};
use vexfs_client::{Attrs, Client, FileRef, IndexKind, Insert, Metric, Schema, Transport};
pub use vexfs_core::check::{Check, Figures, Finding, Mode};
pub use vexfs_core::engine::{self, mkfs, FormatOptions, OpId, State, Volume};
use vexfs_core::env::Env;
use vexfs_core::format::{Key, Ptr, Super, SUPER_SLOTS};
pub use vexfs_core::io::{IoError, IoKind};
pub use vexfs_core::op::{Cred, Op, Reply, SetAttr, Time, ROOT};
pub use vexfs_core::Error;
use vexfs_core::{checksum, dist};

pub const NOW: Time = Time { sec: 1_700_000_000, nsec: 5 };

pub fn env() -> Env {
    Env { crc32c: checksum::crc32c, distance: &dist::SCALAR, cache_bytes: 1 << 20, log_bytes: 8 << 20 }
}

#[derive(Clone, Default)]
pub struct Disk {
    pub blocks: HashMap<u64, Vec<u8>>,
    pub size: u64,
}

impl Disk {
    pub fn new(size: u64, copies: u32) -> Disk {
        let mut d = Disk { blocks: HashMap::new(), size };
        let mut label = [0; 64];
        label[..4].copy_from_slice(b"test");
        let o = FormatOptions {
            blocks: size,
            copies,
            uuid: [7; 16],
            hash_key: [9; 16],
            label,
            uid: 0,
            gid: 0,
            mode: 0o755,
        };
        for (b, buf) in mkfs(env(), &o, NOW).unwrap() {
            d.write(b, &buf);
        }
        d
    }
    pub fn write(&mut self, block: u64, data: &[u8]) {
        for (i, c) in data.chunks(4096).enumerate() {
            assert!(block + (i as u64) < self.size);
            self.blocks.insert(block + i as u64, c.to_vec());
        }
    }
    pub fn read(&self, block: u64, out: &mut [u8]) {
        for (i, c) in out.chunks_mut(4096).enumerate() {
            match self.blocks.get(&(block + i as u64)) {
                Some(b) => c.copy_from_slice(b),
                None => c.fill(0),
            }
        }
    }
    pub fn block(&self, b: u64) -> Vec<u8> {
        let mut v = vec![0; 4096];
        self.read(b, &mut v);
        v
    }
}

/// Checks a disk. With [`Mode::Look`] a write fails the test.
pub fn check(d: &mut Disk, mode: Mode, metadata_only: bool) -> (Result<Figures, Error>, Vec<Finding>) {
    let mut c = Check::new(env(), d.size, vexfs_core::check::Options { mode, metadata_only });
    let mut requests = 0;
    let r = c.run(&mut |io| {
        requests += 1;
        assert!(requests < 200_000, "does not end");
        match io.kind {
            IoKind::Read => d.read(io.block, &mut io.buf),
            IoKind::Write | IoKind::WriteDurable => {
                assert_ne!(mode, Mode::Look, "a check that only looks wrote");
                d.write(io.block, &io.buf);
            }
            _ => {}
        }
        Ok::<(), IoError>(())
    });
    (r, c.findings().to_vec())
}

pub fn errors(d: &mut Disk) -> Vec<String> {
    let (r, f) = check(d, Mode::Look, false);
    let mut v: Vec<String> = f.iter().filter(|f| f.is_error()).map(|f| f.to_string()).collect();
    if let Err(e) = r {
        v.push(format!("failed: {e}"));
    }
    v
}

pub fn assert_clean(d: &mut Disk, what: &str) -> Figures {
    let (r, f) = check(d, Mode::Look, false);
    let bad: Vec<String> = f.iter().map(|f| f.to_string()).collect();
    assert!(bad.is_empty(), "{what}: {bad:#?}");
    r.unwrap()
}

pub struct Run {
    pub v: Volume,
    pub d: Disk,
    pub replies: HashMap<OpId, Result<Reply, Error>>,
    /// The time, which stands still.
    pub now: Time,
}

impl Run {
    pub fn open(d: Disk) -> Run {
        Run::open_at(d, NOW)
    }
    pub fn open_at(d: Disk, now: Time) -> Run {
        let v = Volume::open(env(), d.size, engine::Options::default(), now).unwrap();
        let mut r = Run { v, d, replies: HashMap::new(), now };
        r.pump();
        assert_eq!(r.v.state(), State::Ready);
        r
    }
    pub fn pump(&mut self) {
        let mut requests = 0;
        loop {
            while let Some(mut io) = self.v.poll_io() {
                requests += 1;
                assert!(requests < 200_000, "does not end");
                match io.kind {
                    IoKind::Read => self.d.read(io.block, &mut io.buf),
                    IoKind::Write | IoKind::WriteDurable => self.d.write(io.block, &io.buf),
                    _ => {}
                }
                self.v.complete(self.now, io.id, Ok(()), io.buf);
            }
            if !self.v.work() {
                break;
            }
        }
        while let Some((id, r)) = self.v.poll_reply() {
            self.replies.insert(id, r);
        }
    }
    pub fn op(&mut self, op: Op) -> Result<Reply, Error> {
        let text = format!("{op:.60?}");
        let id = self.v.submit(self.now, op)?;
        self.pump();
        self.replies.remove(&id).unwrap_or_else(|| panic!("no reply to {text}"))
    }
    pub fn make(&mut self, dir: u64, name: &str, mode: u32) -> u64 {
        match self.op(Op::Make { dir, name: name.into(), mode, uid: 5, gid: 6, rdev: 0x501 }).unwrap() {
            Reply::Attr(a) => a.ino,
            r => panic!("{r:?}"),
        }
    }
    pub fn write(&mut self, ino: u64, offset: u64, data: Vec<u8>) {
        self.op(Op::Write { ino, offset, data, kill_suid: false, times: None }).unwrap();
    }
    pub fn client(&mut self, dir: u64) -> Client<Frames<'_>> {
        Client::new(Frames { run: self, dir })
    }
    pub fn close(mut self) -> Disk {
        self.op(Op::Close).unwrap();
        assert_eq!(self.v.state(), State::Closed);
        self.d
    }
}

pub struct Frames<'a> {
    run: &'a mut Run,
    dir: u64,
}

impl Transport for Frames<'_> {
    fn call(&mut self, frame: Vec<u8>) -> std::io::Result<Vec<u8>> {
        let (dir, cred) = (self.dir, Cred::default());
        let op = match vexfs_core::proto::is_read(&frame) {
            true => Op::Query { dir, cred, frame },
            false => Op::Request { dir, cred, frame },
        };
        match self.run.op(op) {
            Ok(Reply::Bytes(b)) => Ok(b),
            r => Err(std::io::Error::other(format!("{r:?}"))),
        }
    }
}

pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 56) as u8
        })
        .collect()
}

pub fn floats(seed: u64, n: usize) -> Vec<f32> {
    bytes(seed, n).iter().map(|b| f32::from(*b) / 64.0 - 2.0).collect()
}

/// A volume with some of everything.
pub fn furnish(r: &mut Run) {
    let dir = r.make(ROOT, "dir", 0o040755);
    let sub = r.make(dir, "sub", 0o042755);
    for i in 0..60u64 {
        let f = r.make(if i % 2 == 0 { dir } else { sub }, &format!("file {i}"), 0o100644);
        r.write(f, (i % 3) * 5000, bytes(i, (i as usize * 977) % 30_000 + 1));
    }
    let f = r.make(dir, "links", 0o100644);
    for i in 0..3 {
        r.op(Op::Link { ino: f, dir: sub, name: format!("link {i}").into() }).unwrap();
    }
    r.op(Op::Symlink { dir, name: "short".into(), target: "file 0".into(), uid: 1, gid: 1 }).unwrap();
    r.op(Op::Symlink { dir, name: "long".into(), target: vec![b'x'; 2500], uid: 1, gid: 1 }).unwrap();
    r.make(dir, "fifo", 0o010600);
    r.make(dir, "device", 0o020600);
    r.op(Op::SetXattr { ino: f, name: "user.a".into(), value: b"value".to_vec(), flags: 0 }).unwrap();
    r.op(Op::SetXattr { ino: f, name: "user.big".into(), value: bytes(3, 5000), flags: 0 }).unwrap();
    r.op(Op::Fallocate { ino: f, mode: 1, offset: 100_000, len: 500_000 }).unwrap();
    // A hole in a written file.
    r.op(Op::Fallocate { ino: f, mode: 0, offset: 0, len: 10 }).unwrap();
    r.write(f, 40_000, bytes(9, 30_000));
    // Open and without a name.
    let o = r.make(dir, "orphan", 0o100600);
    r.write(o, 0, bytes(4, 10_000));
    r.op(Op::Open { ino: o }).unwrap();
    r.op(Op::Unlink { dir, name: "orphan".into() }).unwrap();
    for (i, (name, metric, index)) in
        [("flat", Metric::L2, IndexKind::Flat), ("graph", Metric::Cosine, IndexKind::Hnsw)].into_iter().enumerate()
    {
        let c = r.make(ROOT, name, 0o040755);
        let mut s = Schema::new(20, metric, index);
        s.model = "model".into();
        r.client(c).create(&s).unwrap();
        let n = 150;
        let mut attrs = Attrs::default();
        attrs.insert("name".into(), "x".repeat(1500).into());
        let vectors = floats(7 + i as u64, 20 * n);
        let list: Vec<Attrs> = (0..n).map(|i| if i % 50 == 0 { attrs.clone() } else { Attrs::default() }).collect();
        let insert = Insert { dim: 20, vectors: &vectors, attrs: Some(&list), ..Insert::default() };
        r.client(c).insert(&insert).unwrap();
        r.client(c).delete(&[3, 4, 77], false).unwrap();
        for j in 0..8 {
            let f = r.make(c, &format!("doc {j}"), 0o100644);
            let dim = if j == 7 { 12 } else { 20 };
            r.client(c).embed(FileRef::Ino(f), &floats(j, dim), false).unwrap();
            if j == 5 {
                r.write(f, 0, b"stale".to_vec());
            }
        }
        r.op(Op::Unlink { dir: c, name: "doc 2".into() }).unwrap();
        r.op(Op::Rename { dir: c, name: "doc 3".into(), new_dir: ROOT, new_name: "moved".into(), flags: 0 }).unwrap();
    }
    let big = r.make(ROOT, "embedded", 0o100644);
    r.client(ROOT).embed(FileRef::Ino(big), &floats(99, 700), false).unwrap();
}

pub fn furnished(copies: u32) -> Disk {
    let mut r = Run::open(Disk::new(8192, copies));
    furnish(&mut r);
    r.op(Op::Checkpoint).unwrap();
    r.close()
}

/// A node: pointer, level, index of its parent and place there.
pub type Node = (Ptr, u16, Option<(usize, usize)>);

/// The tree of a disk as it lies there, and how to change it.
pub struct Image {
    pub d: Disk,
    pub sb: Super,
    pub nodes: Vec<Node>,
}

pub fn u16_at(b: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([b[at], b[at + 1]]))
}

impl Image {
    pub fn new(d: Disk) -> Image {
        let newest =
            SUPER_SLOTS.iter().flatten().map(|s| Super::parse(&d.block(*s)).unwrap()).max_by_key(|s| s.generation);
        let sb = newest.unwrap();
        let mut nodes = vec![(Ptr::parse(&sb.root).unwrap(), sb.root_level as u16, None)];
        let mut i = 0;
        while i < nodes.len() {
            let (p, level, _) = nodes[i];
            let b = d.block(p.addr);
            for j in 0..if level > 0 { u16_at(&b, 50) } else { 0 } {
                nodes.push((Ptr::parse(&b[64 + j * 64 + 32..]).unwrap(), level - 1, Some((i, j))));
            }
            i += 1;
        }
        Image { d, sb, nodes }
    }

    /// Puts a changed node on the disk, both copies, and repairs the checksums of all above it.
    pub fn put_node(&mut self, i: usize, bytes: Vec<u8>) {
        let (p, _, parent) = self.nodes[i];
        let crc = checksum::crc32c(0, &bytes);
        for a in [p.addr, p.twin] {
            if a != 0 {
                self.d.write(a, &bytes);
            }
        }
        match parent {
            Some((up, j)) => {
                let mut b = self.d.block(self.nodes[up].0.addr);
                let at = 64 + j * 64 + 32 + 24;
                b[at..at + 4].copy_from_slice(&crc.to_le_bytes());
                self.put_node(up, b);
            }
            None => self.put_supers(&[0, 1], 176 + 24, &crc.to_le_bytes()),
        }
    }

    /// Changes bytes of the newest superblock, in these copies, with the checksum repaired.
    pub fn put_supers(&mut self, copies: &[usize], at: usize, bytes: &[u8]) {
        let pair = SUPER_SLOTS[(self.sb.generation % 2) as usize];
        for c in copies {
            let mut b = self.d.block(pair[*c]);
            b[at..at + bytes.len()].copy_from_slice(bytes);
            let crc = checksum::crc32c(0, &b[4..]);
            b[..4].copy_from_slice(&crc.to_le_bytes());
            self.d.write(pair[*c], &b);
        }
    }

    /// All items: node, offset of the slot, key, offset and length of the value.
    pub fn items(&self) -> Vec<(usize, usize, Key, usize, usize)> {
        let mut v = Vec::new();
        for (n, (p, level, _)) in self.nodes.iter().enumerate() {
            if *level == 0 {
                let b = self.d.block(p.addr);
                for i in 0..u16_at(&b, 50) {
                    let at = 64 + i * 36;
                    v.push((n, at, Key::parse(&b[at..]).unwrap(), u16_at(&b, at + 32), u16_at(&b, at + 34)));
                }
            }
        }
        v
    }
}
