// SPDX-License-Identifier: GPL-2.0-only
//! The schema of a collection: reading, writing and validating the COLLECTION item, and making and
//! dropping a collection. One function says what a valid schema is, for creation and for fsck alike.

use crate::dist::Metric;
use crate::error::{Error, Step};
use crate::format::{inode_flags, kind, Key, Listed, Schema, Trim, SCHEMA_POPULATING, TRIM_COLLECTION};
use crate::mem;
use crate::ns;
use crate::op::Ino;
use crate::proto::wire;
use crate::txn::Txn;
use alloc::vec::Vec;

/// The metric of a schema.
pub fn metric(s: &Schema) -> Result<Metric, Error> {
    Metric::from_u32(s.metric).ok_or(Error::Corrupt)
}

/// Limits of HNSW's `m`.
pub const M_RANGE: core::ops::RangeInclusive<u32> = 2..=128;
/// Limits of HNSW's `ef_construction`.
pub const EF_RANGE: core::ops::RangeInclusive<u32> = 4..=4096;
/// HNSW's `m` if none is given.
pub const M_DEFAULT: u32 = 16;
/// HNSW's `ef_construction` if none is given.
pub const EF_DEFAULT: u32 = 200;
/// Most lists of an IVF index.
const LISTS_MAX: u32 = 1 << 20;
/// Most numbers in all centroids of an IVF index together.
const CENTROIDS_MAX: u64 = 1 << 28;
/// Most bits of an LSH code.
const BITS_MAX: u32 = 32;
/// Most tables of an LSH index.
const TABLES_MAX: u32 = 1024;
/// Most numbers in all hash functions of an LSH index together.
const HASHES_MAX: u64 = 1 << 26;

/// What is wrong with a schema: the field and what it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadField {
    /// Name of the field.
    pub field: &'static str,
    /// What it may be.
    pub range: &'static str,
}

const fn bad<T>(field: &'static str, range: &'static str) -> Result<T, BadField> {
    Err(BadField { field, range })
}

/// Whether the fields that a user chooses are in their ranges. A parameter of another index kind has to
/// be 0.
pub fn validate(s: &Schema) -> Result<(), BadField> {
    if s.dim == 0 || s.dim > wire::DIM_MAX {
        return bad("dim", "1 to 65536");
    }
    if metric(s).is_err() {
        return bad("metric", "l2, cosine or ip");
    }
    if s.element != wire::element::F32 {
        return bad("element", "f32");
    }
    let (hnsw, ivf, pq, lsh) = match s.index {
        wire::index::FLAT => (false, false, false, false),
        wire::index::HNSW => (true, false, false, false),
        wire::index::IVF => (false, true, false, false),
        wire::index::PQ => (false, false, true, false),
        wire::index::LSH => (false, false, false, true),
        _ => return bad("index", "flat, hnsw, ivf, pq or lsh"),
    };
    if (hnsw && !M_RANGE.contains(&s.m)) || (!hnsw && s.m != 0) {
        return bad("m", "2 to 128, for hnsw only");
    }
    if (hnsw && !EF_RANGE.contains(&s.ef_construction)) || (!hnsw && s.ef_construction != 0) {
        return bad("ef_construction", "4 to 4096, for hnsw only");
    }
    if s.lists > if ivf { LISTS_MAX } else { 0 } {
        return bad("lists", "0 to 1048576, for ivf only");
    }
    if s.subvectors > if pq { s.dim } else { 0 } {
        return bad("subvectors", "0 to the dimension, for pq only");
    }
    if u64::from(s.lists).saturating_mul(u64::from(s.dim)) > CENTROIDS_MAX {
        return bad("lists", "at most 2^28 divided by the dimension");
    }
    let bits = match (pq, lsh) {
        (true, _) => matches!(s.bits, 0 | 4 | 8),
        (_, true) => s.bits <= BITS_MAX,
        _ => s.bits == 0,
    };
    if !bits {
        return bad("bits", "4 or 8 for pq, 1 to 32 for lsh, 0 for the default");
    }
    if s.tables > if lsh { TABLES_MAX } else { 0 } {
        return bad("tables", "0 to 1024, for lsh only");
    }
    let hashes = u64::from(s.tables.max(1)).saturating_mul(u64::from(s.bits.max(1)));
    if hashes.saturating_mul(u64::from(s.dim)) > HASHES_MAX {
        return bad("tables", "so few that tables, bits and dimension multiplied are at most 2^26");
    }
    Ok(())
}

/// Whether a model name is acceptable: UTF-8 without control characters, at most 255 bytes.
pub fn validate_model(model: &[u8]) -> Result<(), BadField> {
    let text = core::str::from_utf8(model);
    if model.len() > wire::MODEL_MAX as usize || !text.is_ok_and(|t| !t.chars().any(char::is_control)) {
        return bad("model", "at most 255 bytes of UTF-8 without control characters");
    }
    Ok(())
}

