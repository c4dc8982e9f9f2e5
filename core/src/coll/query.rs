// SPDX-License-Identifier: GPL-2.0-only
//! Read-only requests besides search: what a collection is, its records by id and page by page, embeddings of
//! files, and the collections of a volume.
//!
//! A page is one instant of the collection. Pages of a list are different instants; each carries the change
//! counter, and a caller that wants one instant as a whole (an export) begins again if it differs. Changes
//! of names and xattrs alone do not move the counter.

use super::matching::{next_record, Eyes, Matcher};
use super::schema::{self, Coll};
use super::{access, ahead, enter, record, refuse, resolve, Collection, Refusal};
use crate::error::{Error, Need, Step, Stop};
use crate::filter::attrs::Builder;
use crate::filter::Value;
use crate::format::{inode_flags, kind, IndexRoot, Key, Record, BLOCK, FILE_ID_BASE, NO_SLOT, SCHEMA_POPULATING};
use crate::mem;
use crate::ns::{self, perm};
use crate::op::{Cred, Ino, Op, Reply};
use crate::proto::{self, wire, Body, Request};
use crate::txn::Txn;
use alloc::vec::Vec;

/// Most records that one page looks at; with a filter it may so be short, or empty and not the last.
const PAGE_LOOKS: usize = 32_768;
/// A page that looked at so many records ends where something is missing in memory, instead of being made again.
const PAGE_LOOKS_KEPT: usize = 1024;
/// Most path components that one page of collections looks at.
const PAGE_STEPS: usize = 65_536;
/// Deepest path that is listed.
const DEPTH_MAX: usize = 4096;
/// Prefix of the attributes that filters and lists know.
const USER: &[u8] = b"user.";

/// Runs a read-only request.
pub(super) fn run(t: &Txn, dir: Ino, cred: &Cred, r: &Request) -> Result<Vec<u8>, Refusal> {
    match &r.body {
        Body::Info => info(t, dir, cred, r),
        Body::Get(g) => get(t, dir, cred, r, g),
        Body::Search(s) => super::search::search(t, dir, cred, r, s),
        Body::List(l) => list(t, dir, cred, r, l),
        Body::GetEmbedding(f) => get_embedding(t, dir, cred, r, f),
        Body::Collections(c) => collections(t, dir, cred, r, c),
        Body::Stats => stats(t, r),
        _ => Err(refuse(Error::Invalid, format_args!("this request changes something: send it as a request"))),
    }
}

/// What the tree alone says of a collection; figures of the loaded index are 0.
#[inline(never)]
pub(super) fn stored_info(t: &Txn, c: &Coll) -> Step<wire::CollectionInfo> {
    let s = &c.schema;
    let index_bytes = match t.get(&Key::new(c.dir, kind::INDEX, 0))? {
        Some(v) => IndexRoot::parse(v).ok_or(Error::Corrupt)?.len,
        None => 0,
    };
    Ok(wire::CollectionInfo {
        dim: s.dim,
        metric: s.metric,
        element: s.element,
        index: s.index,
        m: s.m,
        ef_construction: s.ef_construction,
        lists: s.lists,
        subvectors: s.subvectors,
        bits: s.bits,
        tables: s.tables,
        seed: s.seed,
        ino: c.dir,
        next_id: s.next_id,
        records: s.records,
        files: s.files,
        unindexed: s.unindexed,
        index_bytes,
        change: s.change,
        flags: if s.flags & SCHEMA_POPULATING != 0 { wire::info_flags::POPULATING } else { 0 },
        ..wire::CollectionInfo::default()
    })
}

/// Counts the files that the caller may see: (searched, unindexed).
#[inline(never)]
fn visible_files(t: &Txn, dir: Ino, eyes: &Eyes) -> Step<(u64, u64)> {
    let (mut files, mut unindexed) = (0u64, 0u64);
    let mut id = FILE_ID_BASE;
    while let Some((at, r)) = next_record(t, dir, id)? {
        if eyes.see(t, at)? {
            let n = if r.slot == NO_SLOT { &mut unindexed } else { &mut files };
            *n = n.saturating_add(1);
        }
        match at.checked_add(1) {
            Some(next) => id = next,
            None => break,
        }
    }
    Ok((files, unindexed))
}

