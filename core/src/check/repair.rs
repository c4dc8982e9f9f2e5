// SPDX-License-Identifier: GPL-2.0-only
//! Repairs: good copies over bad ones in place; everything else as one new checkpoint, beside what is there, that
//! takes effect with its superblock. Until then nothing that the old checkpoint refers to is overwritten.

use super::space::{Used, WORDS};
use super::supers::super_block;
use super::{Check, Got, Mode, Out, Phase, Repair};
use crate::error::{Error, Step};
use crate::format::{kind, Extent, Key, Slot, SpaceHead, Wire, BLOCK, FIRST_BLOCK, STATE_ERRORS, SUPER_SLOTS};
use crate::io::IoKind;
use crate::mem::{self, Buf, NoMemory};
use alloc::vec::Vec;

/// Something that a repair does.
#[derive(Debug)]
pub enum Fix {
    /// Writes a block (or several) again.
    Write {
        /// First block.
        block: u64,
        /// What belongs there.
        buf: Buf,
    },
    /// Puts an item, or takes it away.
    Edit {
        /// Its key.
        key: Key,
        /// Its value.
        value: Option<Vec<u8>>,
    },
    /// Says that a slot is no longer live.
    Slot {
        /// The collection.
        collection: u64,
        /// The slot.
        slot: u64,
    },
    /// Nothing now; another round decides.
    Again,
}

/// Most rounds of checking; the last one only looks.
const PASSES: u32 = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Begin,
    Slots,
    Edits,
    Space,
    Nodes,
    Flush,
    Supers,
    LastFlush,
    End,
}

/// How far the repair is.
#[derive(Debug, Default)]
pub struct State {
    /// A superblock is to be written anew.
    pub supers: bool,
    /// The bitmaps are wrong.
    pub space: bool,
    /// Counters of the superblock are wrong.
    pub counters: bool,
    /// Inodes that there are.
    pub inodes: u64,
    /// The next inode number.
    pub next_ino: u64,
    stage: Stage,
    edits: Vec<(Key, Option<Vec<u8>>)>,
    at: usize,
    slots: Vec<(u64, u64)>,
    writes: Vec<(u64, Buf)>,
    /// Blocks that the old checkpoint refers to, and those handed out since.
    busy: Used,
    /// They are noted.
    fixed: bool,
    groups: Vec<u64>,
    group: usize,
    changed: bool,
    cursor: u64,
    nodes: Vec<u64>,
    rewrote: bool,
    wrote: bool,
    again: bool,
}

impl Check {
    /// Whether this round may change anything.
    pub(super) fn may_repair(&self) -> bool {
        self.options.mode != Mode::Look && self.pass < PASSES
    }

    /// Whether what cannot be read may be given up.
    pub(super) fn may_salvage(&self) -> bool {
        let root = self.lost_list.iter().any(|(low, _)| low.is_none());
        self.options.mode == Mode::All && self.pass < PASSES && !root
    }

    /// Puts empty subtrees in the place of nodes that are lost, and gives a log up that cannot be replayed; then
    /// the rest is checked as it is.
    #[inline(never)]
    pub(super) fn salvage_step(&mut self) -> Step<()> {
        if !self.repair.fixed {
            // From here on blocks leave the tree that the checkpoint on disk still refers to.
            self.repair.busy = self.used.copy()?;
            self.repair.fixed = true;
        }
        if let Some((Some(low), level)) = self.lost_list.last().copied() {
            // The way down to its parent; the lost node itself cannot be asked for.
            self.tree.prepare_above(&low, level)?;
            self.tree.reserve(1)?;
            self.tree.give_up(&low, level)?;
            self.take_freed();
            self.lost_list.pop();
            return Ok(());
        }
        if self.figures.log_groups > 0 {
            let mut out = Out::default();
            let rule = "none left: it cannot be replayed, and is given up";
            out.bad(super::Place::Volume, "log groups", self.figures.log_groups, rule, Repair::Loss)?;
            self.say(out)?;
            self.figures.log_groups = 0;
        }
        self.lost.clear();
        self.repair.space = true;
        self.phase = Phase::Items;
        Ok(())
    }

