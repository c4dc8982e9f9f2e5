// SPDX-License-Identifier: GPL-2.0-only
//! A volume that was not closed is what its log makes of the newest checkpoint. The engine replays the log in
//! memory, writing nothing; what comes out is checked like a checkpoint.

use super::{Check, Finding, Out, Phase, Place, Repair};
use crate::engine::{Options, State, Volume};
use crate::error::{Error, Step, Stop};
use crate::io::{IoError, IoId, IoKind};
use crate::mem::{self, Buf};
use crate::op::Time;
use crate::txn::Base;
use alloc::vec::Vec;

/// The volume whose log is being replayed.
#[derive(Debug, Default)]
pub struct Replay {
    /// At most one; a list because what is put into one is never copied over the stack twice.
    volume: Vec<Result<Volume, Error>>,
    /// Its request that is under way.
    id: Option<IoId>,
    done: bool,
}

impl Check {
    #[inline(never)]
    fn open_volume(&mut self) -> Step<()> {
        let list = &mut self.replay.volume;
        Ok(mem::push(
            list,
            Volume::open(
                self.env,
                self.device_blocks,
                Options { read_only: true, whole_collections: true, ..Options::default() },
                Time::default(),
            ),
        )?)
    }

    #[inline(never)]
    pub(super) fn replay_step(&mut self) -> Step<()> {
        if self.replay.volume.is_empty() {
            return self.open_volume();
        }
        let v = match self.replay.volume.first_mut() {
            Some(Ok(v)) => v,
            Some(Err(e)) => return Err(Stop::Fail(*e)),
            None => return Ok(()),
        };
        if let Some(io) = v.poll_io() {
            if io.kind != IoKind::Read {
                // It was opened so that it never writes.
                return Err(Stop::Fail(Error::Corrupt));
            }
            self.replay.id = Some(io.id);
            self.request = Some((io.kind, io.block, io.count, io.buf));
            return Ok(());
        }
        match v.state() {
            State::Ready => {
                let info = *v.view().info();
                self.tree = v.take_tree();
                // A checkpoint that was being written when it ended may have been one further.
                self.sb.generation = info.generation.saturating_add(1);
                self.sb.next_ino = info.next_ino;
                self.sb.inodes = info.inodes;
                self.replay.done = true;
            }
            State::Failed(e) if !matches!(e, Error::Corrupt | Error::Io) => return Err(Stop::Fail(e)),
            State::Failed(e) => {
                self.replay.volume.clear();
                let mut out = Out::default();
                let rule = "one that can be replayed (the number is the error's)";
                let repair = if self.may_salvage() { Repair::Loss } else { Repair::No };
                out.bad(Place::Volume, "log", e.errno() as u64, rule, repair)?;
                self.say(out)?;
                if self.may_salvage() {
                    self.phase = Phase::Salvage;
                    return Ok(());
                }
            }
            // Only memory can hold it up, and then it is tried again by the clock, which there is none of here.
            _ => return Err(Stop::Fail(Error::NoMemory)),
        }
        self.used_live.init(self.sb.blocks);
        self.phase = Phase::Items;
        Ok(())
    }

    /// Gives the volume the result of its request. False: the request was not its.
    pub(super) fn replay_completed(&mut self, result: Result<(), IoError>, buf: Buf) -> Option<Buf> {
        match (self.replay.id.take(), self.replay.volume.first_mut()) {
            (Some(id), Some(Ok(v))) => {
                v.complete(Time::default(), id, result, buf);
                None
            }
            _ => Some(buf),
        }
    }

    /// The volume with its log applied, if there was one.
    pub(super) fn replayed(&self) -> Option<&Volume> {
        self.replay.volume.first().filter(|_| self.replay.done)?.as_ref().ok()
    }

    /// With a log, blocks may have changed hands since the checkpoint: counts anew who uses what.
    pub(super) fn claim_live(&mut self, place: Place, addr: u64, blocks: u64) -> Step<()> {
        if self.replay.done && self.placeable(addr, blocks) {
            if let Some(b) = self.used_live.mark(addr, blocks)? {
                let mut out = Out::default();
                let rule = "blocks that nothing else uses";
                let f = Finding {
                    place,
                    what: "Extent.addr",
                    rule,
                    is: b,
                    want: None,
                    repair: Repair::No,
                    repaired: false,
                };
                out.add(f)?;
                self.say(out)?;
            }
        }
        Ok(())
    }
}
