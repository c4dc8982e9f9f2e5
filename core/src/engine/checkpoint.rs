// SPDX-License-Identifier: GPL-2.0-only
//! Checkpoints: the state in memory becomes the state on disk. At one instant the streams of collections, the bitmaps
//! and the tree are fixed and sealed; then, while operations go on, everything is written, flushed, and the superblock switches
//! to it. Promises: nothing that the old superblock refers to is overwritten before the new one is durable.

use super::iotab::Purpose;
use super::space::{AllocStop, Zone, BITMAP_BYTES};
use super::streams;
use super::task::Task;
use super::{State, Volume, CHECKPOINT};
use crate::coll::Collection;
use crate::error::{Error, Step, Stop};
use crate::format::{kind, IndexRoot, Key, SpaceHead, Super, Wire, BLOCK, EXTENT_BLOCKS_MAX, STATE_CLEAN, SUPER_SLOTS};
use crate::io::{IoError, IoKind};
use crate::mem::{self, Buf, Map, NoMemory};
use crate::op::Reply;
use crate::txn::{Changes, Txn};
use alloc::vec::Vec;

/// How far a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Fetching what sealing needs.
    Prepare,
    /// Streams are fixed; the tree is to be sealed before anything else changes.
    Seal,
    /// Writing.
    Write,
    /// Waiting for the flush.
    Flush,
    /// Writing the superblock.
    Super,
    /// On disk.
    Done,
}

/// A checkpoint under way.
#[derive(Debug)]
pub struct Checkpoint {
    stage: Stage,
    /// Mark the volume as cleanly unmounted.
    clean: bool,
    /// Nodes to write, ascending, and how many are submitted.
    nodes: Vec<u64>,
    next: usize,
    /// Stream blocks to write.
    streams: Vec<(u64, Buf)>,
    /// Writes under way.
    left: usize,
    sb: mem::Box<Super>,
    /// Covered by it.
    txn: u64,
    seq: u64,
    /// Log segment to become the spare one when this is durable.
    recycle: Option<(u64, u64, u32)>,
}

impl Checkpoint {
    /// How far it is.
    pub(super) fn stage(&self) -> (Stage, usize) {
        (self.stage, self.left)
    }
}

/// The index of a collection with so few records is stored whole when the volume is closed.
const WHOLE_MAX: u64 = 32_768;
/// Requests of a checkpoint that are under way at once.
const IN_FLIGHT: usize = 32;
/// Most nodes in one request.
const BATCH: usize = 64;

impl Volume {
    /// Asks for a checkpoint if one is due and starts or continues it.
    pub(super) fn drive_checkpoint(&mut self) {
        if self.state != State::Ready && !(self.state == State::Opening && self.checkpoint.is_some()) {
            return;
        }
        if self.checkpoint.is_none() {
            // Without a spare segment, if there is a full one to become it.
            let spent = self.log.spare.is_none() && !self.log.full.is_empty();
            let log_full = spent || self.log.blocks.saturating_mul(BLOCK as u64) > self.view.env.log_bytes;
            let dirty = (self.view.tree.dirty() as u64).max(self.stream_dirty).saturating_mul(BLOCK as u64);
            let many = dirty > self.view.env.cache_bytes as u64 / 2;
            if (self.want_checkpoint || log_full || many) && !self.read_only {
                if let Err(m) = self.start_checkpoint(false) {
                    self.later(m);
                }
            }
        }
        self.write_checkpoint();
    }

    /// Starts a checkpoint; none is under way.
    #[inline(never)]
    pub(super) fn start_checkpoint(&mut self, clean: bool) -> Result<(), NoMemory> {
        let tick = self.view.tree.tick();
        self.tasks.insert(CHECKPOINT, mem::Box::try_new(Task::new(None, self.now, tick, true))?)?;
        self.want_checkpoint = false;
        self.checkpoint = Some(mem::Box::try_new(Checkpoint {
            stage: Stage::Prepare,
            clean,
            nodes: Vec::new(),
            next: 0,
            streams: Vec::new(),
            left: 0,
            sb: mem::Box::try_new(Super::default())?,
            txn: 0,
            seq: 0,
            recycle: None,
        })?);
        self.wake(CHECKPOINT);
        Ok(())
    }

