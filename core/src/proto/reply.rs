// SPDX-License-Identifier: GPL-2.0-only
//! Writers of replies. Each takes the request's head (for operation and tag) and gives the whole frame. A reply
//! that would be longer than [`wire::FRAME_MAX`] is refused with `Error::TooBig`.

use super::wire::{self, RequestHead};
use super::Failure;
use crate::error::Error;
use crate::mem;
use alloc::vec::Vec;

/// A reply frame that is being written.
#[derive(Debug)]
struct Frame {
    out: Vec<u8>,
}

impl Frame {
    fn new(head: &RequestHead) -> Result<Frame, Failure> {
        let h = wire::ReplyHead {
            len: 0,
            version: wire::VERSION,
            op: head.op,
            tag: head.tag,
            status: 0,
            position: wire::NO_POSITION,
            done: 0,
        };
        let mut out = Vec::new();
        mem::extend(&mut out, &h.bytes())?;
        Ok(Frame { out })
    }

    /// Makes sure that `n` more bytes, with padding, are allowed.
    fn room(&self, n: usize) -> Result<(), Failure> {
        if wire::pad(self.out.len().saturating_add(n)) > wire::FRAME_MAX {
            let text = format_args!("the reply is larger than {} MiB: ask for less at once", wire::FRAME_MAX >> 20);
            return Err(Failure::new(Error::TooBig, text));
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), Failure> {
        let to = wire::pad(self.out.len());
        Ok(mem::resize(&mut self.out, to, 0)?)
    }

    fn section(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.room(bytes.len())?;
        mem::extend(&mut self.out, bytes)?;
        self.fill()
    }

    fn words(&mut self, words: &[u32]) -> Result<(), Failure> {
        let n = words.len().saturating_mul(4);
        self.room(n)?;
        let from = self.out.len();
        mem::resize(&mut self.out, from.saturating_add(n), 0)?;
        for (d, s) in self.out.get_mut(from..).unwrap_or_default().chunks_exact_mut(4).zip(words) {
            d.copy_from_slice(&s.to_le_bytes());
        }
        self.fill()
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(d) = at.checked_add(bytes.len()).and_then(|end| self.out.get_mut(at..end)) {
            d.copy_from_slice(bytes);
        }
    }

    fn finish(mut self) -> Result<Vec<u8>, Failure> {
        let len = u32::try_from(self.out.len()).map_err(|_| Error::TooBig)?;
        self.patch(0, &len.to_le_bytes());
        Ok(self.out)
    }
}

/// Offset of the operation's structure in a reply.
const BODY: usize = wire::ReplyHead::SIZE;

fn one(head: &RequestHead, body: &[u8], tail: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut f = Frame::new(head)?;
    f.section(body)?;
    f.section(tail)?;
    f.finish()
}

/// Reply to DROP, EMBED and SYNC: done.
pub fn reply_done(head: &RequestHead) -> Result<Vec<u8>, Failure> {
    one(head, &[], &[])
}

/// Reply to CREATE, INFO and REINDEX. (`model_len` is filled in.)
pub fn reply_info(head: &RequestHead, info: &wire::CollectionInfo, model: &[u8]) -> Result<Vec<u8>, Failure> {
    let model_len = u32::try_from(model.len()).map_err(|_| Error::TooBig)?;
    one(head, &wire::CollectionInfo { model_len, ..*info }.bytes(), model)
}

/// Reply to INSERT.
pub fn reply_insert(head: &RequestHead, count: u64, first_id: u64) -> Result<Vec<u8>, Failure> {
    one(head, &wire::InsertReply { count, first_id }.bytes(), &[])
}

/// Reply to DELETE, DELETE_WHERE and UPDATE_ATTRS.
pub fn reply_delete(head: &RequestHead, done: u64, missing: u64) -> Result<Vec<u8>, Failure> {
    one(head, &wire::DeleteReply { done, missing }.bytes(), &[])
}

/// Reply to GET_EMBEDDING.
pub fn reply_embedding(head: &RequestHead, ino: u64, stale: bool, vector: &[u32]) -> Result<Vec<u8>, Failure> {
    let dim = u32::try_from(vector.len()).map_err(|_| Error::TooBig)?;
    let flags = if stale { wire::record_flags::STALE } else { 0 };
    let mut f = Frame::new(head)?;
    f.section(&wire::EmbeddingReply { ino, dim, flags }.bytes())?;
    f.words(vector)?;
    f.finish()
}

/// Reply to STATS.
pub fn reply_stats(head: &RequestHead, stats: &wire::StatsReply) -> Result<Vec<u8>, Failure> {
    one(head, &stats.bytes(), &[])
}

/// Appends a name as replies carry it: a u16 length and the bytes.
pub fn push_path(paths: &mut Vec<u8>, name: &[u8]) -> Result<(), Failure> {
    let n = u16::try_from(name.len()).map_err(|_| Error::NameTooLong)?;
    mem::extend(paths, &n.to_le_bytes())?;
    Ok(mem::extend(paths, name)?)
}

/// Writes the reply to SEARCH: for each query [`hit`](SearchReply::hit)s nearest first, each followed by its
/// [`path`](SearchReply::path)s, then [`end_query`](SearchReply::end_query).
#[derive(Debug)]
pub struct SearchReply {
    frame: Frame,
    /// Offset of the running query's head.
    query: usize,
    hits: u32,
    hit_paths: u32,
    paths: Vec<u8>,
    total: wire::SearchReply,
}

impl SearchReply {
    /// A reply without queries so far.
    pub fn new(head: &RequestHead) -> Result<SearchReply, Failure> {
        let mut frame = Frame::new(head)?;
        frame.section(&wire::SearchReply::default().bytes())?;
        let query = frame.out.len();
        let mut r =
            SearchReply { frame, query, hits: 0, hit_paths: 0, paths: Vec::new(), total: wire::SearchReply::default() };
        r.begin()?;
        Ok(r)
    }

