// SPDX-License-Identifier: GPL-2.0-only
//! Records: the RECORD item with its attributes, its slot and the schema's counters, kept together.
//! Every function reads all that it needs before it changes anything, so that a caller whose record
//! stops it may still commit the records before.

use super::runtime::vector_crc;
use super::schema::{Coll, Puts};
use crate::error::{Error, Step};
use crate::filter::attrs::validate;
use crate::format::{kind, Key, Record, Slot, FILE_ID_BASE, NO_SLOT, SLOT_LIVE, VALUE_MAX};
use crate::mem;
use crate::op::Ino;
use crate::proto::wire;
use crate::txn::Txn;
use alloc::vec::Vec;

/// Bytes of attributes in piece 0.
const FIRST: usize = VALUE_MAX - Record::SIZE;

/// The record id of a file.
pub const fn file_id(ino: Ino) -> u64 {
    FILE_ID_BASE | ino
}

/// The inode of a file record's id; `None` for a bulk record.
pub const fn file_of(id: u64) -> Option<Ino> {
    if id >= FILE_ID_BASE {
        Some(id & !FILE_ID_BASE)
    } else {
        None
    }
}

/// Number of pieces of a record with so many bytes of attributes.
pub const fn pieces(attrs_len: usize) -> u64 {
    match attrs_len.checked_sub(FIRST) {
        None => 1,
        Some(rest) => (rest.div_ceil(VALUE_MAX) as u64).saturating_add(1),
    }
}

/// Reads piece 0 of a record and checks the fields that can be checked by themselves; gives the head
/// and the attributes' bytes in this piece. `Err` names the wrong field.
pub fn parse(id: u64, value: &[u8]) -> Result<(Record, &[u8]), &'static str> {
    let r = Record::parse(value).ok_or("item")?;
    let rest = value.get(Record::SIZE..).unwrap_or_default();
    let len = r.attrs_len as usize;
    if len > wire::ATTRS_MAX as usize || rest.len() != len.min(FIRST) {
        return Err("attrs_len");
    }
    if file_of(id).is_some() && len != 0 {
        return Err("attrs_len");
    }
    if file_of(id).is_none() && r.slot == NO_SLOT {
        return Err("slot");
    }
    if r.seq == 0 {
        return Err("seq");
    }
    if r.flags != 0 {
        return Err("flags");
    }
    Ok((r, rest))
}

/// The head of record `id`.
#[inline(never)]
pub fn head(t: &Txn, dir: Ino, id: u64) -> Step<Option<Record>> {
    let Some(value) = t.get(&Key::new(dir, kind::RECORD, id))? else { return Ok(None) };
    Ok(Some(parse(id, value).map_err(|_| Error::Corrupt)?.0))
}

/// The attributes of record `id`, put together in `out` (which is emptied first).
#[inline(never)]
pub fn attrs(t: &Txn, dir: Ino, id: u64, out: &mut Vec<u8>) -> Step<()> {
    out.clear();
    let key = Key::new(dir, kind::RECORD, id);
    let value = t.get(&key)?.ok_or(Error::NotFound)?;
    let (r, first) = parse(id, value).map_err(|_| Error::Corrupt)?;
    mem::extend(out, first)?;
    for piece in 1..pieces(r.attrs_len as usize) {
        mem::extend(out, t.get(&key.piece(piece))?.ok_or(Error::Corrupt)?)?;
    }
    // What is handed on to filters, clients and merges is one valid set.
    if out.len() != r.attrs_len as usize || validate(out, false).is_err() {
        return Err(Error::Corrupt.into());
    }
    Ok(())
}

/// Writes the RECORD item with its pieces; `old_pieces`: how many there were.
#[inline(never)]
fn write(t: &mut Txn, dir: Ino, id: u64, r: &Record, attrs: &[u8], old_pieces: u64) -> Step<()> {
    let key = Key::new(dir, kind::RECORD, id);
    let cut = attrs.len().min(FIRST);
    let (first, rest) = attrs.split_at_checked(cut).ok_or(Error::Invalid)?;
    let mut value = mem::filled(Record::SIZE, 0u8)?;
    r.emit(&mut value).ok_or(Error::Invalid)?;
    mem::extend(&mut value, first)?;
    t.put(key, &value)?;
    let mut piece = 1u64;
    for part in rest.chunks(VALUE_MAX) {
        t.put(key.piece(piece), part)?;
        piece = piece.saturating_add(1);
    }
    while piece < old_pieces {
        t.del(key.piece(piece))?;
        piece = piece.saturating_add(1);
    }
    Ok(())
}