    #[inline(never)]
    pub(super) fn repair_step(&mut self) -> Step<()> {
        match self.repair.stage {
            Stage::Begin => self.begin_repair(),
            Stage::Slots => self.slot_fix_step(),
            Stage::Edits => self.edit_step(),
            Stage::Space => self.space_step(),
            Stage::Nodes => self.write_next(Stage::Flush),
            Stage::Flush => {
                self.repair.stage = Stage::Supers;
                self.request = Some((IoKind::Flush, 0, 0, Buf::empty()));
                self.super_writes()
            }
            Stage::Supers => self.write_next(Stage::LastFlush),
            Stage::LastFlush => {
                self.repair.stage = Stage::End;
                if self.repair.wrote {
                    self.request = Some((IoKind::Flush, 0, 0, Buf::empty()));
                }
                Ok(())
            }
            Stage::End => self.end_repair(),
        }
    }

    /// Sorts the fixes, and decides whether a new checkpoint is needed and possible.
    fn begin_repair(&mut self) -> Step<()> {
        let fixes = core::mem::take(&mut self.fixes);
        let all = self.options.mode == Mode::All;
        for (f, _) in fixes.into_iter().filter(|(_, loss)| all || !loss) {
            match f {
                Fix::Write { block, buf } => mem::push(&mut self.repair.writes, (block, buf))?,
                Fix::Edit { key, value } => mem::push(&mut self.repair.edits, (key, value))?,
                Fix::Slot { collection, slot } => mem::push(&mut self.repair.slots, (collection, slot))?,
                Fix::Again => self.repair.again = true,
            }
        }
        let r = &self.repair;
        let wanted = !r.edits.is_empty() || !r.slots.is_empty() || r.space || r.counters || r.supers;
        // With nodes lost it is not known which blocks are free; with a log, the engine has to replay it first.
        let possible = self.lost.is_empty() && self.figures.log_groups == 0;
        self.repair.rewrote = wanted && possible;
        if self.repair.rewrote {
            if !self.repair.fixed {
                self.repair.busy = self.used.copy()?;
            }
            self.repair.cursor = FIRST_BLOCK;
            self.repair.stage = Stage::Slots;
        } else {
            self.repair.slots.clear();
            self.repair.edits.clear();
            self.repair.stage = Stage::Supers;
        }
        Ok(())
    }

    /// Writes the blocks of slots that are no longer live anew, each in a fresh place, as an extent of its own.
    #[inline(never)]
    fn slot_fix_step(&mut self) -> Step<()> {
        const SLOTS: u64 = (BLOCK / Slot::SIZE) as u64;
        let Some((collection, slot)) = self.repair.slots.last().copied() else {
            self.repair.stage = Stage::Edits;
            return Ok(());
        };
        let block = slot / SLOTS;
        let key = Key::new(collection, kind::SLOT_EXTENT, block);
        let found = self.tree.prev(&Key::first(collection, kind::SLOT_EXTENT), &key)?;
        let Some((k, v)) = found.map(|(k, v)| Ok::<_, NoMemory>((k, mem::to_vec(v)?))).transpose()? else {
            self.repair.slots.pop();
            return Ok(());
        };
        let e = Extent::parse(&v).unwrap_or_default();
        let skip = block.saturating_sub(k.offset);
        let at = e.addr.saturating_add(skip);
        if skip >= u64::from(e.blocks) || !self.placeable(e.addr, u64::from(e.blocks)) {
            self.repair.slots.pop();
            return Ok(());
        }
        self.tree.prepare(&key)?;
        let Some(data) = self.read(at, 1)? else {
            self.repair.slots.pop();
            return Ok(());
        };
        let mut buf = Buf::padded(data)?;
        for (c, s) in &self.repair.slots {
            if *c == collection && s / SLOTS == block {
                // The flags of the slot.
                let flags = ((s % SLOTS) as usize).saturating_mul(Slot::SIZE).saturating_add(24);
                0u32.put(&mut buf, flags).ok_or(Error::Corrupt)?;
            }
        }
        // Left part, this block, right part.
        self.tree.reserve(3)?;
        let fresh = self.free_block().ok_or(Error::NoSpace)?;
        let birth = self.sb.generation.saturating_add(1);
        let crc = (self.env.crc32c)(0, &buf);
        let crcs = v.get(Extent::SIZE..).unwrap_or(&[]);
        let cut = (skip as usize).saturating_mul(4).min(crcs.len());
        let (left, rest) = crcs.split_at_checked(cut).ok_or(Error::Corrupt)?;
        let right = rest.get(4..).unwrap_or(&[]);
        let after = Extent { addr: at.saturating_add(1), blocks: (right.len() / 4) as u32, ..e };
        let parts = [
            (k.offset, Extent { blocks: (left.len() / 4) as u32, ..e }, left),
            (block, Extent { addr: fresh, birth, blocks: 1, ..e }, &crc.to_le_bytes()[..]),
            (block.saturating_add(1), after, right),
        ];
        for (offset, e, crcs) in parts {
            if e.blocks > 0 {
                let mut value = mem::filled(Extent::SIZE, 0u8)?;
                e.emit(&mut value).ok_or(Error::Corrupt)?;
                mem::extend(&mut value, crcs)?;
                self.tree.put(&Key::new(collection, kind::SLOT_EXTENT, offset), &value)?;
            }
        }
        self.take_freed();
        self.used.clear(at, 1);
        mem::push(&mut self.repair.writes, (fresh, buf))?;
        self.repair.slots.retain(|(c, s)| *c != collection || s / SLOTS != block);
        Ok(())
    }

