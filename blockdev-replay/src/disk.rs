// SPDX-License-Identifier: GPL-2.0-only
//! The disk in a state that a power cut left. A [`Layer`] knows for each sector of 512 bytes where in the log its
//! bytes are, so a state costs little memory; a [`Trial`] is a device over it that keeps what recovery writes to itself,
//! and can tell what that was.

use crate::cut::{Cut, Fate};
use crate::log::{Log, SECTOR};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vexfs_embedded::Device;

const BLOCK: u64 = 4096;
const PER_BLOCK: usize = (BLOCK / SECTOR) as usize;
/// A sector that was discarded.
const ZERO: u64 = 1;
/// Places in the log are kept plus this; 0 means: as before the log.
const LOGGED: u64 = 2;

/// Where the sectors of a disk are, as far as the log says.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    blocks: HashMap<u64, [u64; PER_BLOCK]>,
}

impl Layer {
    fn set(&mut self, sector: u64, place: u64) {
        let n = PER_BLOCK as u64;
        self.blocks.entry(sector / n).or_default()[(sector % n) as usize] = place;
    }

    fn get(&self, sector: u64) -> u64 {
        let n = PER_BLOCK as u64;
        self.blocks.get(&(sector / n)).map_or(0, |b| b[(sector % n) as usize])
    }

    /// An entry of the log has reached the disk.
    pub fn apply(&mut self, log: &Log, entry: usize, fate: &Fate) {
        let Some(e) = log.entries.get(entry).filter(|e| e.changes()) else { return };
        for s in 0..e.len / SECTOR {
            let arrived = match fate {
                Fate::Whole => true,
                Fate::Lost => false,
                Fate::Torn(mask) => mask.get((s / 8) as usize).is_some_and(|b| b >> (s % 8) & 1 == 1),
            };
            if arrived {
                self.set(e.offset / SECTOR + s, if e.is_discard() { ZERO } else { LOGGED + e.data + s * SECTOR });
            }
        }
    }
}

/// What is durable at some place of the log, and goes forward with it.
pub struct Durable {
    layer: Arc<Layer>,
    /// Entries that have been looked at.
    upto: usize,
    /// Entries that were volatile then, in order.
    pending: Vec<usize>,
    start: usize,
    flushes: bool,
}

impl Durable {
    /// Before the first entry. With `flushes` off, nothing from entry `start` on is ever durable.
    pub fn new(start: usize, flushes: bool) -> Durable {
        Durable { layer: Arc::default(), upto: 0, pending: Vec::new(), start, flushes }
    }

    /// Goes on until `at` entries have been; never back.
    pub fn advance(&mut self, log: &Log, at: usize) {
        let layer = Arc::make_mut(&mut self.layer);
        for i in self.upto..at.min(log.entries.len()) {
            let e = &log.entries[i];
            let honest = self.flushes || i < self.start;
            if e.is_flush() && honest {
                for p in self.pending.drain(..) {
                    layer.apply(log, p, &Fate::Whole);
                }
            }
            if i + 1 == self.start {
                // Everything up to here is taken for durable.
                for p in self.pending.drain(..) {
                    layer.apply(log, p, &Fate::Whole);
                }
                layer.apply(log, i, &Fate::Whole);
            } else if e.changes() {
                self.pending.push(i);
            }
        }
        self.upto = self.upto.max(at);
    }

    /// The volatile entries that may be lost: those with FUA cannot.
    pub fn volatile(&self, log: &Log) -> Vec<usize> {
        let fua = |i: &usize| self.flushes && log.entries[*i].is_fua();
        self.pending.iter().copied().filter(|i| !fua(i)).collect()
    }

    /// The state after the cut; its place must be the one that this has gone to.
    pub fn state(&self, log: &Log, cut: &Cut) -> Arc<Layer> {
        if self.pending.is_empty() {
            return self.layer.clone();
        }
        let mut layer = (*self.layer).clone();
        for i in &self.pending {
            let fate = if self.flushes && log.entries[*i].is_fua() { Some(&Fate::Whole) } else { cut.fates.get(i) };
            if let Some(fate) = fate {
                layer.apply(log, *i, fate);
            }
        }
        Arc::new(layer)
    }
}

/// A request that a trial carried out.
#[derive(Clone, Debug)]
pub enum Request {
    /// Data went into the volatile cache.
    Write(u64, Vec<u8>),
    /// Data became durable.
    WriteDurable(u64, Vec<u8>),
    /// A flush.
    Flush,
}

/// The disk after a power cut, to be recovered.
pub struct Trial {
    log: Arc<Log>,
    /// What the disk held before the log began; nothing: zeros.
    base: Option<Arc<File>>,
    len: u64,
    layer: Arc<Layer>,
    own: Mutex<Own>,
}

