// SPDX-License-Identifier: GPL-2.0-only
//! Collections: the schema and its counters, records and slots both ways, file records and embeddings, vectors
//! and their checksums and norms, the stored index. Owns the walk over the streams of a collection.

use super::items::Object;
use super::repair::Fix;
use super::{Check, Got, Out, Phase, Place, Repair};
use crate::coll::{populate::Counts, record, schema};
use crate::dist::Metric;
use crate::error::{Error, Step};
use crate::filter::attrs;
use crate::format::{
    inode_flags, kind, Extent, IndexRoot, Key, Record, Schema, Slot, Wire, BLOCK, EXTENT_BLOCKS_MAX, NO_SLOT,
    SCHEMA_POPULATING, SLOT_LIVE, VALUE_MAX,
};
use crate::mem::{self, NoMemory};
use crate::ns::mode;
use alloc::vec::Vec;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Begin,
    Slots,
    Records,
    Vectors,
    Index,
    End,
}

/// The collection that is being checked.
#[derive(Debug, Default)]
pub struct State {
    next: usize,
    stage: Stage,
    ino: u64,
    schema: Option<Schema>,
    /// Next block of the stream that is read.
    block: u64,
    /// The slot stream.
    slots: Vec<u8>,
    /// Some of it cannot be read: what it should say is not known.
    damaged: bool,
    /// Slots that a record refers to, one bit each.
    seen: Vec<u64>,
    record: u64,
    counts: Counts,
    /// Bytes of a vector that goes on in the next block, and which it is.
    carry: Vec<u8>,
    vector: u64,
    carry_bad: bool,
    /// Checksum and length of the index so far.
    crc: u32,
    len: u64,
}

/// A stretch of a stream.
enum Stretch {
    /// From this block on, so many blocks; the bytes, and which blocks are bad.
    Blocks(u64, Vec<u8>, Vec<u64>),
    End,
}

fn slot_at(slots: &[u8], i: u64) -> Option<Slot> {
    let at = usize::try_from(i).ok()?.checked_mul(Slot::SIZE)?;
    Slot::parse(slots.get(at..)?)
}

impl Check {
    // Items, as the scan meets them.

    pub(super) fn check_schema(&self, out: &mut Out, k: &Key, v: &[u8], o: &mut Object) -> Step<()> {
        let place = Place::Item(*k);
        self.set_collection(o);
        if !o.inode.is_some_and(|i| mode::is_dir(i.mode)) {
            out.bad(place, "collection", k.object, "of a directory", Repair::No)?;
        }
        let populating = match schema::parse(v) {
            Ok((s, _)) => s.flags & SCHEMA_POPULATING != 0,
            Err(e) => {
                out.bad(place, e.field, v.len() as u64, e.range, Repair::No)?;
                return Ok(());
            }
        };
        for (mark, want, rule) in [
            (kind::LISTED, true, "a LISTED item for each collection"),
            (kind::POPULATE, populating, "a POPULATE item exactly while children are taken in"),
        ] {
            let key = Key::new(0, mark, k.object);
            let there = match self.get(&key)? {
                Got::Lost => continue,
                Got::None => false,
                Got::Value(_) => true,
            };
            if there != want {
                out.bad(place, "marks", u64::from(mark), rule, Repair::Safe)?;
                let value = if want { Some(mem::filled(8, 0u8)?) } else { None };
                out.fix(Fix::Edit { key, value })?;
            }
        }
        Ok(())
    }

