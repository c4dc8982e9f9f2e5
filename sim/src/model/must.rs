// SPDX-License-Identifier: GPL-2.0-only
//! Which operations can be done in a state, and the errors that the others have to give.

use super::*;

impl State {
    /// Whether the operation must succeed, or with which errors it must fail.
    pub fn must(&self, act: &Act) -> Must {
        match act {
            Act::Lookup { dir, name } => self.old_name(*dir, name).map(|_| ()),
            Act::GetAttr { ino } | Act::ListXattr { ino } => self.exists(*ino).map(|_| ()),
            Act::ByHandle { ino, generation } => match self.node(*ino) {
                Some(n) if n.generation == 0 || n.generation == *generation => Ok(()),
                _ => Err(&[Error::Stale]),
            },
            Act::ReadLink { ino } => match self.exists(*ino)?.body {
                Body::Link(_) => Ok(()),
                _ => Err(&[Error::Invalid]),
            },
            Act::ReadDir { dir, .. } => self.dir(*dir).map(|_| ()),
            Act::Parent { dir } => self.dir(*dir).map(|_| ()),
            Act::Read { ino, .. } | Act::Extents { ino, .. } => self.file(*ino).map(|_| ()),
            Act::Seek { ino, offset, .. } => {
                if *offset >= self.file(*ino)?.size {
                    return Err(&[Error::NoSuchOffset]);
                }
                Ok(())
            }
            Act::GetXattr { ino, name } => {
                let n = self.exists(*ino)?;
                if n.xattrs.contains_key(name) || (name == EMBEDDING_XATTR && n.embedding.is_some()) {
                    Ok(())
                } else {
                    Err(&[Error::NoAttribute])
                }
            }
            Act::StatFs | Act::Sync | Act::Checkpoint | Act::Discard => Ok(()),
            Act::Make { dir, name, .. } | Act::Symlink { dir, name, .. } => self.new_name(*dir, name),
            // A directory that is gone and only open takes nothing new.
            Act::Tmpfile { dir, .. } => match self.dir(*dir) {
                Ok(_) if self.node(*dir).is_some_and(|n| n.nlink == 0) => Err(&[Error::NotFound, Error::Stale]),
                r => r.map(|_| ()),
            },
            Act::Link { ino, dir, name } => {
                let n = self.exists(*ino)?;
                if n.is_dir() {
                    // Which mistake is found first is nobody's business.
                    return Err(match self.new_name(*dir, name) {
                        Ok(()) => &[Error::NotPermitted],
                        Err(_) => &[
                            Error::NotPermitted,
                            Error::Exists,
                            Error::NameTooLong,
                            Error::NotDirectory,
                            Error::NotFound,
                        ],
                    });
                }
                // Without a name it is there only if it is open: then it gets one again.
                self.new_name(*dir, name)
            }
            Act::Unlink { dir, name } => {
                let (_, n) = self.old_name(*dir, name)?;
                if n.is_dir() {
                    return Err(&[Error::IsDirectory]);
                }
                Ok(())
            }
            Act::Rmdir { dir, name } => {
                let n = self.old_name(*dir, name)?.1;
                if !n.is_dir() {
                    return Err(&[Error::NotDirectory]);
                }
                if n.is_full() {
                    return Err(&[Error::NotEmpty]);
                }
                Ok(())
            }
            Act::Rename { dir, name, new_dir, new_name, flags } => {
                let new = self.dir(*new_dir).map(|_| ()).and(State::name(new_name));
                let (ino, n) = match (self.old_name(*dir, name), new) {
                    (Ok(x), Ok(())) => x,
                    (Err(e), Ok(())) | (Ok(_), Err(e)) => return Err(e),
                    // Which of the two is found first is nobody's business.
                    (Err(_), Err(_)) => {
                        return Err(&[Error::NotFound, Error::NotDirectory, Error::NameTooLong, Error::Stale])
                    }
                };
                let target = self.entry(*new_dir, new_name).and_then(|t| Some((t, self.node(t)?)));
                let into = |ino, is_dir: bool, d| is_dir && self.is_below(d, ino);
                match (target, *flags) {
                    (Some(_), op::RENAME_NOREPLACE) => return Err(&[Error::Exists]),
                    (None, op::RENAME_EXCHANGE) => return Err(&[Error::NotFound]),
                    _ => {}
                }
                if into(ino, n.is_dir(), *new_dir) {
                    return Err(&[Error::Invalid]);
                }
                if let Some((t, tn)) = target {
                    if *flags == op::RENAME_EXCHANGE {
                        if into(t, tn.is_dir(), *dir) {
                            return Err(&[Error::Invalid]);
                        }
                        return Ok(());
                    }
                    if t == ino {
                        return Ok(());
                    }
                    match (n.is_dir(), tn.is_dir()) {
                        (true, false) => return Err(&[Error::NotDirectory]),
                        (false, true) => return Err(&[Error::IsDirectory]),
                        (true, true) if tn.is_full() => return Err(&[Error::NotEmpty]),
                        _ => {}
                    }
                } else if self.node(*new_dir).is_some_and(|n| n.nlink == 0) {
                    return Err(&[Error::NotFound, Error::Stale]);
                }
                Ok(())
            }
            Act::SetAttr { ino, set } => {
                let n = self.exists(*ino)?;
                match (set.size, &n.body) {
                    (None, _) | (Some(_), Body::File(_)) => Ok(()),
                    (Some(_), Body::Dir { .. }) => Err(&[Error::IsDirectory]),
                    (Some(_), _) => Err(&[Error::Invalid, Error::NotSupported, Error::NotPermitted]),
                }
            }
            Act::SetXattr { ino, name, flags, value } => {
                let n = self.exists(*ino)?;
                let there = n.xattrs.contains_key(name) || (name == EMBEDDING_XATTR && n.embedding.is_some());
                match (*flags, there) {
                    (op::XATTR_CREATE, true) => return Err(&[Error::Exists]),
                    (op::XATTR_REPLACE, false) => return Err(&[Error::NoAttribute]),
                    _ => {}
                }
                if name == EMBEDDING_XATTR {
                    crate::vectors::admit(None, &words(value))?;
                }
                Ok(())
            }
            Act::RemoveXattr { ino, name } => {
                let n = self.exists(*ino)?;
                if n.xattrs.contains_key(name) || (name == EMBEDDING_XATTR && n.embedding.is_some()) {
                    Ok(())
                } else {
                    Err(&[Error::NoAttribute])
                }
            }
            Act::Write { ino, .. } | Act::Fallocate { ino, .. } => self.file(*ino).map(|_| ()),
            Act::Open { ino } | Act::Release { ino } => self.exists(*ino).map(|_| ()),
            Act::Vec { dir, req, .. } => self.must_vec(*dir, req),
        }
    }
}
