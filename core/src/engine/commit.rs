// SPDX-License-Identifier: GPL-2.0-only
//! Applying a transaction: first everything that can fail (is the way to each key in memory, is there room in the log, on the
//! device and in memory), then the change of the tree, the space and the collections, and the record for
//! the log, which cannot. Also the writing of the log and the flushes that make it durable.

use super::iotab::Purpose;
use super::{log, LogWrite, State, Volume};
use crate::error::{Error, Need, Step, Stop};
use crate::format::{kind, Key, Schema, BLOCK};
use crate::io::{IoError, IoKind};
use crate::mem::Buf;
use crate::op::Op;
use crate::txn::Changes;

/// Bytes of records that may wait with `Options::write_behind` before the log is written without being asked.
const BEHIND_START: usize = 128 * 1024;
/// Bytes of records with which changes wait for the log after all: the device is slower than those who make them.
const BEHIND_MAX: usize = 2 * 1024 * 1024;

/// Nodes that edits make dirty, at most: each put may touch one; of items that go and lie side by side (the extents
/// of a file), only the first and the last node stay, those between become empty and vanish.
fn nodes_touched(edits: &[(Key, Option<(u32, u32)>)]) -> u64 {
    let mut nodes = 0u64;
    let mut gone = None;
    for (k, v) in edits {
        let of = Some((k.object, k.kind)).filter(|_| v.is_none());
        if of.is_none() {
            nodes = nodes.saturating_add(1);
        } else if of != gone {
            nodes = nodes.saturating_add(2);
        }
        gone = of;
    }
    nodes
}

impl Volume {
    /// Blocks that ordinary operations leave free: a checkpoint has to be possible at any time, and with it the
    /// deletion of files on a full volume.
    pub(super) fn reserve(&self) -> u64 {
        let base = (self.view.info.blocks / 128).clamp(96, 8192);
        self.checkpoint_need().saturating_add(base)
    }

    /// Blocks that task `id` leaves free.
    pub(super) fn reserve_of(&self, id: u64) -> u64 {
        let brings = |op: &Op| matches!(op, Op::Write { times: Some(_), .. });
        if self.kept > 0 && self.tasks.get(id).and_then(|t| t.op.as_ref()).is_some_and(brings) {
            let need = self.checkpoint_need();
            return need.saturating_add(self.reserve().saturating_sub(need) / 2);
        }
        self.reserve().saturating_add(self.kept)
    }

    /// Blocks that a checkpoint of the present state takes, at most.
    pub(super) fn checkpoint_need(&self) -> u64 {
        let copies = u64::from(self.sb.copies.max(1));
        let nodes = self.view.tree.dirty() as u64;
        // Bitmap items: a leaf takes seven; splits and the way up are in the constant.
        let bitmaps = self.space.touched() / 4;
        nodes.saturating_add(bitmaps).saturating_add(24).saturating_mul(copies).saturating_add(self.stream_dirty)
    }

    fn admit_changes(&self, id: u64, c: &Changes) -> Step<()> {
        if self.state != State::Ready && self.recover.is_none() {
            return Err(Stop::Fail(Error::Aborted));
        }
        if self.sealing {
            return Err(Stop::Need(Need::Space));
        }
        let frees_only = c.vectors.is_empty()
            && c.allocs.is_empty()
            && self.tasks.get(id).and_then(|t| t.op.as_ref()).is_some_and(|op| {
                matches!(
                    op,
                    Op::Unlink { .. }
                        | Op::Rmdir { .. }
                        | Op::Trim { .. }
                        | Op::RemoveXattr { .. }
                        | Op::SetAttr { .. }
                        | Op::Fallocate { .. }
                        | Op::Request { .. }
                        | Op::Populate { .. }
                )
            });
        // Rewriting blocks of a file in the reserve is how a full volume is brought to order; growing it there is not.
        let copies = u64::from(self.sb.copies.max(1));
        let more = nodes_touched(&c.edits).saturating_add(8).saturating_mul(copies);
        let need = self.checkpoint_need().saturating_add(more);
        let floor = if frees_only { need } else { need.max(self.reserve_of(id)) };
        if self.space.free() < floor {
            return Err(Stop::Need(Need::Space));
        }
        Ok(())
    }