    #[inline(never)]
    fn edit_step(&mut self) -> Step<()> {
        let Some((key, value)) = self.repair.edits.get(self.repair.at) else {
            self.list_groups()?;
            self.repair.stage = Stage::Space;
            return Ok(());
        };
        let key = *key;
        self.tree.prepare(&key)?;
        let old = match self.get(&key)? {
            Got::Value(v) => Extent::parse(v).filter(|_| is_extent(key.kind)),
            _ => None,
        };
        self.tree.reserve(1)?;
        let new = value.as_ref().and_then(|v| Extent::parse(v)).filter(|_| is_extent(key.kind));
        match value {
            Some(v) => self.tree.put(&key, v)?,
            None => self.tree.del(&key)?,
        }
        if let Some(e) = old {
            if self.placeable(e.addr, u64::from(e.blocks)) {
                self.used.clear(e.addr, u64::from(e.blocks));
            }
        }
        if let Some(e) = new {
            self.used.mark(e.addr, u64::from(e.blocks))?;
        }
        self.repair.at = self.repair.at.saturating_add(1);
        Ok(())
    }

    fn list_groups(&mut self) -> Step<()> {
        let count = self.used.group_count();
        let mut list = Vec::new();
        let all = self.used.groups().chain(self.groups.iter().map(|(g, _)| g)).chain(self.repair.busy.groups());
        for g in all {
            mem::push(&mut list, g)?;
        }
        list.sort_unstable();
        list.dedup();
        list.retain(|g| *g < count || self.groups.contains(*g));
        self.repair.groups = list;
        self.repair.group = 0;
        self.repair.changed = false;
        Ok(())
    }

    /// Brings the bitmap of one group up to date; when none has to change any more, seals.
    fn space_step(&mut self) -> Step<()> {
        let Some(g) = self.repair.groups.get(self.repair.group).copied() else {
            if self.repair.changed || self.tree.unassigned() > 0 {
                self.assign_nodes()?;
                return self.list_groups();
            }
            return self.seal();
        };
        let key = Key::new(0, kind::SPACE, g);
        let mut want = mem::filled(SpaceHead::SIZE.saturating_add(WORDS.saturating_mul(8)), 0u8)?;
        let mut ones = 0u32;
        for i in 0..WORDS {
            let w = self.used.word(g, i);
            ones = ones.saturating_add(w.count_ones());
            let at = SpaceHead::SIZE.saturating_add(i.saturating_mul(8));
            w.put(&mut want, at).ok_or(Error::Corrupt)?;
        }
        SpaceHead { used: ones, reserved: [0; 12] }.emit(&mut want).ok_or(Error::Corrupt)?;
        let inside = g < self.used.group_count();
        let keep = inside && (!self.used.is_empty(g) || matches!(self.get(&key)?, Got::Value(_)));
        let same = match self.get(&key)? {
            Got::Value(v) => keep && *v == *want,
            _ => !keep,
        };
        if !same {
            self.tree.prepare(&key)?;
            self.tree.reserve(1)?;
            if keep {
                self.tree.put(&key, &want)?;
            } else {
                self.tree.del(&key)?;
            }
            self.take_freed();
            self.repair.changed = true;
        }
        self.repair.group = self.repair.group.saturating_add(1);
        Ok(())
    }

