// SPDX-License-Identifier: GPL-2.0-only
//! The virtual disk: a durable image, a volatile cache of writes that no flush has covered, and writes
//! under way. It promises nothing that a real disk does not: at a power cut each write that is
//! not durable is lost, applied or torn at 512 bytes on its own and in any order, and a flush makes durable
//! only writes that had completed when it was submitted.

use crate::rng::Rng;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

/// Bytes in a block.
pub const BLOCK: usize = 4096;
/// Bytes in a sector: what a disk writes whole.
pub const SECTOR: usize = 512;
const SECTORS: usize = BLOCK / SECTOR;

/// One block, shared between images.
pub type Block = Rc<[u8; BLOCK]>;

/// Spreads block numbers; the same in every run, unlike the standard hasher.
#[derive(Default, Clone)]
pub struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, x: u64) {
        self.0 = (self.0 ^ x).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

type Blocks = HashMap<u64, Block, BuildHasherDefault<BlockHasher>>;

/// A write that is not durable.
#[derive(Clone)]
struct Pending {
    seq: u64,
    block: u64,
    data: Vec<Block>,
    /// Position in the order of completion; `None` while it is under way.
    done: Option<u64>,
    /// A flush failed over it: later flushes do not make it durable.
    doomed: bool,
}

/// How a power cut treated the writes that were not durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Writes of which nothing arrived.
    pub lost: u64,
    /// Writes that arrived whole.
    pub applied: u64,
    /// Writes that arrived in part.
    pub torn: u64,
    /// Writes that arrived although an earlier one did not, or overlapping ones in the wrong order.
    pub reordered: u64,
}

/// The disk.
#[derive(Clone)]
pub struct Disk {
    blocks: u64,
    durable: Blocks,
    /// What a read sees where that is not the durable image.
    cache: Blocks,
    pending: Vec<Pending>,
    next_seq: u64,
    completions: u64,
}

/// Says which writes a flush covers.
#[derive(Clone, Copy, Debug)]
pub struct FlushPoint(u64);

impl Disk {
    /// An empty disk of `blocks` blocks.
    pub fn new(blocks: u64) -> Disk {
        Disk {
            blocks,
            durable: Blocks::default(),
            cache: Blocks::default(),
            pending: Vec::new(),
            next_seq: 0,
            completions: 0,
        }
    }

    /// Its size in blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether a request lies on the disk.
    pub fn holds(&self, block: u64, count: u64) -> bool {
        count > 0 && block.checked_add(count).is_some_and(|end| end <= self.blocks)
    }

    /// Writes that a power cut may take.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// What a read of `block` sees.
    pub fn get(&self, block: u64) -> Option<&Block> {
        self.cache.get(&block).or_else(|| self.durable.get(&block))
    }

    /// Reads into `buf`.
    pub fn read(&self, block: u64, buf: &mut [u8]) {
        for (i, out) in buf.chunks_mut(BLOCK).enumerate() {
            match self.get(block + i as u64) {
                Some(b) => out.copy_from_slice(&b[..out.len()]),
                None => out.fill(0),
            }
        }
    }

    /// Writes without any caching: for making a volume and for tests.
    pub fn write_through(&mut self, block: u64, bytes: &[u8]) {
        for (i, b) in split(bytes).into_iter().enumerate() {
            self.durable.insert(block + i as u64, b);
        }
    }

