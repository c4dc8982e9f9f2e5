// SPDX-License-Identifier: GPL-2.0-only
//! A device that loses power, for tests. Killing a process proves nothing about flushes: what it wrote
//! is in the page cache and reaches the disk all the same. [`PowerCut`] keeps every write that was not flushed
//! out of the image, in a journal beside it; after the process has died, [`settle`] writes a random
//! part of them to the image, whole or torn at sectors of 512 bytes, as a disk does whose power is cut.
//!
//! With [`PowerCut::without_flushes`] a flush does nothing, as if the code that should ask for it did
//! not. A test of durability that passes with it has tested nothing.

use crate::device::Device;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that a disk writes as a whole.
const SECTOR: usize = 512;
/// Unit of the overlay; a multiple of what the core writes.
const BLOCK: u64 = 4096;
const MAGIC: u32 = u32::from_le_bytes(*b"pwct");
const HEAD: usize = 32;

/// Small deterministic generator (SplitMix64), so that a seed names a test for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }
}

/// One record of the journal: head (magic, kind, offset, length, checksum), data.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    /// May be lost.
    Volatile = 1,
    /// Was acknowledged as durable: never lost.
    Durable = 2,
}

fn record(kind: Kind, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut b = vec![0; HEAD];
    b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    b[4..8].copy_from_slice(&(kind as u32).to_le_bytes());
    b[8..16].copy_from_slice(&offset.to_le_bytes());
    b[16..24].copy_from_slice(&(data.len() as u64).to_le_bytes());
    b[24..28].copy_from_slice(&crate::crc32c(0, data).to_le_bytes());
    let head = crate::crc32c(0, &b[..28]);
    b[28..32].copy_from_slice(&head.to_le_bytes());
    b.extend_from_slice(data);
    b
}

/// Reads the journal up to its end or the first record that was not written whole.
fn records(journal: &[u8]) -> Vec<(Kind, u64, &[u8])> {
    let word = |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap_or_default());
    let long = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap_or_default());
    let mut all = Vec::new();
    let mut rest = journal;
    while rest.len() >= HEAD {
        let (head, tail) = rest.split_at(HEAD);
        if word(head, 0) != MAGIC || word(head, 28) != crate::crc32c(0, &head[..28]) {
            break;
        }
        let len = long(head, 16) as usize;
        let Some(data) = tail.get(..len) else { break };
        if crate::crc32c(0, data) != word(head, 24) {
            break;
        }
        let kind = if word(head, 4) == Kind::Durable as u32 { Kind::Durable } else { Kind::Volatile };
        all.push((kind, long(head, 8), data));
        rest = &tail[len..];
    }
    all
}

/// A device whose unflushed writes can be lost. The process may be killed at any moment.
pub struct PowerCut<D: Device> {
    inner: D,
    side: PathBuf,
    flushes: bool,
    state: Mutex<State>,
}

struct State {
    journal: File,
    /// Bytes in the journal.
    end: u64,
    /// Where in the journal the newest bytes of a block are.
    newest: HashMap<u64, u64>,
    /// Writes in the journal, in order: offset on the device, place in the journal, length.
    writes: Vec<(u64, u64, usize)>,
}

impl<D: Device> PowerCut<D> {
    /// Wraps `inner`; the journal is the file `side`, which must be empty or absent ([`settle`] it first).
    pub fn new(inner: D, side: impl AsRef<Path>) -> io::Result<PowerCut<D>> {
        let side = side.as_ref().to_path_buf();
        let journal = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&side)?;
        if journal.metadata()?.len() != 0 {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{}: holds writes of an earlier run; settle them first", side.display()),
            ));
        }
        let state = State { journal, end: 0, newest: HashMap::new(), writes: Vec::new() };
        Ok(PowerCut { inner, side, flushes: true, state: Mutex::new(state) })
    }

    /// The same device on which flushes and durable writes make nothing durable.
    pub fn without_flushes(mut self) -> PowerCut<D> {
        self.flushes = false;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, kind: Kind, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset % BLOCK != 0 || data.len() as u64 % BLOCK != 0 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let bytes = record(kind, offset, data);
        let mut s = self.state();
        let at = s.end;
        s.journal.write_all_at(&bytes, at)?;
        s.end += bytes.len() as u64;
        let body = at + HEAD as u64;
        s.writes.push((offset, body, data.len()));
        for i in 0..data.len() as u64 / BLOCK {
            s.newest.insert(offset / BLOCK + i, body + i * BLOCK);
        }
        Ok(())
    }

    /// Moves all writes of the journal to the image, in order.
    fn apply(&self, s: &mut State) -> io::Result<()> {
        let mut buf = Vec::new();
        for (offset, at, len) in &s.writes {
            buf.resize(*len, 0);
            s.journal.read_exact_at(&mut buf, *at)?;
            self.inner.write_at(*offset, &buf)?;
        }
        // Only now: a process killed before has them still in the journal.
        s.journal.set_len(0)?;
        s.end = 0;
        s.newest.clear();
        s.writes.clear();
        Ok(())
    }
}

