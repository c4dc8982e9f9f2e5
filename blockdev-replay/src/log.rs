// SPDX-License-Identifier: GPL-2.0-only
//! The log format of the kernel's dm-log-writes target. One sector holds the superblock {u64 magic, u64 version,
//! u64 number of entries, u32 sector size}; then come the entries, each a sector that begins with {u64 sector,
//! u64 number of sectors, u64 flags, u64 length of inline data}, followed by the data that was written, except
//! for discards. All numbers are little-endian; sectors are of the log's own size. A mark's text is in its entry's sector.
//!
//! The number of entries may be out of date (QEMU brings it up to date at flushes only), so the end of the log is where
//! an entry is empty, not possible, or cut off. [`Log`] reads any file without panicking; [`LogWriter`] and
//! [`Recorder`] write the format.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use vexfs_embedded::Device;

/// First number of a log.
pub const MAGIC: u64 = 0x006a_7366_7773_6872;
/// The only version that there is.
pub const VERSION: u64 = 1;
/// All that was written before is durable; the data of the entry itself comes after that.
pub const FLUSH: u64 = 1;
/// The entry's data is durable.
pub const FUA: u64 = 2;
/// The sectors are of no interest any more; no data follows.
pub const DISCARD: u64 = 4;
/// A text that somebody put into the log.
pub const MARK: u64 = 8;
/// The data is a filesystem's metadata, as the filesystem says.
pub const METADATA: u64 = 16;
const KNOWN: u64 = FLUSH | FUA | DISCARD | MARK | METADATA;

/// Bytes of an entry's head.
const HEAD: usize = 32;
/// Unit of tearing, and the smallest sector.
pub const SECTOR: u64 = 512;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes written or discarded.
    pub len: u64,
    /// [`FLUSH`], [`FUA`], [`DISCARD`], [`MARK`], [`METADATA`].
    pub flags: u64,
    /// Where its data starts in the log file.
    pub data: u64,
    /// Where the entry ends in the log file.
    pub end: u64,
    /// Text of a mark.
    pub mark: Vec<u8>,
}

impl Entry {
    /// Whether it makes what came before it durable.
    pub fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    /// Whether it changes the disk.
    pub fn changes(&self) -> bool {
        self.len != 0 && self.flags & MARK == 0
    }

    /// Whether its own data is durable when it has ended.
    pub fn is_fua(&self) -> bool {
        self.flags & FUA != 0
    }

    /// Whether it discards.
    pub fn is_discard(&self) -> bool {
        self.flags & DISCARD != 0
    }

    /// Its flags as words.
    pub fn kind(&self) -> String {
        let mut words = Vec::new();
        for (flag, word) in
            [(FLUSH, "flush"), (FUA, "fua"), (DISCARD, "discard"), (MARK, "mark"), (METADATA, "metadata")]
        {
            if self.flags & flag != 0 {
                words.push(word);
            }
        }
        if self.changes() && !self.is_discard() {
            words.insert(0, "write");
        }
        words.join(" ")
    }
}

/// A log, read.
#[derive(Debug)]
pub struct Log {
    file: File,
    /// Its entries up to the last whole one.
    pub entries: Vec<Entry>,
    /// Size of its sectors.
    pub sector_size: u64,
    /// Number of entries that its superblock says.
    pub said: u64,
    /// Why the entries end before the file does, if they do.
    pub tail: Option<String>,
}

