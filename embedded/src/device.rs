// SPDX-License-Identifier: GPL-2.0-only
//! Devices: where the blocks of a volume are. [`FileDevice`] is an image file or a block device, opened so
//! that nobody else can write it at the same time; [`MemDevice`] is memory, for tests and fuzzers.

use crate::error::{OpenError, OpenErrorKind as Kind};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::time::{Duration, Instant};

/// A place for blocks. Methods are called from many threads at once.
pub trait Device: Send + Sync {
    /// Size in bytes.
    fn len(&self) -> u64;
    /// Whether it has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether writes fail.
    fn read_only(&self) -> bool {
        false
    }
    /// Fills `buf` from `offset` on.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`; it may stay in a volatile cache until [`Device::flush`].
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Writes `data` at `offset` and returns when it is durable.
    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)?;
        self.flush()
    }
    /// Returns when every write that had returned before is durable.
    fn flush(&self) -> io::Result<()>;
    /// The bytes are of no interest any more. Best effort.
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// How to open a [`FileDevice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading; several processes may at the same time.
    ReadOnly,
    /// For reading and writing, alone.
    ReadWrite,
    /// For reading and writing; only for reading if permissions or the medium forbid writing.
    PreferWrite,
}

/// An image file or a block device.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    path: PathBuf,
    len: u64,
    read_only: bool,
    block_device: bool,
}

// Linux ioctl numbers: _IOR(0x12, 114, size_t), _IO(0x12, 119) and _IO(0x12, 94).
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKROGET: libc::c_ulong = 0x125e;

/// How long to wait for a lock that is held for a moment only (udev probes block devices under one).
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

impl FileDevice {
    /// Opens `path` and locks it: exclusively for writing, shared for reading. Refuses what another process,
    /// a mount or a loop device uses.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<FileDevice, OpenError> {
        let path = path.as_ref();
        let name = path.display();
        let meta = std::fs::metadata(path).map_err(|e| open_error(path, &e))?;
        let kind = meta.file_type();
        let block_device = kind.is_block_device();
        if kind.is_dir() {
            return Err(OpenError::new(
                Kind::NotADevice,
                format!("{name}: is a directory; give an image file or a block device"),
            ));
        }
        if !block_device && !kind.is_file() {
            return Err(OpenError::new(
                Kind::NotADevice,
                format!("{name}: is neither a regular file nor a block device"),
            ));
        }
        let open = |write: bool| {
            // O_EXCL on a block device: the kernel refuses it while the device is mounted or held.
            let excl = if block_device { libc::O_EXCL } else { 0 };
            let file = OpenOptions::new().read(true).write(write).custom_flags(excl).open(path)?;
            // The kernel opens a read-only block device for writing, and fails the writes.
            if write && block_device && write_protected(&file) {
                return Err(io::Error::from_raw_os_error(libc::EROFS));
            }
            Ok(file)
        };
        let opened = match access {
            Access::ReadOnly => open(false).map(|f| (f, true)),
            Access::ReadWrite => open(true).map(|f| (f, false)),
            Access::PreferWrite => match open(true) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EROFS | libc::EPERM)) => {
                    open(false).map(|f| (f, true))
                }
                other => other.map(|f| (f, false)),
            },
        };
        let (file, read_only) = match opened {
            Ok(o) => o,
            Err(e) if block_device && e.raw_os_error() == Some(libc::EBUSY) => {
                let fix = match mounted_at(meta.rdev()) {
                    Some(dir) => format!("it is mounted on {dir}; unmount it first: umount {dir}"),
                    None => "it is in use by the kernel or by another process".to_string(),
                };
                return Err(OpenError::new(Kind::InUse, format!("{name}: {fix}")));
            }
            Err(e) if block_device && e.raw_os_error() == Some(libc::EROFS) => {
                return Err(OpenError::new(
                    Kind::Denied,
                    format!(
                        "{name}: the device is read-only, it can only be mounted (-o ro) and read; \
                         to make it writable: blockdev --setrw {name}"
                    ),
                ));
            }
            Err(e) => return Err(open_error(path, &e)),
        };
        if !block_device {
            if let Some(device) = loop_device_of(&meta) {
                return Err(OpenError::new(
                    Kind::InUse,
                    format!(
                        "{name}: attached to the loop device {device}; use that, or detach it: losetup -d {device}"
                    ),
                ));
            }
        }
        lock(&file, read_only).map_err(|e| match e.raw_os_error() {
            Some(libc::EWOULDBLOCK) => OpenError::new(Kind::InUse, in_use(path, &meta)),
            _ => open_error(path, &e),
        })?;
        let len = if block_device {
            let mut bytes = 0u64;
            // SAFETY: the ioctl writes one u64 to the pointer.
            if unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &mut bytes) } != 0 {
                return Err(open_error(path, &io::Error::last_os_error()));
            }
            bytes
        } else {
            // Again: it may have changed before the lock was taken.
            file.metadata().map_err(|e| open_error(path, &e))?.len()
        };
        Ok(FileDevice { file, path: path.to_path_buf(), len, read_only, block_device })
    }

    /// Makes the image file `path` with `len` bytes (sparse) or gives an existing one that size, and opens it.
    pub fn create(path: impl AsRef<Path>, len: u64) -> Result<FileDevice, OpenError> {
        let path = path.as_ref();
        OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(|e| match path.parent() {
            Some(dir) if e.kind() == io::ErrorKind::NotFound => {
                let text = format!("{}: the directory {} does not exist", path.display(), dir.display());
                OpenError::new(Kind::NotFound, text)
            }
            _ => open_error(path, &e),
        })?;
        let mut device = FileDevice::open(path, Access::ReadWrite)?;
        if !device.block_device && device.len != len {
            device.file.set_len(len).map_err(|e| {
                let why = match e.raw_os_error() {
                    Some(libc::EFBIG) => "the filesystem that it is on has no files of this size".to_string(),
                    _ => e.to_string(),
                };
                OpenError::new(Kind::Io, format!("{}: cannot make it {len} bytes long: {why}", path.display()))
            })?;
            device.len = len;
        }
        Ok(device)
    }

    /// Its path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }
}