#[inline(never)]
fn info(t: &Txn, dir: Ino, cred: &Cred, r: &Request) -> Result<Vec<u8>, Refusal> {
    let c = enter(t, dir, cred, perm::READ)?;
    let runtime = t.collection(dir)?;
    let mut i = stored_info(t, &c)?;
    let eyes = Eyes::new(t, dir, cred)?;
    if !eyes.all() && i.files.saturating_add(i.unindexed) > 0 {
        (i.files, i.unindexed) = visible_files(t, dir, &eyes)?;
    }
    let figures = runtime.info();
    i.pending = figures.pending;
    i.tombstones = figures.tombstones;
    i.damaged = figures.damaged;
    i.memory = figures.memory as u64;
    if figures.pending > 0 || figures.training {
        i.flags |= wire::info_flags::CATCHING_UP;
    }
    Ok(proto::reply_info(&r.head, &i, &c.model)?)
}

/// One record, put together for a reply.
#[derive(Default)]
struct Row<'a> {
    flags: u32,
    /// A bulk record's vector.
    stored: &'a [u32],
    /// A file's embedding.
    embedding: Vec<u32>,
    attrs: Vec<u8>,
    paths: Vec<u8>,
    path_count: u32,
}

impl<'a> Row<'a> {
    fn view(&self, id: u64) -> proto::RecordView<'_> {
        let vector = if self.embedding.is_empty() { self.stored } else { &self.embedding };
        proto::RecordView {
            id,
            flags: self.flags,
            vector,
            attrs: &self.attrs,
            paths: &self.paths,
            path_count: self.path_count,
        }
    }

    /// Record `id` with what `want` asks for. `runtime` is there if vectors are wanted; with `ahead`, those of the next slots
    /// will be.
    #[inline(never)]
    fn read(
        t: &Txn,
        dir: Ino,
        runtime: Option<&'a Collection>,
        id: u64,
        head: &Record,
        want: u32,
        ahead: bool,
    ) -> Result<Row<'a>, Refusal> {
        let mut row = Row { flags: wire::record_flags::PRESENT, ..Row::default() };
        match record::file_of(id) {
            Some(ino) => row.file(t, dir, ino, head, want)?,
            None => {
                if let Some(runtime) = runtime {
                    match runtime.vector(&t.absent, head.slot, ahead) {
                        Some(v) => row.stored = v,
                        None if t.absent.any() => return Err(Stop::Need(Need::Vectors(dir)).into()),
                        None => row.flags |= wire::record_flags::DAMAGED,
                    }
                }
                if want & wire::want::ATTRS != 0 {
                    record::attrs(t, dir, id, &mut row.attrs)?;
                }
            }
        }
        Ok(row)
    }

    #[inline(never)]
    fn file(&mut self, t: &Txn, dir: Ino, ino: Ino, head: &Record, want: u32) -> Result<(), Refusal> {
        if ns::inode(t, ino)?.flags & inode_flags::STALE != 0 {
            self.flags |= wire::record_flags::STALE;
        }
        if head.slot == NO_SLOT {
            self.flags |= wire::record_flags::UNINDEXED;
        }
        if want & wire::want::VECTORS != 0 {
            // From the inode, where it is metadata and so kept twice.
            self.embedding = ns::embedding(t, ino)?.ok_or(Error::Corrupt)?;
        }
        if want & wire::want::ATTRS != 0 {
            self.attrs = file_attrs(t, ino)?;
        }
        if want & wire::want::PATHS != 0 {
            for n in ns::names(t, ino, Some(dir), ns::LINKS_MAX as usize)? {
                proto::push_path(&mut self.paths, &n.name)?;
                self.path_count = self.path_count.saturating_add(1);
            }
        }
        Ok(())
    }
}

