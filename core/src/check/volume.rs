// SPDX-License-Identifier: GPL-2.0-only
//! Items of the volume as a whole (orphans, trims, marks of collections), and what the superblock counts.

use super::repair::Fix;
use super::{Check, Got, Out, Phase, Place, Repair};
use crate::error::Step;
use crate::format::{
    kind, Extent, Inode, Key, Listed, Orphan, Populate, Schema, Trim, BLOCK, SCHEMA_POPULATING, TRIM_COLLECTION,
};
use crate::mem;
use crate::ns::mode;
use crate::op::ROOT;

/// Whether all bytes are zero.
pub(super) fn zero(b: &[u8]) -> bool {
    b.iter().all(|x| *x == 0)
}

impl Check {
    fn inode_of(&self, ino: u64) -> Step<Result<Option<Inode>, ()>> {
        Ok(match self.get(&Key::first(ino, kind::INODE))? {
            Got::Value(v) => Ok(Inode::parse(v)),
            Got::None => Ok(None),
            Got::Lost => Err(()),
        })
    }

    /// The inode `ino`: `None` if it is not there, `Some(None)` if that cannot be told.
    pub(super) fn find_inode(&self, ino: u64) -> Step<Option<Option<Inode>>> {
        Ok(match self.inode_of(ino)? {
            Ok(Some(i)) => Some(Some(i)),
            Ok(None) => None,
            Err(()) => Some(None),
        })
    }

    pub(super) fn check_orphan(&self, out: &mut Out, k: &Key, v: &[u8]) -> Step<()> {
        let place = Place::Item(*k);
        if v.len() != Orphan::SIZE || !zero(v) {
            out.bad(place, "Orphan.reserved", v.len() as u64, "8 zero bytes", Repair::Safe)?;
            out.fix(Fix::Edit { key: *k, value: Some(mem::filled(Orphan::SIZE, 0u8)?) })?;
        }
        match self.find_inode(k.offset)? {
            Some(None) => {}
            Some(Some(i)) if i.nlink == 0 => {}
            found => {
                let is = found.flatten().map_or(0, |i| u64::from(i.nlink));
                out.bad(place, "orphan", is, "an inode without names", Repair::Safe)?;
                out.fix(Fix::Edit { key: *k, value: None })?;
            }
        }
        Ok(())
    }

    pub(super) fn check_trim(&self, out: &mut Out, k: &Key, v: &[u8]) -> Step<()> {
        let place = Place::Item(*k);
        let Some(t) = Trim::parse(v).filter(|_| v.len() == Trim::SIZE) else {
            return out.bad(place, "value", v.len() as u64, "8 bytes", Repair::Safe);
        };
        let ino = k.offset;
        if t.from == TRIM_COLLECTION {
            let collection = self.get(&Key::first(ino, kind::COLLECTION))?;
            if let Some(Some(i)) = self.find_inode(ino)? {
                if !mode::is_dir(i.mode) || matches!(collection, Got::Value(_)) {
                    out.bad(
                        place,
                        "Trim.from",
                        t.from,
                        "all ones only for what a dropped collection left behind",
                        Repair::No,
                    )?;
                }
            }
            return Ok(());
        }
        match self.find_inode(ino)? {
            Some(None) => {}
            Some(Some(i)) if mode::is_reg(i.mode) => {
                let least = i.size.div_ceil(BLOCK as u64);
                let rest = self.last_extent_end(ino)?;
                if t.from < least || rest.is_some_and(|e| e <= t.from) {
                    out.bad(
                        place,
                        "Trim.from",
                        t.from,
                        "behind the end of the file, with extents behind it",
                        Repair::Safe,
                    )?;
                    out.fix(Fix::Edit { key: *k, value: None })?;
                }
            }
            _ => {
                out.bad(place, "trim", ino, "of a regular file that exists", Repair::Safe)?;
                out.fix(Fix::Edit { key: *k, value: None })?;
            }
        }
        Ok(())
    }

    /// Where the last extent of a file ends; 0 without any, `None` if it cannot be told.
    fn last_extent_end(&self, ino: u64) -> Step<Option<u64>> {
        match self.tree.prev(&Key::first(ino, kind::EXTENT), &Key::last(ino, kind::EXTENT)) {
            Ok(Some((k, v))) => {
                let n = Extent::parse(v).map_or(0, |e| u64::from(e.blocks));
                Ok(Some(k.offset.saturating_add(n)))
            }
            Ok(None) => Ok(Some(0)),
            Err(s) => match self.lost_target(&s)? {
                Some(_) => Ok(None),
                None => Err(s),
            },
        }
    }

    pub(super) fn check_mark(&self, out: &mut Out, k: &Key, v: &[u8]) -> Step<()> {
        let place = Place::Item(*k);
        let (what, len) = if k.kind == kind::LISTED {
            ("Listed.reserved", Listed::SIZE)
        } else {
            ("Populate.reserved", Populate::SIZE)
        };
        if v.len() != len || !zero(v) {
            out.bad(place, what, v.len() as u64, "8 zero bytes", Repair::Safe)?;
            out.fix(Fix::Edit { key: *k, value: Some(mem::filled(len, 0u8)?) })?;
        }
        let fits = match self.get(&Key::first(k.offset, kind::COLLECTION))? {
            Got::Lost => true,
            Got::None => false,
            Got::Value(s) => {
                k.kind == kind::LISTED || Schema::parse(s).is_some_and(|s| s.flags & SCHEMA_POPULATING != 0)
            }
        };
        if !fits {
            let rule = if k.kind == kind::LISTED { "a collection" } else { "a collection that takes children in" };
            out.bad(place, "Key.offset", k.offset, rule, Repair::Safe)?;
            out.fix(Fix::Edit { key: *k, value: None })?;
        }
        Ok(())
    }

    /// What the superblock counts.
    #[inline(never)]
    pub(super) fn check_totals(&mut self) -> Step<()> {
        let mut out = Out::default();
        let whole = self.lost.is_empty();
        if whole && self.sb.inodes != self.items.inodes {
            let (is, want) = (self.sb.inodes, self.items.inodes);
            out.wrong(Place::Volume, "Super.inodes", is, want, "the inodes that there are", Repair::Safe)?;
            self.repair.counters = true;
        }
        if self.items.max_ino >= self.sb.next_ino {
            self.repair.counters = true;
        }
        if self.find_inode(ROOT)?.is_none() {
            out.bad(Place::Inode(ROOT), "root directory", 0, "there", Repair::Loss)?;
            let root =
                Inode { mode: mode::DIR | 0o755, nlink: 2, parent: ROOT, change: 1, generation: 1, ..Inode::default() };
            let mut v = mem::filled(Inode::SIZE, 0u8)?;
            let _ = root.emit(&mut v);
            out.fix(Fix::Edit { key: Key::first(ROOT, kind::INODE), value: Some(v) })?;
            self.items.inodes = self.items.inodes.saturating_add(1);
        }
        self.say(out)?;
        self.repair.inodes = self.items.inodes;
        self.repair.next_ino = self.sb.next_ino.max(self.items.max_ino.saturating_add(1));
        self.phase = if self.may_repair() { Phase::Repair } else { Phase::Done };
        Ok(())
    }
}
