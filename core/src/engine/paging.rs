// SPDX-License-Identifier: GPL-2.0-only
//! Pages of vectors: bringing in those that work met absent, and dropping those that memory does not suffice for. Promises:
//! a page is whole and checked when it is there, a damaged block costs the vectors in it and nothing else, and work that
//! waits for pages finds them when it runs again.

use super::task::Task;
use super::{State, Volume};
use crate::coll::Collection;
use crate::error::{Error, Step, Stop};
use crate::format::{kind, Extent, Key, Wire, BLOCK, EXTENT_BLOCKS_MAX};
use crate::index::Absent;
use crate::mem;
use crate::op::Ino;
use crate::txn::Txn;
use alloc::vec::Vec;

const BYTES: u64 = BLOCK as u64;

/// Pages that an internal task brings in.
#[derive(Debug)]
pub struct Paging {
    ino: Ino,
    /// In order.
    pages: Vec<u32>,
    waiters: Vec<u64>,
    /// Index work, which no task does, waits for them as well.
    for_work: bool,
    /// A read failed: it is tried once more.
    again: bool,
    /// Addresses from which bytes came that were not what they should be, and were read once more for that.
    suspects: Vec<u64>,
}

/// Blocks of the vector stream that lie together on the device.
struct Piece {
    block: u64,
    addr: u64,
    crcs: Vec<u32>,
}

impl Volume {
    /// Brings in the pages in `self.wanted`, of collection `ino`; task `id` runs again when they are there. Without a task
    /// they are for index work.
    #[inline(never)]
    pub(super) fn bring_in(&mut self, id: Option<u64>, ino: Ino) -> Result<(), Error> {
        let mut pages = core::mem::take(&mut self.wanted);
        pages.sort_unstable();
        pages.dedup();
        if pages.is_empty() {
            // There was no memory for the list.
            return Err(Error::NoMemory);
        }
        let now = self.view.tree.time();
        if let Some(t) = id.and_then(|id| self.tasks.get_mut(id)) {
            t.pages_tick = t.pages_tick.or(Some(now));
        }
        // What is under way already only has to be waited for.
        let mut joined = 0u32;
        for (_, p) in self.paging.iter_mut().filter(|(_, p)| p.ino == ino) {
            let before = pages.len();
            pages.retain(|x| p.pages.binary_search(x).is_err());
            match id {
                _ if pages.len() == before => {}
                Some(id) => {
                    mem::push(&mut p.waiters, id)?;
                    joined = joined.saturating_add(1);
                }
                None => p.for_work = true,
            }
        }
        if let Some(t) = id.and_then(|id| self.tasks.get_mut(id)) {
            t.waits = t.waits.saturating_add(joined);
        }
        if pages.is_empty() {
            return Ok(());
        }
        let mut waiters = Vec::new();
        mem::reserve(&mut waiters, 1)?;
        let t = self.next_task;
        let tick = self.view.tree.tick();
        self.paging.reserve(1)?;
        self.runnable.reserve(1)?;
        let mut task = mem::Box::try_new(Task::new(None, self.now, tick, true))?;
        task.pages_tick = Some(now);
        self.tasks.insert(t, task)?;
        self.next_task = t.wrapping_add(1);
        if let Some(id) = id {
            mem::push(&mut waiters, id)?;
            self.add_wait(id);
        }
        let p = Paging { ino, pages, waiters, for_work: id.is_none(), again: false, suspects: Vec::new() };
        self.paging.insert(t, mem::Box::try_new(p)?)?;
        self.wake(t);
        Ok(())
    }

    /// Goes on with bringing pages in.
    #[inline(never)]
    pub(super) fn run_paging(&mut self, id: u64) {
        let (Some(task), Some(p)) = (self.tasks.get_mut(id), self.paging.get_mut(id)) else { return };
        if task.waits > 0 {
            return;
        }
        if let Some(e) = task.fail.take() {
            // Another try, as the device may give it then.
            if e != Error::Io || core::mem::replace(&mut p.again, true) {
                return self.paging_done(id, Some(e));
            }
        }
        match self.paging_step(id) {
            Ok(true) => self.paging_done(id, None),
            Ok(false) => {}
            Err(s) => self.stopped(id, s),
        }
    }