    pub(super) fn check_record_piece(&self, out: &mut Out, k: &Key, v: &[u8], o: &mut Object) -> Step<()> {
        let place = Place::Item(*k);
        if !self.in_collection(o) {
            return self.outside_collection(out, k);
        }
        if k.sub != 0 {
            if !self.next_piece(k, v, o) {
                out.bad(place, "piece", k.sub, "the next one of a record's attributes", Repair::Loss)?;
                out.fix(Fix::Edit { key: *k, value: None })?;
            }
            return Ok(());
        }
        let (r, first) = match record::parse(k.offset, v) {
            Ok(x) => x,
            Err(field) => {
                out.bad(place, field, v.len() as u64, "within its limits", Repair::Loss)?;
                return out.fix(Fix::Edit { key: *k, value: None });
            }
        };
        let left = (r.attrs_len as usize).saturating_sub(first.len()) as u64;
        self.expect_pieces(k, left, o);
        let mut all = mem::to_vec(first)?;
        let mut piece = *k;
        while all.len() < r.attrs_len as usize {
            piece = piece.piece(piece.sub.saturating_add(1));
            match self.get(&piece)? {
                Got::Value(b) if !b.is_empty() && b.len() <= VALUE_MAX => mem::extend(&mut all, b)?,
                // A missing piece is told where it should be.
                _ => return Ok(()),
            }
        }
        if attrs::validate(&all, false).is_err() {
            // The record stays, without them.
            out.bad(place, "attributes", all.len() as u64, "names in order with values of known types", Repair::Loss)?;
            let mut head = mem::filled(Record::SIZE, 0u8)?;
            Record { attrs_len: 0, ..r }.emit(&mut head).ok_or(Error::Corrupt)?;
            out.fix(Fix::Edit { key: *k, value: Some(head) })?;
            for piece in 1..record::pieces(r.attrs_len as usize) {
                out.fix(Fix::Edit { key: k.piece(piece), value: None })?;
            }
        }
        Ok(())
    }

    pub(super) fn check_index_root(&self, out: &mut Out, k: &Key, v: &[u8], o: &mut Object) -> Step<()> {
        let place = Place::Item(*k);
        if !self.in_collection(o) {
            return self.outside_collection(out, k);
        }
        let drop = Fix::Edit { key: *k, value: None };
        let Some(r) = IndexRoot::parse(v).filter(|_| v.len() == IndexRoot::SIZE) else {
            out.wrong(place, "value", v.len() as u64, IndexRoot::SIZE as u64, "an index root", Repair::Safe)?;
            return out.fix(drop);
        };
        let schema = match self.get(&Key::first(k.object, kind::COLLECTION))? {
            Got::Value(s) => Schema::parse(s),
            _ => None,
        };
        let Some(s) = schema else { return Ok(()) };
        // All of it is derived from the vectors, so letting it go loses nothing.
        let mut wrong = true;
        if r.kind != s.index {
            // After a change of the kind the old index stays until the next one is stored.
            out.wrong(
                place,
                "IndexRoot.kind",
                u64::from(r.kind),
                u64::from(s.index),
                "the schema's index kind",
                Repair::Remark,
            )?;
            wrong = r.kind == 0 || r.kind > 5;
            if wrong {
                out.bad(place, "IndexRoot.kind", u64::from(r.kind), "an index kind", Repair::Safe)?;
            }
        } else if r.change > s.change {
            out.wrong(
                place,
                "IndexRoot.change",
                r.change,
                s.change,
                "not after the collection's newest change",
                Repair::Safe,
            )?;
        } else if r.reserved != [0; 12] {
            out.bad(place, "IndexRoot.reserved", 1, "zero", Repair::Safe)?;
        } else if r.base != 0 {
            out.wrong(place, "IndexRoot.base", r.base, 0, "0", Repair::Safe)?;
        } else {
            wrong = false;
        }
        if wrong {
            out.fix(drop)?;
        }
        Ok(())
    }

    // Whole collections, after the scan.

    #[inline(never)]
    pub(super) fn collection_step(&mut self) -> Step<()> {
        match self.coll.stage {
            Stage::Begin => self.begin_collection(),
            Stage::Slots => self.slot_step(),
            Stage::Records => self.record_step(),
            Stage::Vectors => self.vector_step(),
            Stage::Index => self.index_step(),
            Stage::End => self.end_collection(),
        }
    }