impl Device for FileDevice {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let iov = libc::iovec { iov_base: data.as_ptr() as *mut _, iov_len: data.len() };
        // SAFETY: one vector that points to `data`, which the call only reads.
        let n = unsafe { libc::pwritev2(self.file.as_raw_fd(), &iov, 1, offset as libc::off_t, libc::RWF_DSYNC) };
        if n >= 0 && n as usize == data.len() {
            return Ok(());
        }
        // Too old a kernel, or a short write: the long way.
        self.write_at(offset, data)?;
        self.flush()
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let r = if self.block_device {
            let range = [offset, len];
            // SAFETY: the ioctl reads two u64 from the pointer.
            unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) }
        } else {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: no memory is involved.
            unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) }
        };
        if r == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Whether the block device refuses writes.
fn write_protected(file: &File) -> bool {
    let mut flag: libc::c_int = 0;
    // SAFETY: the ioctl writes one int to the pointer.
    unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET as _, &mut flag) == 0 && flag != 0 }
}

/// Text for an error of open(2) and its relatives.
fn open_error(path: &Path, e: &io::Error) -> OpenError {
    let name = path.display();
    let (kind, text) = match e.raw_os_error() {
        Some(libc::ENOENT) => (Kind::NotFound, format!("no such file; make a volume: mkfs.vexfs -s SIZE {name}")),
        Some(libc::EACCES | libc::EPERM) => {
            (Kind::Denied, "permission denied; check its owner and mode, or run as root".to_string())
        }
        Some(libc::EROFS) => (Kind::Denied, "it is on a read-only medium; open it read-only".to_string()),
        Some(libc::EBUSY) => (Kind::InUse, "it is in use".to_string()),
        _ => (Kind::Io, e.to_string()),
    };
    OpenError::new(kind, format!("{name}: {text}"))
}

fn lock(file: &File, shared: bool) -> io::Result<()> {
    let how = if shared { libc::LOCK_SH } else { libc::LOCK_EX };
    let start = Instant::now();
    loop {
        // SAFETY: no memory is involved.
        if unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) } == 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EWOULDBLOCK) if start.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => return Err(e),
        }
    }
}

/// The message for an image that another process has locked, with that process if it can be found.
fn in_use(path: &Path, meta: &std::fs::Metadata) -> String {
    let who = std::fs::read_to_string("/proc/locks").ok().and_then(|locks| {
        let (dev, ino) = (meta.dev(), meta.ino());
        let id = format!("{:02x}:{:02x}:{ino}", libc::major(dev), libc::minor(dev));
        let line = locks.lines().find(|l| l.contains("FLOCK") && l.split_whitespace().any(|w| w == id))?;
        let pid = line.split_whitespace().nth(4)?.parse::<u32>().ok()?;
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some(format!("process {pid} ({})", name.trim()))
    });
    let who = who.as_deref().unwrap_or("another process");
    format!("{}: in use by {who}; unmount the volume or end that process first", path.display())
}