    /// Whether a checkpoint is between its beginning and the moment at which all its blocks have a place.
    pub(super) fn placing_nodes(&self) -> bool {
        self.checkpoint.as_ref().is_some_and(|c| matches!(c.stage, Stage::Prepare | Stage::Seal))
    }

    /// The checkpoint's task was woken.
    #[inline(never)]
    pub(super) fn run_checkpoint(&mut self) {
        let (Some(c), Some(t)) = (&self.checkpoint, self.tasks.get_mut(CHECKPOINT)) else { return };
        if t.waits > 0 {
            return;
        }
        if let Some(e) = t.fail.take() {
            return self.checkpoint_failed(e);
        }
        let r = match c.stage {
            Stage::Prepare => self.prepare_checkpoint(),
            Stage::Seal => Ok(()),
            _ => return,
        };
        let copies = u64::from(self.sb.copies.max(1));
        let r = r.and_then(|()| self.prepare_groups(copies)).and_then(|()| self.seal().map_err(Stop::Fail));
        match r {
            Ok(()) => {
                self.sealing = false;
                self.tasks.remove(CHECKPOINT);
                self.wake_space();
                self.write_checkpoint();
            }
            Err(s) => self.stopped(CHECKPOINT, s),
        }
    }

    /// Without memory it is tried again; without room or with a damaged volume changes have to end.
    pub(super) fn checkpoint_failed(&mut self, e: Error) {
        if e == Error::NoMemory {
            // `handle_timeout` runs it again.
            self.retry = true;
            return;
        }
        let opening = self.state == State::Opening;
        self.abort();
        if opening {
            self.recovery_failed(e);
        }
    }

    /// Fixes the streams of collections. From then on nothing may change until the tree is sealed, so that
    /// slots, records and the place in the log fit together. May be run again from the start.
    #[inline(never)]
    fn prepare_checkpoint(&mut self) -> Step<()> {
        let (changes, bufs) = self.prepare_streams()?;
        if let Err(s) = self.ready_to_apply(&changes) {
            for (a, n) in &changes.allocs {
                self.space.release(*a, *n);
            }
            return Err(s);
        }
        self.apply(&changes);
        for (_, k) in self.view.collections.iter_mut() {
            k.mark_clean();
        }
        for (key, _) in &changes.edits {
            if key.kind == kind::INDEX {
                if let Some(k) = self.view.collections.get_mut(key.object) {
                    k.index_persisted();
                }
            }
        }
        self.stream_dirty = 0;
        self.sealing = true;
        if let Some(c) = &mut self.checkpoint {
            c.streams = bufs;
            c.stage = Stage::Seal;
        }
        Ok(())
    }

    #[inline(never)]
    fn prepare_groups(&mut self, copies: u64) -> Step<()> {
        loop {
            let nodes = (self.view.tree.dirty() as u64).saturating_add(self.space.touched() / 2).saturating_add(24);
            let want = nodes.saturating_add(nodes / 4).saturating_mul(copies);
            match self.space.next_unready(want)? {
                Ok(None) => return Ok(()),
                Ok(Some(g)) => self.touch_group(g)?,
                Err(AllocStop::Load(g)) => self.load_group(g)?,
                // Tight: what is ready has to do.
                Err(AllocStop::Full) => return Ok(()),
            }
        }
    }

    /// Makes the path to a group's item dirty, with the value that it has now or a new one.
    fn touch_group(&mut self, group: u64) -> Step<()> {
        let key = Key::new(0, kind::SPACE, group);
        self.view.tree.reserve_for(&[(key, Some((0, (SpaceHead::SIZE + BITMAP_BYTES) as u32)))])?;
        self.space.reserve_lists(32)?;
        self.put_group(group)?;
        // Putting the value that is there already changes nothing; the path has to be dirty all the same, or what it is copied
        // from would be freed when the bitmaps are written, too late for the bitmap that it belongs to.
        self.view.tree.touch(&key)?;
        self.take_freed_nodes();
        self.space.set_ready(group);
        Ok(())
    }