    /// Applies what a step of task `id` changed and appends it to the log; notes the transaction in the task.
    #[inline(never)]
    pub(super) fn commit(&mut self, id: u64, c: &Changes) -> Step<()> {
        if c.is_empty() {
            self.start_followers(c);
            return Ok(());
        }
        self.admit_changes(id, c)?;
        let bytes = log::record_len(c);
        if bytes > crate::txn::TXN_BYTES_MAX.saturating_add(64 * 1024) {
            return Err(Stop::Fail(Error::TooBig));
        }
        if !self.log.has_room(bytes) {
            if self.checkpoint.is_none() && !self.log.may_get_room(bytes) {
                return Err(Stop::Fail(Error::NoSpace));
            }
            // A checkpoint makes room in the log whatever else is short.
            if let Some(t) = self.tasks.get_mut(id) {
                t.space_tries = t.space_tries.saturating_sub(1);
            }
            return Err(Stop::Need(Need::Space));
        }
        self.ready_to_apply(c)?;
        self.log.reserve(bytes)?;
        let now = self.tasks.get(id).map_or(self.now, |t| t.now);
        // From here on nothing fails.
        self.apply(c);
        match self.log.append(c, now.sec) {
            Ok(txn) => {
                if let Some(t) = self.tasks.get_mut(id) {
                    t.txn = txn;
                }
            }
            Err(_) => self.abort(),
        }
        self.stats.transactions = self.stats.transactions.wrapping_add(1);
        if self.changed_at.is_none() {
            self.changed_at = Some(self.now.sec);
        }
        self.start_followers(c);
        Ok(())
    }

    /// Makes sure that [`Volume::apply`] cannot fail.
    #[inline(never)]
    pub(super) fn ready_to_apply(&mut self, c: &Changes) -> Step<()> {
        for (a, n) in c.frees.iter().chain(&c.allocs) {
            self.space.check(*a, *n)?;
        }
        for v in &c.vectors {
            if !self.view.collections.contains(v.collection) {
                return Err(Stop::Need(Need::Collection(v.collection)));
            }
        }
        for (ino, _) in &c.drops {
            if !self.view.collections.contains(*ino) {
                return Err(Stop::Need(Need::Collection(*ino)));
            }
        }
        self.pages_to_put(c)?;
        self.view.tree.reserve_for(&c.edits)?;
        let nodes = c.edits.len().saturating_mul(10).saturating_add(16);
        self.space.reserve_lists(c.frees.len().saturating_add(c.allocs.len()).saturating_add(nodes))?;
        self.orphans.reserve(c.edits.len())?;
        self.opens.reserve(1)?;
        for (i, v) in c.vectors.iter().enumerate() {
            // Once for each collection: at its first vector here.
            if c.vectors.get(..i).is_some_and(|p| p.iter().any(|x| x.collection == v.collection)) {
                continue;
            }
            let all = c.vectors.iter().filter(|x| x.collection == v.collection);
            let n = all.clone().count();
            let max = all.map(|x| x.slot).max().unwrap_or(0);
            if let Some(k) = self.view.collections.get_mut(v.collection) {
                k.reserve_put(n, max)?;
            }
        }
        Ok(())
    }

    /// Makes sure that the pages that vectors go to are in memory, of one collection after the other.
    #[inline(never)]
    fn pages_to_put(&mut self, c: &Changes) -> Step<()> {
        self.wanted.clear();
        let mut of = 0;
        for v in &c.vectors {
            if self.wanted.is_empty() {
                of = v.collection;
            }
            if let Some(k) = self.view.collections.get(v.collection).filter(|_| v.collection == of) {
                k.absent_for_put(v.slot, &mut self.wanted)?;
            }
        }
        if self.wanted.is_empty() {
            return Ok(());
        }
        Err(Stop::Need(Need::Vectors(of)))
    }

