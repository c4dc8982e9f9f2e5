// SPDX-License-Identifier: GPL-2.0-only
//! Changing requests, in steps of one transaction each. A request that is wrong in itself (ids,
//! dimensions, elements, attributes) is refused before its first change; what can only be found out later
//! (an id that exists) ends it with the number of records done before, which stay.
//!
//! A step that lacks something in memory after it has changed records ends there and commits them, instead of
//! being thrown away: so a request over a cold tree does its work once.
//!
//! Permissions: everything that changes records, or the collection itself, needs write permission on
//! the directory; making, dropping and re-indexing one in a sticky directory also needs its ownership.
//! A file's embedding is the file's: setting it needs write permission on the file, as its xattr does.

use super::matching::Matcher;
use super::populate::clear;
use super::record::{self, Vector};
use super::schema::{self, Coll};
use super::{access, ahead, enter, refuse, resolve, visible, Refusal};
use crate::dist::{self, Metric};
use crate::error::{Error, Step};
use crate::filter::attrs;
use crate::format::{inode_flags, kind, Key, Record, Schema, FILE_ID_BASE};
use crate::ns::{self, perm};
use crate::op::{Cred, Ino, Reply};
use crate::proto::{self, wire, Body, Failure, Request};
use crate::txn::{Outcome, Progress, Txn, TXN_BYTES_MAX};
use alloc::vec::Vec;

/// Most records that a step looks at.
const STEP_RECORDS: u64 = 4096;
/// Bytes that a record takes in a transaction besides vector and attributes, the schema included, at most.
const RECORD_BYTES: usize = 1024;
/// A frame of so many bytes is about many records: it is worth reading ahead for.
const LONG_FRAME: usize = 16 * 1024;
/// The sticky bit of a mode.
const STICKY: u32 = 0o1000;

/// Runs one step.
#[inline(never)]
pub(super) fn run(t: &mut Txn, dir: Ino, cred: &Cred, r: &Request, p: &mut Progress) -> Result<Outcome, Refusal> {
    if t.info().read_only && !matches!(r.body, Body::Sync) {
        return Err(Error::ReadOnly.into());
    }
    let frame = match &r.body {
        Body::Create(s) => create(t, dir, cred, r, s)?,
        Body::Drop => drop_collection(t, dir, cred, r)?,
        Body::Reindex(s) => reindex(t, dir, cred, r, s)?,
        Body::Insert(x) => insert(t, dir, cred, r, x, p)?,
        Body::Delete(ids) => delete(t, dir, cred, r, *ids, p)?,
        Body::DeleteWhere(filter) => delete_where(t, dir, cred, r, filter, p)?,
        Body::UpdateAttrs(u) => update(t, dir, cred, r, u, p)?,
        Body::Embed(e) => embed(t, dir, cred, r, e)?,
        Body::Sync => return Ok(Outcome::DoneDurable(Reply::Bytes(proto::reply_done(&r.head)?))),
        _ => return Err(refuse(Error::Invalid, format_args!("this request only reads: send it as a query"))),
    };
    Ok(match frame {
        None => Outcome::More,
        Some(frame) if r.durable => Outcome::DoneDurable(Reply::Bytes(frame)),
        Some(frame) => Outcome::Done(Reply::Bytes(frame)),
    })
}

/// The reply frame, or `None`: there is more to do.
type Stepped = Result<Option<Vec<u8>>, Refusal>;

#[inline(never)]
fn may_reshape(t: &Txn, dir: Ino, cred: &Cred) -> Result<(), Refusal> {
    access(t, dir, cred, perm::WRITE)?;
    let inode = ns::inode(t, dir)?;
    if inode.mode & STICKY != 0 && cred.uid != 0 && cred.uid != inode.uid {
        let text = format_args!("only the owner of a sticky directory may do this");
        return Err(refuse(Error::NotPermitted, text));
    }
    Ok(())
}

fn bad_schema(b: schema::BadField) -> Failure {
    Failure::new(Error::Invalid, format_args!("{} has to be {}", b.field, b.range))
}

fn or(n: u32, default: u32) -> u32 {
    if n == 0 {
        default
    } else {
        n
    }
}