    /// True when the pages are there; false when reads are under way.
    #[inline(never)]
    fn paging_step(&mut self, id: u64) -> Step<bool> {
        let (Some(task), Some(p)) = (self.tasks.get(id), self.paging.get(id)) else { return Ok(true) };
        let Some(c) = self.view.collections.get(p.ino) else { return Ok(true) };
        let t = Txn::new(&*self.view, &task.arrived, &self.opens, task.now);
        let pieces = pieces(&t, c, p.ino, &p.pages)?;
        let mut missing = Vec::new();
        for x in &pieces {
            match t.data(x.addr, x.crcs.len() as u32) {
                Ok(_) => {}
                Err(Stop::Need(n)) => mem::push(&mut missing, n)?,
                Err(s) => return Err(s),
            }
        }
        if !missing.is_empty() {
            self.io.reserve(missing.len())?;
            self.stats.vector_reads = self.stats.vector_reads.wrapping_add(missing.len() as u64);
            for n in missing {
                self.fetch(id, n)?;
            }
            return Ok(false);
        }
        let mut again = Vec::new();
        let checked = check(&t, &pieces, &p.suspects, &mut again)?;
        if !again.is_empty() {
            return self.read_again(id, &again);
        }
        let (env, now) = (self.view.env, self.view.tree.time());
        let mut bytes = Vec::new();
        let mut at = 0usize;
        while let Some(page) = self.paging.get(id).and_then(|p| p.pages.get(at).copied()) {
            let (Some(task), Some(p)) = (self.tasks.get(id), self.paging.get(id)) else { return Ok(true) };
            let Some(c) = self.view.collections.get_mut(p.ino) else { return Ok(true) };
            let range = c.page_bytes_range(page);
            bytes.clear();
            mem::resize(&mut bytes, range.end.saturating_sub(range.start) as usize, 0)?;
            for (x, good) in pieces.iter().zip(&checked) {
                if let Some(data) = task.arrived.get(x.addr) {
                    copy_piece(x, good, data, &range, &mut bytes);
                }
            }
            c.admit_page(&env, page, &bytes, now)?;
            at = at.saturating_add(1);
        }
        self.more_vectors = true;
        Ok(true)
    }

    /// Reads what is at `addrs` once more.
    fn read_again(&mut self, id: u64, addrs: &[u64]) -> Step<bool> {
        if let (Some(t), Some(p)) = (self.tasks.get_mut(id), self.paging.get_mut(id)) {
            mem::extend(&mut p.suspects, addrs)?;
            for addr in addrs {
                t.arrived.remove(*addr);
            }
        }
        self.wake(id);
        Ok(false)
    }

    /// The pages are there, or could not be brought in: who waits for them runs on.
    pub(super) fn paging_done(&mut self, id: u64, fail: Option<Error>) {
        self.tasks.remove(id);
        let Some(mut p) = self.paging.remove(id) else { return };
        for w in core::mem::take(&mut p.waiters) {
            self.drop_wait(w, fail);
        }
        if let (true, Some(e)) = (p.for_work, fail) {
            self.end_catching(p.ino, Some(e));
        }
    }

    /// What index work of collection `ino` met absent is brought in; until then there is no other.
    pub(super) fn bring_in_for_work(&mut self, ino: Ino, pages: Vec<u32>) {
        self.wanted = pages;
        self.work_tick = self.work_tick.or(Some(self.view.tree.time()));
        if let Err(e) = self.bring_in(None, ino) {
            self.end_catching(ino, Some(e));
        }
        self.pump();
    }

    /// Whether index work waits for pages.
    pub(super) fn work_waits(&self) -> bool {
        self.paging.iter().any(|(_, p)| p.for_work)
    }

