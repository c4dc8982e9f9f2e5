// SPDX-License-Identifier: GPL-2.0-only
//! Contents of files in the model: blocks that were written, everything else zero.

use super::*;

/// The contents of a file. Blocks of zeros are not kept.
#[derive(Clone, Default)]
pub struct Content {
    /// Size in bytes.
    pub size: u64,
    /// Blocks that are not all zero.
    pub blocks: BTreeMap<u64, Rc<[u8; 4096]>>,
    /// Blocks that the simulator damaged on the disk: reading them is to fail.
    pub rotten: BTreeSet<u64>,
}

impl Content {
    fn edit(&mut self, block: u64, f: impl FnOnce(&mut [u8; 4096])) {
        let mut b = self.blocks.remove(&block).map_or([0; 4096], |b| *b);
        f(&mut b);
        if b.iter().any(|x| *x != 0) {
            self.blocks.insert(block, Rc::new(b));
        }
        self.rotten.remove(&block);
    }

    /// Writes `data`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = (at % BLOCK) as usize;
            let n = rest.len().min(4096 - within);
            self.edit(at / BLOCK, |b| b[within..within + n].copy_from_slice(&rest[..n]));
            at += n as u64;
            rest = &rest[n..];
        }
        if !data.is_empty() {
            self.size = self.size.max(offset + data.len() as u64);
        }
    }

    /// Makes the range read as zeros.
    pub fn zero(&mut self, from: u64, to: u64) {
        let inside: Vec<u64> = self.blocks.range(from / BLOCK..to.div_ceil(BLOCK)).map(|(b, _)| *b).collect();
        for b in inside {
            let lo = from.max(b * BLOCK) - b * BLOCK;
            let hi = to.min((b + 1) * BLOCK) - b * BLOCK;
            self.edit(b, |x| x[lo as usize..hi as usize].fill(0));
        }
        // A block of zeros may be rotten too.
        let gone: Vec<u64> = self.rotten.range(from / BLOCK..to.div_ceil(BLOCK)).copied().collect();
        for b in gone {
            if b * BLOCK >= from && (b + 1) * BLOCK <= to {
                self.rotten.remove(&b);
            }
        }
    }

    /// Cuts or extends.
    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size.next_multiple_of(BLOCK));
            self.rotten.split_off(&size.div_ceil(BLOCK));
        }
        self.size = size;
    }

    /// The bytes from `offset` on, at most `len`.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(len as u64));
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        for (b, data) in self.blocks.range(offset / BLOCK..end.div_ceil(BLOCK).max(offset / BLOCK)) {
            let lo = offset.max(b * BLOCK);
            let hi = end.min((b + 1) * BLOCK);
            if lo < hi {
                out[(lo - offset) as usize..(hi - offset) as usize]
                    .copy_from_slice(&data[(lo - b * BLOCK) as usize..(hi - b * BLOCK) as usize]);
            }
        }
        out
    }

    /// Whether the range touches a block that the simulator damaged.
    pub fn rotten_in(&self, from: u64, to: u64) -> bool {
        from < to && self.rotten.range(from / BLOCK..to.div_ceil(BLOCK)).next().is_some()
    }

    /// Same bytes, apart from blocks that are damaged in either.
    pub(super) fn same(&self, o: &Content) -> bool {
        if self.size != o.size {
            return false;
        }
        let rotten = |b: &u64| self.rotten.contains(b) || o.rotten.contains(b);
        if self.rotten.is_empty() && !o.rotten.is_empty() {
            return false;
        }
        let mut a = self.blocks.iter().filter(|(b, _)| !rotten(b));
        let mut b = o.blocks.iter().filter(|(b, _)| !rotten(b));
        loop {
            match (a.next(), b.next()) {
                (None, None) => return o.rotten.is_subset(&self.rotten),
                (Some((x, p)), Some((y, q))) if x == y && (Rc::ptr_eq(p, q) || p == q) => {}
                _ => return false,
            }
        }
    }
}
