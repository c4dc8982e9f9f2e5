// SPDX-License-Identifier: GPL-2.0-only
//! The engine: a volume as a state machine. Owns transactions, the log, checkpoints, recovery, space
//! and background work; promises that what is acknowledged survives the death of the process, that what it calls
//! durable survives a power cut, and that after either the volume is a prefix of what was acknowledged.
//!
//! How a driver uses it: [`Volume::open`], then in any order, from any thread under one lock:
//! *commands* ([`Volume::submit`]), *events in* ([`Volume::complete`], [`Volume::handle_timeout`],
//! [`Volume::work`]), *outputs* ([`Volume::poll_io`], [`Volume::poll_reply`],
//! [`Volume::poll_timeout`]) until they give `None`, *getters* ([`Volume::state`], [`Volume::stats`],
//! [`Volume::try_read`]), which only need shared access and may run in parallel.
//!
//! Inside: `task` runs operations, `content` those that place data, `fetch` brings what they need, `commit` applies and logs their changes,
//! `log` and `space` are what their names say, `checkpoint` writes the tree, `recover` opens and replays, `load`
//! brings collections in and `paging` their vectors, `format` makes new volumes.

mod checkpoint;
mod commit;
mod content;
mod fetch;
mod format;
mod iotab;
mod load;
pub mod log;
mod paging;
mod recover;
pub mod space;
mod state;
mod streams;
mod task;

pub use format::{mkfs, FormatOptions};

use crate::coll::Collection;
use crate::env::Env;
use crate::error::Error;
use crate::format::{Ptr, Super};
use crate::io::{Io, IoError, IoId, IoKind};
use crate::mem::{self, Buf, Map, NoMemory, Queue};
use crate::op::{Op, Reply, Time};
use crate::tree::Tree;
use crate::txn::{Txn, VolumeInfo};
use alloc::vec::Vec;
use iotab::{IoTable, Purpose};
use log::{Expect, Log};
use space::Space;
use state::View;
use task::Task;

/// Names an operation that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// How to open a volume.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Never write, not even to recover: the log is replayed in memory.
    pub read_only: bool,
    /// Answer changes when they are in memory, before their records are in the log. For a driver that dies only with the
    /// machine, so that nobody could tell the difference: what is durable and in which order things are lost stays
    /// the same. Records are written when somebody waits for durability, and when many wait; the driver sees to it with
    /// `Op::Sync` from time to time.
    pub write_behind: bool,
    /// Bring a collection's vectors in with it, all of them, and never drop them: for a reader that takes the tree away.
    pub whole_collections: bool,
}

/// Where a volume stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Reading superblocks, replaying the log; operations wait.
    Opening,
    /// In service.
    Ready,
    /// It could not be opened.
    Failed(Error),
    /// A write or flush failed: reads go on, changes fail with [`Error::Aborted`].
    Aborted,
    /// Closed by `Op::Close`.
    Closed,
}

/// Counters since the volume was opened.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Stats {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub log_groups: u64,
    pub log_bytes: u64,
    pub checkpoints: u64,
    pub transactions: u64,
    pub reruns: u64,
    pub healed: u64,
    pub cached_nodes: u64,
    pub dirty_nodes: u64,
    pub replayed_groups: u64,
    pub replayed_records: u64,
    pub free_blocks: u64,
    pub vector_reads: u64,
    pub vector_bytes: u64,
    pub vector_bytes_dropped: u64,
}

/// Deliberate defects, for proving that the simulator finds them. All off outside of tests of tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Canary {
    /// Hand freed blocks out again at once, before a checkpoint without them is on disk.
    pub reuse_freed: bool,
    /// Do not wait for a flush before the superblock is written.
    pub no_flush_before_super: bool,
    /// Call the log durable without a flush.
    pub no_flush_after_log: bool,
    /// Report syncs as fine after a failed flush.
    pub forget_failed_flush: bool,
    /// Keep deleted vectors in the runtime state of their collection.
    pub keep_deleted_vectors: bool,
}

/// A tree node that is being read.
#[derive(Debug)]
struct NodeRead {
    ptr: Ptr,
    level: u16,
    twin: bool,
    error: Option<Error>,
    waiters: Vec<u64>,
}

