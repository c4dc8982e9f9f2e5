// SPDX-License-Identifier: GPL-2.0-only
//! The checker (fsck): reads everything that a volume holds, both copies, compares it with itself and says
//! what is wrong. Owns no knowledge of how things are written, only of the format; promises to end on any
//! image, to write nothing when it only checks, and to repair only what it says it repairs.
//!
//! A [`Check`] is a state machine like a volume: [`Check::poll_io`] gives requests, [`Check::complete`] takes their
//! results, [`Check::outcome`] says when it is done. Inside, each step is a function that reads what it needs;
//! what is not there yet stops it, is fetched, and the step runs again from its start.
//!
//! Order: superblocks; the tree of the newest checkpoint, node by node, with all blocks that it refers to; bitmaps;
//! the log, which is then replayed in memory if there is something in it; every item of the tree with all that it is
//! tied to; collections, slot by slot; then repairs, if asked for. Items are repaired only where the log is empty:
//! the driver opens and closes the volume first.

mod collection;
mod dirs;
mod finding;
mod items;
mod log;
mod repair;
mod replay;
mod space;
mod supers;
mod volume;
mod walk;

pub use finding::{Finding, Place, Repair};

use crate::env::Env;
use crate::error::{Error, Need, Step, Stop};
use crate::format::{Key, Ptr, Super, BLOCK};
use crate::io::{Io, IoError, IoId, IoKind};
use crate::mem::{self, Buf, Map};
use crate::tree::Tree;
use alloc::vec::Vec;

/// What to do about findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nothing; not a byte is written.
    #[default]
    Look,
    /// Repair what can be repaired without a loss.
    Safe,
    /// Repair all that can be repaired.
    All,
}

/// How to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What to do about findings.
    pub mode: Mode,
    /// Do not read the contents of files and vectors.
    pub metadata_only: bool,
}

/// What there is on the volume, for the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Tree nodes.
    pub nodes: u64,
    /// Items in the tree.
    pub items: u64,
    /// Inodes.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Collections.
    pub collections: u64,
    /// Records of collections.
    pub records: u64,
    /// Blocks of data whose checksums were verified.
    pub data_blocks: u64,
    /// Blocks in use.
    pub used: u64,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Valid groups in the log.
    pub log_groups: u64,
    /// The volume was cleanly closed.
    pub clean: bool,
    /// Findings that are errors.
    pub errors: u64,
    /// Errors that were repaired.
    pub repaired: u64,
}

/// Findings that are kept at most; a volume that has more is told from its first ones.
const FINDINGS_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Supers,
    Walk,
    Space,
    Log,
    Salvage,
    Replay,
    Items,
    Collections,
    Totals,
    Repair,
    Done,
}

/// What a step found, not yet said: a step that stops is run again.
#[derive(Debug, Default)]
struct Out {
    findings: Vec<Finding>,
    /// What would put it right, and whether that loses something.
    fixes: Vec<(repair::Fix, bool)>,
}

impl Out {
    fn add(&mut self, f: Finding) -> Step<()> {
        Ok(mem::push(&mut self.findings, f)?)
    }

    /// Something that is one number and should be another.
    fn wrong(
        &mut self,
        place: Place,
        what: &'static str,
        is: u64,
        want: u64,
        rule: &'static str,
        repair: Repair,
    ) -> Step<()> {
        self.add(Finding { place, what, rule, is, want: Some(want), repair, repaired: false })
    }

    /// Something that is not as the rule says.
    fn bad(&mut self, place: Place, what: &'static str, is: u64, rule: &'static str, repair: Repair) -> Step<()> {
        self.add(Finding { place, what, rule, is, want: None, repair, repaired: false })
    }

    /// Puts the newest finding right.
    fn fix(&mut self, f: repair::Fix) -> Step<()> {
        let loss = self.findings.last().is_some_and(|x| x.repair == Repair::Loss);
        Ok(mem::push(&mut self.fixes, (f, loss))?)
    }
}

/// Names a node by all that its pointer says: on a damaged volume two may be at one address.
fn lost_key(p: &Ptr) -> u64 {
    p.addr ^ p.birth.rotate_left(24) ^ u64::from(p.crc).rotate_left(32)
}