/// Fills the index parameters in: what is given, else what `old` has for the same kind, else the default.
fn parameters(s: &mut Schema, given: &wire::Schema, old: Option<&Schema>) {
    let old = old.filter(|o| o.index == s.index);
    let hnsw = s.index == wire::index::HNSW;
    let (m, ef) = if hnsw { (schema::M_DEFAULT, schema::EF_DEFAULT) } else { (0, 0) };
    s.m = or(given.m, old.map_or(m, |o| o.m));
    s.ef_construction = or(given.ef_construction, old.map_or(ef, |o| o.ef_construction));
    s.lists = or(given.lists, old.map_or(0, |o| o.lists));
    s.subvectors = or(given.subvectors, old.map_or(0, |o| o.subvectors));
    s.bits = or(given.bits, old.map_or(0, |o| o.bits));
    s.tables = or(given.tables, old.map_or(0, |o| o.tables));
    if given.seed != 0 {
        s.seed = given.seed;
    }
}

#[inline(never)]
fn create(t: &mut Txn, dir: Ino, cred: &Cred, r: &Request, s: &proto::Schema) -> Stepped {
    may_reshape(t, dir, cred)?;
    if schema::load(t, dir)?.is_some() {
        return Err(refuse(Error::Exists, format_args!("the directory is a collection already")));
    }
    let w = &s.schema;
    let mut fresh = Schema {
        dim: w.dim,
        metric: w.metric,
        element: or(w.element, wire::element::F32),
        index: w.index,
        ..Schema::default()
    };
    parameters(&mut fresh, w, None);
    schema::validate(&fresh).map_err(bad_schema)?;
    schema::validate_model(s.model.as_bytes()).map_err(bad_schema)?;
    // What an earlier collection of this directory left behind goes first.
    if super::trim(t, dir, &mut Progress::default())?.is_some() {
        return Ok(None);
    }
    let mut c = Coll::new(dir, fresh, crate::mem::to_vec(s.model.as_bytes())?);
    schema::make(t, &mut c)?;
    Ok(Some(proto::reply_info(&r.head, &super::query::stored_info(t, &c)?, &c.model)?))
}

#[inline(never)]
fn drop_collection(t: &mut Txn, dir: Ino, cred: &Cred, r: &Request) -> Stepped {
    may_reshape(t, dir, cred)?;
    schema::require(t, dir)?;
    schema::unmake(t, dir)?;
    Ok(Some(proto::reply_done(&r.head)?))
}

#[inline(never)]
fn reindex(t: &mut Txn, dir: Ino, cred: &Cred, r: &Request, s: &proto::Schema) -> Stepped {
    may_reshape(t, dir, cred)?;
    let mut c = schema::require(t, dir)?;
    let (w, old) = (&s.schema, c.schema);
    if w.dim != 0 || w.metric != 0 || w.element != 0 || !s.model.is_empty() {
        let text = format_args!("only the index kind and its parameters can be changed");
        return Err(refuse(Error::Invalid, text));
    }
    c.schema.index = or(w.index, old.index);
    parameters(&mut c.schema, w, Some(&old));
    schema::validate(&c.schema).map_err(bad_schema)?;
    // The stored index does not have these parameters: it goes first, so that a crash cannot bring it back. What says that
    // there is one goes before its blocks, for that may take several steps.
    t.del(Key::new(dir, kind::INDEX, 0))?;
    if !clear(t, dir, kind::INDEX_EXTENT, kind::INDEX, &mut Progress::default())? {
        return Ok(None);
    }
    c.next_seq()?;
    schema::store(t, &c)?;
    crate::mem::push(&mut t.changes_mut().reindex, dir)?;
    Ok(Some(proto::reply_info(&r.head, &super::query::stored_info(t, &c)?, &c.model)?))
}

/// Checks a vector for a collection; its inverse norm.
#[inline(never)]
pub(super) fn admit(t: &Txn, metric: Metric, what: &str, i: usize, words: &[u32]) -> Result<u64, Refusal> {
    dist::admit(t.env().distance, metric, words).map_err(|e| {
        Refusal::from(match e {
            Error::BadVector | Error::ZeroVector => Failure::new(e, format_args!("{what} {i}: {}", e.message())).at(i),
            e => e.into(),
        })
    })
}

