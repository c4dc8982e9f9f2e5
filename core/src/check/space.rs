// SPDX-License-Identifier: GPL-2.0-only
//! Which blocks are in use: counted from what refers to them, compared with the bitmaps.

use super::{Check, Out, Phase, Place, Repair};
use crate::error::Step;
use crate::format::{Key, SpaceHead, FIRST_BLOCK, GROUP_BLOCKS, SUPER_SLOTS};
use crate::mem::{self, Map, NoMemory};
use alloc::vec::Vec;

/// 64-bit words of a group's bitmap.
pub const WORDS: usize = (GROUP_BLOCKS / 64) as usize;

/// Whether blocks may belong to something.
pub fn placeable(volume: u64, addr: u64, blocks: u64) -> bool {
    let Some(end) = addr.checked_add(blocks) else { return false };
    blocks > 0 && addr >= FIRST_BLOCK && end <= volume && !SUPER_SLOTS.iter().flatten().any(|s| (addr..end).contains(s))
}

/// The blocks that something refers to.
#[derive(Debug, Default)]
pub struct Used {
    volume: u64,
    groups: Map<Vec<u64>>,
}

/// A bitmap as it is stored.
#[derive(Debug)]
pub struct Stored {
    head: SpaceHead,
    words: Vec<u64>,
}

impl Stored {
    /// From the value of a SPACE item.
    pub fn parse(v: &[u8]) -> Result<Option<Stored>, NoMemory> {
        let (Some(head), Some(bits)) = (SpaceHead::parse(v), v.get(SpaceHead::SIZE..)) else { return Ok(None) };
        if bits.len() != WORDS.saturating_mul(8) {
            return Ok(None);
        }
        let mut words = Vec::new();
        for w in bits.chunks_exact(8) {
            mem::push(&mut words, u64::from_le_bytes(w.try_into().unwrap_or([0; 8])))?;
        }
        Ok(Some(Stored { head, words }))
    }
}

impl Used {
    /// For a volume of so many blocks.
    pub fn init(&mut self, volume: u64) {
        *self = Used { volume, groups: Map::new() };
    }

    /// A copy.
    pub fn copy(&self) -> Result<Used, NoMemory> {
        let mut groups = Map::new();
        for (g, v) in self.groups.iter() {
            groups.insert(g, mem::to_vec(v)?)?;
        }
        Ok(Used { volume: self.volume, groups })
    }

    /// Number of groups.
    pub fn group_count(&self) -> u64 {
        self.volume.div_ceil(GROUP_BLOCKS)
    }

    /// The groups that have a block in use.
    pub fn groups(&self) -> impl Iterator<Item = u64> + '_ {
        self.groups.iter().map(|(g, _)| g)
    }

    /// Marks blocks as used. The first one that was used already.
    pub fn mark(&mut self, addr: u64, blocks: u64) -> Result<Option<u64>, NoMemory> {
        let mut twice = None;
        let mut at = addr;
        let end = addr.saturating_add(blocks).min(self.volume);
        while at < end {
            let g = at / GROUP_BLOCKS;
            if !self.groups.contains(g) {
                self.groups.insert(g, mem::filled(WORDS, 0u64)?)?;
            }
            let bit = at % 64;
            let n = (64u64.saturating_sub(bit)).min(end.saturating_sub(at));
            let mask = (u64::MAX >> (64u64.saturating_sub(n) & 63)) << bit;
            let word = (at % GROUP_BLOCKS / 64) as usize;
            if let Some(w) = self.groups.get_mut(g).and_then(|v| v.get_mut(word)) {
                let both = *w & mask;
                if both != 0 && twice.is_none() {
                    twice = Some(at.saturating_sub(bit).saturating_add(u64::from(both.trailing_zeros())));
                }
                *w |= mask;
            }
            at = at.saturating_add(n);
        }
        Ok(twice)
    }

    /// Takes the mark away again.
    pub fn clear(&mut self, addr: u64, blocks: u64) {
        for b in addr..addr.saturating_add(blocks).min(self.volume) {
            let word = (b % GROUP_BLOCKS / 64) as usize;
            if let Some(w) = self.groups.get_mut(b / GROUP_BLOCKS).and_then(|v| v.get_mut(word)) {
                *w &= !(1u64 << (b % 64));
            }
        }
    }

    /// Whether the block is used.
    pub fn is_used(&self, block: u64) -> bool {
        let word = (block % GROUP_BLOCKS / 64) as usize;
        let bits = self.groups.get(block / GROUP_BLOCKS).and_then(|v| v.get(word)).copied().unwrap_or(0);
        bits & (1u64 << (block % 64)) != 0
    }

    /// Word `i` of the bitmap that `group` should have: what is used, what is always used, and
    /// what lies behind the end of the volume.
    pub fn word(&self, group: u64, i: usize) -> u64 {
        let mut w = self.groups.get(group).and_then(|v| v.get(i)).copied().unwrap_or(0);
        let first = group.saturating_mul(GROUP_BLOCKS).saturating_add((i as u64).saturating_mul(64));
        if first < FIRST_BLOCK {
            w |= (1u64 << FIRST_BLOCK).wrapping_sub(1);
        }
        for s in SUPER_SLOTS.iter().flatten() {
            if (first..first.saturating_add(64)).contains(s) {
                w |= 1u64 << (s % 64);
            }
        }
        match self.volume.checked_sub(first) {
            Some(0) | None => u64::MAX,
            Some(n) if n < 64 => w | !((1u64 << n).wrapping_sub(1)),
            Some(_) => w,
        }
    }

    /// Whether `group` has nothing but what is always used.
    pub fn is_empty(&self, group: u64) -> bool {
        self.groups.get(group).is_none_or(|v| v.iter().all(|w| *w == 0))
    }

    /// Blocks of the volume that are in use.
    pub fn count(&self) -> u64 {
        let fixed =
            FIRST_BLOCK.saturating_add(SUPER_SLOTS.iter().flatten().filter(|s| **s >= FIRST_BLOCK).count() as u64);
        let ones = |v: &Vec<u64>| v.iter().fold(0u64, |s, w| s.saturating_add(u64::from(w.count_ones())));
        self.groups.iter().fold(fixed, |s, (_, v)| s.saturating_add(ones(v)))
    }
}