/// A check under way.
#[derive(Debug)]
pub struct Check {
    env: Env,
    device_blocks: u64,
    options: Options,
    // I/O: one request at a time.
    request: Option<(IoKind, u64, u64, Buf)>,
    waiting: Option<(u32, IoKind, u64)>,
    generation: u32,
    /// What was read, by [`place_of`]; `None`: the device cannot read it.
    arrived: Map<Option<Buf>>,
    wanted: Vec<(Ptr, u16)>,
    phase: Phase,
    result: Option<Result<(), Error>>,
    // What is known.
    sb: Super,
    tree: Tree,
    /// Nodes of which no copy is good, by [`lost_key`]: the end of the keys that they held.
    lost: Map<Option<Key>>,
    /// The same in the order in which they were found: lowest key (none: the root), level.
    lost_list: Vec<(Option<Key>, u16)>,
    /// Which round of repairs this is; what a repair changes may show more.
    pass: u32,
    walk: walk::Walk,
    used: space::Used,
    groups: Map<space::Stored>,
    log: log::Scan,
    replay: replay::Replay,
    /// Data blocks in use after the replay of the log.
    used_live: space::Used,
    items: items::Items,
    /// Directories that hang below the root, and those that do not.
    dirs: Map<()>,
    rootless: Map<()>,
    collections: Vec<u64>,
    coll: collection::State,
    repair: repair::State,
    findings: Vec<Finding>,
    /// What this round found.
    seen: Vec<Finding>,
    fixes: Vec<(repair::Fix, bool)>,
    figures: Figures,
}

impl Check {
    /// A check of the volume on a device of `device_blocks` blocks.
    pub fn new(env: Env, device_blocks: u64, options: Options) -> Check {
        Check {
            env,
            device_blocks,
            options,
            request: None,
            waiting: None,
            generation: 0,
            arrived: Map::new(),
            wanted: Vec::new(),
            phase: Phase::Supers,
            result: None,
            sb: Super::default(),
            tree: Tree::open([0; 16], 1, Ptr::default(), 0, env.crc32c),
            lost: Map::new(),
            lost_list: Vec::new(),
            pass: 1,
            walk: walk::Walk::default(),
            used: space::Used::default(),
            groups: Map::new(),
            log: log::Scan::default(),
            replay: replay::Replay::default(),
            used_live: space::Used::default(),
            items: items::Items::default(),
            dirs: Map::new(),
            rootless: Map::new(),
            collections: Vec::new(),
            coll: collection::State::default(),
            repair: repair::State::default(),
            findings: Vec::new(),
            seen: Vec::new(),
            fixes: Vec::new(),
            figures: Figures::default(),
        }
    }

    /// The next request for the device; `None` while one is under way, and at the end.
    pub fn poll_io(&mut self) -> Option<Io> {
        while self.waiting.is_none() && self.request.is_none() && self.result.is_none() {
            if let Err(s) = self.advance() {
                let e = match s {
                    Stop::Fail(e) => e,
                    // Only reads and nodes are ever needed, and those were turned into requests.
                    Stop::Need(_) => Error::Corrupt,
                };
                self.result = Some(Err(e));
            }
        }
        let (kind, block, count, buf) = self.request.take()?;
        self.generation = self.generation.wrapping_add(1);
        self.waiting = Some((self.generation, kind, place_of(block, count)));
        Some(Io { id: IoId { slot: 0, generation: self.generation }, kind, block, count, buf })
    }

    /// A request is finished; the buffer comes back.
    pub fn complete(&mut self, id: IoId, result: Result<(), IoError>, buf: Buf) {
        let Some((_, kind, place)) = self.waiting.filter(|w| w.0 == id.generation) else { return };
        self.waiting = None;
        let Some(buf) = self.replay_completed(result, buf) else { return };
        match (kind, result) {
            (IoKind::Read, r) => {
                let buf = r.ok().map(|()| buf);
                if self.arrived.insert(place, buf).is_err() {
                    self.result = Some(Err(Error::NoMemory));
                }
            }
            (_, Ok(())) => {}
            (_, Err(IoError)) => self.result = Some(Err(Error::Io)),
        }
    }

