// SPDX-License-Identifier: GPL-2.0-only
//! Operations and replies: what a driver asks of a volume and what it hears back. Owns no state.

use alloc::vec::Vec;

/// Inode number. The root directory is [`ROOT`]; 0 is never an inode.
pub type Ino = u64;
/// Inode number of the root directory.
pub const ROOT: Ino = 1;

/// Wall-clock time, an argument of everything that needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Seconds since 1970.
    pub sec: i64,
    /// Nanoseconds, below 10^9.
    pub nsec: u32,
}

/// Who asks.
#[derive(Debug, Default)]
pub struct Cred {
    /// User id; 0 may do everything.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Attributes of an inode, as in stat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Size in bytes (symlink: length of the target; directory: number of entries).
    pub size: u64,
    /// Blocks of 4096 bytes held.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// For file handles.
    pub generation: u64,
    /// `format::inode_flags`.
    pub flags: u64,
}

/// A change of attributes; `None` leaves one as it is. Permission is the driver's business
/// (the kernel's, for mounts); consequences (ctime, clearing of set-id bits asked for with `kill_suid`) are ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// New permission bits (type bits are kept).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size; cuts or extends with zeros.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<Time>,
    /// New modification time.
    pub mtime: Option<Time>,
    /// New creation time.
    pub btime: Option<Time>,
    /// New ctime instead of now.
    pub ctime: Option<Time>,
    /// Time of a read: the new access time. That is no change of the inode; ctime stays.
    pub accessed: Option<Time>,
    /// Clear set-user-id, and set-group-id if the group may execute.
    pub kill_suid: bool,
}

/// When a write happened that is carried out later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteTimes {
    /// Modification time.
    pub mtime: Time,
    /// Time of the last change of the inode, at or after `mtime`.
    pub ctime: Time,
}

/// One directory entry.
#[derive(Debug)]
pub struct DirEntry {
    /// Inode.
    pub ino: Ino,
    /// As in readdir(3), `DT_…`.
    pub dtype: u8,
    /// Pass it to the next `ReadDir` to go on after this entry. Stays valid for the life of the directory.
    pub cookie: u64,
    /// Name, any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// Attributes, if asked for.
    pub attr: Option<Attr>,
}

/// `Rename`: fail if the target exists.
pub const RENAME_NOREPLACE: u32 = 1;
/// `Rename`: exchange the two.
pub const RENAME_EXCHANGE: u32 = 2;
/// `Rename`: leave a whiteout under the old name, a character device 0:0 that belongs to the directory's owner.
pub const RENAME_WHITEOUT: u32 = 4;
/// `Fallocate`: do not change the size.
pub const FALLOC_KEEP_SIZE: u32 = 1;
/// `Fallocate`: deallocate the range (needs KEEP_SIZE).
pub const FALLOC_PUNCH_HOLE: u32 = 2;
/// `Fallocate`: make the range read as zeros.
pub const FALLOC_ZERO_RANGE: u32 = 0x10;
/// `SetXattr`: fail if it exists.
pub const XATTR_CREATE: u32 = 1;
/// `SetXattr`: fail if it does not exist.
pub const XATTR_REPLACE: u32 = 2;