    /// Changes the tree, the space and the collections.
    #[inline(never)]
    pub(super) fn apply(&mut self, c: &Changes) {
        let mut failed = false;
        for (k, v) in &c.edits {
            let value = v.and_then(|(s, n)| c.bytes.get(s as usize..(s as usize).saturating_add(n as usize)));
            let done = match (v, value) {
                (Some(_), Some(value)) => self.view.tree.put(k, value),
                (Some(_), None) => Err(Error::Corrupt),
                (None, _) => self.view.tree.del(k),
            };
            failed |= done.is_err();
            if k.kind == kind::ORPHAN && k.object == 0 && k.sub == 0 {
                if v.is_some() {
                    let _ = self.orphans.insert(k.offset, ());
                } else {
                    self.orphans.remove(k.offset);
                }
            }
        }
        if c.opened != 0 {
            failed |= self.opens.insert(c.opened, 1).is_err();
        }
        self.take_freed_nodes();
        for (a, n) in &c.allocs {
            self.space.commit(*a, *n);
        }
        for (a, n) in &c.frees {
            if self.canary.reuse_freed {
                self.space.free_at_once(*a, *n);
            } else {
                self.space.free_run(*a, *n);
            }
        }
        for v in &c.vectors {
            let words = c.words.get(v.start..v.start.saturating_add(v.len)).unwrap_or(&[]);
            if let Some(k) = self.view.collections.get_mut(v.collection) {
                failed |= k.put(v.slot, v.head, words).is_err();
                let waited_for = self.catching.iter().any(|c| c.1 == v.collection);
                if waited_for || k.is_busy(self.now) {
                    k.disturb(self.now);
                }
                if waited_for {
                    // Searches go on with what there is.
                    self.end_catching(v.collection, None);
                }
            }
            let blocks = (words.len().saturating_mul(4) / BLOCK).saturating_add(3);
            self.stream_dirty = self.stream_dirty.saturating_add(blocks as u64);
            self.more_vectors = true;
        }
        for (ino, slot) in &c.drops {
            if self.canary.keep_deleted_vectors {
                continue;
            }
            if let Some(k) = self.view.collections.get_mut(*ino) {
                k.drop_slot(*slot);
            }
            self.stream_dirty = self.stream_dirty.saturating_add(1);
        }
        let room = self.view.env.cache_bytes / 4;
        for (k, v) in &c.edits {
            if k.kind != kind::COLLECTION {
                continue;
            }
            let value = v.and_then(|(s, n)| c.bytes.get(s as usize..(s as usize).saturating_add(n as usize)));
            if let (Some(col), Some(schema)) = (self.view.collections.get_mut(k.object), value.and_then(Schema::parse))
            {
                if c.reindex.contains(&k.object) {
                    failed |= col.rebuild(schema, room).is_err();
                } else {
                    col.set_schema(schema);
                }
            }
        }
        for ino in &c.dropped_collections {
            self.view.collections.remove(*ino);
            for (_, l) in self.loading.iter_mut() {
                l.cancelled |= l.ino() == *ino;
            }
        }
        let i = &mut self.view.info;
        i.next_ino = i.next_ino.saturating_add(c.new_inodes);
        i.inodes = i.inodes.saturating_add(c.new_inodes).saturating_sub(c.dead_inodes);
        if failed {
            self.abort();
        }
    }

    pub(super) fn take_freed_nodes(&mut self) {
        for (a, b) in self.view.tree.take_freed() {
            if self.canary.reuse_freed {
                self.space.free_at_once(a, 1);
                if b != 0 {
                    self.space.free_at_once(b, 1);
                }
                continue;
            }
            self.space.free_run(a, 1);
            if b != 0 {
                self.space.free_run(b, 1);
            }
        }
    }

    /// Starts the internal operations that a transaction asks for. Without memory they wait for the next opening.
    fn start_followers(&mut self, c: &Changes) {
        for ino in &c.trims {
            let _ = self.new_task(Op::Trim { ino: *ino }, true);
        }
        for dir in &c.populates {
            let _ = self.new_task(Op::Populate { dir: *dir }, true);
        }
    }

