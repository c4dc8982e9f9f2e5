// SPDX-License-Identifier: GPL-2.0-only
//! A volume and its disk, driven in one thread. Every request to the disk is carried out at once; a reply that does
//! not come within a generous number of steps is a hang, and panics.

use std::collections::BTreeMap;
use std::sync::Arc;
use vexfs_core::engine::{Options, State, Volume};
use vexfs_core::env::Env;
use vexfs_core::io::{Io, IoError, IoKind};
use vexfs_core::op::{Cred, Op, Reply, Time};
use vexfs_core::Error;

/// Bytes in a block.
pub const BLOCK: usize = 4096;
type Block = Box<[u8; BLOCK]>;

/// A disk: shared blocks that never change, and what was written over them. Other blocks are zeros.
#[derive(Clone)]
pub struct Disk {
    base: Arc<BTreeMap<u64, Block>>,
    over: BTreeMap<u64, Block>,
    /// Size.
    pub blocks: u64,
    /// How often it was opened: each time is later than the one before.
    opened: i64,
}

impl Disk {
    /// A disk of zeros.
    pub fn new(blocks: u64) -> Disk {
        Disk { base: Arc::default(), over: BTreeMap::new(), blocks, opened: 0 }
    }

    /// The same contents, all shared.
    pub fn freeze(mut self) -> Disk {
        let mut all: BTreeMap<u64, Block> = (*self.base).clone();
        all.append(&mut self.over);
        all.retain(|_, b| b.iter().any(|x| *x != 0));
        Disk { base: Arc::new(all), over: BTreeMap::new(), blocks: self.blocks, opened: self.opened }
    }

    /// A block.
    pub fn block(&self, at: u64) -> &[u8; BLOCK] {
        static ZERO: [u8; BLOCK] = [0; BLOCK];
        self.over.get(&at).or_else(|| self.base.get(&at)).map_or(&ZERO, |b| b)
    }

    /// A block, to change.
    pub fn block_mut(&mut self, at: u64) -> &mut [u8; BLOCK] {
        if !self.over.contains_key(&at) {
            let copy = Box::new(*self.block(at));
            self.over.insert(at, copy);
        }
        self.over.get_mut(&at).unwrap()
    }

    /// Blocks that are not zero, in order.
    pub fn used(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.base.keys().chain(self.over.keys()).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Carries a request out. Reads beyond the end fail, as a device lets them; a write there must never be asked for.
    pub fn carry_out(&mut self, io: &mut Io) -> Result<(), IoError> {
        if matches!(io.kind, IoKind::Flush | IoKind::Discard) {
            return Ok(());
        }
        assert_eq!(io.buf.len() as u64, io.count * BLOCK as u64, "length of {:?}", io.kind);
        let inside = io.block.checked_add(io.count).is_some_and(|end| end <= self.blocks);
        if io.kind == IoKind::Read {
            if !inside {
                return Err(IoError);
            }
            for (i, b) in io.buf.chunks_exact_mut(BLOCK).enumerate() {
                b.copy_from_slice(self.block(io.block + i as u64));
            }
        } else {
            assert!(inside, "a write outside the device at {}", io.block);
            for (i, b) in io.buf.chunks_exact(BLOCK).enumerate() {
                self.block_mut(io.block + i as u64).copy_from_slice(b);
            }
        }
        Ok(())
    }
}

/// A volume on a disk.
pub struct Machine {
    /// The volume.
    pub volume: Volume,
    /// Its disk.
    pub disk: Disk,
    /// The time, which moves only when the volume waits for it.
    pub now: Time,
}

/// The environment: small limits, the kernels of this processor.
pub fn env() -> Env {
    Env {
        crc32c: vexfs_embedded::crc32c,
        distance: vexfs_core::dist::native(),
        cache_bytes: 1 << 20,
        log_bytes: 512 << 10,
    }
}

/// More steps than anything on so small a volume can need.
const STEPS: usize = 200_000;

impl Machine {
    /// Opens the volume on `disk`; the error says why it cannot be opened.
    pub fn open(mut disk: Disk, read_only: bool) -> Result<Machine, (Error, Disk)> {
        disk.opened += 1;
        let now = Time { sec: 1_700_000_000 + 3600 * disk.opened, nsec: 0 };
        let volume = match Volume::open(env(), disk.blocks, Options { read_only, ..Options::default() }, now) {
            Ok(v) => v,
            Err(e) => return Err((e, disk)),
        };
        let mut m = Machine { volume, disk, now };
        for _ in 0..STEPS {
            match m.volume.state() {
                State::Opening => m.step(),
                State::Failed(e) => return Err((e, m.disk)),
                _ => return Ok(m),
            }
        }
        panic!("hang: the volume neither opens nor fails");
    }

    /// Everything that the volume wants of the disk.
    fn io(&mut self) -> bool {
        let mut any = false;
        let mut requests = 0;
        while let Some(mut io) = self.volume.poll_io() {
            any = true;
            requests += 1;
            assert!(requests < STEPS, "hang: requests without end");
            let result = self.disk.carry_out(&mut io);
            self.volume.complete(self.now, io.id, result, io.buf);
        }
        any
    }

    /// One step of a driver: I/O, else background work, else time.
    fn step(&mut self) {
        if self.io() || self.volume.work() {
            return;
        }
        if let Some(t) = self.volume.poll_timeout() {
            self.now = self.now.max(t);
            self.volume.handle_timeout(self.now);
        }
    }

    /// Carries out an operation.
    pub fn call(&mut self, op: Op) -> Result<Reply, Error> {
        let id = self.volume.submit(self.now, op)?;
        for _ in 0..STEPS {
            while let Some((done, reply)) = self.volume.poll_reply() {
                if done == id {
                    return reply;
                }
            }
            self.step();
        }
        panic!("hang: an operation has no reply");
    }

    /// Background work, to its end.
    pub fn settle(&mut self) {
        for _ in 0..STEPS {
            if !self.volume.work() && !self.io() {
                return;
            }
        }
        panic!("hang: background work does not end");
    }

    /// Sends a frame to a directory as root.
    pub fn request(&mut self, dir: u64, frame: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.request_as(dir, Cred::default(), frame)
    }

    /// Sends a frame to a directory.
    pub fn request_as(&mut self, dir: u64, cred: Cred, frame: Vec<u8>) -> Result<Vec<u8>, Error> {
        let op = if vexfs_core::proto::is_read(&frame) {
            Op::Query { dir, cred, frame }
        } else {
            Op::Request { dir, cred, frame }
        };
        match self.call(op)? {
            Reply::Bytes(b) => Ok(b),
            r => panic!("a request is answered by {r:?}"),
        }
    }
}

/// A directory of a machine, for the client crate.
pub struct Dir<'a> {
    /// The machine.
    pub machine: &'a mut Machine,
    /// Inode of the directory.
    pub ino: u64,
}

impl vexfs_client::Transport for Dir<'_> {
    fn call(&mut self, frame: Vec<u8>) -> std::io::Result<Vec<u8>> {
        self.machine.request(self.ino, frame).map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
    }
}