    #[inline(never)]
    fn begin_collection(&mut self) -> Step<()> {
        let Some(ino) = self.collections.get(self.coll.next).copied() else {
            self.phase = Phase::Totals;
            return Ok(());
        };
        let schema = match self.get(&Key::first(ino, kind::COLLECTION))? {
            Got::Value(v) => schema::parse(v).ok().map(|(s, _)| s),
            _ => None,
        };
        let next = self.coll.next.saturating_add(1);
        self.coll = State { next, ino, schema, ..State::default() };
        if schema.is_some() {
            self.coll.stage = Stage::Slots;
        }
        Ok(())
    }

    /// The next extent of a stream from `block` on, with its blocks that are not what their checksums say.
    fn stretch(&self, stream: u32, block: u64) -> Step<Stretch> {
        let ino = self.coll.ino;
        if let Some(s) = self.loaded_stretch(stream, block)? {
            return Ok(s);
        }
        let Some((k, v)) = self.next(Key::new(ino, stream, block), &Key::last(ino, stream))? else {
            return Ok(Stretch::End);
        };
        let (k, v) = (k, mem::to_vec(v)?);
        let e = Extent::parse(&v).unwrap_or_default();
        let n = u64::from(e.blocks);
        if k.offset > crate::data::SIZE_MAX {
            // Said when the item was met; nothing can come after it.
            return Ok(Stretch::End);
        }
        if e.blocks == 0 || e.blocks > EXTENT_BLOCKS_MAX || !self.placeable(e.addr, n) {
            // Said when the item was met.
            let len = n.clamp(1, u64::from(EXTENT_BLOCKS_MAX));
            let mut bad = Vec::new();
            for b in 0..len {
                mem::push(&mut bad, k.offset.saturating_add(b))?;
            }
            return Ok(Stretch::Blocks(k.offset, mem::filled((len as usize).saturating_mul(BLOCK), 0u8)?, bad));
        }
        let whole = self.read(e.addr, e.blocks)?;
        let mut bytes = Vec::new();
        let mut bad = Vec::new();
        mem::reserve(&mut bytes, (n as usize).saturating_mul(BLOCK))?;
        for i in 0..n {
            let at = (i as usize).saturating_mul(BLOCK);
            let b = whole.and_then(|w| w.get(at..at.saturating_add(BLOCK)));
            let want = u32::get(&v, Extent::SIZE.saturating_add((i as usize).saturating_mul(4)));
            match b {
                Some(b) if want == Some((self.env.crc32c)(0, b)) => mem::extend(&mut bytes, b)?,
                other => {
                    mem::push(&mut bad, k.offset.saturating_add(i))?;
                    match other {
                        Some(b) => mem::extend(&mut bytes, b)?,
                        None => mem::resize(&mut bytes, at.saturating_add(BLOCK), 0)?,
                    }
                }
            }
        }
        Ok(Stretch::Blocks(k.offset, bytes, bad))
    }

    /// The same of a collection that the log changed: its slots and vectors are in memory.
    fn loaded_stretch(&self, stream: u32, block: u64) -> Step<Option<Stretch>> {
        let Some(c) = self.replayed().and_then(|v| v.loaded_collection(self.coll.ino)) else { return Ok(None) };
        let end = match stream {
            kind::SLOT_EXTENT => c.slot_stream_blocks(),
            kind::VECTOR_EXTENT => c.vector_stream_blocks(),
            _ => return Ok(None),
        };
        if block >= end {
            return Ok(Some(Stretch::End));
        }
        let n = end.saturating_sub(block).min(64);
        let mut bytes = mem::filled((n as usize).saturating_mul(BLOCK), 0u8)?;
        for (b, out) in (block..).zip(bytes.chunks_exact_mut(BLOCK)) {
            let Ok(out) = <&mut [u8; BLOCK]>::try_from(out) else { continue };
            if stream == kind::SLOT_EXTENT {
                c.slot_block_bytes(b, out);
            } else {
                c.vector_block_bytes(b, out);
            }
        }
        Ok(Some(Stretch::Blocks(block, bytes, Vec::new())))
    }