    /// Writes a group's bitmap into the tree. Memory is there.
    fn put_group(&mut self, group: u64) -> Result<(), Error> {
        let mut v = mem::filled(SpaceHead::SIZE + BITMAP_BYTES, 0u8)?;
        let used = self.space.image(group, v.get_mut(SpaceHead::SIZE..).ok_or(Error::NoMemory)?);
        SpaceHead { used, reserved: [0; 12] }.emit(&mut v).ok_or(Error::NoMemory)?;
        self.view.tree.put(&Key::new(0, kind::SPACE, group), &v)
    }

    /// Places the dirty blocks of all collections' streams. On failure nothing stays allocated.
    #[inline(never)]
    fn prepare_streams(&mut self) -> Step<(Changes, Vec<(u64, Buf)>)> {
        let work = self.stream_work()?;
        // Then room and bytes.
        let mut placed = Vec::new();
        let r = self.fill_pieces(&work, &mut placed);
        if let Err(s) = r {
            for x in &placed {
                self.space.release(x.addr, x.crcs.len() as u32);
            }
            return Err(s);
        }
        // And the same once more with the new places.
        let r = self.edit_streams(&work, &placed);
        match r {
            Ok(c) => {
                let mut bufs = Vec::new();
                for x in placed {
                    // A list of as many entries as were just there.
                    mem::push(&mut bufs, (x.addr, x.buf))?;
                }
                Ok((c, bufs))
            }
            Err(s) => {
                for x in &placed {
                    self.space.release(x.addr, x.crcs.len() as u32);
                }
                Err(s)
            }
        }
    }

    /// What of the streams is to be written anew. Stops if something that edits of them need is not in memory.
    #[inline(never)] // keeps stack frames small
    fn stream_work(&self) -> Step<Vec<Piece>> {
        let none = Map::new();
        let closing = self.checkpoint.as_ref().is_some_and(|c| c.clean);
        let roomy = self.space.free() > self.reserve().saturating_mul(2);
        let mut inos = Vec::new();
        for (ino, _) in self.view.collections.iter() {
            mem::push(&mut inos, ino)?;
        }
        inos.sort_unstable();
        // First only what may have to be fetched: the extents that are replaced.
        let mut work = Vec::new();
        {
            let mut t = Txn::new(&*self.view, &none, &self.opens, self.now);
            for ino in &inos {
                let Some(c) = self.view.collections.get(*ino) else { continue };
                let mut list = Vec::new();
                for b in c.dirty_slot_blocks() {
                    mem::push(&mut list, b)?;
                }
                collect_runs(*ino, kind::SLOT_EXTENT, &list, &mut work)?;
                list.clear();
                for b in c.dirty_vector_blocks() {
                    mem::push(&mut list, b)?;
                }
                collect_runs(*ino, kind::VECTOR_EXTENT, &list, &mut work)?;
                let changed = c.index_changes();
                // A small one is stored whole when it is closed: every driver then begins with the same index.
                let persist = (closing && (changed.saturating_mul(64) >= c.live() || c.live() <= WHOLE_MAX))
                    || (changed >= 4096 && changed.saturating_mul(4) >= c.live());
                if changed > 0 && persist && roomy {
                    mem::push(
                        &mut work,
                        Piece { ino: *ino, stream: kind::INDEX_EXTENT, start: 0, blocks: 0, bytes: Vec::new() },
                    )?;
                }
            }
            for p in &mut work {
                if p.stream == kind::INDEX_EXTENT {
                    let Some(c) = self.view.collections.get(p.ino) else { continue };
                    let Some(bytes) = c.index_bytes()? else { continue };
                    self.put_index_root(&mut t, c, &bytes)?;
                    p.blocks = bytes.len().div_ceil(BLOCK) as u64;
                    p.bytes = bytes;
                    streams::punch(&mut t, p.ino, p.stream, 0, u64::MAX)?;
                } else {
                    streams::punch(&mut t, p.ino, p.stream, p.start, p.start.saturating_add(p.blocks))?;
                }
            }
        }
        Ok(work)
    }

    /// Describes the bytes of a collection's index.
    #[inline(never)] // keeps stack frames small
    fn put_index_root(&self, t: &mut Txn, c: &Collection, bytes: &[u8]) -> Step<()> {
        let (index, version) = c.index_kind();
        let root = IndexRoot {
            kind: index,
            version,
            len: bytes.len() as u64,
            change: c.schema.change,
            base: 0,
            crc: (self.view.env.crc32c)(0, bytes),
            reserved: [0; 12],
        };
        let mut v = [0u8; IndexRoot::SIZE];
        root.emit(&mut v).ok_or(Error::NoMemory)?;
        t.put(Key::new(c.ino, kind::INDEX, 0), &v)
    }