    /// `Some` when the check has ended: `Err` if it could not be carried out (memory, or a write that failed).
    pub fn outcome(&self) -> Option<Result<Figures, Error>> {
        self.result.map(|r| r.map(|()| self.figures))
    }

    /// What was found, in the order in which it was found.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What was counted so far; for progress.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Carries the whole check out with `io`, which does one request at a time.
    pub fn run(&mut self, io: &mut dyn FnMut(&mut Io) -> Result<(), IoError>) -> Result<Figures, Error> {
        loop {
            match self.poll_io() {
                Some(mut x) => {
                    let r = io(&mut x);
                    self.complete(x.id, r, x.buf);
                }
                None => return self.result.unwrap_or(Ok(())).map(|()| self.figures),
            }
        }
    }

    /// One step, or what it lacks as a request.
    fn advance(&mut self) -> Step<()> {
        let r = if self.wanted.is_empty() { self.step() } else { self.fetch() };
        match r {
            Ok(()) => {
                if self.wanted.is_empty() {
                    self.arrived.clear();
                    let limit = (self.env.cache_bytes / BLOCK).max(64);
                    if self.tree.cached() > limit {
                        self.tree.tick();
                        self.tree.evict(limit / 2, u64::MAX);
                    }
                }
                Ok(())
            }
            Err(Stop::Need(Need::Data { addr, blocks })) => {
                let len = (blocks as usize).checked_mul(BLOCK).ok_or(Error::NoMemory)?;
                let end = addr.checked_add(u64::from(blocks));
                if end.is_none_or(|e| e > self.device_blocks) {
                    // Beyond the device: as unreadable as a bad sector.
                    self.arrived.insert(place_of(addr, u64::from(blocks)), None)?;
                    return Ok(());
                }
                self.request = Some((IoKind::Read, addr, u64::from(blocks), Buf::zeroed(len)?));
                Ok(())
            }
            Err(Stop::Need(Need::Node { parent, index, count })) => {
                let mut list = Vec::new();
                self.tree.missing(parent, index, count, &mut list)?;
                list.retain(|(p, _)| !self.lost.contains(lost_key(p)));
                self.wanted = list;
                if self.wanted.is_empty() {
                    return Err(Stop::Fail(Error::Corrupt));
                }
                Ok(())
            }
            Err(s) => Err(s),
        }
    }

    fn step(&mut self) -> Step<()> {
        match self.phase {
            Phase::Supers => self.check_supers(),
            Phase::Walk => self.walk_step(),
            Phase::Space => self.check_space(),
            Phase::Log => self.log_step(),
            Phase::Salvage => self.salvage_step(),
            Phase::Replay => self.replay_step(),
            Phase::Items => self.item_step(),
            Phase::Collections => self.collection_step(),
            Phase::Totals => self.check_totals(),
            Phase::Repair => self.repair_step(),
            Phase::Done => {
                self.conclude();
                Ok(())
            }
        }
    }

    /// Takes in what a finished step found.
    fn say(&mut self, out: Out) -> Step<()> {
        for f in out.findings {
            if self.seen.len() < FINDINGS_MAX {
                mem::push(&mut self.seen, f)?;
            }
            // What was told in an earlier round is not told again.
            if self.pass > 1 && self.findings.iter().any(|o| same(o, &f)) {
                continue;
            }
            if f.is_error() {
                self.figures.errors = self.figures.errors.saturating_add(1);
            }
            if self.findings.len() < FINDINGS_MAX {
                mem::push(&mut self.findings, f)?;
            }
        }
        for f in out.fixes {
            mem::push(&mut self.fixes, f)?;
        }
        Ok(())
    }

    /// The end of all rounds: what the last one no longer saw was repaired.
    fn conclude(&mut self) {
        if self.pass > 1 {
            let seen = &self.seen;
            let mut repaired = 0u64;
            for f in self.findings.iter_mut().filter(|f| f.is_error()) {
                f.repaired = !seen.iter().any(|o| same(o, f));
                repaired = repaired.saturating_add(u64::from(f.repaired));
            }
            self.figures.repaired = repaired;
        }
        self.result = Some(Ok(()));
    }