    fn say_bad(&self, out: &mut Out, bad: &[u64], what: &'static str, repair: Repair) -> Step<()> {
        if let Some(first) = bad.first() {
            out.add(super::Finding {
                place: Place::Inode(self.coll.ino),
                what,
                rule: "as their checksums say (the numbers are the first one in the stream, and how many)",
                is: *first,
                want: Some(bad.len() as u64),
                repair,
                repaired: false,
            })?;
        }
        Ok(())
    }

    #[inline(never)]
    fn slot_step(&mut self) -> Step<()> {
        let mut out = Out::default();
        match self.stretch(kind::SLOT_EXTENT, self.coll.block)? {
            Stretch::End => {
                let n = (self.coll.slots.len() / Slot::SIZE) as u64;
                self.coll.seen = mem::filled(n.div_ceil(64) as usize, 0u64)?;
                self.coll.stage = Stage::Records;
                self.coll.block = 0;
            }
            Stretch::Blocks(from, bytes, bad) => {
                if from != self.coll.block {
                    out.bad(Place::Inode(self.coll.ino), "slot stream", from, "without gaps", Repair::No)?;
                    self.coll.damaged = true;
                }
                self.say_bad(&mut out, &bad, "blocks of slots", Repair::No)?;
                self.coll.damaged |= !bad.is_empty();
                mem::extend(&mut self.coll.slots, &bytes)?;
                self.coll.block = from.saturating_add((bytes.len() / BLOCK) as u64);
            }
        }
        self.say(out)
    }

    #[inline(never)]
    fn record_step(&mut self) -> Step<()> {
        let ino = self.coll.ino;
        let mut out = Out::default();
        let found = match self.next(Key::new(ino, kind::RECORD, self.coll.record), &Key::last(ino, kind::RECORD))? {
            Some((k, v)) => Some((k, mem::to_vec(v)?)),
            None => None,
        };
        let Some((k, v)) = found else {
            self.check_slots(&mut out)?;
            self.check_counters(&mut out)?;
            self.say(out)?;
            self.coll.stage = if self.options.metadata_only { Stage::End } else { Stage::Vectors };
            return Ok(());
        };
        let mut slot = None;
        if k.sub == 0 {
            if let Ok((r, _)) = record::parse(k.offset, &v) {
                slot = self.check_record(&mut out, &k, &r)?;
                self.coll.counts.add(k.offset, &r);
                self.figures.records = self.figures.records.saturating_add(1);
            }
        }
        if let Some(s) = slot {
            if let Some(w) = self.coll.seen.get_mut((s / 64) as usize) {
                if *w & (1u64 << (s % 64)) != 0 {
                    out.bad(Place::Item(k), "Record.slot", s, "a slot of its own", Repair::No)?;
                }
                *w |= 1u64 << (s % 64);
            }
        }
        self.say(out)?;
        match k.offset.checked_add(1) {
            Some(n) => self.coll.record = n,
            None => {
                // The largest id there can be: nothing comes after it.
                self.coll.record = u64::MAX;
                let mut out = Out::default();
                self.check_slots(&mut out)?;
                self.check_counters(&mut out)?;
                self.say(out)?;
                self.coll.stage = if self.options.metadata_only { Stage::End } else { Stage::Vectors };
            }
        }
        Ok(())
    }