    /// Whether a change may be answered before its record is in the log.
    pub(super) fn may_answer_early(&self) -> bool {
        self.write_behind && self.state == State::Ready && self.log.pending.len() < BEHIND_MAX
    }

    /// Whether records that wait for the log are to be written now.
    fn wants_log(&self) -> bool {
        !self.write_behind
            || self.closing
            || self.log.pending.len() >= BEHIND_START
            || !self.log.queue.is_empty()
            || self.waiting.iter().filter_map(|id| self.tasks.get(*id)).any(|t| t.txn > self.log.written_txn)
    }

    /// Starts to write the next log group, if none is under way.
    #[inline(never)]
    pub(super) fn drive_log(&mut self) {
        if self.log_write.is_some() || self.state != State::Ready || !self.wants_log() {
            return;
        }
        if self.log.queue.is_empty() {
            let e = self.expect();
            if let Err(m) = self.log.build(&e, self.view.info.generation) {
                return self.later(m);
            }
        }
        if self.log.queue.is_empty() {
            return;
        }
        if let Err(m) = self.io.reserve(2) {
            return self.later(m);
        }
        let Some(g) = self.log.queue.pop() else { return };
        self.stats.log_groups = self.stats.log_groups.wrapping_add(1);
        self.stats.log_bytes = self.stats.log_bytes.wrapping_add(u64::from(g.blocks).wrapping_mul(BLOCK as u64));
        let n = u64::from(g.blocks);
        let mut left = 1;
        let mut ok = self.io.submit(IoKind::Write, g.place.addr, n, g.buf, Purpose::LogWrite).is_ok();
        if g.place.twin != 0 {
            left = 2;
            ok &= self.io.submit(IoKind::Write, g.place.twin, n, g.twin, Purpose::LogWrite).is_ok();
        }
        self.log_write = Some(LogWrite { txn: g.txn, seq: g.seq, left });
        if !ok {
            self.abort();
        }
    }

    /// A copy of the log group is written.
    pub(super) fn log_written(&mut self, result: Result<(), IoError>) {
        if result.is_err() {
            self.abort();
        }
        let Some(w) = &mut self.log_write else { return };
        w.left = w.left.saturating_sub(1);
        if w.left > 0 {
            return;
        }
        let w = *w;
        self.log_write = None;
        if self.state == State::Ready {
            self.log.written_txn = self.log.written_txn.max(w.txn);
            self.log.written_seq = self.log.written_seq.max(w.seq);
            self.check_all_waiting();
        }
    }

    /// Starts a flush, if somebody waits for one and none is under way.
    pub(super) fn drive_flush(&mut self) {
        if self.flush.is_some() || self.state != State::Ready || !self.wants_flush() {
            return;
        }
        let cover = (self.log.written_txn, self.log.written_seq);
        if self.canary.no_flush_after_log {
            self.durable_up_to(cover);
            return;
        }
        match self.io.submit(IoKind::Flush, 0, 0, Buf::empty(), Purpose::LogFlush) {
            Ok(()) => self.flush = Some(cover),
            Err(m) => self.later(m),
        }
    }

    fn durable_up_to(&mut self, (txn, seq): (u64, u64)) {
        self.log.durable_txn = self.log.durable_txn.max(txn);
        self.log.durable_seq = self.log.durable_seq.max(seq);
        self.check_all_waiting();
    }

    /// The flush is done: what was written before it began is durable.
    pub(super) fn log_flushed(&mut self, result: Result<(), IoError>) {
        let Some(cover) = self.flush.take() else { return };
        match result {
            Ok(()) if self.state == State::Ready => self.durable_up_to(cover),
            Ok(()) => {}
            Err(_) if self.canary.forget_failed_flush => self.durable_up_to(cover),
            Err(_) => self.abort(),
        }
    }

    /// Notes the checkpoint's transactions as durable.
    pub(super) fn checkpoint_durable(&mut self, txn: u64, seq: u64) {
        self.durable_up_to((txn, seq));
    }
}
