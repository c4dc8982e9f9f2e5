// SPDX-License-Identifier: GPL-2.0-only
//! The engine over a disk in memory: make, open, change, close, crash, open again.

use std::collections::HashMap;
use vexfs_core::engine::{mkfs, FormatOptions, OpId, Options, State, Volume};
use vexfs_core::env::Env;
use vexfs_core::io::IoKind;
use vexfs_core::op::{Op, Reply, SetAttr, Time, ROOT};
use vexfs_core::{checksum, dist, Error};

const NOW: Time = Time { sec: 1_700_000_000, nsec: 0 };

fn env() -> Env {
    Env { crc32c: checksum::crc32c, distance: &dist::SCALAR, cache_bytes: 1 << 20, log_bytes: 8 << 20 }
}

#[derive(Default, Clone)]
struct Disk {
    blocks: HashMap<u64, Vec<u8>>,
    size: u64,
}

impl Disk {
    fn new(size: u64) -> Disk {
        let mut d = Disk { blocks: HashMap::new(), size };
        let o = FormatOptions {
            blocks: size,
            copies: 2,
            uuid: [7; 16],
            hash_key: [9; 16],
            label: [0; 64],
            uid: 0,
            gid: 0,
            mode: 0o755,
        };
        for (b, buf) in mkfs(env(), &o, NOW).unwrap() {
            d.write(b, &buf);
        }
        d
    }
    fn write(&mut self, block: u64, data: &[u8]) {
        for (i, c) in data.chunks(4096).enumerate() {
            assert!(block + (i as u64) < self.size);
            self.blocks.insert(block + i as u64, c.to_vec());
        }
    }
    fn read(&self, block: u64, out: &mut [u8]) {
        for (i, c) in out.chunks_mut(4096).enumerate() {
            match self.blocks.get(&(block + i as u64)) {
                Some(b) => c.copy_from_slice(b),
                None => c.fill(0),
            }
        }
    }
}

struct Run {
    v: Volume,
    d: Disk,
    replies: HashMap<OpId, Result<Reply, Error>>,
}

impl Run {
    fn open(d: Disk, read_only: bool) -> Run {
        Run::open_with(d, Options { read_only, ..Options::default() })
    }
    fn open_with(d: Disk, options: Options) -> Run {
        let v = Volume::open(env(), d.size, options, NOW).unwrap();
        let mut r = Run { v, d, replies: HashMap::new() };
        r.pump();
        assert_eq!(r.v.state(), State::Ready);
        r
    }
    fn pump(&mut self) {
        while let Some(mut io) = self.v.poll_io() {
            match io.kind {
                IoKind::Read => self.d.read(io.block, &mut io.buf),
                IoKind::Write | IoKind::WriteDurable => self.d.write(io.block, &io.buf),
                _ => {}
            }
            self.v.complete(NOW, io.id, Ok(()), io.buf);
        }
        while let Some((id, r)) = self.v.poll_reply() {
            self.replies.insert(id, r);
        }
    }
    fn op(&mut self, op: Op) -> Result<Reply, Error> {
        let text = format!("{op:.60?}");
        let id = self.v.submit(NOW, op)?;
        self.pump();
        self.replies.remove(&id).unwrap_or_else(|| panic!("no reply to {text}"))
    }
    fn make(&mut self, dir: u64, name: &str, mode: u32) -> Result<u64, Error> {
        match self.op(Op::Make { dir, name: name.into(), mode, uid: 0, gid: 0, rdev: 0 })? {
            Reply::Attr(a) => Ok(a.ino),
            r => panic!("{r:?}"),
        }
    }
    fn lookup(&mut self, dir: u64, name: &str) -> Result<u64, Error> {
        match self.op(Op::Lookup { dir, name: name.into() })? {
            Reply::Attr(a) => Ok(a.ino),
            r => panic!("{r:?}"),
        }
    }
    fn read(&mut self, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        match self.op(Op::Read { ino, offset, len })? {
            Reply::Bytes(b) => Ok(b),
            r => panic!("{r:?}"),
        }
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 56) as u8
        })
        .collect()
}