/// Refuses another dimension than the collection's.
#[inline(never)]
pub(super) fn same_dimension(c: &Coll, dim: usize) -> Result<(), Refusal> {
    if dim == c.schema.dim as usize {
        return Ok(());
    }
    let text = format_args!("the vectors have {dim} dimensions, the collection has {}", c.schema.dim);
    Err(refuse(Error::WrongDimension, text))
}

fn full(t: &Txn, more: usize) -> bool {
    t.size().saturating_add(more).saturating_add(RECORD_BYTES) > TXN_BYTES_MAX
}

fn index(pos: u64) -> usize {
    usize::try_from(pos).unwrap_or(usize::MAX)
}

#[inline(never)]
fn insert(t: &mut Txn, dir: Ino, cred: &Cred, r: &Request, x: &proto::Insert, p: &mut Progress) -> Stepped {
    let mut c = enter(t, dir, cred, perm::WRITE)?;
    same_dimension(&c, x.vectors.dim() as usize)?;
    t.collection(dir)?;
    let metric = schema::metric(&c.schema)?;
    let id_of = |i: usize, first: u64| match x.ids {
        Some(ids) => ids.get(i).ok_or(Error::Invalid),
        None => first.checked_add(i as u64).ok_or(Error::Invalid),
    };
    let mut words = Vec::new();
    let vector = |i: usize, words: &mut Vec<u32>| -> Result<(), Refusal> {
        words.clear();
        Ok(x.vectors.get(i).ok_or(Error::Invalid)?.append_to(words)?)
    };
    if p.pos == 0 && p.extra == 0 {
        // Before anything is changed: what needs memory first, the long look at every record after it.
        record::head(t, dir, id_of(0, c.schema.next_id)?)?;
        x.validate()?;
        for i in 0..x.count {
            vector(i, &mut words)?;
            admit(t, metric, "vector", i, &words)?;
        }
    }
    if p.pos == 0 && x.if_absent && x.ids.is_some() && !all_absent(t, dir, x, p)? {
        return Ok(None);
    }
    let from = index(p.pos);
    let first = match (x.ids.is_some(), from) {
        (true, _) => 0,
        (false, 0) => c.schema.next_id,
        (false, _) => p.extra,
    };
    if x.ids.is_none() && from == 0 {
        // All ids are taken at once, so that no other request's records come between.
        let end = first.checked_add(x.count as u64).filter(|e| *e <= FILE_ID_BASE);
        c.schema.next_id = end.ok_or_else(|| refuse(Error::Invalid, format_args!("the record ids are used up")))?;
        p.extra = first;
    }
    let mut i = from;
    while i < x.count {
        let id = id_of(i, first)?;
        let blob = x.attrs_of(i)?;
        vector(i, &mut words)?;
        if i > from && full(t, words.len().saturating_mul(4).saturating_add(blob.len())) {
            break;
        }
        // Reads come first: see the module's promise.
        match record::head(t, dir, id) {
            Ok(Some(_)) if x.if_absent && i > from => break,
            Ok(Some(_)) if x.if_absent => return Err(exists(id, i).into()),
            Err(_) if i > from => break,
            old => old?,
        };
        let inv_norm = admit(t, metric, "vector", i, &words)?;
        record::put(t, &mut c, id, Some(Vector { words: &words, inv_norm }), blob)?;
        c.schema.next_id = c.schema.next_id.max(id.checked_add(1).ok_or(Error::Invalid)?);
        i = i.saturating_add(1);
    }
    schema::store(t, &c)?;
    p.pos = i as u64;
    p.done = i as u64;
    if i < x.count {
        return Ok(None);
    }
    Ok(Some(proto::reply_insert(&r.head, x.count as u64, id_of(0, first)?)?))
}

#[inline(never)]
fn exists(id: u64, i: usize) -> Failure {
    Failure::new(Error::Exists, format_args!("record {id} exists already")).at(i)
}

/// Looks at the ids of an insert that is to replace nothing, before the first one is done. False: there are
/// more to look at, `p.extra` was moved on.
#[inline(never)]
fn all_absent(t: &Txn, dir: Ino, x: &proto::Insert, p: &mut Progress) -> Result<bool, Refusal> {
    let from = index(p.extra);
    for i in from..x.count {
        let id = x.ids.and_then(|ids| ids.get(i)).ok_or(Error::Invalid)?;
        match record::head(t, dir, id) {
            Ok(None) => {}
            Ok(Some(_)) => return Err(exists(id, i).into()),
            Err(_) if i > from => {
                p.extra = i as u64;
                return Ok(false);
            }
            Err(s) => return Err(s.into()),
        }
    }
    p.extra = x.count as u64;
    Ok(true)
}