    fn begin(&mut self) -> Result<(), Failure> {
        self.query = self.frame.out.len();
        self.hits = 0;
        self.hit_paths = 0;
        self.paths.clear();
        self.frame.section(&wire::QueryHead::default().bytes())
    }

    /// The next nearest result: `distance` is f64 bits in reported units.
    pub fn hit(&mut self, id: u64, distance: u64) -> Result<(), Failure> {
        self.hit_paths = 0;
        self.hits = self.hits.saturating_add(1);
        self.frame.section(&wire::Hit { id, distance, paths: 0, reserved: 0 }.bytes())
    }

    /// A name of the file of the last hit.
    pub fn path(&mut self, name: &[u8]) -> Result<(), Failure> {
        // `paths` is at the offset 16 of a hit, which is the last 24 bytes of the frame.
        self.hit_paths = self.hit_paths.saturating_add(1);
        let at = self.frame.out.len().saturating_sub(wire::Hit::SIZE).saturating_add(16);
        let count = self.hit_paths.to_le_bytes();
        self.frame.patch(at, &count);
        push_path(&mut self.paths, name)
    }

    /// The running query has no further result.
    pub fn end_query(&mut self, evaluations: u64, hops: u64) -> Result<(), Failure> {
        let paths_len = u32::try_from(self.paths.len()).map_err(|_| Error::TooBig)?;
        let head = wire::QueryHead { hits: self.hits, paths_len, evaluations, hops };
        self.frame.patch(self.query, &head.bytes());
        self.frame.section(&self.paths)?;
        self.total.count = self.total.count.saturating_add(1);
        self.total.evaluations = self.total.evaluations.saturating_add(evaluations);
        self.total.hops = self.total.hops.saturating_add(hops);
        self.begin()
    }

    /// Pages of vectors that had to be read for all queries.
    pub fn reads(&mut self, pages: u64) {
        self.total.reads = pages;
    }

    /// The frame. What follows the last `end_query` is dropped.
    pub fn finish(mut self) -> Result<Vec<u8>, Failure> {
        self.frame.out.truncate(self.query);
        self.frame.patch(BODY, &self.total.bytes());
        self.frame.finish()
    }
}

/// One record of a reply to GET or LIST.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordView<'a> {
    /// Record id.
    pub id: u64,
    /// Bits of [`wire::record_flags`].
    pub flags: u32,
    /// Its vector, if asked for.
    pub vector: &'a [u32],
    /// Its encoded attributes, if asked for.
    pub attrs: &'a [u8],
    /// Its names, if asked for, as [`push_path`] makes them.
    pub paths: &'a [u8],
    /// How many names.
    pub path_count: u32,
}

