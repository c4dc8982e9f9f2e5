// SPDX-License-Identifier: GPL-2.0-only
//! The log since the checkpoint: that its groups lead from one to the next, both copies, and that every record in
//! it can be read and asks for nothing impossible. The end of the log is where no valid group is. What was not
//! flushed before a crash may lack a copy; what a later group calls durable may not.

use super::repair::Fix;
use super::{Check, Out, Phase, Place, Repair};
use crate::engine::log::{self, Expect};
use crate::error::Step;
use crate::format::{LogHead, BLOCK, LOG_GROUP_MAX, LOG_MAGIC, TREE};
use crate::mem::{self, Buf};
use alloc::vec::Vec;

/// Where the scan of the log is.
#[derive(Debug, Default)]
pub struct Scan {
    begun: bool,
    place: log::Place,
    seq: u64,
    durable: u64,
    /// Groups of which a copy is bad: number, block of the bad copy, the good bytes.
    missing: Vec<(u64, u64, Buf)>,
}

impl Check {
    #[inline(never)]
    pub(super) fn log_step(&mut self) -> Step<()> {
        if !self.log.begun {
            let s = &self.sb;
            self.log.place = log::Place { addr: s.log_addr, twin: s.log_twin, room: s.log_room };
            self.log.seq = s.log_seq;
            self.log.begun = true;
        }
        let (place, seq) = (self.log.place, self.log.seq);
        let expect = Expect {
            uuid: self.sb.uuid,
            hash_key: self.sb.hash_key,
            crc32c: self.env.crc32c,
            epoch: self.sb.log_epoch,
        };
        let mut out = Out::default();
        let mut good: Option<(LogHead, Vec<u8>)> = None;
        let mut bad = None;
        for addr in [place.addr, place.twin] {
            if addr == 0 || place.room == 0 {
                continue;
            }
            match self.log_group(&expect, place, seq, addr)? {
                Some(g) => match &good {
                    None => good = Some(g),
                    Some(first) if first.1 == g.1 => {}
                    Some(_) => out.bad(Place::Log(addr), "copy", addr, "equal to the first copy", Repair::No)?,
                },
                None => bad = Some(addr),
            }
        }
        let Some((head, bytes)) = good else {
            return self.end_log(out);
        };
        if let Some(addr) = bad {
            let buf = Buf::padded(&bytes)?;
            mem::push(&mut self.log.missing, (seq, addr, buf))?;
        }
        if self.figures.clean {
            out.bad(Place::Log(place.addr), "group", seq, "none in a volume that was cleanly closed", Repair::No)?;
        }
        let along = place.skip(head.blocks);
        let next = log::Place { addr: head.next_addr, twin: head.next_twin, room: head.room };
        let spare = log::Place { addr: self.sb.spare_addr, twin: self.sb.spare_twin, room: self.sb.spare_blocks };
        if next != along && (next != spare || spare.addr == 0) {
            out.bad(
                Place::Log(place.addr),
                "LogHead.next_addr",
                head.next_addr,
                "behind this group, or the spare segment",
                Repair::No,
            )?;
            return self.end_log(out);
        }
        // (It may be less than the superblock says: the group may have been written while the superblock was not yet durable.)
        if head.durable_seq >= head.seq || head.durable_seq < self.log.durable {
            out.bad(
                Place::Log(place.addr),
                "LogHead.durable_seq",
                head.durable_seq,
                "below the group's own number, and never less",
                Repair::No,
            )?;
        }
        // A checkpoint may be sealed and not yet on disk.
        let ahead = head.generation.saturating_sub(self.sb.generation);
        if !(1..=2).contains(&ahead) {
            out.bad(
                Place::Log(place.addr),
                "LogHead.generation",
                head.generation,
                "one or two after the checkpoint",
                Repair::No,
            )?;
        }
        if head.reserved != [0; 24] {
            out.bad(Place::Log(place.addr), "LogHead.reserved", 1, "zero", Repair::No)?;
        }
        let end = LogHead::SIZE.saturating_add(head.payload as usize);
        let payload = bytes.get(LogHead::SIZE..end).unwrap_or(&[]);
        if bytes.get(end..).unwrap_or(&[]).iter().any(|b| *b != 0) {
            out.bad(
                Place::Log(place.addr),
                "LogHead.payload",
                u64::from(head.payload),
                "all that is not zero",
                Repair::No,
            )?;
        }
        self.log_records(&mut out, place.addr, head.records, payload)?;
        self.say(out)?;
        self.figures.log_groups = self.figures.log_groups.saturating_add(1);
        self.log.place = next;
        self.log.durable = head.durable_seq;
        self.log.seq = seq.saturating_add(1);
        Ok(())
    }