    #[inline(never)]
    fn edit_streams(&self, work: &[Piece], placed: &[Placed]) -> Step<Changes> {
        let none = Map::new();
        let mut t = Txn::new(&*self.view, &none, &self.opens, self.now);
        for p in work {
            if p.blocks == 0 {
                continue;
            }
            if p.stream == kind::INDEX_EXTENT {
                let Some(c) = self.view.collections.get(p.ino) else { continue };
                self.put_index_root(&mut t, c, &p.bytes)?;
                streams::punch(&mut t, p.ino, p.stream, 0, u64::MAX)?;
            } else {
                streams::punch(&mut t, p.ino, p.stream, p.start, p.start.saturating_add(p.blocks))?;
            }
        }
        for x in placed {
            streams::place(&mut t, x.ino, x.stream, x.block, x.addr, &x.crcs)?;
        }
        Ok(t.finish())
    }

    #[inline(never)]
    fn fill_pieces(&mut self, work: &[Piece], placed: &mut Vec<Placed>) -> Step<()> {
        for p in work {
            let mut at = 0u64;
            while at < p.blocks {
                mem::reserve(placed, 1)?;
                let want = p.blocks.saturating_sub(at).min(u64::from(EXTENT_BLOCKS_MAX)) as u32;
                let (addr, n) = match self.space.alloc(Zone::Data, want, false)? {
                    Ok(x) => x,
                    Err(AllocStop::Load(g)) => {
                        self.load_group(g)?;
                        continue;
                    }
                    Err(AllocStop::Full) => return Err(Stop::Fail(Error::NoSpace)),
                };
                let block = p.start.saturating_add(at);
                mem::push(
                    placed,
                    Placed {
                        ino: p.ino,
                        stream: p.stream,
                        block,
                        addr,
                        crcs: mem::filled(n as usize, 0)?,
                        buf: Buf::empty(),
                    },
                )?;
                let Some(x) = placed.last_mut() else { continue };
                let mut buf = Buf::zeroed((n as usize).saturating_mul(BLOCK))?;
                for (i, out) in buf.chunks_exact_mut(BLOCK).enumerate() {
                    let b = block.saturating_add(i as u64);
                    let out: &mut [u8; BLOCK] = out.try_into().map_err(|_| Error::NoMemory)?;
                    if let Some(c) = self.view.collections.get(p.ino) {
                        match p.stream {
                            kind::SLOT_EXTENT => c.slot_block_bytes(b, out),
                            kind::VECTOR_EXTENT => c.vector_block_bytes(b, out),
                            _ => {
                                let from = (b as usize).saturating_mul(BLOCK);
                                mem::copy(out, p.bytes.get(from..).unwrap_or(&[]));
                            }
                        }
                    }
                    if let Some(crc) = x.crcs.get_mut(i) {
                        *crc = (self.view.env.crc32c)(0, out);
                    }
                }
                x.buf = buf;
                at = at.saturating_add(u64::from(n));
            }
        }
        Ok(())
    }

