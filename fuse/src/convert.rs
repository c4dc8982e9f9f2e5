// SPDX-License-Identifier: GPL-2.0-only
//! Between the core's types and those of the FUSE protocol.

use fuser::{Errno, FileAttr, FileType, INodeNo};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use vexfs_core::op::{Attr, Cred, Time};
use vexfs_core::Error;

pub(crate) fn errno(e: Error) -> Errno {
    Errno::from_i32(e.errno())
}

/// Type of an inode from the type bits of its mode.
pub(crate) fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// Type of an entry as readdir(3) has it.
pub(crate) fn entry_type(dtype: u8) -> FileType {
    file_type(u32::from(dtype) << 12)
}

pub(crate) fn system_time(t: Time) -> SystemTime {
    let whole = Duration::from_secs(t.sec.unsigned_abs());
    let start = if t.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    start.and_then(|s| s.checked_add(Duration::from_nanos(u64::from(t.nsec)))).unwrap_or(UNIX_EPOCH)
}

/// The time of a request. For times before 1970 `fuser` subtracts the nanoseconds where it should add
/// them (`system_time_from_time` in its time.rs); reading it back the same way gives what the kernel sent.
pub(crate) fn time(t: SystemTime) -> Time {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => Time { sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), nsec: d.subsec_nanos() },
        Err(e) => {
            let d = e.duration();
            Time { sec: i64::try_from(d.as_secs()).map_or(i64::MIN, |s| -s), nsec: d.subsec_nanos() }
        }
    }
}

pub(crate) fn file_attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino),
        size: a.size,
        blocks: a.blocks.saturating_mul(8),
        atime: system_time(a.atime),
        mtime: system_time(a.mtime),
        ctime: system_time(a.ctime),
        crtime: system_time(a.btime),
        kind: file_type(a.mode),
        perm: (a.mode & 0o7777) as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev as u32,
        blksize: 4096,
        flags: 0,
    }
}

/// Who a request is from, supplementary groups included. FUSE does not send these; they are read from
/// the process, which waits for the reply and so still exists (the caller of open(2)).
pub(crate) fn credentials(req: &fuser::Request) -> Cred {
    let groups = std::fs::read_to_string(format!("/proc/{}/status", req.pid()))
        .ok()
        .and_then(|s| {
            let line = s.lines().find_map(|l| l.strip_prefix("Groups:"))?;
            Some(line.split_whitespace().filter_map(|g| g.parse().ok()).collect())
        })
        .unwrap_or_default();
    Cred { uid: req.uid(), gid: req.gid(), groups }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_on_both_sides_of_1970() {
        for (sec, nsec) in [(0, 0), (1, 5), (1_700_000_000, 999_999_999), (i64::from(u32::MAX), 1)] {
            let t = Time { sec, nsec };
            assert_eq!(time(system_time(t)), t);
        }
        let early = system_time(Time { sec: -2, nsec: 800_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(early).unwrap(), Duration::from_millis(1200));
        // What `fuser` makes of (-2 s, 800 ms).
        let received = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(time(received), Time { sec: -2, nsec: 800_000_000 });
    }

    #[test]
    fn types() {
        assert_eq!(entry_type(4), FileType::Directory);
        assert_eq!(entry_type(8), FileType::RegularFile);
        assert_eq!(entry_type(10), FileType::Symlink);
        assert_eq!(entry_type(12), FileType::Socket);
        assert_eq!(file_type(libc::S_IFBLK | 0o600), FileType::BlockDevice);
    }
}