    /// Bytes of memory of all vectors.
    pub(super) fn vector_bytes(&self) -> usize {
        self.view.collections.iter().fold(0, |n: usize, (_, c)| n.saturating_add(c.vector_memory()))
    }

    /// Drops about `bytes` of vectors that nobody is using. Gives the bytes that went.
    pub(super) fn drop_vectors(&mut self, bytes: usize) -> usize {
        // What a checkpoint that failed was to write is only here.
        if self.state != State::Ready {
            return 0;
        }
        let using = self.tasks.iter().filter_map(|(_, t)| t.pages_tick).chain(self.work_tick).min();
        // Uses of now, outside of tasks, do not outlast the lock.
        let protect = using.unwrap_or(u64::MAX);
        let mut gone = 0usize;
        for (_, c) in self.view.collections.iter_mut() {
            if gone >= bytes {
                break;
            }
            gone = gone.saturating_add(c.evict(bytes.saturating_sub(gone), protect));
        }
        self.stats.vector_bytes_dropped = self.stats.vector_bytes_dropped.wrapping_add(gone as u64);
        gone
    }

    /// Keeps the caches within their limit. Nodes and vectors may take half of it each, and what the other leaves.
    pub(super) fn trim_memory(&mut self) {
        let limit = self.view.env.cache_bytes;
        let nodes = self.view.tree.cached().saturating_mul(BLOCK);
        let fresh = core::mem::take(&mut self.more_vectors);
        if fresh {
            self.stats.vector_bytes = self.vector_bytes() as u64;
        }
        let room = limit.saturating_sub(nodes.min(limit / 2));
        let over = (self.stats.vector_bytes as usize).saturating_sub(room);
        if fresh && over == 0 {
            // Only where it will hardly have to go again.
            let free = room.saturating_sub(room / 8).saturating_sub(self.stats.vector_bytes as usize);
            for (_, c) in self.view.collections.iter_mut() {
                c.allow_spare(free);
            }
        }
        if over > 0 {
            // A little more, so that it is not done for each page.
            let gone = self.drop_vectors(over.saturating_add(room / 16));
            self.stats.vector_bytes = self.stats.vector_bytes.saturating_sub(gone as u64);
        }
        let room = limit.saturating_sub((self.stats.vector_bytes as usize).min(limit / 2));
        if nodes > room {
            let protect = self.tasks.iter().map(|(_, t)| t.tick).min().unwrap_or(u64::MAX);
            let now = self.view.tree.tick();
            self.view.tree.evict(room / BLOCK, protect.min(now));
        }
    }
}

/// Where the blocks are that these pages are made of. A hole in the stream is left out.
#[inline(never)]
fn pieces(t: &Txn, c: &Collection, ino: Ino, pages: &[u32]) -> Step<Vec<Piece>> {
    let mut out: Vec<Piece> = Vec::new();
    let mut next = 0u64;
    for page in pages {
        let range = c.page_bytes_range(*page);
        let mut at = (range.start / BYTES).max(next);
        let end = range.end.div_ceil(BYTES);
        while at < end {
            let Some((block, blocks, addr, crcs)) = extent_at(t, ino, at)? else { break };
            if block >= end {
                break;
            }
            let from = at.max(block);
            let n = block.saturating_add(blocks).min(end).saturating_sub(from);
            let skip = from.saturating_sub(block);
            let addr = addr.checked_add(skip).ok_or(Error::Corrupt)?;
            let follows = out.last().is_some_and(|p| {
                let len = p.crcs.len() as u64;
                p.addr.checked_add(len) == Some(addr)
                    && p.block.checked_add(len) == Some(from)
                    && len.saturating_add(n) <= u64::from(EXTENT_BLOCKS_MAX)
            });
            if !follows {
                mem::push(&mut out, Piece { block: from, addr, crcs: Vec::new() })?;
            }
            if let Some(p) = out.last_mut() {
                for i in 0..n {
                    let place = Extent::SIZE.saturating_add((skip.saturating_add(i) as usize).saturating_mul(4));
                    mem::push(&mut p.crcs, u32::get(crcs, place).ok_or(Error::Corrupt)?)?;
                }
            }
            at = from.saturating_add(n);
        }
        next = next.max(end);
    }
    Ok(out)
}