    /// A record against its slot and, if it is a file's, against the file. Gives its slot.
    fn check_record(&self, out: &mut Out, k: &Key, r: &Record) -> Step<Option<u64>> {
        let place = Place::Item(*k);
        let Some(schema) = &self.coll.schema else { return Ok(None) };
        let head = if r.slot == NO_SLOT { None } else { slot_at(&self.coll.slots, r.slot) };
        if r.slot != NO_SLOT && !self.coll.damaged {
            let fits = head.is_some_and(|h| h.flags == SLOT_LIVE && h.id == k.offset && h.seq == r.seq);
            if !fits {
                // A file's record is made again from its embedding.
                let repair = if record::file_of(k.offset).is_some() { Repair::Safe } else { Repair::Loss };
                out.bad(place, "Record.slot", r.slot, "a live slot with this id and sequence number", repair)?;
                for piece in 0..record::pieces(r.attrs_len as usize) {
                    out.fix(Fix::Edit { key: k.piece(piece), value: None })?;
                }
            }
        }
        let Some(file) = record::file_of(k.offset) else { return Ok(Some(r.slot)) };
        let inode = match self.find_inode(file)? {
            Some(None) => return Ok(Some(r.slot).filter(|s| *s != NO_SLOT)),
            found => found.flatten(),
        };
        let embedded = inode.filter(|i| i.flags & inode_flags::EMBEDDED != 0);
        let here = Key::new(file, kind::LINK, self.coll.ino);
        let linked = self.next(here, &here.piece(u64::MAX))?.is_some();
        let Some(i) = embedded.filter(|_| linked) else {
            out.bad(place, "record", file, "of a file with an embedding that has a name here", Repair::Loss)?;
            out.fix(Fix::Edit { key: *k, value: None })?;
            if r.slot != NO_SLOT && head.is_some_and(|h| h.id == k.offset) {
                out.fix(Fix::Slot { collection: self.coll.ino, slot: r.slot })?;
            }
            return Ok(Some(r.slot).filter(|s| *s != NO_SLOT));
        };
        let words = self.embedding_words(file)?;
        let zero = match &words {
            Some(w) => self.env.distance.check(w).is_ok_and(|n| n.zero),
            None => false,
        };
        let cosine = schema.metric == Metric::Cosine as u32;
        let fits = i.embed_dim == schema.dim && !(cosine && zero);
        if fits != (r.slot != NO_SLOT) {
            out.bad(
                place,
                "Record.slot",
                r.slot,
                "a slot exactly if the collection can hold the embedding",
                Repair::No,
            )?;
        }
        if let (Some(h), Some(w), true) = (head, words, fits && !self.coll.damaged) {
            let crc = crate::coll::runtime::vector_crc(&self.env, &w);
            if crc != h.crc {
                out.wrong(
                    place,
                    "Slot.crc",
                    u64::from(h.crc),
                    u64::from(crc),
                    "the vector of the file's embedding",
                    Repair::Safe,
                )?;
                // The embedding counts; the file is taken in anew.
                out.fix(Fix::Edit { key: *k, value: None })?;
                if h.id == k.offset {
                    out.fix(Fix::Slot { collection: self.coll.ino, slot: r.slot })?;
                }
            }
        }
        Ok(Some(r.slot).filter(|s| *s != NO_SLOT))
    }

    /// Every slot by itself, and that live ones have a record.
    fn check_slots(&self, out: &mut Out) -> Step<()> {
        let Some(schema) = &self.coll.schema else { return Ok(()) };
        if self.coll.damaged {
            return Ok(());
        }
        let cosine = schema.metric == Metric::Cosine as u32;
        for i in 0..(self.coll.slots.len() / Slot::SIZE) as u64 {
            let Some(s) = slot_at(&self.coll.slots, i) else { continue };
            let place = Place::Slot(self.coll.ino, i);
            if s.flags & !SLOT_LIVE != 0 {
                out.bad(place, "Slot.flags", u64::from(s.flags), "bit 0", Repair::No)?;
            }
            let live = s.flags & SLOT_LIVE != 0;
            if s.seq > schema.change || (s.seq == 0 && s != Slot::default()) {
                out.bad(
                    place,
                    "Slot.seq",
                    s.seq,
                    "at most the collection's change counter; 0 for an empty slot",
                    Repair::No,
                )?;
            }
            if s.seq != 0 && (s.inv_norm != 0) != cosine {
                out.bad(place, "Slot.inv_norm", s.inv_norm, "there for cosine, else 0", Repair::No)?;
            }
            let seen = self.coll.seen.get((i / 64) as usize).is_some_and(|w| w & (1u64 << (i % 64)) != 0);
            if live && !seen {
                self.slot_without_record(out, i, &s)?;
            }
        }
        Ok(())
    }

