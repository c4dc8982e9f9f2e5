// SPDX-License-Identifier: GPL-2.0-only
//! Paths and whole files, for programs that open a volume without a mount. Owns no state; works as the
//! superuser does.

use crate::host::Host;
use std::fmt;
use std::io::{self, Read, Write};
use vexfs_core::op::{Attr, DirEntry, Ino, Op, Reply, SetAttr, ROOT};
use vexfs_core::Error;

/// Most symbolic links followed on the way to one file, as in Linux.
const LINKS_MAX: u32 = 40;
/// Bytes of file contents moved by one operation.
const CHUNK: usize = 1 << 20;

const S_IFMT: u32 = libc::S_IFMT;

/// Why a file could not be read or written.
#[derive(Debug)]
pub enum FilesError {
    /// The volume says so.
    Volume(Error),
    /// The other side does: the source or the target of a copy.
    Stream(io::Error),
}

impl fmt::Display for FilesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FilesError::Volume(e) => e.fmt(f),
            FilesError::Stream(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for FilesError {}

impl From<Error> for FilesError {
    fn from(e: Error) -> FilesError {
        FilesError::Volume(e)
    }
}

impl From<io::Error> for FilesError {
    fn from(e: io::Error) -> FilesError {
        FilesError::Stream(e)
    }
}

/// Files of a volume by their paths. Paths are bytes, separated by `/`, from the root whether or not they
/// begin with one.
#[derive(Clone, Copy)]
pub struct Files<'a> {
    host: &'a Host,
}