#[derive(Default)]
struct Own {
    sectors: HashMap<u64, [u8; SECTOR as usize]>,
    trace: Vec<Request>,
}

impl Trial {
    /// A disk of `len` bytes in the state `layer`.
    pub fn new(log: Arc<Log>, base: Option<Arc<File>>, len: u64, layer: Arc<Layer>) -> Trial {
        Trial { log, base, len, layer, own: Mutex::default() }
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was written to it, in the order in which it ended.
    pub fn trace(&self) -> Vec<Request> {
        self.own().trace.clone()
    }

    /// The same disk without what was written to it, but with `requests`; sectors of a write for which `arrived`
    /// is false did not arrive.
    pub fn again(&self, requests: &[Request], mut arrived: impl FnMut(usize, u64) -> bool) -> Trial {
        let trial = Trial::new(self.log.clone(), self.base.clone(), self.len, self.layer.clone());
        for (n, r) in requests.iter().enumerate() {
            if let Request::Write(offset, data) | Request::WriteDurable(offset, data) = r {
                let mut own = trial.own();
                for (s, sector) in data.chunks_exact(SECTOR as usize).enumerate() {
                    if let (true, Ok(sector)) = (arrived(n, s as u64), sector.try_into()) {
                        own.sectors.insert(offset / SECTOR + s as u64, sector);
                    }
                }
            }
        }
        trial
    }

    fn aligned(&self, offset: u64, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len as u64);
        if offset % SECTOR != 0 || len as u64 % SECTOR != 0 || end.is_none_or(|e| e > self.len) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        Ok(())
    }

    fn keep(&self, offset: u64, data: &[u8], request: Request) -> io::Result<()> {
        self.aligned(offset, data.len())?;
        let mut own = self.own();
        for (s, sector) in data.chunks_exact(SECTOR as usize).enumerate() {
            if let Ok(sector) = sector.try_into() {
                own.sectors.insert(offset / SECTOR + s as u64, sector);
            }
        }
        own.trace.push(request);
        Ok(())
    }

    /// Writes the disk to a file, with holes where it is zero.
    pub fn write_to(&self, path: &std::path::Path) -> io::Result<()> {
        let out = File::options().write(true).create(true).truncate(true).open(path)?;
        out.set_len(self.len)?;
        let mut buf = vec![0; 1 << 16];
        let mut at = 0;
        while at < self.len {
            let n = (self.len - at).min(buf.len() as u64) as usize;
            // Without a base there is nothing but what the log says.
            let blocks = at / BLOCK..(at + n as u64).div_ceil(BLOCK);
            if self.base.is_some() || blocks.clone().any(|b| self.layer.blocks.contains_key(&b)) {
                self.read_at(at, &mut buf[..n])?;
                if buf[..n].iter().any(|b| *b != 0) {
                    out.write_all_at(&buf[..n], at)?;
                }
            }
            at += n as u64;
        }
        Ok(())
    }
}

impl Device for Trial {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.aligned(offset, buf.len())?;
        match &self.base {
            Some(base) => {
                buf.fill(0);
                let mut done = 0;
                while done < buf.len() {
                    match base.read_at(&mut buf[done..], offset + done as u64)? {
                        0 => break,
                        n => done += n,
                    }
                }
            }
            None => buf.fill(0),
        }
        let first = offset / SECTOR;
        let count = buf.len() as u64 / SECTOR;
        let mut s = 0;
        while s < count {
            let place = self.layer.get(first + s);
            // Sectors that lie one after the other in the log are read at once.
            let mut n = 1;
            while place >= LOGGED && s + n < count && self.layer.get(first + s + n) == place + n * SECTOR {
                n += 1;
            }
            let part = &mut buf[(s * SECTOR) as usize..((s + n) * SECTOR) as usize];
            match place {
                0 => {}
                ZERO => part.fill(0),
                at => self.log.bytes(at - LOGGED, part)?,
            }
            s += n;
        }
        let own = self.own();
        if !own.sectors.is_empty() {
            for (s, part) in buf.chunks_exact_mut(SECTOR as usize).enumerate() {
                if let Some(sector) = own.sectors.get(&(first + s as u64)) {
                    part.copy_from_slice(sector);
                }
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.keep(offset, data, Request::Write(offset, data.to_vec()))
    }

    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.keep(offset, data, Request::WriteDurable(offset, data.to_vec()))
    }

    fn flush(&self) -> io::Result<()> {
        self.own().trace.push(Request::Flush);
        Ok(())
    }
}