    /// The vector is there, the record is not: it is made anew, without its attributes.
    fn slot_without_record(&self, out: &mut Out, slot: u64, s: &Slot) -> Step<()> {
        let key = Key::new(self.coll.ino, kind::RECORD, s.id);
        let free = matches!(self.get(&key)?, Got::None);
        let file = match record::file_of(s.id) {
            None => true,
            Some(f) => {
                let inode = self.find_inode(f)?.flatten();
                let here = Key::new(f, kind::LINK, self.coll.ino);
                let linked = self.next(here, &here.piece(u64::MAX))?.is_some();
                linked && inode.is_some_and(|i| i.flags & inode_flags::EMBEDDED != 0)
            }
        };
        out.bad(Place::Slot(self.coll.ino, slot), "Slot.id", s.id, "a record that has this slot", Repair::Loss)?;
        if !(free && file && s.seq != 0) {
            out.fix(Fix::Slot { collection: self.coll.ino, slot })?;
        } else {
            let mut v = mem::filled(Record::SIZE, 0u8)?;
            Record { slot, seq: s.seq, attrs_len: 0, flags: 0 }.emit(&mut v).ok_or(Error::Corrupt)?;
            out.fix(Fix::Edit { key, value: Some(v) })?;
        }
        Ok(())
    }