    /// Tells the bad copies, now that it is known up to where the log was durable.
    fn end_log(&mut self, out: Out) -> Step<()> {
        let mut out = out;
        for (seq, addr, buf) in core::mem::take(&mut self.log.missing) {
            let durable = seq <= self.log.durable;
            let repair = if durable { Repair::Safe } else { Repair::Remark };
            out.bad(Place::Log(addr), "copy", seq, "whole, if the group was durable", repair)?;
            out.fix(Fix::Write { block: addr, buf })?;
        }
        let salvage = self.may_salvage() && !self.lost.is_empty();
        let replay = self.figures.log_groups > 0 && self.lost.is_empty();
        self.phase = match (salvage, replay) {
            (true, _) => Phase::Salvage,
            (_, true) => Phase::Replay,
            _ => Phase::Items,
        };
        self.say(out)
    }

    /// The group of which a copy is at `addr`, if it is whole.
    #[inline(never)]
    fn log_group(&self, e: &Expect, place: log::Place, seq: u64, addr: u64) -> Step<Option<(LogHead, Vec<u8>)>> {
        let Some(first) = self.read(addr, 1)? else { return Ok(None) };
        let Some(h) = LogHead::parse(first) else { return Ok(None) };
        if h.magic != LOG_MAGIC || h.blocks == 0 || h.blocks > LOG_GROUP_MAX || h.blocks > place.room {
            return Ok(None);
        }
        let len = (h.blocks as usize).saturating_mul(BLOCK);
        let mut bytes = Vec::new();
        mem::reserve(&mut bytes, len)?;
        for i in 0..u64::from(h.blocks) {
            let Some(b) = self.read(addr.saturating_add(i), 1)? else { return Ok(None) };
            mem::extend(&mut bytes, b)?;
        }
        Ok(log::parse_group(e, place, seq, &bytes).map(|h| (h, bytes)))
    }

    #[inline(never)]
    fn log_records(&mut self, out: &mut Out, addr: u64, records: u32, payload: &[u8]) -> Step<()> {
        let place = Place::Log(addr);
        let (mut at, mut n) = (0usize, 0u32);
        while at < payload.len() {
            let rest = payload.get(at..).unwrap_or(&[]);
            let Ok((changes, len, _)) = log::read_record(rest) else {
                return out.bad(
                    place,
                    "LogRecord.len",
                    at as u64,
                    "a record that can be read at this byte",
                    Repair::No,
                );
            };
            for (a, blocks) in changes.allocs.iter().chain(&changes.frees) {
                if !self.placeable(*a, u64::from(*blocks)) {
                    out.bad(place, "blocks", *a, "inside the volume, beside the superblocks", Repair::No)?;
                }
            }
            // (What cannot be placed was told; it may be of any length.)
            for (a, blocks) in changes.allocs.iter().filter(|(a, n)| self.placeable(*a, u64::from(*n))) {
                if (*a..a.saturating_add(u64::from(*blocks))).any(|b| self.used.is_used(b)) {
                    out.bad(place, "allocated blocks", *a, "free at the checkpoint", Repair::No)?;
                }
            }
            let mut last = None;
            for (k, _) in &changes.edits {
                if k.tree != TREE || last.is_some_and(|l| l >= *k) {
                    out.bad(place, "edits", k.object, "of the live tree, in key order", Repair::No)?;
                }
                last = Some(*k);
            }
            at = at.saturating_add(len);
            n = n.saturating_add(1);
        }
        if n != records {
            out.wrong(
                place,
                "LogHead.records",
                u64::from(records),
                u64::from(n),
                "the records of the group",
                Repair::No,
            )?;
        }
        Ok(())
    }
}