impl<D: Device> Device for PowerCut<D> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let s = self.state();
        self.inner.read_at(offset, buf)?;
        let mut at = 0;
        while at < buf.len() {
            let pos = offset + at as u64;
            let within = pos % BLOCK;
            let n = (buf.len() - at).min((BLOCK - within) as usize);
            if let Some(place) = s.newest.get(&(pos / BLOCK)) {
                s.journal.read_exact_at(&mut buf[at..at + n], place + within)?;
            }
            at += n;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.append(Kind::Volatile, offset, data)
    }

    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.append(if self.flushes { Kind::Durable } else { Kind::Volatile }, offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        if !self.flushes {
            return Ok(());
        }
        let mut s = self.state();
        self.apply(&mut s)
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

impl<D: Device> Drop for PowerCut<D> {
    /// A process that ends by itself does not cut the power: everything arrives.
    fn drop(&mut self) {
        let mut s = self.state();
        if self.apply(&mut s).is_ok() {
            let _ = std::fs::remove_file(&self.side);
        }
    }
}

/// What [`settle`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Writes that arrived whole.
    pub whole: u64,
    /// Writes of which only some sectors arrived.
    pub torn: u64,
    /// Writes that were lost.
    pub lost: u64,
}

/// The power cut: writes a random part of the journal `side` to the image and removes the journal. Without
/// a journal nothing happens.
pub fn settle(image: impl AsRef<Path>, side: impl AsRef<Path>, seed: u64) -> io::Result<Settled> {
    let mut journal = Vec::new();
    match File::open(side.as_ref()) {
        Ok(mut f) => f.read_to_end(&mut journal)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Settled::default()),
        Err(e) => return Err(e),
    };
    let image = OpenOptions::new().write(true).open(image)?;
    let mut random = Random::new(seed);
    // How much arrives differs from cut to cut: nothing, little, half, most, all.
    let percent = [0, 10, 50, 90, 100][random.below(5) as usize];
    let mut done = Settled::default();
    for (kind, offset, data) in records(&journal) {
        if kind == Kind::Durable {
            image.write_all_at(data, offset)?;
            done.whole += 1;
        } else if random.below(8) == 0 {
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                if random.below(2) == 0 {
                    image.write_all_at(sector, offset + (i * SECTOR) as u64)?;
                }
            }
            done.torn += 1;
        } else if random.below(100) < percent {
            image.write_all_at(data, offset)?;
            done.whole += 1;
        } else {
            done.lost += 1;
        }
    }
    image.sync_data()?;
    std::fs::remove_file(side)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Access, FileDevice};

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vexfs-powercut-{}-{name}", std::process::id()))
    }

    /// Writes blocks, flushes, writes more, dies without its destructor; flushed blocks must be there and some
    /// of the others must not.
    fn run(name: &str, seed: u64, flushes: bool) -> (bool, Settled) {
        let (image, side) = (scratch(&format!("{name}{seed}")), scratch(&format!("{name}{seed}.side")));
        let _ = std::fs::remove_file(&side);
        drop(FileDevice::create(&image, 64 * BLOCK).unwrap());
        let file = FileDevice::open(&image, Access::ReadWrite).unwrap();
        let mut device = PowerCut::new(file, &side).unwrap();
        if !flushes {
            device = device.without_flushes();
        }
        for b in 0..16u64 {
            device.write_at(b * BLOCK, &[b as u8 + 1; BLOCK as usize]).unwrap();
        }
        device.flush().unwrap();
        for b in 16..32u64 {
            device.write_at(b * BLOCK, &[b as u8 + 1; BLOCK as usize]).unwrap();
        }
        device.write_durable_at(40 * BLOCK, &[99; BLOCK as usize]).unwrap();
        let mut buf = [0; 3 * BLOCK as usize];
        device.read_at(15 * BLOCK, &mut buf).unwrap();
        assert!(buf[..4096].iter().all(|b| *b == 16) && buf[8192..].iter().all(|b| *b == 18));
        // As if killed: no destructor runs. Only the lock is given back.
        let device = std::mem::ManuallyDrop::new(device);
        assert!(PowerCut::new(crate::MemDevice::default(), &side).is_err(), "an unsettled journal is refused");
        let settled = settle(&image, &side, seed).unwrap();
        drop(device.state());
        let bytes = std::fs::read(&image).unwrap();
        let holds = |b: u64, x: u8| bytes[(b * BLOCK) as usize..((b + 1) * BLOCK) as usize].iter().all(|y| *y == x);
        let durable = (0..16).all(|b| holds(b, b as u8 + 1)) && holds(40, 99);
        std::fs::remove_file(&image).unwrap();
        assert!(!side.exists());
        (durable, settled)
    }

    #[test]
    fn flushed_writes_survive_and_others_may_not() {
        let mut sum = Settled::default();
        for seed in 0..40 {
            let (durable, s) = run("with", seed, true);
            assert!(durable, "seed {seed}");
            sum = Settled { whole: sum.whole + s.whole, torn: sum.torn + s.torn, lost: sum.lost + s.lost };
        }
        assert!(sum.lost > 50 && sum.torn > 20 && sum.whole > 100, "{sum:?}");
    }

    #[test]
    fn without_flushes_data_is_lost() {
        let lost = (0..40).filter(|seed| !run("without", *seed, false).0).count();
        assert!(lost > 20, "only {lost} of 40 runs lost data");
    }

    #[test]
    fn a_torn_journal_ends_where_it_is_torn() {
        let mut j = record(Kind::Volatile, 0, &[1; 4096]);
        j.extend(record(Kind::Durable, 4096, &[2; 4096]));
        assert_eq!(records(&j).len(), 2);
        for cut in [1, 31, 32, 4000, 4127, 4128, 4129, 8000] {
            let n = records(&j[..cut]).len();
            assert_eq!(n, usize::from(cut >= 4128), "{cut}");
        }
    }
}
