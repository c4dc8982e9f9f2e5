// SPDX-License-Identifier: GPL-2.0-only
//! Permissions: mode bits, groups and POSIX ACLs, as the kernel decides them. Needed where the kernel does
//! not decide: for records of files that a search may name.

use super::{acl, inode, mode, xattr};
use crate::error::Step;
use crate::op::{Cred, Ino};
use crate::txn::Txn;

/// May read.
pub const READ: u32 = 4;
/// May write.
pub const WRITE: u32 = 2;
/// May execute or search.
pub const EXEC: u32 = 1;

/// Whether `cred` may do all of `mask` ([`READ`], [`WRITE`], [`EXEC`]) with `ino`.
#[inline(never)]
pub fn may(t: &Txn<'_>, ino: Ino, cred: &Cred, mask: u32) -> Step<bool> {
    let i = inode::get(t, ino)?;
    let want = mask & 7;
    if cred.uid == 0 {
        // Root may do everything, but execute only what somebody may execute.
        return Ok(want & EXEC == 0 || mode::is_dir(i.mode) || i.mode & 0o111 != 0);
    }
    if cred.uid == i.uid {
        return Ok((i.mode >> 6) & want == want);
    }
    // Without a bit for the group, which is the ACL's mask, the kernel does not ask the ACL.
    if let (true, Some(acl)) = (i.mode & 0o070 != 0, xattr::value(t, ino, acl::ACCESS)?) {
        return Ok(acl::allows(&acl, i.uid, i.gid, cred, want));
    }
    let bits = if acl::in_group(cred, i.gid) { i.mode >> 3 } else { i.mode };
    Ok(bits & want == want)
}
