// SPDX-License-Identifier: GPL-2.0-only
//! Power cuts at random moments: the checker has to call the device clean as the cut left it, and again after
//! recovery. Writes that were not flushed are lost or kept at random, in any order.

mod volume;

use vexfs_client::{Client, FileRef, IndexKind, Insert, Metric, Schema};
use volume::*;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// A device with a volatile cache.
struct Cached {
    /// What is durable.
    disk: Disk,
    /// Writes since the last flush, in order.
    pending: Vec<(u64, Vec<u8>)>,
    writes: u64,
    /// The power goes after so many writes.
    cut: u64,
}

impl Cached {
    fn view(&self) -> Disk {
        let mut d = self.disk.clone();
        for (b, data) in &self.pending {
            d.write(*b, data);
        }
        d
    }

    /// What a power cut leaves.
    fn after_cut(&self, r: &mut Rng) -> Disk {
        let mut d = self.disk.clone();
        let keep = r.below(4);
        for (b, data) in &self.pending {
            for (i, block) in data.chunks(4096).enumerate() {
                if keep == 0 || (keep < 3 && r.below(2) == 0) {
                    continue;
                }
                d.write(*b + i as u64, block);
            }
        }
        d
    }
}

struct World {
    v: Volume,
    c: Cached,
    live: Disk,
    replies: HashMap<OpId, Result<Reply, vexfs_core::Error>>,
}

impl World {
    fn open(disk: Disk, cut: u64) -> World {
        let v = Volume::open(env(), disk.size, engine::Options::default(), NOW).unwrap();
        let live = disk.clone();
        World { v, c: Cached { disk, pending: Vec::new(), writes: 0, cut }, live, replies: HashMap::new() }
    }

    /// False: the power is gone.
    fn pump(&mut self, r: &mut Rng) -> bool {
        loop {
            // Several requests under way, completed in any order.
            let mut under_way = Vec::new();
            while under_way.len() < 4 {
                let Some(io) = self.v.poll_io() else { break };
                under_way.push(io);
            }
            if under_way.is_empty() {
                if self.v.work() {
                    continue;
                }
                break;
            }
            while !under_way.is_empty() {
                let mut io = under_way.swap_remove(r.below(under_way.len() as u64) as usize);
                match io.kind {
                    IoKind::Read => self.live.read(io.block, &mut io.buf),
                    IoKind::Write | IoKind::WriteDurable => {
                        if self.c.writes >= self.c.cut {
                            return false;
                        }
                        self.c.writes += 1;
                        self.live.write(io.block, &io.buf);
                        if io.kind == IoKind::WriteDurable {
                            self.c.disk.write(io.block, &io.buf);
                        } else {
                            self.c.pending.push((io.block, io.buf.to_vec()));
                        }
                    }
                    IoKind::Flush => {
                        self.c.disk = self.c.view();
                        self.c.pending.clear();
                    }
                    IoKind::Discard => {}
                }
                self.v.complete(NOW, io.id, Ok(()), io.buf);
            }
        }
        while let Some((id, x)) = self.v.poll_reply() {
            self.replies.insert(id, x);
        }
        true
    }

    fn op(&mut self, r: &mut Rng, op: Op) -> Option<Result<Reply, vexfs_core::Error>> {
        let id = match self.v.submit(NOW, op) {
            Ok(id) => id,
            Err(e) => return Some(Err(e)),
        };
        if self.pump(r) {
            self.replies.remove(&id)
        } else {
            None
        }
    }
}

/// Request frames, as the client makes them.
fn frame(make: impl FnOnce(&mut Client<Catch>)) -> Vec<u8> {
    let mut c = Client::new(Catch(Vec::new()));
    make(&mut c);
    c.into_transport().0
}

struct Catch(Vec<u8>);

impl vexfs_client::Transport for Catch {
    fn call(&mut self, frame: Vec<u8>) -> std::io::Result<Vec<u8>> {
        self.0 = frame;
        Err(std::io::Error::other("caught"))
    }
}

fn request(dir: u64, frame: Vec<u8>) -> Op {
    Op::Request { dir, cred: Cred::default(), frame }
}

