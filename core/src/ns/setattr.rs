// SPDX-License-Identifier: GPL-2.0-only
//! Changes of attributes, but for the size, which is the business of file data.

use super::{acl, inode, mode};
use crate::error::{Error, Step, Stop};
use crate::format::Inode;
use crate::op::{Ino, Reply, SetAttr};
use crate::txn::{Outcome, Txn};

/// Carries SetAttr without a size out.
#[inline(never)]
pub fn set(t: &mut Txn<'_>, ino: Ino, set: &SetAttr) -> Step<Outcome> {
    let mut i = inode::get(t, ino)?;
    if set.size.is_some() {
        return Err(Stop::Fail(Error::Invalid));
    }
    apply(t, ino, &mut i, set)?;
    inode::put(t, ino, &i)?;
    Ok(Outcome::Done(Reply::Attr(inode::attr(ino, &i))))
}

/// Applies all of `set` but the size to `i`, an access ACL included; the caller puts it. The ctime changes even if
/// `set` asks for nothing: that is how a chown(2) that leaves owner and group alone arrives.
#[inline(never)]
pub fn apply(t: &mut Txn<'_>, ino: Ino, i: &mut Inode, set: &SetAttr) -> Step<()> {
    let times = [set.atime, set.mtime, set.btime, set.ctime];
    if times.iter().chain([&set.accessed]).flatten().any(|t| t.nsec >= 1_000_000_000) {
        return Err(Stop::Fail(Error::Invalid));
    }
    if let Some(v) = set.accessed {
        inode::set_atime(i, v);
        let asks = set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || set.kill_suid;
        if !asks && times.iter().all(Option::is_none) {
            // To be read is no change.
            return Ok(());
        }
    }
    inode::touch(t, i);
    if let Some(m) = set.mode {
        i.mode = (i.mode & mode::TYPE) | (m & 0o7777);
        acl::chmod(t, ino, i.mode)?;
    }
    if let Some(uid) = set.uid {
        i.uid = uid;
    }
    if let Some(gid) = set.gid {
        i.gid = gid;
    }
    if set.kill_suid {
        i.mode = killed(i.mode);
    }
    if let Some(v) = set.atime {
        inode::set_atime(i, v);
    }
    if let Some(v) = set.mtime {
        inode::set_mtime(i, v);
    }
    if let Some(v) = set.btime {
        inode::set_btime(i, v);
    }
    if let Some(v) = set.ctime {
        inode::set_ctime(i, v);
    }
    Ok(())
}

/// The mode without the bits that a change of owner or contents takes away: set-user-id, and set-group-id if
/// the group may execute (without that it is no privilege). Directories keep theirs.
pub fn killed(m: u32) -> u32 {
    if mode::is_dir(m) {
        return m;
    }
    let gid = if m & 0o010 != 0 { mode::SETGID } else { 0 };
    m & !(mode::SETUID | gid)
}