/// An operation. Names are single path components.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Op {
    // Reads: no change, may also run through `Volume::try_read`.
    Lookup {
        dir: Ino,
        name: Vec<u8>,
    },
    GetAttr {
        ino: Ino,
    },
    /// The inode that an NFS-style handle names; `Error::Stale` if it is gone or another.
    ByHandle {
        ino: Ino,
        generation: u64,
    },
    ReadLink {
        ino: Ino,
    },
    /// Entries after `cookie` (0: from the start) until `max` bytes of names and heads are full.
    /// `.` and `..` are the driver's.
    ReadDir {
        dir: Ino,
        cookie: u64,
        max: usize,
        attrs: bool,
    },
    /// Parent directory of a directory.
    Parent {
        dir: Ino,
    },
    Read {
        ino: Ino,
        offset: u64,
        len: usize,
    },
    /// Next data (`hole` false) or hole at or after `offset`.
    Seek {
        ino: Ino,
        offset: u64,
        hole: bool,
    },
    /// Extents that overlap the range, for FIEMAP; at most `max`.
    Extents {
        ino: Ino,
        offset: u64,
        len: u64,
        max: usize,
    },
    GetXattr {
        ino: Ino,
        name: Vec<u8>,
    },
    ListXattr {
        ino: Ino,
    },
    StatFs,
    // Namespace.
    /// Makes a file, directory or special file as the type bits of `mode` say (mknod, mkdir, open with O_CREAT).
    /// The driver has applied the umask; set-group-id directories and default ACLs are honoured here.
    Make {
        dir: Ino,
        name: Vec<u8>,
        mode: u32,
        uid: u32,
        gid: u32,
        rdev: u64,
    },
    Symlink {
        dir: Ino,
        name: Vec<u8>,
        target: Vec<u8>,
        uid: u32,
        gid: u32,
    },
    /// Makes a file without a name (open with O_TMPFILE). It counts as open once, and goes when it is released unless
    /// `Link` has given it a name.
    Tmpfile {
        /// Whose default ACL and set-group-id bit are honoured.
        dir: Ino,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    /// Another name. An inode without names gets one again if it is open; whether it may is the driver's business (Linux
    /// allows it for files of O_TMPFILE only).
    Link {
        ino: Ino,
        dir: Ino,
        name: Vec<u8>,
    },
    Unlink {
        dir: Ino,
        name: Vec<u8>,
    },
    Rmdir {
        dir: Ino,
        name: Vec<u8>,
    },
    /// Replies with the attributes of the whiteout if there is one.
    Rename {
        dir: Ino,
        name: Vec<u8>,
        new_dir: Ino,
        new_name: Vec<u8>,
        flags: u32,
    },
    SetAttr {
        ino: Ino,
        set: SetAttr,
    },
    SetXattr {
        ino: Ino,
        name: Vec<u8>,
        value: Vec<u8>,
        flags: u32,
    },
    RemoveXattr {
        ino: Ino,
        name: Vec<u8>,
    },
    // Contents.
    Write {
        ino: Ino,
        offset: u64,
        data: Vec<u8>,
        kill_suid: bool,
        /// Times of the change if the driver kept the data back (a page cache); else it is now.
        times: Option<WriteTimes>,
    },
    Fallocate {
        ino: Ino,
        mode: u32,
        offset: u64,
        len: u64,
    },
    // Open inodes: an inode without a name lives until it was released as often as opened.
    Open {
        ino: Ino,
    },
    Release {
        ino: Ino,
    },
    // Vectors: one frame of the protocol, sent to the directory `dir`.
    Request {
        dir: Ino,
        cred: Cred,
        frame: Vec<u8>,
    },
    /// A read-only frame (see `proto`); may run through `Volume::try_read`.
    Query {
        dir: Ino,
        cred: Cred,
        frame: Vec<u8>,
    },
    // The volume.
    /// Makes durable all that was acknowledged before.
    Sync,
    /// Writes a checkpoint.
    Checkpoint,
    /// Discards free blocks (fstrim) of the range in bytes, runs of at least `min` bytes.
    Discard {
        offset: u64,
        len: u64,
        min: u64,
    },
    /// Clean unmount: checkpoint, mark clean. Further operations fail with `Error::Aborted`.
    Close,
    // Internal, resubmitted by the core itself.
    /// Frees extents that a truncate or the death of an inode left behind.
    Trim {
        ino: Ino,
    },
    /// Takes the existing children of a new collection in.
    Populate {
        dir: Ino,
    },
}

impl Op {
    /// Whether it changes nothing: then `Volume::try_read` may know the answer.
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Op::Lookup { .. }
                | Op::GetAttr { .. }
                | Op::ByHandle { .. }
                | Op::ReadLink { .. }
                | Op::ReadDir { .. }
                | Op::Parent { .. }
                | Op::Read { .. }
                | Op::Seek { .. }
                | Op::Extents { .. }
                | Op::GetXattr { .. }
                | Op::ListXattr { .. }
                | Op::StatFs
                | Op::Query { .. }
        )
    }
}

/// What an operation gives back.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Reply {
    Done,
    Attr(Attr),
    Bytes(Vec<u8>),
    /// Bytes written.
    Written(usize),
    Entries(Vec<DirEntry>),
    Offset(u64),
    Extents(Vec<ExtentInfo>),
    StatFs(StatFs),
    Ino(Ino),
}

/// One extent, for FIEMAP.
#[derive(Clone, Copy, Debug)]
pub struct ExtentInfo {
    /// Offset in the file in bytes.
    pub logical: u64,
    /// Offset on the device in bytes.
    pub physical: u64,
    /// Length in bytes.
    pub len: u64,
    /// Allocated but not written.
    pub unwritten: bool,
}

/// Figures of the volume, as in statfs(2); blocks of 4096 bytes.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct StatFs {
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub inodes: u64,
    pub uuid: [u8; 16],
}