    /// Fixes the log position, the bitmaps and the tree. Runs without anything between; if memory fails it runs again,
    /// and nothing changes meanwhile (`sealing`).
    #[inline(never)]
    fn seal(&mut self) -> Result<(), Error> {
        // All records into groups, so that the place where the log goes on is known.
        let e = self.expect();
        let generation = self.view.info.generation;
        while self.log.build(&e, generation)? {}
        if !self.log.pending.is_empty() {
            return Err(Error::NoSpace);
        }
        self.space.reserve_lists(64)?;
        // Log segments that nobody needs when this checkpoint is on disk.
        let mut recycle = None;
        if self.log.spare.is_none() {
            recycle = self.log.full.pop();
        }
        let mut nodes = Vec::new();
        let r = self.seal_tree(&mut nodes);
        let root = match r {
            Ok(root) => root,
            Err(e) => {
                if let Some(s) = recycle {
                    // Its place in the list is still there.
                    let _ = mem::push(&mut self.log.full, s);
                }
                return Err(e);
            }
        };
        nodes.sort_unstable();
        let level = self.view.tree.root().1;
        let spare = self.log.spare.or(recycle).unwrap_or((0, 0, 0));
        let clean = self.checkpoint.as_ref().is_some_and(|c| c.clean);
        let mut ptr = [0u8; 32];
        root.emit(&mut ptr).ok_or(Error::NoMemory)?;
        let sb = Super {
            generation,
            root: ptr,
            root_level: u32::from(level),
            log_segment: self.log.segment.2,
            log_addr: self.log.next.addr,
            log_twin: self.log.next.twin,
            log_room: self.log.next.room,
            log_seq: self.log.seq,
            log_epoch: self.log.epoch,
            spare_addr: spare.0,
            spare_twin: spare.1,
            spare_blocks: spare.2,
            state: (self.sb.state & !STATE_CLEAN) | if clean { STATE_CLEAN } else { 0 },
            next_ino: self.view.info.next_ino,
            inodes: self.view.info.inodes,
            free_blocks: self.space.free_on_disk(),
            written: self.now.sec,
            durable_seq: self.log.seq.saturating_sub(1),
            ..*self.sb
        };
        self.view.info.generation = generation.saturating_add(1);
        self.space.clear_ready();
        self.log.blocks = 0;
        self.changed_at = None;
        if let Some(c) = &mut self.checkpoint {
            c.nodes = nodes;
            *c.sb = sb;
            c.txn = self.log.txn;
            c.seq = self.log.seq.saturating_sub(1);
            c.recycle = recycle;
            c.stage = Stage::Write;
        }
        Ok(())
    }

    #[inline(never)]
    fn seal_tree(&mut self, nodes: &mut Vec<u64>) -> Result<crate::format::Ptr, Error> {
        let copies = self.sb.copies;
        let mut rounds = 0u32;
        loop {
            self.space.freeze()?;
            let mut dirty = Vec::new();
            self.space.dirty_groups(&mut dirty)?;
            if dirty.is_empty() && self.view.tree.unassigned() == 0 {
                break;
            }
            rounds = rounds.saturating_add(1);
            if rounds > 64 {
                return Err(Error::Corrupt);
            }
            for g in dirty {
                self.view.tree.reserve(1)?;
                self.space.reserve_lists(64)?;
                self.put_group(g)?;
                self.take_freed_nodes();
            }
            let space = &mut self.space;
            space.reserve_lists(8)?;
            self.view.tree.assign(&mut || {
                let (a, _) = space.alloc_loaded(Zone::Meta, 1)?;
                if copies < 2 {
                    return Some((a, 0));
                }
                space.alloc_loaded(Zone::Twin, 1).map(|(b, _)| (a, b))
            })?;
        }
        let generation = self.view.info.generation;
        self.view.tree.seal(generation, nodes)
    }