#[test]
fn changes_answered_before_the_log_survive_a_sync_and_are_lost_in_order() {
    let behind = Options { write_behind: true, ..Options::default() };
    let mut r = Run::open_with(Disk::new(8192), behind);
    let groups = r.v.stats().log_groups;
    for i in 0..20u64 {
        let f = r.make(ROOT, &format!("f{i}"), 0o100644).unwrap();
        r.op(Op::Write { ino: f, offset: 0, data: bytes(i, 5000), kill_suid: false, times: None }).unwrap();
    }
    // Seen at once, written by nobody's wish.
    assert!(r.lookup(ROOT, "f19").is_ok());
    assert_eq!(r.v.stats().log_groups, groups);
    let lost = r.d.clone();
    r.op(Op::Sync).unwrap();
    assert_eq!(r.v.stats().log_groups, groups + 1);
    let kept = r.d.clone();
    r.make(ROOT, "later", 0o100644).unwrap();
    let mut a = Run::open(lost, false);
    assert_eq!(a.lookup(ROOT, "f0"), Err(Error::NotFound));
    let mut b = Run::open(kept, false);
    for i in 0..20u64 {
        let f = b.lookup(ROOT, &format!("f{i}")).unwrap();
        assert_eq!(b.read(f, 0, 9999).unwrap(), bytes(i, 5000));
    }
    assert_eq!(b.lookup(ROOT, "later"), Err(Error::NotFound));
    // Many are written without being asked for, in order: what a crash leaves is a prefix.
    let mut n = 0u64;
    while r.v.stats().log_groups < groups + 4 {
        r.make(ROOT, &format!("g{n}"), 0o100644).unwrap();
        n += 1;
        assert!(n < 100_000);
    }
    let mut c = Run::open(r.d.clone(), false);
    let there: Vec<bool> = (0..n).map(|i| c.lookup(ROOT, &format!("g{i}")).is_ok()).collect();
    let first = there.iter().position(|x| !*x).unwrap_or(there.len());
    assert!(first > 100 && there[first..].iter().all(|x| !*x));
    // A checkpoint and a clean end take everything along.
    r.op(Op::Checkpoint).unwrap();
    // Clean nodes may be taken away at any time; they are read again.
    let cached = r.v.stats().cached_nodes;
    assert!(r.v.shrink(usize::MAX) > 0 && r.v.stats().cached_nodes < cached);
    assert!(r.lookup(ROOT, "g0").is_ok());
    r.v.set_cache_bytes(8 * 4096);
    assert!(r.v.stats().cached_nodes <= 8 && r.lookup(ROOT, "g7").is_ok());
    let mut c = Run::open(r.d.clone(), false);
    assert!(c.lookup(ROOT, &format!("g{}", n - 1)).is_ok());
    r.make(ROOT, "last", 0o100644).unwrap();
    r.op(Op::Close).unwrap();
    assert!(Run::open(r.d, true).lookup(ROOT, "last").is_ok());
}

#[test]
fn files_survive_close_and_crash() {
    let mut r = Run::open(Disk::new(8192), false);
    let dir = r.make(ROOT, "dir", 0o040755).unwrap();
    let mut want = Vec::new();
    for i in 0..200u64 {
        let ino = r.make(dir, &format!("file {i}"), 0o100644).unwrap();
        let data = bytes(i, (i as usize * 777) % 20_000);
        r.op(Op::Write { ino, offset: 0, data: data.clone(), kill_suid: false, times: None }).unwrap();
        want.push((ino, data));
    }
    assert_eq!(r.make(dir, "file 7", 0o100644), Err(Error::Exists));
    r.op(Op::Sync).unwrap();
    for round in 0..3 {
        for (i, (ino, data)) in want.iter().enumerate() {
            assert_eq!(r.lookup(dir, &format!("file {i}")).unwrap(), *ino, "round {round}");
            assert_eq!(&r.read(*ino, 0, 1 << 20).unwrap(), data);
        }
        if round == 1 {
            r.op(Op::Close).unwrap();
            assert_eq!(r.v.state(), State::Closed);
        }
        r = Run::open(r.d, round == 0);
    }
}

#[test]
fn a_full_volume_lets_files_go_and_gives_all_space_back() {
    let mut r = Run::open(Disk::new(4096), false);
    let free = |r: &mut Run| match r.op(Op::StatFs).unwrap() {
        Reply::StatFs(s) => s.free,
        x => panic!("{x:?}"),
    };
    r.op(Op::Checkpoint).unwrap();
    let before = free(&mut r);
    for round in 0..3 {
        let mut n = 0;
        let last = loop {
            let ino = match r.make(ROOT, &format!("f{n}"), 0o100644) {
                Ok(i) => i,
                Err(e) => break e,
            };
            n += 1;
            if let Err(e) = r.op(Op::Write { ino, offset: 0, data: bytes(n, 100_000), kill_suid: false, times: None }) {
                break e;
            }
        };
        assert_eq!(last, Error::NoSpace, "round {round}");
        assert!(n > 50, "only {n} files");
        r = Run::open(r.d, false);
        for i in 0..n {
            match r.op(Op::Unlink { dir: ROOT, name: format!("f{i}").into() }) {
                Ok(_) => {}
                Err(e) => panic!("{i} of {n}: {e:?}"),
            }
        }
        r.op(Op::Checkpoint).unwrap();
        r.op(Op::Checkpoint).unwrap();
        let after = free(&mut r);
        assert!(after + 16 >= before, "round {round}: {before} free before, {after} after");
    }
}

#[test]
fn truncate_and_holes() {
    let mut r = Run::open(Disk::new(8192), false);
    let ino = r.make(ROOT, "f", 0o100644).unwrap();
    let data = bytes(5, 300_000);
    r.op(Op::Write { ino, offset: 1_000_000, data: data.clone(), kill_suid: false, times: None }).unwrap();
    assert_eq!(r.read(ino, 0, 10).unwrap(), vec![0; 10]);
    assert_eq!(r.read(ino, 1_000_000, 300_000).unwrap(), data);
    r.op(Op::SetAttr { ino, set: SetAttr { size: Some(1_000_100), ..Default::default() } }).unwrap();
    r.op(Op::SetAttr { ino, set: SetAttr { size: Some(1_200_000), ..Default::default() } }).unwrap();
    let mut want = data[..100].to_vec();
    want.resize(200_000, 0);
    assert_eq!(r.read(ino, 1_000_000, 300_000).unwrap(), want);
}