fn random_op(r: &mut Rng, inos: &[u64], dirs: &[u64], cols: &[u64]) -> Op {
    let dir = dirs[r.below(dirs.len() as u64) as usize];
    let col = cols.get(r.below(cols.len().max(1) as u64) as usize).copied().unwrap_or(ROOT);
    let place = if r.below(2) == 0 { dir } else { col };
    let ino = inos.get(r.below(inos.len().max(1) as u64) as usize).copied().unwrap_or(ROOT);
    let name: Vec<u8> = format!("n{}", r.below(12)).into();
    match r.below(20) {
        0..=3 => Op::Make { dir: place, name, mode: 0o100644, uid: 0, gid: 0, rdev: 0 },
        4 => Op::Make { dir, name, mode: 0o040755, uid: 0, gid: 0, rdev: 0 },
        5..=7 => Op::Write {
            ino,
            offset: r.below(60_000),
            data: bytes(r.below(99), r.below(30_000) as usize + 1),
            kill_suid: false,
            times: None,
        },
        8 => Op::SetAttr { ino, set: SetAttr { size: Some(r.below(50_000)), ..SetAttr::default() } },
        9 => Op::Unlink { dir: place, name },
        10 => Op::Rmdir { dir, name },
        11 => Op::Rename { dir: place, name, new_dir: dir, new_name: format!("n{}", r.below(12)).into(), flags: 0 },
        12 => Op::Link { ino, dir: place, name },
        13 => Op::SetXattr { ino, name: "user.x".into(), value: bytes(1, r.below(3000) as usize), flags: 0 },
        14 => Op::Fallocate { ino, mode: 1, offset: r.below(100_000), len: r.below(100_000) + 1 },
        15 => {
            let n = r.below(30) as usize + 1;
            let v = floats(r.below(50), 8 * n);
            let ids: Vec<u64> =
                (0..n as u64).map(|_| r.below(200)).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
            let i = Insert { dim: 8, vectors: &v[..8 * ids.len()], ids: Some(&ids), ..Insert::default() };
            request(col, frame(|c| drop(c.insert(&i))))
        }
        16 => {
            let ids: Vec<u64> = (0..5).map(|_| r.below(200)).collect();
            request(col, frame(|c| drop(c.delete(&ids, false))))
        }
        17 => {
            let v = floats(r.below(50), 8);
            request(place, frame(|c| drop(c.embed(FileRef::Ino(ino), &v, false))))
        }
        18 => Op::Sync,
        _ => Op::Checkpoint,
    }
}

/// Runs volumes through power cuts; what the checker says about them, and how many cuts there were.
fn campaign(seeds: std::ops::Range<u64>, canary: engine::Canary) -> (Vec<String>, u32) {
    let mut cuts = 0;
    let mut bad = Vec::new();
    for seed in seeds {
        let mut r = Rng(seed * 7919 + 1);
        let copies = 1 + (seed % 2) as u32;
        let mut disk = Disk::new(8192, copies);
        let (mut inos, mut dirs, mut cols) = (Vec::new(), vec![ROOT], Vec::new());
        for _round in 0..4 {
            let cut = 5 + r.below(400);
            let mut w = World::open(disk, cut);
            w.v.set_canary(canary);
            let mut power = w.pump(&mut r);
            if power && cols.is_empty() {
                for (i, index) in [IndexKind::Flat, IndexKind::Hnsw].into_iter().enumerate() {
                    let name = format!("col{i}");
                    let make = Op::Make { dir: ROOT, name: name.into(), mode: 0o040755, uid: 0, gid: 0, rdev: 0 };
                    let Some(Ok(Reply::Attr(a))) = w.op(&mut r, make) else { break };
                    cols.push(a.ino);
                    let s = Schema::new(8, Metric::Cosine, index);
                    power &= w.op(&mut r, request(a.ino, frame(|c| drop(c.create(&s))))).is_some();
                }
            }
            for _ in 0..150 {
                if !power {
                    break;
                }
                let op = random_op(&mut r, &inos, &dirs, &cols);
                match w.op(&mut r, op) {
                    None => power = false,
                    Some(Ok(Reply::Attr(a))) if a.mode & 0o170_000 == 0o040_000 => dirs.push(a.ino),
                    Some(Ok(Reply::Attr(a))) => inos.push(a.ino),
                    Some(_) => {}
                }
            }
            cuts += u32::from(!power);
            disk = w.c.after_cut(&mut r);
            let (f, list) = check(&mut disk.clone(), Mode::Look, true);
            bad.extend(list.iter().filter(|f| f.is_error()).map(|f| format!("seed {seed}, after the cut: {f}")));
            bad.extend(f.err().map(|e| format!("seed {seed}, after the cut: {e}")));
            // Recovery, then a look at everything.
            let mut w = World::open(disk, u64::MAX);
            assert!(w.pump(&mut r));
            if w.v.state() != State::Ready {
                bad.push(format!("seed {seed}: {:?}", w.v.state()));
                break;
            }
            for op in [Op::Checkpoint, Op::Close] {
                bad.extend(w.op(&mut r, op).unwrap().err().map(|e| format!("seed {seed}: {e}")));
            }
            disk = w.live;
            bad.extend(errors(&mut disk).into_iter().map(|e| format!("seed {seed}, recovered: {e}")));
            if !bad.is_empty() {
                break;
            }
        }
    }
    (bad, cuts)
}

#[test]
fn a_power_cut_leaves_a_clean_volume() {
    let (bad, cuts) = campaign(0..60, engine::Canary::default());
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(cuts > 100, "{cuts}");
}

/// The same with defects that the engine can be told to have: a test that cannot fail proves nothing.
#[test]
fn deliberate_defects_are_found() {
    let off = engine::Canary::default();
    let (bad, _) = campaign(0..40, engine::Canary { no_flush_before_super: true, ..off });
    assert!(!bad.is_empty(), "a missing flush before the superblock");
    let (bad, _) = campaign(0..40, engine::Canary { reuse_freed: true, ..off });
    assert!(!bad.is_empty(), "freed blocks used again at once");
}