    /// Begins anew after a repair.
    fn restart(&mut self) {
        self.figures = Figures { errors: self.figures.errors, ..Figures::default() };
        self.seen.clear();
        self.arrived.clear();
        self.wanted.clear();
        self.lost.clear();
        self.lost_list.clear();
        self.walk = walk::Walk::default();
        self.groups = Map::new();
        self.log = log::Scan::default();
        self.replay = replay::Replay::default();
        self.items = items::Items::default();
        self.dirs.clear();
        self.rootless.clear();
        self.collections.clear();
        self.coll = collection::State::default();
        self.repair = repair::State::default();
        self.fixes.clear();
        self.pass = self.pass.saturating_add(1);
        self.phase = Phase::Supers;
    }

    /// `blocks` blocks from `addr` on; `None` if the device cannot give them.
    fn read(&self, addr: u64, blocks: u32) -> Step<Option<&[u8]>> {
        let len = (blocks as usize).saturating_mul(BLOCK);
        match self.arrived.get(place_of(addr, u64::from(blocks))) {
            Some(None) => Ok(None),
            Some(Some(b)) if b.len() >= len => Ok(b.get(..len)),
            _ => Err(Stop::Need(Need::Data { addr, blocks })),
        }
    }

    /// Brings the wanted nodes in, from whichever copy is good.
    fn fetch(&mut self) -> Step<()> {
        while let Some((p, level)) = self.wanted.last().copied() {
            let mut good = None;
            for addr in [p.addr, p.twin] {
                if addr != 0 && good.is_none() {
                    good = match self.read(addr, 1)? {
                        Some(b) if self.tree.verify(&p, level, b) => Some(Buf::padded(b)?),
                        _ => None,
                    };
                }
            }
            let there = match good {
                Some(b) => match self.tree.admit(p, level, b) {
                    Ok(()) => true,
                    // A younger node is at its address.
                    Err(Error::Corrupt) => false,
                    Err(e) => return Err(Stop::Fail(e)),
                },
                // The walk over the tree found it good or noted it as lost; now it cannot be read.
                None => false,
            };
            if !there {
                self.lost.insert(lost_key(&p), None)?;
            }
            self.wanted.pop();
        }
        Ok(())
    }

    /// The pointer that a stop asks for, if no copy of that node is good.
    fn lost_target(&self, s: &Stop) -> Step<Option<Option<Key>>> {
        let Stop::Need(Need::Node { parent, index, .. }) = s else { return Ok(None) };
        let mut list = Vec::new();
        self.tree.missing(*parent, *index, 1, &mut list)?;
        Ok(list.first().and_then(|(p, _)| self.lost.get(lost_key(p))).copied())
    }

    /// The first item from `from` to `to`, what is lost left out.
    fn next(&self, from: Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        let mut from = from;
        loop {
            match self.tree.next(&from, to) {
                Err(s) => match self.lost_target(&s)? {
                    Some(Some(high)) if high > from && high <= *to => from = high,
                    Some(_) => return Ok(None),
                    None => return Err(s),
                },
                other => return other,
            }
        }
    }

    /// The value of `key`; `Err(Lost)` inside if the node that would hold it is lost.
    fn get(&self, key: &Key) -> Step<Got<'_>> {
        match self.tree.get(key) {
            Ok(Some(v)) => Ok(Got::Value(v)),
            Ok(None) => Ok(Got::None),
            Err(s) => match self.lost_target(&s)? {
                Some(_) => Ok(Got::Lost),
                None => Err(s),
            },
        }
    }

    /// Whether blocks may belong to something: inside the volume, and not a superblock's place.
    fn placeable(&self, addr: u64, blocks: u64) -> bool {
        space::placeable(self.sb.blocks, addr, blocks)
    }
}

/// Whether two findings say the same.
fn same(a: &Finding, b: &Finding) -> bool {
    (a.place, a.what, a.is) == (b.place, b.what, b.is)
}

/// Names a read by its first block and its length.
fn place_of(block: u64, count: u64) -> u64 {
    (block << 9) | count.min(511)
}

/// What a lookup gave.
#[derive(Clone, Copy, Debug)]
enum Got<'a> {
    Value(&'a [u8]),
    None,
    /// The node that would hold it is damaged: nothing can be said.
    Lost,
}