impl Check {
    /// Marks what something refers to; a finding if something else does too, or if it cannot be there.
    pub(super) fn claim(
        &mut self,
        out: &mut Out,
        place: Place,
        what: &'static str,
        addr: u64,
        blocks: u64,
    ) -> Step<()> {
        if !self.placeable(addr, blocks) {
            return out.bad(place, what, addr, "blocks inside the volume, beside the superblocks", Repair::No);
        }
        if let Some(b) = self.used.mark(addr, blocks)? {
            out.bad(place, what, b, "blocks that nothing else uses", Repair::No)?;
        }
        Ok(())
    }

    /// Compares all bitmaps with what is in use.
    #[inline(never)]
    pub(super) fn check_space(&mut self) -> Step<()> {
        let mut out = Out::default();
        let s = &self.sb;
        let before = u64::from(s.log_segment.saturating_sub(s.log_room));
        let n = u64::from(s.log_segment);
        let segments = [
            (s.log_addr.saturating_sub(before), n),
            (if s.log_twin == 0 { 0 } else { s.log_twin.saturating_sub(before) }, n),
            (s.spare_addr, u64::from(s.spare_blocks)),
            (s.spare_twin, u64::from(s.spare_blocks)),
        ];
        for (addr, n) in segments {
            if addr != 0 {
                self.claim(&mut out, Place::Volume, "log segment", addr, n)?;
            }
        }
        // With nodes missing it is not known what is in use.
        let repair = match (self.lost.is_empty(), self.may_salvage()) {
            (true, _) => Repair::Safe,
            (_, true) => Repair::Loss,
            _ => Repair::No,
        };
        let count = self.used.group_count();
        for (g, _) in self.groups.iter() {
            if g >= count {
                let place = Place::Item(Key::new(0, crate::format::kind::SPACE, g));
                out.bad(place, "key", g, "a group inside the volume", repair)?;
            }
        }
        let mut touched = Vec::new();
        for g in self.used.groups().chain(self.groups.iter().map(|(g, _)| g)).filter(|g| *g < count) {
            mem::push(&mut touched, g)?;
        }
        touched.sort_unstable();
        touched.dedup();
        for g in touched {
            let Some(stored) = self.groups.get(g) else {
                if !self.used.is_empty(g) {
                    out.bad(Place::Group(g), "bitmap", 0, "there, as blocks of the group are in use", repair)?;
                }
                continue;
            };
            let (mut ones, mut free, mut leaked) = (0u64, 0u64, 0u64);
            for (i, w) in stored.words.iter().enumerate() {
                let want = self.used.word(g, i);
                ones = ones.saturating_add(u64::from(w.count_ones()));
                free = free.saturating_add(u64::from((want & !w).count_ones()));
                leaked = leaked.saturating_add(u64::from((w & !want).count_ones()));
            }
            let h = &stored.head;
            if u64::from(h.used) != ones {
                out.wrong(
                    Place::Group(g),
                    "SpaceHead.used",
                    u64::from(h.used),
                    ones,
                    "the ones in the bitmap",
                    repair,
                )?;
            }
            if h.reserved != [0; 12] {
                out.bad(Place::Group(g), "SpaceHead.reserved", 1, "zero", repair)?;
            }
            if free > 0 {
                out.bad(Place::Group(g), "blocks in use that are marked free", free, "none", repair)?;
            }
            if leaked > 0 {
                out.bad(Place::Group(g), "blocks marked used that nothing uses", leaked, "none", repair)?;
            }
        }
        let used = self.used.count();
        let free = self.sb.blocks.saturating_sub(used);
        if self.sb.free_blocks != free {
            out.wrong(
                Place::Volume,
                "Super.free_blocks",
                self.sb.free_blocks,
                free,
                "blocks that nothing uses",
                repair,
            )?;
        }
        self.figures.used = used;
        if out.findings.iter().any(|f| f.repair != Repair::No) {
            self.repair.space = true;
        }
        self.say(out)?;
        self.phase = Phase::Log;
        Ok(())
    }
}