/// A file's record ends with its embedding; that needs what setting it needs. False: no such file here, as
/// far as `cred` may know.
#[inline(never)]
fn delete_file(t: &mut Txn, dir: Ino, cred: &Cred, ino: Ino, i: usize) -> Result<bool, Refusal> {
    if !visible(t, dir, cred, ino)? {
        return Ok(false);
    }
    if !perm::may(t, ino, cred, perm::WRITE)? {
        let text = format_args!("no write permission on the file of record {}", record::file_id(ino));
        return Err(Failure::new(Error::AccessDenied, text).at(i).into());
    }
    ns::remove_embedding(t, ino)?;
    Ok(true)
}

#[inline(never)]
fn delete(t: &mut Txn, dir: Ino, cred: &Cred, r: &Request, ids: proto::Ids, p: &mut Progress) -> Stepped {
    let mut c = enter(t, dir, cred, perm::WRITE)?;
    let from = index(p.pos);
    let (mut i, mut done, mut missing) = (from, 0u64, 0u64);
    let mut dirty = false;
    while let Some(id) = ids.get(i) {
        let looked = (i as u64).saturating_sub(p.pos);
        if looked > 0 && (full(t, 0) || looked >= STEP_RECORDS) {
            break;
        }
        let old = match record::head(t, dir, id) {
            Err(_) if i > from => break,
            old => old?,
        };
        match (old, record::file_of(id)) {
            (None, _) => missing = missing.saturating_add(1),
            (Some(old), None) => {
                record::remove(t, &mut c, id, &old)?;
                done = done.saturating_add(1);
                dirty = true;
            }
            // The namespace changes the schema itself then: a step of its own.
            (Some(_), Some(_)) if i > from => break,
            (Some(_), Some(ino)) => {
                let n = if delete_file(t, dir, cred, ino, i)? { &mut done } else { &mut missing };
                *n = n.saturating_add(1);
                i = i.saturating_add(1);
                break;
            }
        }
        i = i.saturating_add(1);
    }
    if dirty {
        schema::store(t, &c)?;
    }
    p.pos = i as u64;
    p.done = p.done.saturating_add(done);
    p.extra = p.extra.saturating_add(missing);
    if i < ids.len() {
        return Ok(None);
    }
    Ok(Some(proto::reply_delete(&r.head, p.done, p.extra)?))
}

#[inline(never)]
fn delete_where(t: &mut Txn, dir: Ino, cred: &Cred, r: &Request, filter: &[u8], p: &mut Progress) -> Stepped {
    let mut c = enter(t, dir, cred, perm::WRITE)?;
    let mut matcher = Matcher::new(Some(filter))?;
    let (mut looked, mut done, mut id) = (0u64, 0u64, p.pos);
    let mut end = false;
    while looked < STEP_RECORDS && !(looked > 0 && full(t, 0)) {
        let found = match matcher.next_bulk(t, dir, id) {
            Err(_) if looked > 0 => break,
            found => found?,
        };
        let Some((at, old, matches)) = found else {
            end = true;
            break;
        };
        if matches {
            record::remove(t, &mut c, at, &old)?;
            done = done.saturating_add(1);
        }
        looked = looked.saturating_add(1);
        id = at.saturating_add(1);
    }
    if done > 0 {
        schema::store(t, &c)?;
    }
    p.pos = id;
    p.done = p.done.saturating_add(done);
    if !end {
        return Ok(None);
    }
    Ok(Some(proto::reply_delete(&r.head, p.done, 0)?))
}

/// The new attributes of record `id` under `patch`.
#[inline(never)]
fn patched(t: &Txn, dir: Ino, id: u64, patch: &[u8], i: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
    record::attrs(t, dir, id, out)?;
    match attrs::merge(out, patch) {
        Ok(merged) => {
            *out = merged;
            Ok(())
        }
        Err(Error::TooBig) => {
            let text = format_args!("record {id}: more than {} bytes of attributes", wire::ATTRS_MAX);
            Err(Failure::new(Error::TooBig, text).at(i).into())
        }
        Err(e) => Err(e.into()),
    }
}