/// A slot of `c` that neither a record nor this transaction uses, and what follows it.
#[inline(never)]
fn free_slot(t: &Txn, c: &Coll) -> Step<(u64, Puts)> {
    let runtime = t.collection(c.dir)?;
    let (mut n, mixed) = match c.puts.next {
        Some(n) => (n, c.puts.mixed),
        None => {
            let before = t.vectors_in(c.dir);
            (before, before > 0)
        }
    };
    loop {
        let slot = runtime.free_slot(n);
        n = n.checked_add(1).ok_or(Error::NoSpace)?;
        // Other vectors of this transaction are met only if one of them was taken back (`release`): then
        // their count has fallen behind.
        if !mixed || !t.changes().vectors.iter().any(|v| v.collection == c.dir && v.slot == slot) {
            return Ok((slot, Puts { next: Some(n), mixed }));
        }
    }
}

/// Gives the slot of a record up. A vector that this very transaction stored is taken out of it again, so
/// that no order between puts and drops of one slot matters; true: the slot is the transaction's to use again.
#[inline(never)]
fn release(t: &mut Txn, dir: Ino, slot: u64) -> Step<bool> {
    if slot == NO_SLOT {
        return Ok(false);
    }
    let changes = t.changes_mut();
    if let Some(i) = changes.vectors.iter().position(|v| v.collection == dir && v.slot == slot) {
        let put = changes.vectors.remove(i);
        if put.start.checked_add(put.len) == Some(changes.words.len()) {
            changes.words.truncate(put.start);
        }
        return Ok(true);
    }
    t.drop_vector(dir, slot)?;
    Ok(false)
}

/// What to store: a vector with its inverse norm (cosine; else 0), or none for an unindexed file.
#[derive(Clone, Copy, Debug)]
pub struct Vector<'a> {
    /// f32 bits.
    pub words: &'a [u32],
    /// Bits of the inverse norm.
    pub inv_norm: u64,
}

fn count(c: &mut Coll, id: u64, slot: u64, up: bool) -> Step<()> {
    let n = match (file_of(id).is_some(), slot == NO_SLOT) {
        (false, _) => &mut c.schema.records,
        (true, false) => &mut c.schema.files,
        (true, true) => &mut c.schema.unindexed,
    };
    *n = if up { n.checked_add(1) } else { n.checked_sub(1) }.ok_or(Error::Corrupt)?;
    Ok(())
}

/// Puts record `id`, or replaces it, attributes included. The caller stores `c` afterwards.
#[inline(never)]
pub fn put(t: &mut Txn, c: &mut Coll, id: u64, vector: Option<Vector>, attrs: &[u8]) -> Step<()> {
    let old = head(t, c.dir, id)?;
    let seq = c.next_seq()?;
    let mut old_pieces = 0;
    let mut own = None;
    if let Some(old) = &old {
        old_pieces = pieces(old.attrs_len as usize);
        count(c, id, old.slot, false)?;
        own = release(t, c.dir, old.slot)?.then_some(old.slot);
    }
    let slot = match (vector, own) {
        (None, _) => NO_SLOT,
        // A record that the same transaction put: its slot again, or many such would leave as many unused.
        (Some(_), Some(slot)) => slot,
        (Some(_), None) => {
            let (slot, puts) = free_slot(t, c)?;
            c.puts = puts;
            slot
        }
    };
    count(c, id, slot, true)?;
    let attrs_len = u32::try_from(attrs.len()).map_err(|_| Error::TooBig)?;
    let r = Record { slot, seq, attrs_len, flags: 0 };
    write(t, c.dir, id, &r, attrs, old_pieces)?;
    if let Some(v) = vector {
        let crc = vector_crc(t.env(), v.words);
        let head = Slot { id, seq, inv_norm: v.inv_norm, flags: SLOT_LIVE, crc };
        t.put_vector(c.dir, slot, head, v.words)?;
    }
    Ok(())
}

/// Replaces the attributes of the bulk record `id`; its vector stays where it is.
#[inline(never)]
pub fn set_attrs(t: &mut Txn, c: &mut Coll, id: u64, old: &Record, attrs: &[u8]) -> Step<()> {
    let attrs_len = u32::try_from(attrs.len()).map_err(|_| Error::TooBig)?;
    let r = Record { attrs_len, ..*old };
    c.next_seq()?;
    write(t, c.dir, id, &r, attrs, pieces(old.attrs_len as usize))
}

/// Removes record `id`, whose head is `old`. The caller stores `c` afterwards.
#[inline(never)]
pub fn remove(t: &mut Txn, c: &mut Coll, id: u64, old: &Record) -> Step<()> {
    c.next_seq()?;
    count(c, id, old.slot, false)?;
    let key = Key::new(c.dir, kind::RECORD, id);
    for piece in 0..pieces(old.attrs_len as usize) {
        t.del(key.piece(piece))?;
    }
    release(t, c.dir, old.slot)?;
    Ok(())
}
