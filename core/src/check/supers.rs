// SPDX-License-Identifier: GPL-2.0-only
//! The four places of the superblock. A superblock lies in one sector, so that a crash leaves the old or the
//! new one; a copy that is neither is damage. Copies of one generation have to be equal.

use super::repair::Fix;
use super::{Check, Out, Phase, Place, Repair};
use crate::error::{Error, Step, Stop};
use crate::format::{
    Ptr, Super, Wire, BLOCK, FILE_ID_BASE, FIRST_BLOCK, STATE_CLEAN, STATE_ERRORS, SUPER_MAGIC, SUPER_SLOTS, VERSION,
    VOLUME_MAX, VOLUME_MIN,
};
use crate::mem::{self, Buf};
use crate::tree::Tree;
use alloc::vec::Vec;

/// A superblock's copy on the device.
struct Copy {
    addr: u64,
    good: Option<Super>,
    /// Never written.
    zero: bool,
}

/// What is wrong with a superblock by itself: field, value, rule.
pub fn problem(s: &Super, device_blocks: u64) -> Option<(&'static str, u64, &'static str)> {
    let two = s.copies == 2;
    let inside = |a: u64, n: u64| a >= FIRST_BLOCK && n > 0 && a.checked_add(n).is_some_and(|e| e <= s.blocks);
    let place = |a: u64, t: u64, n: u64| inside(a, n) && if two { inside(t, n) && a != t } else { t == 0 };
    let root = Ptr::parse(&s.root).unwrap_or_default();
    let before = u64::from(s.log_segment.saturating_sub(s.log_room));
    let label = s.label.iter().position(|b| *b == 0).unwrap_or(s.label.len());
    let (name, pad) = s.label.split_at_checked(label).unwrap_or((&[], &[]));
    let mut found = None;
    let mut rule = |ok: bool, what, is, rule| {
        if !ok && found.is_none() {
            found = Some((what, is, rule));
        }
    };
    rule(s.version == VERSION, "Super.version", u64::from(s.version), "1");
    rule(s.incompat == 0, "Super.incompat", s.incompat, "no feature that this version does not know");
    rule(s.ro_compat == 0, "Super.ro_compat", s.ro_compat, "no feature that this version does not know");
    rule(s.block_size as usize == BLOCK, "Super.block_size", u64::from(s.block_size), "4096");
    rule(s.checksum == 1, "Super.checksum", u64::from(s.checksum), "1");
    rule((VOLUME_MIN..=VOLUME_MAX).contains(&s.blocks), "Super.blocks", s.blocks, "4096 to 2^48");
    rule(s.blocks <= device_blocks, "Super.blocks", s.blocks, "at most the blocks of the device");
    rule((1..=2).contains(&s.copies), "Super.copies", u64::from(s.copies), "1 or 2");
    rule(s.generation > 0 && s.generation < u64::MAX / 2, "Super.generation", s.generation, "1 to 2^63 - 1");
    rule(place(root.addr, root.twin, 1), "Super.root", root.addr, "a node inside the volume");
    rule(root.birth <= s.generation, "Super.root", root.birth, "not younger than the checkpoint");
    rule(s.root_level <= 15, "Super.root_level", u64::from(s.root_level), "at most 15");
    rule(s.log_room >= 1 && s.log_room <= s.log_segment, "Super.log_room", u64::from(s.log_room), "1 to log_segment");
    rule(
        s.log_addr >= before && place(s.log_addr, s.log_twin, u64::from(s.log_room)),
        "Super.log_addr",
        s.log_addr,
        "inside the volume",
    );
    rule(
        if s.spare_addr == 0 {
            s.spare_twin == 0 && s.spare_blocks == 0
        } else {
            place(s.spare_addr, s.spare_twin, u64::from(s.spare_blocks))
        },
        "Super.spare_addr",
        s.spare_addr,
        "a log segment inside the volume, or 0",
    );
    rule(s.log_seq > 0 && s.log_seq < u64::MAX / 2, "Super.log_seq", s.log_seq, "1 to 2^63 - 1");
    rule(s.log_epoch > 0, "Super.log_epoch", s.log_epoch, "at least 1");
    rule(s.durable_seq < s.log_seq, "Super.durable_seq", s.durable_seq, "below log_seq");
    rule(s.next_ino > 1 && s.next_ino < FILE_ID_BASE, "Super.next_ino", s.next_ino, "2 to 2^63 - 1");
    rule(s.state & !(STATE_CLEAN | STATE_ERRORS) == 0, "Super.state", u64::from(s.state), "bits 0 and 1");
    rule(s.reserved.iter().all(|b| *b == 0), "Super.reserved", 1, "zero");
    rule(s.root_reserved == 0, "Super.root_reserved", u64::from(s.root_reserved), "zero");
    rule(core::str::from_utf8(name).is_ok() && pad.iter().all(|b| *b == 0), "Super.label", 1, "UTF-8, zero-padded");
    found
}