/// Reads a COLLECTION item's value and checks every field that can be checked by itself.
/// Counters are compared with the records by `recount`; `seed` may be any number.
#[inline(never)]
pub fn parse(value: &[u8]) -> Result<(Schema, &[u8]), BadField> {
    let Some(s) = Schema::parse(value) else { return bad("item", "at least 128 bytes") };
    let model = value.get(Schema::SIZE..).unwrap_or_default();
    if s.model_len as usize != model.len() {
        return bad("model_len", "the bytes that follow the schema");
    }
    validate_model(model)?;
    validate(&s)?;
    if s.next_id > crate::format::FILE_ID_BASE {
        return bad("next_id", "at most 2^63");
    }
    if s.flags & !SCHEMA_POPULATING != 0 {
        return bad("flags", "bit 0");
    }
    if s.flags & SCHEMA_POPULATING == 0 && s.cursor != 0 {
        return bad("cursor", "0 unless children are being taken in");
    }
    if s.reserved != 0 {
        return bad("reserved", "0");
    }
    if s.reserved2 != [0; 16] {
        return bad("reserved2", "0");
    }
    Ok((s, model))
}

/// A collection's schema in memory, to be changed and stored.
#[derive(Debug)]
pub struct Coll {
    /// The directory.
    pub dir: Ino,
    /// The schema.
    pub schema: Schema,
    /// Model name.
    pub model: Vec<u8>,
    /// Where in the order of free slots `record::put` goes on.
    pub(super) puts: Puts,
}

/// Which of a collection's free slots the next vector of a transaction takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Puts {
    /// Its place in the order of free slots; `None` before the first.
    pub(super) next: Option<u64>,
    /// The transaction had stored vectors before this one: each slot has to be compared with theirs.
    pub(super) mixed: bool,
}

impl Coll {
    /// A schema that is about to be stored for the first time.
    pub fn new(dir: Ino, schema: Schema, model: Vec<u8>) -> Coll {
        Coll { dir, schema, model, puts: Puts::default() }
    }
}

impl Coll {
    /// The next sequence number of a change.
    pub fn next_seq(&mut self) -> Step<u64> {
        self.schema.change = self.schema.change.checked_add(1).ok_or(Error::Corrupt)?;
        Ok(self.schema.change)
    }
}

/// The schema of `dir`; `None` if it is no collection.
#[inline(never)]
pub fn load(t: &Txn, dir: Ino) -> Step<Option<Coll>> {
    let Some(value) = t.get(&Key::new(dir, kind::COLLECTION, 0))? else { return Ok(None) };
    let (schema, model) = parse(value).map_err(|_| Error::Corrupt)?;
    Ok(Some(Coll::new(dir, schema, mem::to_vec(model)?)))
}

/// Like [`load`], for who needs a collection.
#[inline(never)]
pub fn require(t: &Txn, dir: Ino) -> Step<Coll> {
    Ok(load(t, dir)?.ok_or(Error::NotCollection)?)
}

/// Writes the schema.
#[inline(never)]
pub fn store(t: &mut Txn, c: &Coll) -> Step<()> {
    let mut value = mem::filled(Schema::SIZE, 0u8)?;
    let mut schema = c.schema;
    schema.model_len = u32::try_from(c.model.len()).map_err(|_| Error::TooBig)?;
    schema.emit(&mut value).ok_or(Error::Corrupt)?;
    mem::extend(&mut value, &c.model)?;
    t.put(Key::new(c.dir, kind::COLLECTION, 0), &value)
}

/// Sets or clears the collection flag of the directory, as a change of its inode.
#[inline(never)]
fn flag(t: &mut Txn, dir: Ino, on: bool) -> Step<()> {
    let mut i = ns::inode(t, dir)?;
    i.flags = if on { i.flags | inode_flags::COLLECTION } else { i.flags & !inode_flags::COLLECTION };
    ns::touch(t, &mut i);
    ns::put_inode(t, dir, &i)
}

/// Makes the directory a collection. The children that it has are taken in by `populate`, which
/// the engine starts when this transaction has been applied.
#[inline(never)]
pub fn make(t: &mut Txn, c: &mut Coll) -> Step<()> {
    flag(t, c.dir, true)?;
    let first = t.next(&Key::first(c.dir, kind::DIRENT), &Key::last(c.dir, kind::DIRENT))?;
    if first.is_some() {
        c.schema.flags |= SCHEMA_POPULATING;
        mem::push(&mut t.changes_mut().populates, c.dir)?;
    }
    store(t, c)?;
    t.put(Key::new(0, kind::LISTED, c.dir), &[0; Listed::SIZE])
}

/// The directory is no collection any more. What it held is freed by the trim that the engine starts when
/// this transaction has been applied.
#[inline(never)]
pub fn unmake(t: &mut Txn, dir: Ino) -> Step<()> {
    flag(t, dir, false)?;
    t.del(Key::new(dir, kind::COLLECTION, 0))?;
    t.del(Key::new(0, kind::LISTED, dir))?;
    let taking_in = Key::new(0, kind::POPULATE, dir);
    if t.get(&taking_in)?.is_some() {
        t.del(taking_in)?;
    }
    let mut b = [0u8; Trim::SIZE];
    Trim { from: TRIM_COLLECTION }.emit(&mut b).ok_or(Error::Corrupt)?;
    t.put(Key::new(0, kind::TRIM, dir), &b)?;
    let changes = t.changes_mut();
    mem::push(&mut changes.trims, dir)?;
    mem::push(&mut changes.dropped_collections, dir)?;
    Ok(())
}