    /// A write was submitted. Until [`Disk::write_done`] a read does not see it, but a power cut may apply it.
    pub fn write_start(&mut self, block: u64, bytes: &[u8]) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.pending.push(Pending { seq, block, data: split(bytes), done: None, doomed: false });
        seq
    }

    /// The write completed: it is in the volatile cache.
    pub fn write_done(&mut self, seq: u64) {
        let order = self.completions;
        self.completions += 1;
        if let Some(p) = self.pending.iter_mut().find(|p| p.seq == seq) {
            p.done = Some(order);
            for (i, b) in p.data.iter().enumerate() {
                self.cache.insert(p.block + i as u64, b.clone());
            }
        }
    }

    /// The write completed and is durable, it alone.
    pub fn write_durable(&mut self, seq: u64) {
        let Some(at) = self.pending.iter().position(|p| p.seq == seq) else { return };
        let w = self.pending.remove(at);
        for (i, b) in w.data.iter().enumerate() {
            let block = w.block + i as u64;
            self.durable.insert(block, b.clone());
            self.cache.remove(&block);
            // Completed writes to the same block are superseded.
            for p in self.pending.iter_mut().filter(|p| p.done.is_some()) {
                if block >= p.block && block < p.block + p.data.len() as u64 {
                    let j = (block - p.block) as usize;
                    p.data[j] = b.clone();
                }
            }
        }
    }

    /// The write failed: any part of it may have arrived.
    pub fn write_failed(&mut self, seq: u64, rng: &mut Rng) {
        let Some(at) = self.pending.iter().position(|p| p.seq == seq) else { return };
        let mut data = Vec::new();
        let (block, new) = (self.pending[at].block, self.pending[at].data.clone());
        let mask = Tear::draw(rng, new.len() * SECTORS);
        for (i, b) in new.iter().enumerate() {
            let old = self.get(block + i as u64).cloned();
            data.push(mix(old.as_ref(), b, |s| mask.has(i * SECTORS + s)));
        }
        self.pending[at].data = data;
        self.write_done(seq);
    }

    /// A flush was submitted.
    pub fn flush_start(&self) -> FlushPoint {
        FlushPoint(self.completions)
    }

    /// The flush completed: what had completed before it was submitted is durable.
    pub fn flush_done(&mut self, at: FlushPoint) {
        let mut covered: Vec<Pending> = Vec::new();
        self.pending.retain(|p| {
            let take = !p.doomed && p.done.is_some_and(|o| o < at.0);
            if take {
                covered.push(p.clone());
            }
            !take
        });
        covered.sort_by_key(|p| p.done);
        for p in &covered {
            for (i, b) in p.data.iter().enumerate() {
                self.durable.insert(p.block + i as u64, b.clone());
            }
        }
        for p in &covered {
            for i in 0..p.data.len() as u64 {
                let block = p.block + i;
                let newer =
                    |q: &&Pending| q.done.is_some() && block >= q.block && block < q.block + q.data.len() as u64;
                if !self.pending.iter().any(|q| newer(&q)) {
                    self.cache.remove(&block);
                }
            }
        }
    }

    /// The flush failed: of what it covered some becomes durable, some stays, and some will never
    /// be written although reads still see it.
    pub fn flush_failed(&mut self, at: FlushPoint, rng: &mut Rng) {
        for p in &mut self.pending {
            if p.done.is_some_and(|o| o < at.0) && rng.chance(1, 2) {
                p.doomed = true;
            }
        }
        if rng.chance(1, 2) {
            // Some of the others arrive. (Doomed ones are left out of every flush.)
            let keep: Vec<u64> = self.pending.iter().filter(|_| rng.chance(1, 2)).map(|p| p.seq).collect();
            let (a, b): (Vec<Pending>, Vec<Pending>) =
                std::mem::take(&mut self.pending).into_iter().partition(|p| keep.contains(&p.seq));
            self.pending = a;
            self.flush_done(at);
            self.pending.extend(b);
            self.pending.sort_by_key(|p| p.seq);
        }
    }

    /// The process that used the disk is gone, the disk lives on: what was under way arrives or does not;
    /// what a failed flush left in limbo is dropped or kept. Gives back whether anything completed was dropped.
    pub fn kill(&mut self, rng: &mut Rng) -> bool {
        let under_way: Vec<u64> = self.pending.iter().filter(|p| p.done.is_none()).map(|p| p.seq).collect();
        for seq in under_way {
            if rng.chance(1, 3) {
                self.write_failed(seq, rng);
            } else if rng.chance(1, 2) {
                self.write_done(seq);
            } else {
                self.pending.retain(|p| p.seq != seq);
            }
        }
        let before = self.pending.len();
        self.pending.retain(|p| !p.doomed || rng.chance(1, 2));
        let dropped = self.pending.len() != before;
        self.pending.iter_mut().for_each(|p| p.doomed = false);
        if dropped {
            self.cache.clear();
            let mut order: Vec<usize> = (0..self.pending.len()).collect();
            order.sort_by_key(|i| self.pending[*i].done);
            for i in order {
                let p = &self.pending[i];
                for (j, b) in p.data.iter().enumerate() {
                    self.cache.insert(p.block + j as u64, b.clone());
                }
            }
        }
        dropped
    }

    /// Everything that completed becomes durable, the rest is gone (an orderly end).
    pub fn settle(&mut self) {
        self.flush_done(FlushPoint(u64::MAX));
        self.pending.clear();
        self.cache.clear();
    }

    /// The disk after a power cut at this moment: one of the many that are possible.
    pub fn cut(&self, rng: &mut Rng) -> (Disk, Cut) {
        let mut cut = Cut::default();
        let mut d = Disk::new(self.blocks);
        d.durable = self.durable.clone();
        let n = self.pending.len();
        // How a write fares: bits of 0 lost, 1 applied, 2 torn.
        let style = rng.below(8);
        let special = rng.below(n.max(1) as u64) as usize;
        let fate = |i: usize, rng: &mut Rng| -> u64 {
            match style {
                0 => 0,
                1 => 1,
                2 => u64::from(i != special),
                3 => u64::from(i == special),
                4 if i < special => 1,
                4 if i > special => 0,
                4 => 2,
                5 if i == special => 2,
                5 => rng.below(2),
                6 => rng.below(3),
                _ => rng.below(2),
            }
        };
        let mut order: Vec<usize> = (0..n).collect();
        if style >= 5 && rng.chance(1, 2) {
            rng.shuffle(&mut order);
        }
        let mut missed = false;
        let mut last = 0;
        for i in order {
            let p = &self.pending[i];
            let fate = fate(i, rng);
            if fate == 0 {
                cut.lost += 1;
                missed = true;
                continue;
            }
            if missed || i < last {
                cut.reordered += 1;
            }
            last = i;
            let sectors = p.data.len() * SECTORS;
            let tear = if fate == 2 { Tear::draw(rng, sectors) } else { Tear::Prefix(sectors) };
            if fate == 2 {
                cut.torn += 1;
            } else {
                cut.applied += 1;
            }
            for (j, b) in p.data.iter().enumerate() {
                let block = p.block + j as u64;
                let old = d.durable.get(&block).cloned();
                let new = mix(old.as_ref(), b, |s| tear.has(j * SECTORS + s));
                d.durable.insert(block, new);
            }
        }
        (d, cut)
    }

    /// Changes a durable block behind everyone's back.
    pub fn rot(&mut self, block: u64, rng: &mut Rng) {
        let mut b = self.get(block).map_or([0; BLOCK], |b| **b);
        match rng.below(3) {
            0 => {
                let bit = rng.below(BLOCK as u64 * 8);
                b[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
            1 => {
                let s = rng.below(SECTORS as u64) as usize;
                let noise = rng.bytes(SECTOR);
                b[s * SECTOR..(s + 1) * SECTOR].copy_from_slice(&noise);
            }
            _ => {
                let noise = rng.bytes(BLOCK);
                b.copy_from_slice(&noise);
            }
        }
        self.durable.insert(block, Rc::new(b));
        self.cache.remove(&block);
    }

    /// The blocks that hold something, in order.
    pub fn used(&self) -> Vec<u64> {
        let mut v: Vec<u64> = self.durable.keys().copied().collect();
        v.sort_unstable();
        v
    }

    /// The volatile writes that completed: first block and first bytes of each, oldest first.
    pub fn volatile(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.pending.iter().filter_map(|p| Some((p.block, p.data.first()?)))
    }
}

/// Which sectors of a torn write arrive.
enum Tear {
    Prefix(usize),
    Suffix(usize),
    Some(Vec<bool>),
}

impl Tear {
    fn draw(rng: &mut Rng, sectors: usize) -> Tear {
        let n = sectors as u64;
        match rng.below(3) {
            0 => Tear::Prefix(rng.below(n + 1) as usize),
            1 => Tear::Suffix(rng.below(n + 1) as usize),
            _ => Tear::Some((0..sectors).map(|_| rng.chance(1, 2)).collect()),
        }
    }

    fn has(&self, sector: usize) -> bool {
        match self {
            Tear::Prefix(n) => sector < *n,
            Tear::Suffix(n) => sector >= *n,
            Tear::Some(v) => v[sector],
        }
    }
}

fn mix(old: Option<&Block>, new: &Block, has: impl Fn(usize) -> bool) -> Block {
    if (0..SECTORS).all(&has) {
        return new.clone();
    }
    let mut b = old.map_or([0; BLOCK], |b| **b);
    for s in (0..SECTORS).filter(|s| has(*s)) {
        b[s * SECTOR..(s + 1) * SECTOR].copy_from_slice(&new[s * SECTOR..(s + 1) * SECTOR]);
    }
    Rc::new(b)
}

fn split(bytes: &[u8]) -> Vec<Block> {
    bytes
        .chunks(BLOCK)
        .map(|c| {
            let mut b = [0; BLOCK];
            b[..c.len()].copy_from_slice(c);
            Rc::new(b)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(d: &Disk, block: u64) -> u8 {
        let mut b = [0; BLOCK];
        d.read(block, &mut b);
        assert!(b.iter().all(|x| *x == b[0]), "torn");
        b[0]
    }

    /// Every content of `block` that 200 power cuts leave, if it is whole.
    fn cuts(d: &Disk, block: u64) -> Vec<Option<u8>> {
        let mut rng = Rng::new(1, 1);
        let mut seen = Vec::new();
        for _ in 0..200 {
            let (c, _) = d.cut(&mut rng);
            let mut b = [0; BLOCK];
            c.read(block, &mut b);
            let v = b.iter().all(|x| *x == b[0]).then_some(b[0]);
            if !seen.contains(&v) {
                seen.push(v);
            }
        }
        seen.sort_unstable();
        seen
    }

    #[test]
    fn reads_see_completed_writes_only() {
        let mut d = Disk::new(10);
        let w = d.write_start(3, &[7; BLOCK]);
        assert_eq!(read(&d, 3), 0);
        d.write_done(w);
        assert_eq!(read(&d, 3), 7);
    }

    #[test]
    fn a_cut_loses_applies_and_tears_what_is_not_flushed() {
        let mut d = Disk::new(10);
        let w = d.write_start(3, &[7; BLOCK]);
        assert_eq!(cuts(&d, 3), [None, Some(0), Some(7)]);
        d.write_done(w);
        assert_eq!(cuts(&d, 3), [None, Some(0), Some(7)]);
        let f = d.flush_start();
        assert_eq!(cuts(&d, 3), [None, Some(0), Some(7)]);
        d.flush_done(f);
        assert_eq!(cuts(&d, 3), [Some(7)]);
        assert_eq!(d.pending(), 0);
    }

    #[test]
    fn a_flush_covers_only_what_completed_before_it_was_submitted() {
        let mut d = Disk::new(10);
        let a = d.write_start(1, &[1; BLOCK]);
        let b = d.write_start(2, &[2; BLOCK]);
        d.write_done(a);
        let f = d.flush_start();
        d.write_done(b);
        d.flush_done(f);
        assert_eq!(cuts(&d, 1), [Some(1)]);
        assert_eq!(cuts(&d, 2), [None, Some(0), Some(2)]);
        assert_eq!(read(&d, 2), 2);
    }

    #[test]
    fn a_durable_write_is_durable_alone() {
        let mut d = Disk::new(10);
        let a = d.write_start(1, &[1; BLOCK]);
        d.write_done(a);
        let b = d.write_start(2, &[2; BLOCK]);
        d.write_durable(b);
        assert_eq!(cuts(&d, 2), [Some(2)]);
        assert_eq!(cuts(&d, 1), [None, Some(0), Some(1)]);
    }

    #[test]
    fn overlapping_writes_may_arrive_in_any_order() {
        let mut d = Disk::new(10);
        for x in 1..3 {
            let w = d.write_start(1, &[x; BLOCK]);
            d.write_done(w);
        }
        assert_eq!(read(&d, 1), 2);
        assert_eq!(cuts(&d, 1), [None, Some(0), Some(1), Some(2)]);
        let f = d.flush_start();
        d.flush_done(f);
        assert_eq!(cuts(&d, 1), [Some(2)]);
    }

    #[test]
    fn a_failed_flush_is_not_made_good_by_the_next() {
        let mut rng = Rng::new(3, 3);
        let mut lost = 0;
        for _ in 0..100 {
            let mut d = Disk::new(10);
            let w = d.write_start(1, &[1; BLOCK]);
            d.write_done(w);
            let f = d.flush_start();
            d.flush_failed(f, &mut rng);
            assert_eq!(read(&d, 1), 1);
            let f = d.flush_start();
            d.flush_done(f);
            lost += u32::from(cuts(&d, 1).contains(&Some(0)));
        }
        assert!((20..80).contains(&lost), "{lost}");
    }

    #[test]
    fn a_kill_keeps_what_completed() {
        let mut rng = Rng::new(4, 4);
        let mut d = Disk::new(10);
        let a = d.write_start(1, &[1; BLOCK]);
        d.write_done(a);
        d.write_start(2, &[2; BLOCK]);
        assert!(!d.kill(&mut rng));
        assert_eq!(read(&d, 1), 1);
        assert!(cuts(&d, 1).contains(&Some(0)), "a kill does not flush");
    }
}