/// The first field in which two copies of one generation differ, given as bytes.
fn difference(a: &[u8], b: &[u8]) -> Option<&'static str> {
    let own = ["crc", "slot", "addr"];
    let differs = |f: &&crate::format::Field| {
        let r = f.offset..f.offset.saturating_add(f.size);
        !own.contains(&f.name) && a.get(r.clone()) != b.get(r)
    };
    Super::TABLE.fields.iter().find(differs).map(|f| f.name)
}

/// The block of a superblock.
pub fn super_block(s: &Super, addr: u64, slot: u32, crc32c: fn(u32, &[u8]) -> u32) -> Step<Buf> {
    let mut buf = Buf::zeroed(BLOCK)?;
    s.emit(&mut buf).ok_or(Error::Corrupt)?;
    // What differs between the copies.
    slot.put(&mut buf, 140).ok_or(Error::Corrupt)?;
    addr.put(&mut buf, 152).ok_or(Error::Corrupt)?;
    let crc = crc32c(0, buf.get(4..).unwrap_or(&[]));
    crc.put(&mut buf, 0).ok_or(Error::Corrupt)?;
    Ok(buf)
}

impl Check {
    #[inline(never)]
    fn super_copy(&self, addr: u64, slot: u32, all: &mut Vec<Copy>) -> Step<()> {
        mem::push(all, Copy { addr, good: None, zero: false })?;
        let Some(copy) = all.last_mut() else { return Ok(()) };
        let Some(b) = self.read(addr, 1)? else { return Ok(()) };
        copy.zero = b.iter().all(|x| *x == 0);
        let sum = (self.env.crc32c)(0, b.get(4..).unwrap_or(&[]));
        let rest = b.get(Super::SIZE..).unwrap_or(&[]);
        copy.good = Super::parse(b);
        let good = copy.good.as_ref().is_some_and(|s| {
            s.magic == SUPER_MAGIC
                && sum == s.crc
                && s.addr == addr
                && s.slot == slot
                && SUPER_SLOTS.get((s.generation % 2) as usize).is_some_and(|p| p.contains(&addr))
                && rest.iter().all(|x| *x == 0)
        });
        if !good {
            copy.good = None;
        }
        Ok(())
    }

    /// The newest superblock, to be written over a bad copy of it at `addr`; a bad one of the generation before
    /// is replaced by a new checkpoint instead.
    fn copy_super(&self, out: &mut Out, best: &Super, addr: u64) -> Step<()> {
        let slot =
            SUPER_SLOTS.iter().flat_map(|p| p.iter().zip(0u32..)).find(|(a, _)| **a == addr).map_or(0, |(_, s)| s);
        let buf = super_block(best, addr, slot, self.env.crc32c)?;
        out.fix(Fix::Write { block: addr, buf })
    }

