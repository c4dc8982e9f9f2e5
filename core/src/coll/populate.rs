// SPDX-License-Identifier: GPL-2.0-only
//! Long internal work on a collection, in bounded steps that may stop at any point and be taken up after
//! a crash: taking in the files that the directory had when it was made a collection, freeing what a
//! dropped one left behind, and recounting the records for fsck.

use super::hooks::put_file;
use super::record::{self, file_id};
use super::schema;
use crate::error::{Error, Step, Stop};
use crate::format::{
    inode_flags, kind, Dirent, Extent, Key, Record, Trim, NO_SLOT, SCHEMA_POPULATING, TRIM_COLLECTION,
};
use crate::ns;
use crate::op::{Ino, Reply};
use crate::txn::{Outcome, Progress, Txn, TXN_BYTES_MAX};

/// Most items that a step looks at or takes away.
const STEP_ITEMS: usize = 4096;
/// File type of a regular file in [`Dirent::dtype`].
const DT_REG: u8 = 8;

/// Takes the embeddings of the children that `dir` had when it became a collection in. Where it stands is
/// kept in the schema, not in `p`: names made behind that point are taken in by the hooks, and if the
/// collection is dropped and made anew meanwhile, an older run goes on with the newer one's position.
pub fn populate(t: &mut Txn, dir: Ino, p: &mut Progress) -> Step<Outcome> {
    let Some(mut c) = schema::load(t, dir)? else { return Ok(Outcome::Done(Reply::Done)) };
    if c.schema.flags & SCHEMA_POPULATING == 0 {
        return Ok(Outcome::Done(Reply::Done));
    }
    for done in 0..STEP_ITEMS {
        match take_one(t, &mut c, done > 0, p) {
            Ok(true) => {}
            Ok(false) if c.schema.flags & SCHEMA_POPULATING == 0 => {
                schema::store(t, &c)?;
                return Ok(Outcome::Done(Reply::Done));
            }
            // Full, or something is missing: what is taken in so far is kept.
            Ok(false) => break,
            Err(Stop::Need(_)) if done > 0 => break,
            Err(s) => return Err(s),
        }
    }
    schema::store(t, &c)?;
    p.pos = c.schema.cursor;
    Ok(Outcome::More)
}

/// Takes the next child in. False: it was the last one (the collection is no longer populating), or
/// there is no room for it in this transaction. Reads all that it needs before it changes anything.
fn take_one(t: &mut Txn, c: &mut schema::Coll, begun: bool, p: &mut Progress) -> Step<bool> {
    let dir = c.dir;
    let from = Key::new(dir, kind::DIRENT, c.schema.cursor);
    let Some((key, value)) = t.next(&from, &Key::last(dir, kind::DIRENT))? else {
        c.schema.flags &= !SCHEMA_POPULATING;
        c.schema.cursor = 0;
        return Ok(false);
    };
    let entry = Dirent::parse(value).ok_or(Error::Corrupt)?;
    if entry.dtype == DT_REG {
        let child = ns::inode(t, entry.ino)?;
        let here = record::head(t, dir, file_id(entry.ino))?.is_some();
        if child.flags & inode_flags::EMBEDDED != 0 && !here {
            let largest = (c.schema.dim as usize).saturating_mul(4).saturating_add(1024);
            if begun && t.size().saturating_add(largest) > TXN_BYTES_MAX {
                return Ok(false);
            }
            let words = ns::embedding(t, entry.ino)?.ok_or(Error::Corrupt)?;
            let norm = t.env().distance.check(&words).map_err(|_| Error::Corrupt)?;
            put_file(t, c, entry.ino, &words, norm)?;
            p.done = p.done.saturating_add(1);
        }
    }
    // Cookies are below 2^63.
    c.schema.cursor = key.offset.checked_add(1).ok_or(Error::Corrupt)?;
    Ok(true)
}

/// Frees what a dropped collection of `ino` left behind (records, slots, vectors, index), in bounded
/// steps, and at the end the TRIM item. `None` if the TRIM item of `ino` is not a collection's
/// (`Trim::from` is not [`TRIM_COLLECTION`]): then it is the file data's business. Resumed after a crash
/// like every trim.
pub fn trim(t: &mut Txn, ino: Ino, p: &mut Progress) -> Step<Option<Outcome>> {
    let item = Key::new(0, kind::TRIM, ino);
    match t.get(&item)? {
        Some(v) if Trim::parse(v).ok_or(Error::Corrupt)?.from == TRIM_COLLECTION => {}
        _ => return Ok(None),
    }
    if !clear(t, ino, kind::RECORD, kind::INDEX, p)? {
        return Ok(Some(Outcome::More));
    }
    t.del(item)?;
    Ok(Some(Outcome::Done(Reply::Done)))
}

/// Takes the items of `ino` away whose kind is from `first` to `last`, and frees the blocks of extents among them. False:
/// there are more, or something is missing to go on.
pub(super) fn clear(t: &mut Txn, ino: Ino, first: u32, last: u32, p: &mut Progress) -> Step<bool> {
    let last = Key::last(ino, last);
    let mut from = Key::first(ino, first);
    for done in 0..STEP_ITEMS {
        let found = match t.next(&from, &last) {
            Err(Stop::Need(_)) if done > 0 => return Ok(false),
            found => found?,
        };
        let Some((key, value)) = found else { return Ok(true) };
        if matches!(key.kind, kind::SLOT_EXTENT | kind::VECTOR_EXTENT | kind::INDEX_EXTENT) {
            let run = Extent::parse(value).ok_or(Error::Corrupt)?;
            t.free(run.addr, run.blocks)?;
        }
        t.del(key)?;
        p.done = p.done.saturating_add(1);
        from = key.next().ok_or(Error::Corrupt)?;
    }
    Ok(false)
}

/// What the records of a collection add up to; the schema has to say the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bulk records.
    pub records: u64,
    /// File records with a slot.
    pub files: u64,
    /// File records without one.
    pub unindexed: u64,
    /// Largest bulk id plus 1; `Schema::next_id` is at least that.
    pub next_id: u64,
    /// Largest sequence number; `Schema::change` is at least that.
    pub seq: u64,
}

impl Counts {
    /// Counts one record.
    pub fn add(&mut self, id: u64, r: &Record) {
        let n = match (record::file_of(id).is_some(), r.slot == NO_SLOT) {
            (false, _) => &mut self.records,
            (true, false) => &mut self.files,
            (true, true) => &mut self.unindexed,
        };
        *n = n.saturating_add(1);
        if record::file_of(id).is_none() {
            self.next_id = self.next_id.max(id.saturating_add(1));
        }
        self.seq = self.seq.max(r.seq);
    }
}

/// Counts up to `max` records of `dir` from id `from` on into `counts`; gives the id to go on with, `None`
/// at the end. A record that cannot be read is [`Error::Corrupt`].
pub fn recount(t: &Txn, dir: Ino, from: u64, max: usize, counts: &mut Counts) -> Step<Option<u64>> {
    let mut id = from;
    for _ in 0..max {
        let hit = t.next(&Key::new(dir, kind::RECORD, id), &Key::last(dir, kind::RECORD))?;
        let Some((key, value)) = hit else { return Ok(None) };
        let (r, _) = record::parse(key.offset, value).map_err(|_| Error::Corrupt)?;
        if key.sub != 0 {
            return Err(Error::Corrupt.into());
        }
        counts.add(key.offset, &r);
        match key.offset.checked_add(1) {
            Some(next) => id = next,
            None => return Ok(None),
        }
    }
    Ok(Some(id))
}