fn long(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|x| x.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl Log {
    /// Reads the heads of all entries.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Log> {
        Log::read(File::open(path)?)
    }

    /// The same for an open file.
    pub fn read(file: File) -> io::Result<Log> {
        let len = file.metadata()?.len();
        let mut head = [0; 28];
        if len < head.len() as u64 {
            return Err(invalid(format!("{len} bytes are too few for a log of writes")));
        }
        file.read_exact_at(&mut head, 0)?;
        if long(&head, 0) != MAGIC {
            return Err(invalid(format!("not a log of dm-log-writes: its magic number is {:#x}", long(&head, 0))));
        }
        if long(&head, 8) != VERSION {
            return Err(invalid(format!("version {} of the log format is not known", long(&head, 8))));
        }
        let said = long(&head, 16);
        let sector_size = u64::from(u32::from_le_bytes([head[24], head[25], head[26], head[27]]));
        if !sector_size.is_power_of_two() || !(SECTOR..=1 << 20).contains(&sector_size) {
            return Err(invalid(format!("a sector size of {sector_size} bytes is not possible")));
        }
        let mut log = Log { file, entries: Vec::new(), sector_size, said, tail: None };
        let mut at = sector_size;
        while at < len {
            match log.entry(at, len) {
                Ok(Some(e)) => {
                    at = e.end;
                    log.entries.push(e);
                }
                Ok(None) => break,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    log.tail = Some(format!("after entry {}: {e}", log.entries.len()));
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(log)
    }

    /// The entry at byte `at`; None if the log ends here.
    fn entry(&self, at: u64, len: u64) -> io::Result<Option<Entry>> {
        let room = len - at;
        if room < HEAD as u64 {
            return Err(invalid("the last entry is cut off".into()));
        }
        let mut head = [0; HEAD];
        self.file.read_exact_at(&mut head, at)?;
        if head == [0; HEAD] {
            return Ok(None);
        }
        let (sector, sectors, flags, inline) = (long(&head, 0), long(&head, 8), long(&head, 16), long(&head, 24));
        let ss = self.sector_size;
        let bytes =
            sectors.checked_mul(ss).filter(|n| sector.checked_mul(ss).and_then(|o| o.checked_add(*n)).is_some());
        let Some(bytes) = bytes.filter(|_| flags & !KNOWN == 0) else {
            return Err(invalid(format!("sector {sector}, {sectors} sectors, flags {flags:#x} is not an entry")));
        };
        let data = at.saturating_add(ss);
        let body = if flags & DISCARD != 0 { 0 } else { bytes };
        let Some(end) = data.checked_add(body).filter(|e| *e <= len || body == 0) else {
            return Err(invalid("the data of the last entry is cut off".into()));
        };
        let mut mark = Vec::new();
        if flags & MARK != 0 {
            mark.resize(inline.min(ss - HEAD as u64).min(room - HEAD as u64) as usize, 0);
            self.file.read_exact_at(&mut mark, at + HEAD as u64)?;
        }
        Ok(Some(Entry { offset: sector * ss, len: bytes, flags, data, end, mark }))
    }

    /// Bytes of the log file, for those who know where the data of an entry is.
    pub fn bytes(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }

    /// One more than the last byte that any entry touches.
    pub fn extent(&self) -> u64 {
        self.entries.iter().filter(|e| e.changes()).map(|e| e.offset + e.len).max().unwrap_or(0)
    }

    /// The first entry that was not whole in the first `bytes` bytes of the log file.
    pub fn entries_in(&self, bytes: u64) -> usize {
        self.entries.partition_point(|e| e.end <= bytes)
    }
}

/// Writes a log.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    at: u64,
    entries: u64,
}

impl LogWriter {
    /// A new log, with sectors of 512 bytes.
    pub fn create(path: impl AsRef<Path>) -> io::Result<LogWriter> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let mut head = [0; SECTOR as usize];
        head[..8].copy_from_slice(&MAGIC.to_le_bytes());
        head[8..16].copy_from_slice(&VERSION.to_le_bytes());
        head[24..28].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        file.write_all_at(&head, 0)?;
        Ok(LogWriter { file, at: SECTOR, entries: 0 })
    }

    /// Appends an entry. `len` is that of a discard; `data` is what was written, or a mark's text.
    pub fn append(&mut self, offset: u64, len: u64, flags: u64, data: &[u8]) -> io::Result<()> {
        let mark = flags & MARK != 0;
        let bytes = if flags & DISCARD != 0 {
            len
        } else if mark {
            0
        } else {
            data.len() as u64
        };
        if offset % SECTOR != 0 || bytes % SECTOR != 0 || (mark && data.len() > SECTOR as usize - HEAD) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut sector = [0; SECTOR as usize];
        let inline = if mark { data.len() as u64 } else { 0 };
        for (i, word) in [offset / SECTOR, bytes / SECTOR, flags, inline].into_iter().enumerate() {
            sector[8 * i..8 * i + 8].copy_from_slice(&word.to_le_bytes());
        }
        let body = if mark {
            sector[HEAD..HEAD + data.len()].copy_from_slice(data);
            &[][..]
        } else if flags & DISCARD != 0 {
            &[]
        } else {
            data
        };
        // The data first: an entry whose head is there has its data.
        self.file.write_all_at(body, self.at + SECTOR)?;
        self.file.write_all_at(&sector, self.at)?;
        self.at += SECTOR + body.len() as u64;
        self.entries += 1;
        self.file.write_all_at(&self.entries.to_le_bytes(), 16)
    }

    /// Number of entries.
    pub fn entries(&self) -> u64 {
        self.entries
    }
}

/// A device that logs what is written to it. Writes are logged when they have ended and flushes when they begin, so
/// that the log promises only what a device promises: a flush covers the writes that had ended before it was sent.
pub struct Recorder<D: Device> {
    inner: D,
    log: Mutex<LogWriter>,
}

impl<D: Device> Recorder<D> {
    /// Logs what is written to `inner` from now on.
    pub fn new(inner: D, log: LogWriter) -> Recorder<D> {
        Recorder { inner, log: Mutex::new(log) }
    }