    #[inline(never)]
    pub(super) fn check_supers(&mut self) -> Step<()> {
        let mut out = Out::default();
        let mut all = Vec::new();
        for pair in &SUPER_SLOTS {
            for (addr, slot) in pair.iter().zip(0u32..) {
                self.super_copy(*addr, slot, &mut all)?;
            }
        }
        let mut newest: Option<&Copy> = None;
        for c in &all {
            let Some(s) = &c.good else { continue };
            let better = newest.and_then(|b| b.good.as_ref()).is_none_or(|b| s.generation > b.generation);
            if better && problem(s, self.device_blocks).is_none() {
                newest = Some(c);
            }
        }
        let Some((best_addr, best)) = newest.and_then(|c| Some((c.addr, c.good.as_ref()?))) else {
            let mut why = Error::NotVexfs;
            for c in &all {
                if let Some(s) = &c.good {
                    let (what, is, rule) = problem(s, self.device_blocks).unwrap_or(("Super.magic", 0, "VXF1SUPR"));
                    out.bad(Place::Super(c.addr), what, is, rule, Repair::No)?;
                    why = if s.blocks > self.device_blocks { Error::Truncated } else { Error::Corrupt };
                }
            }
            self.say(out)?;
            return Err(Stop::Fail(why));
        };
        let clean = best.state & STATE_CLEAN != 0;
        let mut rewrite = false;
        for c in &all {
            let place = Place::Super(c.addr);
            let current = SUPER_SLOTS.get((best.generation % 2) as usize).is_some_and(|p| p.contains(&c.addr));
            let Some(s) = &c.good else {
                // Before the second checkpoint the other pair is empty. A copy of it stays empty for as long as crashes
                // come between the writes of the two.
                let even = SUPER_SLOTS.first().filter(|p| p.contains(&c.addr));
                let twin = all.iter().any(|o| o.good.is_some() && even.is_some_and(|p| p.contains(&o.addr)));
                if c.zero && twin {
                    out.bad(place, "superblock", c.addr, "written: a crash came before", Repair::Remark)?;
                    if current {
                        self.copy_super(&mut out, best, c.addr)?;
                    }
                } else if !(c.zero && best.generation == 1 && !current) {
                    out.bad(place, "superblock", c.addr, "valid, with a right checksum", Repair::Safe)?;
                    if current {
                        self.copy_super(&mut out, best, c.addr)?;
                    } else {
                        rewrite = true;
                    }
                }
                continue;
            };
            if let Some((what, is, rule)) = problem(s, self.device_blocks) {
                out.bad(place, what, is, rule, Repair::Safe)?;
                if current {
                    self.copy_super(&mut out, best, c.addr)?;
                } else {
                    rewrite = true;
                }
            } else if s.generation == best.generation {
                let (a, b) = (self.read(c.addr, 1)?, self.read(best_addr, 1)?);
                if let Some(what) = difference(a.unwrap_or(&[]), b.unwrap_or(&[])) {
                    out.bad(place, what, s.generation, "equal in both copies of the superblock", Repair::Safe)?;
                    self.copy_super(&mut out, best, c.addr)?;
                }
            } else if current {
                // A crash between the two writes leaves what the place held before.
                let left = s.generation.saturating_add(2) == best.generation;
                let repair = if left { Repair::Remark } else { Repair::Safe };
                out.bad(
                    place,
                    "Super.generation",
                    s.generation,
                    "as in the other copy, or 2 less after a crash",
                    repair,
                )?;
                self.copy_super(&mut out, best, c.addr)?;
            } else {
                let same = s.uuid == best.uuid
                    && s.hash_key == best.hash_key
                    && s.created == best.created
                    && s.copies == best.copies
                    && s.blocks <= best.blocks;
                if !same {
                    out.bad(place, "Super.uuid", s.generation, "identity as in the newest superblock", Repair::Safe)?;
                    rewrite = true;
                } else if s.generation.saturating_add(1) != best.generation {
                    // A recovery goes on above the generation of what it replayed, always by an odd number.
                    let left = best.generation.checked_sub(s.generation).is_some_and(|d| d % 2 == 1);
                    let repair = if left { Repair::Remark } else { Repair::Safe };
                    out.bad(
                        place,
                        "Super.generation",
                        s.generation,
                        "1 less than the newest, or an odd number less after a crash",
                        repair,
                    )?;
                    rewrite |= !left;
                } else if s.mounts > best.mounts || s.log_epoch > best.log_epoch {
                    out.bad(place, "Super.mounts", s.mounts, "not more than in the newest superblock", Repair::Safe)?;
                    rewrite = true;
                }
            }
        }
        self.say(out)?;
        if let Some(best) = all.iter().find(|c| c.addr == best_addr).and_then(|c| c.good.as_ref()) {
            self.sb.clone_from(best);
        }
        self.figures.clean = clean;
        self.figures.blocks = self.sb.blocks;
        self.repair.supers = rewrite;
        let root = Ptr::parse(&self.sb.root).ok_or(Error::Corrupt)?;
        self.tree = Tree::open(self.sb.uuid, self.sb.copies, root, self.sb.root_level as u16, self.env.crc32c);
        self.used.init(self.sb.blocks);
        self.phase = Phase::Walk;
        Ok(())
    }
}