/// The extent that block `at` of the vector stream is in, or the next one: first block, blocks, address, item.
#[allow(clippy::type_complexity)]
fn extent_at<'t>(t: &'t Txn, ino: Ino, at: u64) -> Step<Option<(u64, u64, u64, &'t [u8])>> {
    let key = Key::new(ino, kind::VECTOR_EXTENT, at);
    let before = t.prev(&Key::first(ino, kind::VECTOR_EXTENT), &Key { sub: u64::MAX, ..key })?;
    for hit in [before, t.next(&key, &Key::last(ino, kind::VECTOR_EXTENT))?] {
        let Some((k, v)) = hit else { continue };
        let e = Extent::parse(v).ok_or(Error::Corrupt)?;
        let end = k.offset.checked_add(u64::from(e.blocks)).ok_or(Error::Corrupt)?;
        if e.blocks == 0 || e.blocks > EXTENT_BLOCKS_MAX || e.flags != 0 {
            return Err(Stop::Fail(Error::Corrupt));
        }
        if end > at {
            return Ok(Some((k.offset, u64::from(e.blocks), e.addr, v)));
        }
    }
    Ok(None)
}

/// Which blocks are what their checksums say. One that is not may have been replaced while it was read, or the device may have
/// given another: unless that is so for the second time (`suspects`), its address goes to `again`.
#[inline(never)]
fn check(t: &Txn, pieces: &[Piece], suspects: &[u64], again: &mut Vec<u64>) -> Step<Vec<Vec<bool>>> {
    let mut out = Vec::new();
    for p in pieces {
        let mut good = Vec::new();
        let data = t.data(p.addr, p.crcs.len() as u32)?;
        let mut all = true;
        for (crc, b) in p.crcs.iter().zip(data.chunks_exact(BLOCK)) {
            let fine = (t.env().crc32c)(0, b) == *crc;
            all &= fine;
            mem::push(&mut good, fine)?;
        }
        if !all && !suspects.contains(&p.addr) {
            mem::push(again, p.addr)?;
        }
        mem::push(&mut out, good)?;
    }
    Ok(out)
}

/// Copies what `range` of the stream has in common with the good blocks of a piece.
fn copy_piece(p: &Piece, good: &[bool], data: &[u8], range: &core::ops::Range<u64>, out: &mut [u8]) {
    let start = p.block.saturating_mul(BYTES);
    let first = (range.start.saturating_sub(start) / BYTES) as usize;
    for (i, (good, block)) in good.iter().zip(data.chunks_exact(BLOCK)).enumerate().skip(first) {
        let at = start.saturating_add((i as u64).saturating_mul(BYTES));
        if at >= range.end {
            break;
        }
        let skip = range.start.saturating_sub(at) as usize;
        let (Some(from), true) = (block.get(skip..), *good) else { continue };
        let to = at.max(range.start).saturating_sub(range.start) as usize;
        mem::copy(out.get_mut(to..).unwrap_or(&mut []), from);
    }
}

impl Volume {
    /// A step of index work of collection `ino`. Whether it did something, be it asking for what was absent.
    pub(super) fn work_on(&mut self, ino: Ino, budget: usize) -> Result<bool, Error> {
        let env = self.view.env;
        let absent = Absent::within(self.view.tree.time(), env.cache_bytes);
        let Some(c) = self.view.collections.get_mut(ino) else { return Ok(false) };
        let before = c.vector_memory();
        let done = c.work(&env, &absent, budget);
        self.more_vectors |= c.vector_memory() != before;
        done?;
        if absent.any() {
            self.bring_in_for_work(ino, absent.take());
            return Ok(true);
        }
        self.work_tick = None;
        Ok(true)
    }
}