/// A file's user xattrs, encoded like the attributes of a record. The embedding is not among them, nor is a
/// value that this encoding cannot carry (65536 bytes).
#[inline(never)]
fn file_attrs(t: &Txn, ino: Ino) -> Step<Vec<u8>> {
    let Reply::Bytes(names) = ns::read(t, &Op::ListXattr { ino })? else { return Err(Error::Invalid.into()) };
    let mut b = Builder::new();
    for name in names.split(|c| *c == 0) {
        let Some(short) = name.strip_prefix(USER) else { continue };
        if name == ns::EMBEDDING_XATTR || short.is_empty() {
            continue;
        }
        if let Some(value) = ns::user_xattr(t, ino, short)? {
            match b.add(short, Value::Text(&value)) {
                Ok(()) | Err(Error::TooBig) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(b.finish()?)
}

#[inline(never)]
fn get(t: &Txn, dir: Ino, cred: &Cred, r: &Request, g: &proto::Get) -> Result<Vec<u8>, Refusal> {
    let c = enter(t, dir, cred, perm::READ)?;
    let runtime = if g.want & wire::want::VECTORS != 0 { Some(t.collection(dir)?) } else { None };
    let eyes = Eyes::new(t, dir, cred)?;
    let mut reply = proto::RecordsReply::new(&r.head, c.schema.dim, c.schema.change, wire::FRAME_MAX)?;
    let many = g.ids.len() > 8;
    for id in g.ids.iter() {
        let row = match record::head(t, dir, id).map_err(|s| if many { ahead(s) } else { s })? {
            Some(head) if eyes.see(t, id)? => match Row::read(t, dir, runtime, id, &head, g.want, false) {
                // What the others lack is brought in together with it.
                Err(Refusal::Stop(Stop::Need(Need::Vectors(_)))) if !t.absent.is_full() => continue,
                row => row?,
            },
            _ => Row::default(),
        };
        reply.push(&row.view(id))?;
    }
    if t.absent.any() {
        return Err(Stop::Need(Need::Vectors(dir)).into());
    }
    Ok(reply.finish(wire::LIST_END)?)
}

#[inline(never)]
fn list(t: &Txn, dir: Ino, cred: &Cred, r: &Request, l: &proto::List) -> Result<Vec<u8>, Refusal> {
    let c = enter(t, dir, cred, perm::READ)?;
    let runtime = if l.want & wire::want::VECTORS != 0 { Some(t.collection(dir)?) } else { None };
    let eyes = Eyes::new(t, dir, cred)?;
    let mut matcher = Matcher::new(l.filter)?;
    let mut reply = proto::RecordsReply::new(&r.head, c.schema.dim, c.schema.change, l.max_bytes)?;
    let mut next = l.cursor;
    let mut looks = 0usize;
    while reply.len() < l.max_records && looks < PAGE_LOOKS && next != wire::LIST_END {
        let row = match list_one(t, dir, &eyes, &mut matcher, runtime, next, l.want) {
            Err(_) if looks >= PAGE_LOOKS_KEPT => break,
            row => row?,
        };
        let Some((id, row)) = row else {
            next = wire::LIST_END;
            break;
        };
        if let Some(row) = row {
            let view = row.view(id);
            if !reply.fits(&view) {
                next = id;
                break;
            }
            reply.push(&view)?;
        }
        looks = looks.saturating_add(1);
        next = id.saturating_add(1);
    }
    Ok(reply.finish(next)?)
}

/// The next record from `id` on: its id, and what the page shows of it if it belongs there.
#[allow(clippy::type_complexity)]
#[inline(never)]
fn list_one<'a>(
    t: &Txn,
    dir: Ino,
    eyes: &Eyes,
    matcher: &mut Matcher,
    runtime: Option<&'a Collection>,
    id: u64,
    want: u32,
) -> Result<Option<(u64, Option<Row<'a>>)>, Refusal> {
    let Some((id, head)) = next_record(t, dir, id)? else { return Ok(None) };
    if !eyes.see(t, id)? || !matcher.matches(t, dir, id)? {
        return Ok(Some((id, None)));
    }
    Ok(Some((id, Some(Row::read(t, dir, runtime, id, &head, want, true)?))))
}

#[inline(never)]
fn get_embedding(t: &Txn, dir: Ino, cred: &Cred, r: &Request, f: &proto::FileRef) -> Result<Vec<u8>, Refusal> {
    let ino = resolve(t, dir, cred, f)?;
    if !perm::may(t, ino, cred, perm::READ)? {
        return Err(refuse(Error::AccessDenied, format_args!("no read permission on the file")));
    }
    let Some(words) = ns::embedding(t, ino)? else {
        return Err(refuse(Error::NoAttribute, format_args!("the file has no embedding")));
    };
    let stale = ns::inode(t, ino)?.flags & inode_flags::STALE != 0;
    Ok(proto::reply_embedding(&r.head, ino, stale, &words)?)
}

/// The path of directory `dir` below `base`; `None` if it is not below it within `depth` levels, or not for
/// `cred` to be seen. Counts the steps taken.
#[inline(never)]
fn path_below(t: &Txn, cred: &Cred, base: Ino, dir: Ino, depth: usize, steps: &mut usize) -> Step<Option<Vec<u8>>> {
    let mut names = Vec::new();
    let mut bytes = 0usize;
    let mut at = dir;
    while at != base {
        *steps = steps.saturating_add(1);
        let parent = ns::inode(t, at)?.parent;
        if parent == 0 || parent == at || names.len() >= depth {
            return Ok(None);
        }
        if !perm::may(t, parent, cred, perm::READ | perm::EXEC)? {
            return Ok(None);
        }
        let name = ns::names(t, at, Some(parent), 1)?.pop().ok_or(Error::Corrupt)?.name;
        bytes = bytes.saturating_add(name.len()).saturating_add(1);
        mem::push(&mut names, name)?;
        at = parent;
    }
    let mut path = Vec::new();
    mem::reserve(&mut path, bytes)?;
    for name in names.iter().rev() {
        if !path.is_empty() {
            mem::push(&mut path, b'/')?;
        }
        mem::extend(&mut path, name)?;
    }
    Ok(Some(path))
}

#[inline(never)]
fn collections(t: &Txn, dir: Ino, cred: &Cred, r: &Request, q: &proto::Collections) -> Result<Vec<u8>, Refusal> {
    access(t, dir, cred, perm::READ)?;
    let mut reply = proto::CollectionsReply::new(&r.head)?;
    let depth = if q.recursive { DEPTH_MAX } else { 1 };
    let mut from = q.cursor.0;
    let mut steps = 0usize;
    // Bounds the reply as well: path and model of 4096 collections stay far below a frame.
    let max = q.max.min(4096);
    while reply.len() < max && steps < PAGE_STEPS {
        let Some((key, _)) = t.next(&Key::new(0, kind::LISTED, from), &Key::last(0, kind::LISTED))? else {
            return Ok(reply.finish(None)?);
        };
        let ino = key.offset;
        steps = steps.saturating_add(1);
        if let Some(path) = path_below(t, cred, dir, ino, depth, &mut steps)? {
            if perm::may(t, ino, cred, perm::READ)? {
                let c = schema::require(t, ino)?;
                let mut info = stored_info(t, &c)?;
                let eyes = Eyes::new(t, ino, cred)?;
                if !eyes.all() && info.files.saturating_add(info.unindexed) > 0 {
                    (info.files, info.unindexed) = visible_files(t, ino, &eyes)?;
                }
                reply.push(&info, &c.model, &path)?;
            }
        }
        match ino.checked_add(1) {
            Some(next) => from = next,
            None => return Ok(reply.finish(None)?),
        }
    }
    Ok(reply.finish(Some((from, 0)))?)
}

#[inline(never)]
fn stats(t: &Txn, r: &Request) -> Result<Vec<u8>, Refusal> {
    let v = t.info();
    let (lo, hi) = v.uuid.split_at(8);
    let half = |b: &[u8]| b.try_into().map_or(0, u64::from_le_bytes);
    let s = wire::StatsReply {
        uuid_lo: half(lo),
        uuid_hi: half(hi),
        block_size: BLOCK as u32,
        read_only: u32::from(v.read_only),
        blocks: v.blocks,
        free: v.free,
        available: v.available,
        inodes: v.inodes,
        generation: v.generation,
        ..wire::StatsReply::default()
    };
    Ok(proto::reply_stats(&r.head, &s)?)
}
