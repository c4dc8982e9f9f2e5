// SPDX-License-Identifier: GPL-2.0-only
//! Making a new volume: the engine itself, started on an empty tree, writes the first checkpoint.

use super::log::Place;
use super::space::{fixed_blocks, AllocStop, Space, Zone};
use super::{State, Volume};
use crate::env::Env;
use crate::error::{Error, Stop};
use crate::format::{BLOCK, SUPER_MAGIC, SUPER_SLOTS, VERSION, VOLUME_MAX, VOLUME_MIN};
use crate::io::IoKind;
use crate::mem::{self, Buf, Map};
use crate::ns;
use crate::op::Time;
use crate::tree::Tree;
use crate::txn::Txn;
use alloc::vec::Vec;

/// How to make a volume.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Size in blocks of 4096 bytes, at least [`VOLUME_MIN`].
    pub blocks: u64,
    /// Copies of metadata: 1 or 2.
    pub copies: u32,
    /// Identity, random.
    pub uuid: [u8; 16],
    /// Key of the hash for names, random and secret.
    pub hash_key: [u8; 16],
    /// Label, UTF-8, zero-padded.
    pub label: [u8; 64],
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Permission bits of the root directory.
    pub mode: u32,
}

/// The writes (block, bytes) that make a volume. Carry them out in order, then flush; the last two are the
/// superblocks. Nothing else of the device needs to be touched.
pub fn mkfs(env: Env, o: &FormatOptions, now: Time) -> Result<Vec<(u64, Buf)>, Error> {
    if o.blocks < VOLUME_MIN || o.blocks > VOLUME_MAX || !(1..=2).contains(&o.copies) {
        return Err(Error::Invalid);
    }
    let mut out = Vec::new();
    // Traces of whatever was here: boot area and superblocks, ours of before included.
    mem::push(&mut out, (0, Buf::zeroed(16 * BLOCK)?))?;
    for slot in SUPER_SLOTS.iter().flatten() {
        mem::push(&mut out, (*slot, Buf::zeroed(BLOCK)?))?;
    }
    // Used where it was made, to keep it off the stack a second time.
    let mut made = Volume::blank(env, super::Options::default(), now);
    let v = match &mut made {
        Ok(v) => v,
        Err(e) => return Err(*e),
    };
    let sb = &mut *v.sb;
    sb.version = VERSION;
    sb.magic = SUPER_MAGIC;
    sb.uuid = o.uuid;
    sb.label = o.label;
    sb.block_size = BLOCK as u32;
    sb.checksum = 1;
    sb.blocks = o.blocks;
    sb.copies = o.copies;
    sb.hash_key = o.hash_key;
    sb.created = now.sec;
    v.view.tree = Tree::create(o.uuid, o.copies, env.crc32c)?;
    *v.space = Space::new(o.blocks, o.blocks.saturating_sub(fixed_blocks()));
    let i = &mut v.view.info;
    i.hash_key = o.hash_key;
    i.uuid = o.uuid;
    i.generation = 1;
    i.next_ino = 1;
    i.blocks = o.blocks;
    i.free = v.space.free();
    i.available = i.free;
    // Two log segments, used in turn.
    let segment = (o.blocks / 64).clamp(320, 4096) as u32;
    let mut segments = [(0u64, 0u64, segment); 2];
    for s in &mut segments {
        s.0 = v.take_run(Zone::Meta, segment)?;
        if o.copies == 2 {
            s.1 = v.take_run(Zone::Twin, segment)?;
        }
    }
    let [first, spare] = segments;
    v.log.segment = first;
    v.log.spare = Some(spare);
    v.log.next = Place { addr: first.0, twin: first.1, room: first.2 };
    v.log.seq = 1;
    v.log.epoch = 1;
    make_root(v, o, now)?;
    v.view.info.next_ino = v.view.info.next_ino.max(2);
    // The root took no number, but it is one.
    v.view.info.inodes = 1;
    v.start_checkpoint(true)?;
    gather(v, now, &mut out)?;
    Ok(out)
}

/// Puts the root directory into the tree.
#[inline(never)]
fn make_root(v: &mut Volume, o: &FormatOptions, now: Time) -> Result<(), Error> {
    let none = Map::new();
    let opens = Map::new();
    let made = {
        let mut t = Txn::new(&*v.view, &none, &opens, now);
        ns::mkroot(&mut t, o.uid, o.gid, o.mode).map(|()| t.finish())
    };
    let done = made.and_then(|c| {
        v.ready_to_apply(&c)?;
        v.apply(&c);
        Ok(())
    });
    match done {
        Ok(()) => Ok(()),
        Err(Stop::Fail(e)) => Err(e),
        // An empty tree is in memory whole.
        Err(Stop::Need(_)) => Err(Error::Corrupt),
    }
}

/// Runs a volume until it has nothing to write any more; its writes are appended to `out`.
#[inline(never)]
fn gather(v: &mut Volume, now: Time, out: &mut Vec<(u64, Buf)>) -> Result<(), Error> {
    v.pump();
    while let Some(io) = v.poll_io() {
        match io.kind {
            IoKind::Write | IoKind::WriteDurable => {
                mem::push(out, (io.block, io.buf))?;
                v.complete(now, io.id, Ok(()), Buf::empty());
            }
            _ => v.complete(now, io.id, Ok(()), io.buf),
        }
    }
    match v.state {
        State::Ready => Ok(()),
        State::Failed(e) => Err(e),
        _ => Err(Error::NoMemory),
    }
}

impl Volume {
    fn take_run(&mut self, zone: Zone, n: u32) -> Result<u64, Error> {
        loop {
            match self.space.alloc_exact(zone, n)? {
                Ok(addr) => {
                    self.space.commit(addr, n);
                    return Ok(addr);
                }
                Err(AllocStop::Load(g)) => self.space.load(g, None)?,
                Err(AllocStop::Full) => return Err(Error::NoSpace),
            }
        }
    }
}