    /// Submits writes of the checkpoint up to its share of requests, and goes on when all are done.
    #[inline(never)]
    fn write_checkpoint(&mut self) {
        let Some(c) = &mut self.checkpoint else { return };
        if c.stage == Stage::Write {
            while c.left < IN_FLIGHT {
                if let Err(m) = self.io.reserve(2) {
                    return self.later(m);
                }
                if let Some((addr, buf)) = c.streams.pop() {
                    let n = (buf.len() / BLOCK) as u64;
                    if self.io.submit(IoKind::Write, addr, n, buf, Purpose::CheckpointWrite).is_ok() {
                        c.left = c.left.saturating_add(1);
                    }
                    continue;
                }
                let rest = c.nodes.get(c.next..).unwrap_or(&[]);
                let Some(first) = rest.first().copied() else { break };
                let Some((twin, _)) = self.view.tree.node(first) else {
                    return self.abort();
                };
                let mut n = 0usize;
                for (i, a) in rest.iter().enumerate().take(BATCH) {
                    let d = i as u64;
                    let near = *a == first.saturating_add(d)
                        && self.view.tree.node(*a).is_some_and(|(t, _)| {
                            if twin == 0 {
                                t == 0
                            } else {
                                t == twin.saturating_add(d)
                            }
                        });
                    if !near {
                        break;
                    }
                    n = n.saturating_add(1);
                }
                let len = n.saturating_mul(BLOCK);
                let made =
                    Buf::zeroed(len).and_then(|a| Ok((a, if twin == 0 { Buf::empty() } else { Buf::zeroed(len)? })));
                let (mut a, mut b) = match made {
                    Ok(x) => x,
                    Err(m) => return self.later(m),
                };
                for (i, out) in a.chunks_exact_mut(BLOCK).enumerate() {
                    if let Some((_, bytes)) = self.view.tree.node(first.saturating_add(i as u64)) {
                        mem::copy(out, bytes);
                    }
                }
                if twin != 0 {
                    mem::copy(&mut b, &a);
                }
                let _ = self.io.submit(IoKind::Write, first, n as u64, a, Purpose::CheckpointWrite);
                c.left = c.left.saturating_add(1);
                if twin != 0 {
                    let _ = self.io.submit(IoKind::Write, twin, n as u64, b, Purpose::CheckpointWrite);
                    c.left = c.left.saturating_add(1);
                }
                c.next = c.next.saturating_add(n);
            }
            if c.left == 0 {
                if self.canary.no_flush_before_super {
                    c.stage = Stage::Flush;
                } else {
                    match self.io.submit(IoKind::Flush, 0, 0, Buf::empty(), Purpose::CheckpointFlush) {
                        Ok(()) => {
                            c.stage = Stage::Flush;
                            c.left = 1;
                        }
                        Err(m) => return self.later(m),
                    }
                }
            }
        }
        let Some(c) = &mut self.checkpoint else { return };
        if c.stage == Stage::Flush && c.left == 0 {
            let made = super_block(&c.sb, 0, self.view.env.crc32c)
                .and_then(|a| Ok((a, super_block(&c.sb, 1, self.view.env.crc32c)?)));
            let (a, b) = match made {
                Ok(x) => x,
                Err(m) => return self.later(m),
            };
            if let Err(m) = self.io.reserve(2) {
                return self.later(m);
            }
            let pair = slots(c.sb.generation);
            let mut ok = true;
            for (addr, buf) in pair.into_iter().zip([a, b]) {
                ok &= self.io.submit(IoKind::WriteDurable, addr, 1, buf, Purpose::SuperWrite).is_ok();
            }
            c.left = 2;
            c.stage = Stage::Super;
            if !ok {
                return self.abort();
            }
        }
        self.end_checkpoint();
    }

    /// A request of the checkpoint is done.
    pub(super) fn checkpoint_completed(&mut self, purpose: Purpose, result: Result<(), IoError>) {
        let Some(c) = &mut self.checkpoint else { return };
        c.left = c.left.saturating_sub(1);
        let forgiven = purpose == Purpose::CheckpointFlush && self.canary.forget_failed_flush;
        if result.is_err() && !forgiven {
            let opening = self.state == State::Opening;
            self.abort();
            if opening {
                self.recovery_failed(Error::Io);
            }
            return;
        }
        if c.stage == Stage::Super && c.left == 0 {
            c.stage = Stage::Done;
        }
        self.write_checkpoint();
    }

    /// The superblock is durable: gives back what waited for it. Rewrites of bad copies have to be done, as
    /// their blocks may be given away now.
    #[inline(never)]
    fn end_checkpoint(&mut self) {
        if self.heals > 0 || self.checkpoint.as_ref().is_none_or(|c| c.stage != Stage::Done) {
            return;
        }
        let Some(c) = self.checkpoint.take() else { return };
        *self.sb = *c.sb;
        for a in &c.nodes {
            self.view.tree.written(*a);
        }
        self.space.thaw();
        if self.log.spare.is_none() {
            self.log.spare = c.recycle;
        }
        self.stats.checkpoints = self.stats.checkpoints.wrapping_add(1);
        self.more_vectors = true;
        for (_, k) in self.view.collections.iter_mut() {
            k.written();
        }
        self.checkpoint_durable(c.txn, c.seq);
        if self.state == State::Opening {
            self.opened();
        }
        self.retry_trims();
        self.wake_space();
        self.wake_checkpoint_ops();
    }