#[inline(never)]
fn update(t: &mut Txn, dir: Ino, cred: &Cred, r: &Request, u: &proto::UpdateAttrs, p: &mut Progress) -> Stepped {
    let mut c = enter(t, dir, cred, perm::WRITE)?;
    if p.pos == 0 {
        u.validate()?;
    }
    let from = index(p.pos);
    let (mut i, mut done, mut missing) = (from, 0u64, 0u64);
    let mut blob = Vec::new();
    while let Some(id) = u.ids.get(i) {
        let looked = (i as u64).saturating_sub(p.pos);
        let patch = u.attrs.get(i).ok_or(Error::Invalid)?;
        if looked >= STEP_RECORDS {
            break;
        }
        // Reads come first: see the module's promise.
        let read = read_for_update(t, dir, id, u.replace, patch, i, &mut blob);
        let old = match read {
            Err(_) if i > from => break,
            read => read?,
        };
        if i > from && full(t, blob.len()) {
            break;
        }
        match old {
            None => missing = missing.saturating_add(1),
            Some(old) => {
                record::set_attrs(t, &mut c, id, &old, &blob)?;
                done = done.saturating_add(1);
            }
        }
        i = i.saturating_add(1);
    }
    if done > 0 {
        schema::store(t, &c)?;
    }
    p.pos = i as u64;
    p.done = p.done.saturating_add(done);
    p.extra = p.extra.saturating_add(missing);
    if i < u.ids.len() {
        return Ok(None);
    }
    Ok(Some(proto::reply_delete(&r.head, p.done, p.extra)?))
}

/// The record's head, and in `blob` the attributes that it is to have; `None` if it does not exist.
#[inline(never)]
fn read_for_update(
    t: &Txn,
    dir: Ino,
    id: u64,
    replace: bool,
    patch: &[u8],
    i: usize,
    blob: &mut Vec<u8>,
) -> Result<Option<Record>, Refusal> {
    blob.clear();
    let Some(old) = record::head(t, dir, id)? else { return Ok(None) };
    if replace {
        crate::mem::extend(blob, patch)?;
    } else {
        patched(t, dir, id, patch, i, blob)?;
    }
    Ok(Some(old))
}

#[inline(never)]
fn embed(t: &mut Txn, dir: Ino, cred: &Cred, r: &Request, e: &proto::Embed) -> Stepped {
    let ino = resolve(t, dir, cred, &e.file)?;
    if !perm::may(t, ino, cred, perm::WRITE)? {
        return Err(refuse(Error::AccessDenied, format_args!("no write permission on the file")));
    }
    let i = ns::inode(t, ino)?;
    if !ns::mode::is_reg(i.mode) {
        return Err(refuse(Error::NotSupported, format_args!("only regular files carry embeddings")));
    }
    if e.vector.is_none() && i.flags & inode_flags::EMBEDDED == 0 {
        return Err(refuse(Error::NoAttribute, format_args!("the file has no embedding")));
    }
    match e.vector {
        None => ns::remove_embedding(t, ino)?,
        Some(words) => ns::set_embedding(t, ino, &words.to_vec()?)?,
    }
    Ok(Some(proto::reply_done(&r.head)?))
}

/// One step of a request, its refusals turned into replies.
pub(super) fn step(t: &mut Txn, dir: Ino, cred: &Cred, frame: &[u8], p: &mut Progress) -> Step<Outcome> {
    let result = match proto::decode(frame) {
        Ok(r) => run(t, dir, cred, &r, p),
        Err(f) => Err(f.into()),
    };
    match result {
        Ok(outcome) => Ok(outcome),
        Err(Refusal::Stop(s)) if frame.len() > LONG_FRAME => Err(ahead(s)),
        Err(Refusal::Stop(s)) => Err(s),
        // A refusal comes before the step's first change; should that ever not hold, nothing of it may stay.
        Err(Refusal::Failure(f)) if !t.changes().is_empty() => Err(f.error.into()),
        Err(Refusal::Failure(f)) => {
            let f = Failure { done: p.done, ..f };
            Ok(Outcome::Done(Reply::Bytes(proto::reply_failure(frame, &f)?)))
        }
    }
}