impl<'a> Files<'a> {
    /// Of this volume.
    pub fn new(host: &'a Host) -> Files<'a> {
        Files { host }
    }

    fn attr_of(&self, op: Op) -> Result<Attr, Error> {
        match self.host.call(op)? {
            Reply::Attr(a) => Ok(a),
            _ => Err(Error::Corrupt),
        }
    }

    /// Attributes of an inode.
    pub fn attr(&self, ino: Ino) -> Result<Attr, Error> {
        self.attr_of(Op::GetAttr { ino })
    }

    /// Walks `path` from `dir`. A symbolic link at its end is followed if `follow`; a last component
    /// that does not exist is given back as (directory, `None`, name).
    fn walk(&self, path: &[u8], follow: bool) -> Result<(Attr, Option<Attr>, Vec<u8>), Error> {
        // Components still to walk, the next one last.
        let mut left: Vec<Vec<u8>> = Vec::new();
        let push = |left: &mut Vec<Vec<u8>>, path: &[u8]| {
            left.extend(path.split(|b| *b == b'/').filter(|c| !c.is_empty()).rev().map(<[u8]>::to_vec));
        };
        push(&mut left, path);
        let must_be_dir = path.ends_with(b"/");
        let mut links = 0;
        let mut dir = self.attr(ROOT)?;
        while let Some(name) = left.pop() {
            if dir.mode & S_IFMT != libc::S_IFDIR {
                return Err(Error::NotDirectory);
            }
            let last = left.is_empty();
            let next = match &name[..] {
                b"." => dir,
                b".." => match self.host.call(Op::Parent { dir: dir.ino })? {
                    Reply::Ino(ino) => self.attr(ino)?,
                    Reply::Attr(a) => a,
                    _ => return Err(Error::Corrupt),
                },
                _ => match self.attr_of(Op::Lookup { dir: dir.ino, name: name.clone() }) {
                    Err(Error::NotFound) if last => return Ok((dir, None, name)),
                    other => other?,
                },
            };
            if next.mode & S_IFMT == libc::S_IFLNK && (!last || follow || must_be_dir) {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Error::Invalid);
                }
                let Reply::Bytes(target) = self.host.call(Op::ReadLink { ino: next.ino })? else {
                    return Err(Error::Corrupt);
                };
                if target.first() == Some(&b'/') {
                    dir = self.attr(ROOT)?;
                }
                push(&mut left, &target);
                if left.is_empty() {
                    return Ok((dir, Some(dir), name));
                }
                continue;
            }
            if last {
                if must_be_dir && next.mode & S_IFMT != libc::S_IFDIR {
                    return Err(Error::NotDirectory);
                }
                return Ok((dir, Some(next), name));
            }
            dir = next;
        }
        Ok((dir, Some(dir), Vec::new()))
    }

    /// The inode at `path`; the last symbolic link is followed if `follow`.
    pub fn resolve(&self, path: &[u8], follow: bool) -> Result<Attr, Error> {
        self.walk(path, follow)?.1.ok_or(Error::NotFound)
    }

    /// The directory that holds the last component of `path`, and that component. It need not exist.
    pub fn parent(&self, path: &[u8]) -> Result<(Ino, Vec<u8>), Error> {
        let (dir, _, name) = self.walk(path, false)?;
        if name.is_empty() || name == b"." || name == b".." {
            return Err(Error::Invalid);
        }
        Ok((dir.ino, name))
    }

    /// All entries of a directory, without `.` and `..`.
    pub fn list(&self, dir: Ino, attrs: bool) -> Result<Vec<DirEntry>, Error> {
        let mut all: Vec<DirEntry> = Vec::new();
        loop {
            let cookie = all.last().map_or(0, |e| e.cookie);
            match self.host.call(Op::ReadDir { dir, cookie, max: 1 << 20, attrs })? {
                Reply::Entries(more) if more.is_empty() => return Ok(all),
                Reply::Entries(more) => all.extend(more),
                _ => return Err(Error::Corrupt),
            }
        }
    }

    /// Copies the contents of a file to `out`; gives back how many bytes.
    pub fn read_to(&self, ino: Ino, out: &mut dyn Write) -> Result<u64, FilesError> {
        let mut offset = 0u64;
        loop {
            let bytes = self.read_at(ino, offset, CHUNK)?;
            if bytes.is_empty() {
                return Ok(offset);
            }
            out.write_all(&bytes)?;
            offset += bytes.len() as u64;
        }
    }

    /// Up to `len` bytes of a file from `offset` on; fewer only at its end.
    pub fn read_at(&self, ino: Ino, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        match self.host.call(Op::Read { ino, offset, len })? {
            Reply::Bytes(b) => Ok(b),
            _ => Err(Error::Corrupt),
        }
    }

    /// The whole contents of the file at `path`.
    pub fn read(&self, path: &[u8]) -> Result<Vec<u8>, FilesError> {
        let attr = self.resolve(path, true)?;
        if attr.mode & S_IFMT == libc::S_IFDIR {
            return Err(Error::IsDirectory.into());
        }
        let mut out = Vec::new();
        self.read_to(attr.ino, &mut out)?;
        Ok(out)
    }

    /// The file at `path`, made with `mode` if it does not exist. An existing one keeps its contents.
    pub fn create(&self, path: &[u8], mode: u32) -> Result<Attr, Error> {
        let (dir, found, name) = self.walk(path, true)?;
        match found {
            Some(a) if a.mode & S_IFMT == libc::S_IFDIR => Err(Error::IsDirectory),
            Some(a) => Ok(a),
            None if path.ends_with(b"/") => Err(Error::IsDirectory),
            None => self.attr_of(Op::Make {
                dir: dir.ino,
                name,
                mode: libc::S_IFREG | mode & 0o7777,
                uid: 0,
                gid: 0,
                rdev: 0,
            }),
        }
    }

    /// Writes all of `data` at `offset`.
    pub fn write_at(&self, ino: Ino, mut offset: u64, data: &[u8]) -> Result<(), Error> {
        for chunk in data.chunks(CHUNK) {
            let mut rest = chunk;
            while !rest.is_empty() {
                match self.host.call(Op::Write { ino, offset, data: rest.to_vec(), kill_suid: false, times: None })? {
                    Reply::Written(0) => return Err(Error::Io),
                    Reply::Written(n) => {
                        offset += n as u64;
                        rest = rest.get(n..).unwrap_or_default();
                    }
                    _ => return Err(Error::Corrupt),
                }
            }
        }
        Ok(())
    }

    /// Makes or overwrites the file at `path` with what `source` gives; gives back how many bytes.
    pub fn write_from(&self, path: &[u8], mode: u32, source: &mut dyn Read) -> Result<u64, FilesError> {
        let attr = self.create(path, mode)?;
        if attr.mode & S_IFMT != libc::S_IFREG {
            return Err(Error::Invalid.into());
        }
        if attr.size > 0 {
            self.host.call(Op::SetAttr { ino: attr.ino, set: SetAttr { size: Some(0), ..SetAttr::default() } })?;
        }
        let mut offset = 0u64;
        let mut buf = vec![0; CHUNK];
        loop {
            let mut n = 0;
            while n < CHUNK {
                match source.read(&mut buf[n..]) {
                    Ok(0) => break,
                    Ok(k) => n += k,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e.into()),
                }
            }
            if n == 0 {
                return Ok(offset);
            }
            self.write_at(attr.ino, offset, &buf[..n])?;
            offset += n as u64;
        }
    }

    /// Makes or overwrites the file at `path` with `data`.
    pub fn write(&self, path: &[u8], mode: u32, mut data: &[u8]) -> Result<(), FilesError> {
        self.write_from(path, mode, &mut data).map(|_| ())
    }

    /// Makes a directory.
    pub fn mkdir(&self, path: &[u8], mode: u32) -> Result<Attr, Error> {
        match self.walk(path, false)? {
            (_, Some(_), _) => Err(Error::Exists),
            (dir, None, name) => self.attr_of(Op::Make {
                dir: dir.ino,
                name,
                mode: libc::S_IFDIR | mode & 0o7777,
                uid: 0,
                gid: 0,
                rdev: 0,
            }),
        }
    }

    /// Makes a directory and those above it that do not exist.
    pub fn mkdir_all(&self, path: &[u8], mode: u32) -> Result<Attr, Error> {
        let mut at = self.attr(ROOT)?;
        let mut so_far: Vec<u8> = Vec::new();
        for part in path.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
            so_far.push(b'/');
            so_far.extend_from_slice(part);
            at = match self.walk(&so_far, true)? {
                (_, Some(a), _) if a.mode & S_IFMT == libc::S_IFDIR => a,
                (_, Some(_), _) => return Err(Error::NotDirectory),
                (_, None, _) => self.mkdir(&so_far, mode)?,
            };
        }
        Ok(at)
    }

    /// Removes the file, link or empty directory at `path`.
    pub fn remove(&self, path: &[u8]) -> Result<(), Error> {
        match self.walk(path, false)? {
            (_, None, _) => Err(Error::NotFound),
            (_, Some(a), name) if a.ino == ROOT || name == b"." || name == b".." => Err(Error::Invalid),
            (dir, Some(a), name) if a.mode & S_IFMT == libc::S_IFDIR => {
                self.host.call(Op::Rmdir { dir: dir.ino, name }).map(|_| ())
            }
            (dir, Some(_), name) => self.host.call(Op::Unlink { dir: dir.ino, name }).map(|_| ()),
        }
    }

    /// Removes what is at `path` with everything below it.
    pub fn remove_all(&self, path: &[u8]) -> Result<(), Error> {
        let (dir, found, name) = self.walk(path, false)?;
        let top = found.ok_or(Error::NotFound)?;
        if top.ino == ROOT || name == b"." || name == b".." {
            return Err(Error::Invalid);
        }
        if top.mode & S_IFMT != libc::S_IFDIR {
            return self.host.call(Op::Unlink { dir: dir.ino, name }).map(|_| ());
        }
        // Depth first without recursion: a directory is removed when it is found empty.
        let mut stack: Vec<(Ino, Vec<u8>, Ino)> = vec![(dir.ino, name, top.ino)];
        while let Some((parent, name, ino)) = stack.last().cloned() {
            let mut below = false;
            for e in self.list(ino, false)? {
                if e.dtype == libc::DT_DIR {
                    stack.push((ino, e.name, e.ino));
                    below = true;
                } else {
                    self.host.call(Op::Unlink { dir: ino, name: e.name })?;
                }
            }
            if !below {
                self.host.call(Op::Rmdir { dir: parent, name })?;
                stack.pop();
            }
        }
        Ok(())
    }

    /// Makes everything durable that was done before.
    pub fn sync(&self) -> Result<(), Error> {
        self.host.call(Op::Sync).map(|_| ())
    }
}