/// The log group that is being written.
#[derive(Clone, Copy, Debug)]
struct LogWrite {
    txn: u64,
    seq: u64,
    left: u8,
}

/// Task of the checkpoint.
const CHECKPOINT: u64 = 1;
/// Task of opening and recovery.
const RECOVER: u64 = 2;
/// Seconds between a change and the checkpoint that it gets at the latest.
const CHECKPOINT_SECONDS: i64 = 30;

/// Records that one step of index work takes in.
const WORK_STEP: usize = 4;

/// A volume.
pub struct Volume {
    view: mem::Box<View>,
    space: mem::Box<Space>,
    log: mem::Box<Log>,
    sb: mem::Box<Super>,
    io: mem::Box<IoTable>,
    state: State,
    read_only: bool,
    write_behind: bool,
    now: Time,
    canary: Canary,
    // Tasks.
    tasks: Map<mem::Box<Task>>,
    next_task: u64,
    runnable: Queue<u64>,
    early: Queue<u64>,
    waiting: Vec<u64>,
    space_wait: Vec<u64>,
    /// Searches that wait for the index of a collection: task and collection.
    catching: Vec<(u64, crate::op::Ino)>,
    node_reads: Map<NodeRead>,
    locks: Map<Queue<u64>>,
    opens: Map<u32>,
    orphans: Map<()>,
    replies: Queue<(OpId, Result<Reply, Error>)>,
    closing: bool,
    // The log's writer.
    log_write: Option<LogWrite>,
    flush: Option<(u64, u64)>,
    // Checkpoint and recovery.
    checkpoint: Option<mem::Box<checkpoint::Checkpoint>>,
    want_checkpoint: bool,
    sealing: bool,
    changed_at: Option<i64>,
    heals: usize,
    quiet: bool,
    kept: u64,
    retry: bool,
    stream_dirty: u64,
    recover: Option<mem::Box<recover::Recover>>,
    loading: Map<mem::Box<load::Loading>>,
    whole: bool,
    paging: Map<mem::Box<paging::Paging>>,
    /// Pages that somebody is about to ask for ([`Need::Vectors`](crate::error::Need::Vectors)).
    wanted: Vec<u32>,
    /// Pages used since this tick stay for index work.
    work_tick: Option<u64>,
    /// There may be more vectors in memory than [`Stats::vector_bytes`] says.
    more_vectors: bool,
    stats: Stats,
    /// Inodes without names that were closed: to be trimmed.
    gone: Vec<crate::op::Ino>,
    /// Those that could not be trimmed. They are tried again after a checkpoint that leaves so many blocks free.
    stuck: Vec<(crate::op::Ino, u64)>,
}

impl core::fmt::Debug for Volume {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Volume({:?}, generation {}, {} tasks", self.state, self.view.info.generation, self.tasks.len())?;
        for (id, t) in self.tasks.iter() {
            write!(f, "; {id}: {:?} {:?}, waits for {}", t.op.as_ref().map(core::mem::discriminant), t.stage, t.waits)?;
        }
        write!(f, "; checkpoint {:?}, retry {})", self.checkpoint.as_ref().map(|c| c.stage()), self.retry)
    }
}

impl Volume {
    #[inline(never)]
    fn blank(env: Env, options: Options, now: Time) -> Result<Volume, Error> {
        Ok(Volume {
            view: mem::Box::try_new(View {
                env,
                tree: Tree::open([0; 16], 1, Ptr::default(), 0, env.crc32c),
                collections: Map::new(),
                info: VolumeInfo::default(),
            })?,
            space: mem::Box::try_new(Space::new(0, 0))?,
            log: mem::Box::try_new(Log::default())?,
            sb: mem::Box::try_new(Super::default())?,
            io: mem::Box::try_new(IoTable::default())?,
            state: State::Opening,
            read_only: options.read_only,
            write_behind: options.write_behind,
            now,
            canary: Canary::default(),
            tasks: Map::new(),
            next_task: 16,
            runnable: Queue::new(),
            early: Queue::new(),
            waiting: Vec::new(),
            space_wait: Vec::new(),
            catching: Vec::new(),
            node_reads: Map::new(),
            locks: Map::new(),
            opens: Map::new(),
            orphans: Map::new(),
            replies: Queue::new(),
            closing: false,
            log_write: None,
            flush: None,
            checkpoint: None,
            want_checkpoint: false,
            sealing: false,
            changed_at: None,
            heals: 0,
            quiet: false,
            kept: 0,
            retry: false,
            stream_dirty: 0,
            recover: None,
            loading: Map::new(),
            whole: options.whole_collections,
            paging: Map::new(),
            wanted: Vec::new(),
            work_tick: None,
            more_vectors: false,
            stats: Stats::default(),
            gone: Vec::new(),
            stuck: Vec::new(),
        })
    }