    fn check_counters(&self, out: &mut Out) -> Step<()> {
        let (Some(s), c) = (&self.coll.schema, &self.coll.counts) else { return Ok(()) };
        let key = Key::first(self.coll.ino, kind::COLLECTION);
        let place = Place::Item(key);
        let mut fixed = *s;
        for (what, is, want, to) in [
            ("Schema.records", s.records, c.records, &mut fixed.records),
            ("Schema.files", s.files, c.files, &mut fixed.files),
            ("Schema.unindexed", s.unindexed, c.unindexed, &mut fixed.unindexed),
        ] {
            if is != want {
                out.wrong(place, what, is, want, "the records that there are", Repair::Safe)?;
                *to = want;
            }
        }
        if s.next_id < c.next_id {
            out.bad(place, "Schema.next_id", s.next_id, "above every bulk id", Repair::Safe)?;
            fixed.next_id = c.next_id;
        }
        if s.change < c.seq {
            out.bad(place, "Schema.change", s.change, "at least every sequence number", Repair::Safe)?;
            fixed.change = c.seq;
        }
        if fixed != *s {
            if let Got::Value(v) = self.get(&key)? {
                let mut v = mem::to_vec(v)?;
                let _ = fixed.emit(&mut v);
                out.fix(Fix::Edit { key, value: Some(v) })?;
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn vector_step(&mut self) -> Step<()> {
        let mut out = Out::default();
        let Some(schema) = self.coll.schema else { return Ok(()) };
        let size = (schema.dim as usize).saturating_mul(4);
        match self.stretch(kind::VECTOR_EXTENT, self.coll.block)? {
            Stretch::End => {
                let n = (self.coll.slots.len() / Slot::SIZE) as u64;
                let live = |i: &u64| slot_at(&self.coll.slots, *i).is_some_and(|s| s.flags & SLOT_LIVE != 0);
                if !self.coll.damaged && (self.coll.vector..n).any(|i| live(&i)) {
                    out.bad(
                        Place::Inode(self.coll.ino),
                        "vectors",
                        self.coll.vector,
                        "as many as there are slots",
                        Repair::No,
                    )?;
                }
                self.coll.stage = Stage::Index;
                self.coll.block = 0;
            }
            Stretch::Blocks(from, bytes, bad) => {
                if from != self.coll.block {
                    out.bad(Place::Inode(self.coll.ino), "vector stream", from, "without gaps", Repair::No)?;
                    self.coll.stage = Stage::Index;
                    self.coll.block = 0;
                    return self.say(out);
                }
                self.say_bad(&mut out, &bad, "blocks of vectors", Repair::No)?;
                let mut carry = mem::to_vec(&self.coll.carry)?;
                let mut spoilt = self.coll.carry_bad;
                let mut slot = self.coll.vector;
                for (i, b) in bytes.chunks_exact(BLOCK).enumerate() {
                    let bad_block = bad.contains(&from.saturating_add(i as u64));
                    let mut rest = b;
                    while !rest.is_empty() {
                        let n = size.saturating_sub(carry.len()).min(rest.len());
                        let (now, later) = rest.split_at_checked(n).ok_or(Error::Corrupt)?;
                        mem::extend(&mut carry, now)?;
                        spoilt |= bad_block;
                        rest = later;
                        if carry.len() == size {
                            if !spoilt {
                                self.check_vector(&mut out, slot, &carry, &schema)?;
                            }
                            carry.clear();
                            spoilt = false;
                            slot = slot.saturating_add(1);
                        }
                    }
                }
                let n = (bytes.len() / BLOCK) as u64;
                self.figures.data_blocks = self.figures.data_blocks.saturating_add(n);
                self.coll.carry = carry;
                self.coll.carry_bad = spoilt;
                self.coll.vector = slot;
                self.coll.block = from.saturating_add(n);
            }
        }
        self.say(out)
    }

    /// A vector against the head of its slot.
    fn check_vector(&self, out: &mut Out, slot: u64, bytes: &[u8], schema: &Schema) -> Result<(), NoMemory> {
        let Some(h) = slot_at(&self.coll.slots, slot).filter(|h| h.flags & SLOT_LIVE != 0 && !self.coll.damaged) else {
            return Ok(());
        };
        let place = Place::Slot(self.coll.ino, slot);
        let finding =
            |what, is, rule| super::Finding { place, what, rule, is, want: None, repair: Repair::No, repaired: false };
        if (self.env.crc32c)(0, bytes) != h.crc {
            mem::push(&mut out.findings, finding("Slot.crc", u64::from(h.crc), "the checksum of the vector"))?;
            return Ok(());
        }
        let mut words = Vec::new();
        mem::reserve(&mut words, bytes.len() / 4)?;
        for w in bytes.chunks_exact(4) {
            mem::push(&mut words, u32::from_le_bytes(w.try_into().unwrap_or([0; 4])))?;
        }
        match self.env.distance.check(&words) {
            Err(_) => mem::push(&mut out.findings, finding("vector", slot, "finite, with a norm that is finite")),
            Ok(n) if schema.metric == Metric::Cosine as u32 && n.inverse != h.inv_norm => {
                mem::push(&mut out.findings, finding("Slot.inv_norm", h.inv_norm, "the inverse norm of the vector"))
            }
            Ok(_) => Ok(()),
        }
    }

    #[inline(never)]
    fn index_step(&mut self) -> Step<()> {
        let key = Key::first(self.coll.ino, kind::INDEX);
        let root = match self.get(&key)? {
            Got::Value(v) => IndexRoot::parse(v),
            _ => None,
        };
        let Some(r) = root else {
            self.coll.stage = Stage::End;
            return Ok(());
        };
        match self.stretch(kind::INDEX_EXTENT, self.coll.block)? {
            Stretch::End => {
                if self.coll.len != r.len || self.coll.crc != r.crc {
                    let mut out = Out::default();
                    let what = if self.coll.len != r.len { "IndexRoot.len" } else { "IndexRoot.crc" };
                    out.bad(
                        Place::Item(key),
                        what,
                        r.len,
                        "the bytes of the stored index (it will be rebuilt)",
                        Repair::Safe,
                    )?;
                    out.fix(Fix::Edit { key, value: None })?;
                    self.say(out)?;
                }
                self.coll.stage = Stage::End;
            }
            Stretch::Blocks(from, bytes, _) => {
                let at = from.saturating_mul(BLOCK as u64);
                let n = r.len.saturating_sub(at).min(bytes.len() as u64);
                if at == self.coll.len {
                    self.coll.crc = (self.env.crc32c)(self.coll.crc, bytes.get(..n as usize).unwrap_or(&[]));
                    self.coll.len = self.coll.len.saturating_add(n);
                }
                self.coll.block = from.saturating_add((bytes.len() / BLOCK) as u64);
            }
        }
        Ok(())
    }

    fn end_collection(&mut self) -> Step<()> {
        let next = self.coll.next;
        self.coll = State { next, ..State::default() };
        Ok(())
    }
}