    /// `Op::Checkpoint`: one that begins after it was submitted.
    pub(super) fn run_checkpoint_op(&mut self, id: u64) {
        let Some(t) = self.tasks.get_mut(id) else { return };
        // 0: not begun; else one more than the number of checkpoints there were when it began.
        let done = self.stats.checkpoints;
        if t.progress.pos != 0 && done >= t.progress.pos {
            return self.finish(id, Ok(Reply::Done));
        }
        if t.progress.pos == 0 {
            // One that is being written may lack the newest changes: wait for the one after it.
            let running = u64::from(self.checkpoint.is_some());
            t.progress.pos = done.saturating_add(1).saturating_add(running);
        }
        self.want_checkpoint = true;
    }

    fn wake_checkpoint_ops(&mut self) {
        let mut i = 0u64;
        let mut list = Vec::new();
        for (id, t) in self.tasks.iter() {
            if matches!(t.op, Some(crate::op::Op::Checkpoint | crate::op::Op::Close))
                && mem::push(&mut list, id).is_err()
            {
                i = i.saturating_add(1);
            }
        }
        if i > 0 {
            self.retry = true;
        }
        list.sort_unstable();
        for id in list {
            self.wake(id);
        }
    }

    /// `Op::Close`: no further changes; when those under way are done, a last checkpoint that says "clean".
    #[inline(never)]
    pub(super) fn run_close(&mut self, id: u64) {
        self.closing = true;
        if self.read_only || self.state != State::Ready {
            let ok = self.read_only;
            self.state = State::Closed;
            return self.finish(id, if ok { Ok(Reply::Done) } else { Err(Error::Aborted) });
        }
        let others = self.tasks.iter().any(|(t, x)| t != id && t != CHECKPOINT && x.is_change());
        if others || self.checkpoint.is_some() || self.log_write.is_some() {
            return;
        }
        let Some(t) = self.tasks.get_mut(id) else { return };
        if t.progress.pos == 1
            && self.sb.state & STATE_CLEAN != 0
            && self.log.pending.is_empty()
            && self.changed_at.is_none()
        {
            self.state = State::Closed;
            return self.finish(id, Ok(Reply::Done));
        }
        t.progress.pos = 1;
        if let Err(m) = self.start_checkpoint(true) {
            self.later(m);
        }
    }

    /// Something ended while the volume is being closed.
    pub(super) fn wake_close(&mut self) {
        let close = self.tasks.iter().find(|(_, t)| matches!(t.op, Some(crate::op::Op::Close))).map(|(id, _)| id);
        if let Some(id) = close {
            self.wake(id);
        }
    }
}

/// The two places of the superblock of a generation.
pub(super) fn slots(generation: u64) -> [u64; 2] {
    let [even, odd] = SUPER_SLOTS;
    if generation % 2 == 0 {
        even
    } else {
        odd
    }
}

/// The block of a superblock for the first or second place of its pair.
pub(super) fn super_block(sb: &Super, place: u32, crc32c: fn(u32, &[u8]) -> u32) -> Result<Buf, NoMemory> {
    let mut b = Buf::zeroed(BLOCK)?;
    let [first, second] = slots(sb.generation);
    let s = Super { slot: place, addr: if place == 0 { first } else { second }, ..*sb };
    s.emit(&mut b).ok_or(NoMemory)?;
    let crc = crc32c(0, b.get(4..).unwrap_or(&[]));
    crc.put(&mut b, 0).ok_or(NoMemory)?;
    Ok(b)
}

/// Part of a stream that is to be written anew.
#[derive(Debug)]
struct Piece {
    ino: u64,
    stream: u32,
    start: u64,
    blocks: u64,
    /// Bytes of an index; empty for slots and vectors.
    bytes: Vec<u8>,
}

/// A piece (or a part of it) with its place on the device.
#[derive(Debug)]
struct Placed {
    ino: u64,
    stream: u32,
    block: u64,
    addr: u64,
    crcs: Vec<u32>,
    buf: Buf,
}

/// Gathers consecutive blocks into pieces.
fn collect_runs(ino: u64, stream: u32, blocks: &[u64], out: &mut Vec<Piece>) -> Result<(), NoMemory> {
    for b in blocks {
        match out.last_mut() {
            Some(p) if p.ino == ino && p.stream == stream && p.start.saturating_add(p.blocks) == *b => {
                p.blocks = p.blocks.saturating_add(1);
            }
            _ => mem::push(out, Piece { ino, stream, start: *b, blocks: 1, bytes: Vec::new() })?,
        }
    }
    Ok(())
}