    /// The log.
    pub fn log(&self) -> MutexGuard<'_, LogWriter> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Device> Device for Recorder<D> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, data)?;
        self.log().append(offset, 0, 0, data)
    }

    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, data)?;
        self.log().append(offset, 0, FUA, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.log().append(0, 0, FLUSH, &[])?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(offset, len)?;
        self.log().append(offset, len, DISCARD, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vexfs-log-{}-{name}", std::process::id()))
    }

    fn sample(name: &str) -> PathBuf {
        let path = scratch(name);
        let mut w = LogWriter::create(&path).unwrap();
        w.append(4096, 0, 0, &[1; 4096]).unwrap();
        w.append(0, 0, FLUSH, &[]).unwrap();
        w.append(8192, 0, FUA | METADATA, &[2; 1024]).unwrap();
        w.append(65536, 32768, DISCARD, &[]).unwrap();
        w.append(0, 0, MARK, b"here").unwrap();
        w.append(512, 0, 0, &[3; 512]).unwrap();
        assert_eq!(w.entries(), 6);
        path
    }

    #[test]
    fn what_is_written_is_read() {
        let path = sample("round");
        let log = Log::open(&path).unwrap();
        let kinds: Vec<String> = log.entries.iter().map(Entry::kind).collect();
        assert_eq!(kinds, ["write", "flush", "write fua metadata", "discard", "mark", "write"]);
        assert_eq!((log.said, log.tail.clone(), log.extent()), (6, None, 65536 + 32768));
        assert_eq!(log.entries[4].mark, b"here");
        for (n, byte, len) in [(0, 1, 4096), (2, 2, 1024), (5, 3, 512)] {
            let mut buf = vec![0; len];
            log.bytes(log.entries[n].data, &mut buf).unwrap();
            assert!(buf.iter().all(|b| *b == byte) && log.entries[n].len == len as u64, "entry {n}");
        }
        let end = std::fs::metadata(&path).unwrap().len();
        assert_eq!(log.entries[5].end, end);
        assert_eq!((log.entries_in(end), log.entries_in(end - 1), log.entries_in(0)), (6, 5, 0));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn entries_beyond_the_number_in_the_superblock_are_read() {
        let path = sample("stale");
        let f = File::options().write(true).open(&path).unwrap();
        f.write_all_at(&2u64.to_le_bytes(), 16).unwrap();
        // Space that was reserved for more, but holds nothing.
        f.set_len(std::fs::metadata(&path).unwrap().len() + 5000).unwrap();
        let log = Log::open(&path).unwrap();
        assert_eq!((log.entries.len(), log.said, log.tail), (6, 2, None));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn larger_sectors() {
        let path = scratch("4k");
        let mut b = vec![0; 4096 * 4];
        b[..8].copy_from_slice(&MAGIC.to_le_bytes());
        b[8] = 1;
        b[16] = 2;
        b[24..28].copy_from_slice(&4096u32.to_le_bytes());
        (b[4096], b[4096 + 8], b[8192]) = (3, 1, 9);
        b[3 * 4096 + 16] = FLUSH as u8;
        std::fs::write(&path, &b).unwrap();
        let log = Log::open(&path).unwrap();
        assert_eq!(log.entries.len(), 2);
        let e = &log.entries[0];
        assert_eq!((e.offset, e.len, e.data, e.end), (3 * 4096, 4096, 8192, 3 * 4096));
        assert!(log.entries[1].is_flush());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_log_cut_anywhere_gives_its_whole_entries() {
        let path = sample("cut");
        let bytes = std::fs::read(&path).unwrap();
        let whole = Log::open(&path).unwrap().entries;
        for len in 0..bytes.len() {
            std::fs::write(&path, &bytes[..len]).unwrap();
            match Log::open(&path) {
                Ok(log) => {
                    // A discard and a mark are whole when their head is there, though their sector is not.
                    let sure = whole.iter().filter(|e| e.end <= len as u64).count();
                    assert!(len >= 28 && log.entries.len() >= sure && log.entries.len() <= sure + 1, "{len} bytes");
                    assert_eq!(
                        log.entries.iter().map(|e| e.offset).collect::<Vec<_>>(),
                        whole[..log.entries.len()].iter().map(|e| e.offset).collect::<Vec<_>>()
                    );
                }
                Err(e) => assert!(len < 28, "{len} bytes: {e}"),
            }
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn any_bytes_are_refused_or_read() {
        let path = sample("noise");
        let bytes = std::fs::read(&path).unwrap();
        let mut random = vexfs_embedded::testing::Random::new(5);
        for _ in 0..2000 {
            let mut b = bytes.clone();
            for _ in 0..1 + random.below(6) {
                let at = random.below(b.len() as u64) as usize;
                b[at] = random.draw() as u8;
            }
            std::fs::write(&path, &b).unwrap();
            if let Ok(log) = Log::open(&path) {
                assert!(log.entries.iter().all(|e| e.is_discard() || e.data + e.len <= b.len() as u64));
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
}