/// Writes the reply to GET and LIST.
#[derive(Debug)]
pub struct RecordsReply {
    frame: Frame,
    body: wire::RecordsReply,
    max_bytes: usize,
}

impl RecordsReply {
    /// A reply without records so far. `max_bytes`: see [`RecordsReply::fits`].
    pub fn new(head: &RequestHead, dim: u32, change: u64, max_bytes: usize) -> Result<RecordsReply, Failure> {
        let body = wire::RecordsReply { count: 0, dim, next: wire::LIST_END, change, reserved: 0 };
        let mut frame = Frame::new(head)?;
        frame.section(&body.bytes())?;
        Ok(RecordsReply { frame, body, max_bytes: max_bytes.min(wire::FRAME_MAX) })
    }

    /// Number of records so far.
    pub fn len(&self) -> usize {
        self.body.count as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.body.count == 0
    }

    /// Whether the record stays within `max_bytes`; the first one always does. If not, the page ends before it.
    pub fn fits(&self, r: &RecordView<'_>) -> bool {
        let need = wire::RecordHead::SIZE
            .saturating_add(wire::pad(r.vector.len().saturating_mul(4)))
            .saturating_add(wire::pad(r.attrs.len()))
            .saturating_add(wire::pad(r.paths.len()));
        self.body.count == 0 || self.frame.out.len().saturating_add(need) <= self.max_bytes
    }

    /// Appends a record.
    pub fn push(&mut self, r: &RecordView<'_>) -> Result<(), Failure> {
        let n = |len: usize| u32::try_from(len).map_err(|_| Error::TooBig);
        let head = wire::RecordHead {
            id: r.id,
            flags: r.flags,
            dim: n(r.vector.len())?,
            attrs_len: n(r.attrs.len())?,
            paths: r.path_count,
            paths_len: n(r.paths.len())?,
            reserved: 0,
        };
        self.frame.section(&head.bytes())?;
        self.frame.words(r.vector)?;
        self.frame.section(r.attrs)?;
        self.frame.section(r.paths)?;
        self.body.count = self.body.count.saturating_add(1);
        Ok(())
    }

    /// The frame. `next`: the cursor of the next page, or [`wire::LIST_END`].
    pub fn finish(mut self, next: u64) -> Result<Vec<u8>, Failure> {
        self.body.next = next;
        let body = self.body.bytes();
        self.frame.patch(BODY, &body);
        self.frame.finish()
    }
}

/// Writes the reply to COLLECTIONS.
#[derive(Debug)]
pub struct CollectionsReply {
    frame: Frame,
    count: u32,
}

impl CollectionsReply {
    /// A reply without collections so far.
    pub fn new(head: &RequestHead) -> Result<CollectionsReply, Failure> {
        let mut frame = Frame::new(head)?;
        frame.section(&wire::CollectionsReply::default().bytes())?;
        Ok(CollectionsReply { frame, count: 0 })
    }

    /// Number of collections so far.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Appends a collection; `path` is relative to the directory asked.
    pub fn push(&mut self, info: &wire::CollectionInfo, model: &[u8], path: &[u8]) -> Result<(), Failure> {
        let model_len = u32::try_from(model.len()).map_err(|_| Error::TooBig)?;
        let path_len = u64::from(u32::try_from(path.len()).map_err(|_| Error::TooBig)?);
        self.frame.section(&wire::CollectionInfo { model_len, ..*info }.bytes())?;
        self.frame.section(&path_len.to_le_bytes())?;
        self.frame.section(model)?;
        self.frame.section(path)?;
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    /// The frame. `next`: the cursor of the next page; `None`: this was the last.
    pub fn finish(mut self, next: Option<(u64, u64)>) -> Result<Vec<u8>, Failure> {
        let (cursor, cursor2) = next.unwrap_or_default();
        let more = u32::from(next.is_some());
        let body = wire::CollectionsReply { count: self.count, more, cursor, cursor2, reserved: 0 };
        self.frame.patch(BODY, &body.bytes());
        self.frame.finish()
    }
}