/// Where the block device `rdev` is mounted.
fn mounted_at(rdev: u64) -> Option<String> {
    let id = format!("{}:{}", libc::major(rdev), libc::minor(rdev));
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|l| {
        let mut words = l.split_whitespace();
        (words.nth(2)? == id).then(|| words.nth(1).map(str::to_string))?
    })
}

/// The loop device that the file is attached to.
fn loop_device_of(meta: &std::fs::Metadata) -> Option<String> {
    for entry in std::fs::read_dir("/sys/block").ok()?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("loop") {
            continue;
        }
        let Ok(backing) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        if let Ok(m) = std::fs::metadata(backing.trim_end_matches('\n')) {
            if (m.dev(), m.ino()) == (meta.dev(), meta.ino()) {
                return Some(format!("/dev/{name}"));
            }
        }
    }
    None
}

/// A device in memory. What is written is durable at once; [`MemDevice::image`] gives the bytes.
#[derive(Debug, Default)]
pub struct MemDevice {
    bytes: RwLock<Vec<u8>>,
}

impl MemDevice {
    /// A device with these bytes.
    pub fn new(bytes: Vec<u8>) -> MemDevice {
        MemDevice { bytes: RwLock::new(bytes) }
    }

    /// A copy of its bytes.
    pub fn image(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

fn range_of(offset: u64, len: usize, size: usize) -> io::Result<std::ops::Range<usize>> {
    usize::try_from(offset)
        .ok()
        .and_then(|start| Some(start..start.checked_add(len)?))
        .filter(|r| r.end <= size)
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

impl Device for MemDevice {
    fn len(&self) -> u64 {
        self.bytes.read().unwrap_or_else(|e| e.into_inner()).len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.read().unwrap_or_else(|e| e.into_inner());
        buf.copy_from_slice(&bytes[range_of(offset, buf.len(), bytes.len())?]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(|e| e.into_inner());
        let range = range_of(offset, data.len(), bytes.len())?;
        bytes[range].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

impl<D: Device + ?Sized> Device for std::sync::Arc<D> {
    fn len(&self) -> u64 {
        (**self).len()
    }
    fn read_only(&self) -> bool {
        (**self).read_only()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, data)
    }
    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        (**self).write_durable_at(offset, data)
    }
    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).discard(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vexfs-device-{}-{name}", std::process::id()))
    }

    #[test]
    fn one_writer_or_many_readers() {
        let path = scratch("lock");
        let device = FileDevice::create(&path, 1 << 20).unwrap();
        device.write_at(4096, &[7; 4096]).unwrap();
        device.write_durable_at(8192, &[9; 4096]).unwrap();
        device.flush().unwrap();
        let mut buf = [0; 4096];
        device.read_at(4096, &mut buf).unwrap();
        assert_eq!(buf, [7; 4096]);
        device.read_at(8192, &mut buf).unwrap();
        assert_eq!(buf, [9; 4096]);
        device.discard(4096, 4096).unwrap();
        device.read_at(4096, &mut buf).unwrap();
        assert_eq!(buf, [0; 4096]);
        assert!(device.read_at((1 << 20) - 1, &mut buf).is_err());

        let e = FileDevice::open(&path, Access::ReadWrite).unwrap_err();
        assert_eq!(e.kind(), Kind::InUse);
        assert!(e.to_string().contains(&format!("process {}", std::process::id())), "{e}");
        assert_eq!(FileDevice::open(&path, Access::ReadOnly).unwrap_err().kind(), Kind::InUse);
        drop(device);
        let one = FileDevice::open(&path, Access::ReadOnly).unwrap();
        let two = FileDevice::open(&path, Access::ReadOnly).unwrap();
        assert!(one.read_only() && two.write_at(0, &[1; 4096]).is_err());
        assert_eq!(FileDevice::open(&path, Access::ReadWrite).unwrap_err().kind(), Kind::InUse);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn wrong_paths_are_explained() {
        let kind = |p: &str| FileDevice::open(p, Access::ReadWrite).unwrap_err().kind();
        assert_eq!(kind("/nonexistent/image"), Kind::NotFound);
        assert_eq!(kind("/tmp"), Kind::NotADevice);
        assert_eq!(kind("/dev/null"), Kind::NotADevice);
    }
}