    /// Starts to open the volume on a device of `device_blocks` blocks. [`Volume::state`] says when it is
    /// done; operations may be submitted at once and wait.
    #[inline(never)]
    pub fn open(env: Env, device_blocks: u64, options: Options, now: Time) -> Result<Volume, Error> {
        // Built where it is returned, to keep it off the stack.
        let mut made = Volume::blank(env, options, now);
        if let Ok(v) = &mut made {
            v.start_recovery(device_blocks)?;
            v.pump();
        }
        made
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The superblock of the newest checkpoint.
    pub fn superblock(&self) -> &Super {
        &self.sb
    }

    /// Switches deliberate defects on.
    #[doc(hidden)]
    pub fn set_canary(&mut self, canary: Canary) {
        self.canary = canary;
    }

    /// Takes the tree out, for the checker, of a volume that was opened read-only; the volume then serves no more reads.
    pub fn take_tree(&mut self) -> Tree {
        let none = Tree::open([0; 16], 1, Ptr::default(), 0, self.view.env.crc32c);
        core::mem::replace(&mut self.view.tree, none)
    }

    /// What reads run over: for the checker.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Takes an operation in. Its reply comes from [`Volume::poll_reply`].
    pub fn submit(&mut self, now: Time, op: Op) -> Result<OpId, Error> {
        self.now = now;
        let id = self.new_task(op, false)?;
        self.pump();
        Ok(OpId(id))
    }

    /// The next request for the device.
    pub fn poll_io(&mut self) -> Option<Io> {
        if self.io.is_idle() {
            self.pump();
        }
        let io = self.io.next()?;
        match io.kind {
            IoKind::Read => self.stats.reads = self.stats.reads.wrapping_add(1),
            IoKind::Flush => self.stats.flushes = self.stats.flushes.wrapping_add(1),
            _ => self.stats.writes = self.stats.writes.wrapping_add(1),
        }
        Some(io)
    }

    /// A request is finished; the buffer comes back.
    pub fn complete(&mut self, now: Time, id: IoId, result: Result<(), IoError>, buf: Buf) {
        self.now = now;
        let Some(purpose) = self.io.end(id) else { return };
        match purpose {
            Purpose::Node(addr) => self.node_arrived(addr, result, buf),
            Purpose::TaskRead(task, addr) => self.data_arrived(task, addr, result, buf),
            Purpose::TaskWrite(task) => self.data_written(task, result),
            Purpose::LogWrite => self.log_written(result),
            Purpose::LogFlush => self.log_flushed(result),
            Purpose::CheckpointWrite | Purpose::CheckpointFlush | Purpose::SuperWrite => {
                self.checkpoint_completed(purpose, result);
            }
            Purpose::Heal => {
                self.heals = self.heals.saturating_sub(1);
                if result.is_ok() {
                    self.stats.healed = self.stats.healed.wrapping_add(1);
                }
            }
        }
        self.pump();
    }

    /// The next reply.
    pub fn poll_reply(&mut self) -> Option<(OpId, Result<Reply, Error>)> {
        self.replies.pop()
    }

    /// When [`Volume::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.retry {
            let nsec = self.now.nsec.saturating_add(10_000_000);
            return Some(if nsec < 1_000_000_000 {
                Time { sec: self.now.sec, nsec }
            } else {
                Time { sec: self.now.sec.saturating_add(1), nsec: nsec.saturating_sub(1_000_000_000) }
            });
        }
        let at = self.changed_at.filter(|_| self.state == State::Ready && self.checkpoint.is_none())?;
        Some(Time { sec: at.saturating_add(CHECKPOINT_SECONDS), nsec: 0 })
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = now;
        if core::mem::take(&mut self.retry) {
            self.wake_idle();
        }
        if self.changed_at.is_some_and(|t| now.sec.saturating_sub(t) >= CHECKPOINT_SECONDS) {
            self.want_checkpoint = true;
        }
        if self.checkpoint.is_some() {
            self.wake(CHECKPOINT);
        }
        self.pump();
    }

    /// One bounded step of background work (index catch-up, consolidation). False: there is none, or it waits for what it asked
    /// the device for. Searches may wait
    /// for it, so a driver calls it whenever it has nothing else to do, and lets others at the lock in between.
    pub fn work(&mut self) -> bool {
        if !matches!(self.state, State::Ready | State::Aborted) {
            return false;
        }
        if self.work_waits() {
            return false;
        }
        if let Some((_, ino)) = self.catching.first().copied() {
            self.catch_up(ino);
            return true;
        }
        if self.state != State::Ready {
            return false;
        }
        let mut from = None;
        while let Some(ino) = self.next_with_work(from) {
            // Failed for memory: later.
            if self.work_on(ino, WORK_STEP).unwrap_or(false) {
                return true;
            }
            from = Some(ino);
        }
        false
    }

    /// The collection with index work whose inode comes after `from`.
    fn next_with_work(&self, from: Option<crate::op::Ino>) -> Option<crate::op::Ino> {
        let after = |ino: &crate::op::Ino| from.is_none_or(|f| *ino > f);
        self.view.collections.iter().filter(|(_, c)| c.has_work()).map(|(ino, _)| ino).filter(after).min()
    }

    /// A step of the index work that searches of the collection `ino` wait for; then they look again.
    fn catch_up(&mut self, ino: crate::op::Ino) {
        match self.work_on(ino, WORK_STEP) {
            Ok(_) if self.work_waits() => {}
            done => self.end_catching(ino, done.err()),
        }
        self.pump();
    }

    /// Searches that wait for the index of collection `ino` look again, or fail.
    fn end_catching(&mut self, ino: crate::op::Ino, fail: Option<Error>) {
        let mut i = 0;
        while let Some((id, of)) = self.catching.get(i).copied() {
            if of != ino {
                i = i.saturating_add(1);
                continue;
            }
            mem::swap_remove(&mut self.catching, i);
            if let (Some(e), Some(t)) = (fail, self.tasks.get_mut(id)) {
                t.fail = Some(e);
            }
            self.wake(id);
        }
    }

    /// Answers a read without I/O and without waiting, if all it needs is in memory.
    pub fn try_read(&self, now: Time, op: &Op) -> Option<Result<Reply, Error>> {
        if !matches!(self.state, State::Ready | State::Aborted) || !op.is_read() {
            return None;
        }
        let none = Map::new();
        let mut t = Txn::new(&*self.view, &none, &self.opens, now);
        t.absent = crate::index::Absent::within(self.view.tree.time(), self.view.env.cache_bytes);
        match task::read(&t, op) {
            Ok(r) => Some(Ok(r)),
            Err(crate::error::Stop::Fail(e)) => Some(task::failed_read(op, e, 0)),
            Err(crate::error::Stop::Need(_)) => None,
        }
    }

    /// Blocks that operations may still take, those that the next checkpoint gives back included: for drivers that keep
    /// data back and have to say early when there is no room for it.
    pub fn space_left(&self) -> u64 {
        self.space.free().saturating_add(self.space.waiting()).saturating_sub(self.reserve())
    }

    /// Changes how many bytes the caches of tree nodes and vectors may take.
    pub fn set_cache_bytes(&mut self, bytes: usize) {
        self.view.env.cache_bytes = bytes;
        self.pump();
    }

    /// Sets `blocks` aside for data that the driver keeps back and has acknowledged. Only writes that bring such data (those
    /// that say its times) may take them; these may also take half of what is otherwise left for bringing a full
    /// volume to order, as metadata of theirs is in no reckoning of the driver's.
    pub fn set_kept(&mut self, blocks: u64) {
        self.kept = blocks;
    }

    /// Whether reads leave bad copies of metadata as they are instead of writing the good one over them: for a driver that has
    /// promised not to write for now.
    pub fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    /// Drops up to `nodes` blocks' worth of vectors and clean nodes from the caches, of what takes more first; says how many went.
    /// For a driver whose system is short of memory.
    pub fn shrink(&mut self, nodes: usize) -> usize {
        let before = self.view.tree.cached();
        self.stats.vector_bytes = self.vector_bytes() as u64;
        if self.stats.vector_bytes > (before as u64).saturating_mul(crate::format::BLOCK as u64) {
            let gone = self.drop_vectors(nodes.saturating_mul(crate::format::BLOCK));
            self.stats.vector_bytes = self.stats.vector_bytes.saturating_sub(gone as u64);
            return gone / crate::format::BLOCK;
        }
        let protect = self.tasks.iter().map(|(_, t)| t.tick).min().unwrap_or(u64::MAX);
        let now = self.view.tree.tick();
        self.view.tree.evict(before.saturating_sub(nodes), protect.min(now));
        before.saturating_sub(self.view.tree.cached())
    }

    /// Blocks' worth of memory in the caches of tree nodes and vectors.
    pub fn cached(&self) -> usize {
        self.view.tree.cached().saturating_add(self.stats.vector_bytes as usize / crate::format::BLOCK)
    }

    /// Ends all changing, as after a failed write: reads go on, changes and syncs fail until the volume is opened again.
    pub fn give_up(&mut self) {
        self.abort();
        self.pump();
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            cached_nodes: self.view.tree.cached() as u64,
            dirty_nodes: self.view.tree.dirty() as u64,
            free_blocks: self.space.free(),
            ..self.stats
        }
    }

    /// A collection that is in memory.
    pub fn loaded_collection(&self, ino: u64) -> Option<&Collection> {
        self.view.collections.get(ino).map(|c| &**c)
    }

    fn expect(&self) -> Expect {
        Expect { uuid: self.sb.uuid, hash_key: self.sb.hash_key, crc32c: self.view.env.crc32c, epoch: self.log.epoch }
    }

    /// Does everything that can be done without waiting.
    fn pump(&mut self) {
        loop {
            while let Some(id) = self.runnable.pop() {
                self.run(id);
            }
            while let Some(ino) = self.gone.pop() {
                // Without memory now it goes when the volume is opened next.
                let _ = self.new_task(Op::Trim { ino }, true);
            }
            self.drive_log();
            self.drive_flush();
            self.drive_checkpoint();
            if self.runnable.is_empty() {
                break;
            }
        }
        // For reads that look at it from outside of an operation.
        self.refresh_info();
        self.trim_memory();
    }

    /// Runs every task that waits for no I/O: one of them may have missed its turn for want of memory.
    fn wake_idle(&mut self) {
        if self.runnable.reserve(self.tasks.len()).is_err() {
            self.retry = true;
            return;
        }
        for (id, t) in self.tasks.iter() {
            if t.waits == 0 {
                // Room was just made.
                let _ = self.runnable.push(id);
            }
        }
    }

    /// Something could not get memory after it was too late to fail: try again soon.
    fn later(&mut self, _: NoMemory) {
        self.retry = true;
    }

    /// Ends all changing: what is durable must not be spoilt by what may have gone wrong.
    #[inline(never)]
    fn abort(&mut self) {
        if self.state == State::Ready {
            self.state = State::Aborted;
        }
        self.checkpoint = None;
        self.sealing = false;
        self.tasks.remove(CHECKPOINT);
        // Every change that is under way fails; its task ends when its own I/O is back.
        for (id, t) in self.tasks.iter_mut() {
            if t.is_change() && t.fail.is_none() {
                t.fail = Some(Error::Aborted);
                if t.waits == 0 && self.runnable.push(id).is_err() {
                    self.retry = true;
                }
            }
        }
        self.waiting.clear();
        self.space_wait.clear();
    }

    fn refresh_info(&mut self) {
        let free = self.space.free();
        self.view.info.free = free.saturating_add(self.space.waiting());
        self.view.info.available = self.space_left().saturating_sub(self.kept);
        self.view.info.read_only = self.read_only || self.state == State::Aborted;
    }
}