    fn take_freed(&mut self) {
        for (a, t) in self.tree.take_freed() {
            for b in [a, t] {
                if b != 0 {
                    self.used.clear(b, 1);
                }
            }
        }
    }

    /// A block that neither checkpoint uses.
    fn free_block(&mut self) -> Option<u64> {
        let blocks = self.sb.blocks;
        for _ in 0..blocks {
            let b = self.repair.cursor;
            self.repair.cursor = if b.saturating_add(1) < blocks { b.saturating_add(1) } else { FIRST_BLOCK };
            if self.placeable(b, 1) && !self.repair.busy.is_used(b) {
                self.repair.busy.mark(b, 1).ok()?;
                self.used.mark(b, 1).ok()?;
                return Some(b);
            }
        }
        None
    }

    fn assign_nodes(&mut self) -> Step<()> {
        self.take_freed();
        let mut pairs = Vec::new();
        for _ in 0..self.tree.unassigned() {
            let a = self.free_block().ok_or(Error::NoSpace)?;
            let t = if self.sb.copies == 2 { self.free_block().ok_or(Error::NoSpace)? } else { 0 };
            mem::push(&mut pairs, (a, t))?;
        }
        let mut next = pairs.iter();
        self.tree.assign(&mut || next.next().copied())?;
        Ok(())
    }

    fn seal(&mut self) -> Step<()> {
        let generation = self.sb.generation.saturating_add(1);
        let mut nodes = Vec::new();
        let root = self.tree.seal(generation, &mut nodes)?;
        let level = self.tree.root().1;
        let s = &mut self.sb;
        root.emit(&mut s.root).ok_or(Error::Corrupt)?;
        s.root_level = u32::from(level);
        s.generation = generation;
        // Groups that a torn log may have left behind are of an older epoch, or of one that a clock gave.
        s.log_epoch = s.log_epoch.saturating_add(1);
        s.free_blocks = s.blocks.saturating_sub(self.used.count());
        s.inodes = self.repair.inodes;
        s.next_ino = self.repair.next_ino;
        s.state &= !STATE_ERRORS;
        for a in &nodes {
            let Some((twin, bytes)) = self.tree.node(*a) else { continue };
            mem::push(&mut self.repair.writes, (*a, Buf::padded(bytes)?))?;
            if twin != 0 {
                mem::push(&mut self.repair.writes, (twin, Buf::padded(bytes)?))?;
            }
        }
        for a in &nodes {
            self.tree.written(*a);
        }
        self.repair.nodes = nodes;
        self.repair.stage = Stage::Nodes;
        Ok(())
    }

    fn write_next(&mut self, then: Stage) -> Step<()> {
        if !self.repair.wrote && !self.repair.writes.is_empty() {
            // The state that was checked may have been in the device's cache only: no block that it leaves free may be
            // written before it is durable.
            self.repair.wrote = true;
            self.request = Some((IoKind::Flush, 0, 0, Buf::empty()));
            return Ok(());
        }
        match self.repair.writes.pop() {
            Some((block, buf)) => {
                let count = (buf.len() / BLOCK) as u64;
                let supers = SUPER_SLOTS.iter().flatten().any(|s| *s == block);
                let kind = if supers { IoKind::WriteDurable } else { IoKind::Write };
                self.request = Some((kind, block, count, buf));
            }
            None => self.repair.stage = then,
        }
        Ok(())
    }

    /// The superblock of the repaired state, both copies.
    fn super_writes(&mut self) -> Step<()> {
        let pair = SUPER_SLOTS.get((self.sb.generation % 2) as usize).copied().unwrap_or_default();
        for (addr, slot) in pair.into_iter().zip(0u32..) {
            let buf = super_block(&self.sb, addr, slot, self.env.crc32c)?;
            mem::push(&mut self.repair.writes, (addr, buf))?;
        }
        Ok(())
    }

    fn end_repair(&mut self) -> Step<()> {
        // Whether it helped is seen by looking again.
        if self.repair.wrote || self.repair.again {
            self.restart();
        } else {
            self.phase = Phase::Done;
        }
        Ok(())
    }
}

fn is_extent(k: u32) -> bool {
    matches!(k, kind::EXTENT | kind::SLOT_EXTENT | kind::VECTOR_EXTENT | kind::INDEX_EXTENT)
}
